"""Compact codebooks in a model: on disk, in memory, through the commands."""

import contextlib
import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax import cli
from anyprec_jax.array import expand, nbytes, validate
from anyprec_jax.checkpoint import export, load, manifest, save
from anyprec_jax.checkpoint.orbax import open_artefact
from anyprec_jax.compact_codebooks import CompactCodebooks
from anyprec_jax.compaction import compact
from anyprec_jax.evaluate import evaluate
from anyprec_jax.generation import generate, readable_precisions
from anyprec_jax.inspection import inspect
from anyprec_jax.layout import natural
from anyprec_jax.models.decoder import LINEARS, forward
from anyprec_jax.models.expansion import expanded
from anyprec_jax.models.fusion import unfused
from anyprec_jax.models.model import dequantized
from tests.anyprec_jax.tiny import quantized_tiny_model, save_tiny_model

TOKENS = jnp.arange(1, 13, dtype=jnp.int32)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model with codebooks of either kind, readable at 2 to 4 bits, and `decoded`, whose float16 codebooks were compact once."""
    folder = tmp_path_factory.mktemp("compact")
    save(folder / "float16", quantized_tiny_model(num_layers=2))
    export(folder / "float16", folder / "compact", "artefact", codebooks="compact")
    export(folder / "compact", folder / "decoded", "artefact", codebooks="float16")
    return folder


def same_leaves(a, b) -> None:
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_the_export_is_what_compact_makes(folder: Path) -> None:
    layers = quantized_tiny_model(num_layers=2).params["layers"]
    stored = unfused(load(folder / "compact").params["layers"])
    for name in LINEARS:
        validate(natural(stored[name]))
        same_leaves(natural(stored[name]), compact(layers[name]))
    assert manifest.read(folder / "compact").provenance["quantization"]["codebooks"] == "compact"
    assert manifest.read(folder / "decoded").provenance["quantization"]["codebooks"] == "float16, once compact"
    entry = manifest.read(folder / "compact").matrices["layers/q_proj"]
    assert entry.is_compact and entry.codebooks == {"2": "compact", "3": "compact", "4": "compact"}


def test_a_round_trip_is_lossless(folder: Path, tmp_path: Path) -> None:
    model = load(folder / "compact")
    assert isinstance(model.params["layers"]["qkv_proj"].codebooks, CompactCodebooks)  # fused, and still compact
    save(tmp_path / "copy", model)
    same_leaves(load(tmp_path / "copy").params, model.params)


def test_it_computes_what_the_codebooks_stand_for(folder: Path, quick_compilation: None) -> None:
    """In `forward`, expanded before or not, in generation and in evaluation."""
    small, plain = load(folder / "compact"), load(folder / "decoded")
    expected = forward(plain.params, TOKENS, plain.config, precision=3)
    np.testing.assert_array_equal(forward(small.params, TOKENS, small.config, precision=3), expected)
    ahead = small.params | {"layers": expanded(small.params["layers"], 3)}
    np.testing.assert_array_equal(forward(ahead, TOKENS, small.config, precision=3), expected)
    texts = [generate(model, [1, 2, 3], precision=3, max_new_tokens=1).tokens for model in (small, plain)]
    assert texts[0] == texts[1]
    scores = [evaluate(m, np.arange(20), precisions=[3], sequence_length=20) for m in (small, plain)]
    assert scores[0] == scores[1]
    same_leaves(dequantized(small, precision=4).params, dequantized(plain, precision=4).params)


@pytest.mark.parametrize("precisions", [(2,), (3,), (2, 4)])
def test_a_part_of_the_precisions(folder: Path, precisions: tuple[int, ...]) -> None:
    part, whole = load(folder / "compact", precisions=precisions), load(folder / "decoded")
    assert readable_precisions(part) == precisions
    for name in ("qkv_proj", "down_proj"):
        matrix, other = part.params["layers"][name], whole.params["layers"][name]
        assert max(matrix.codebooks.scales) == matrix.parent_precision == max(precisions)
        for w in precisions:
            np.testing.assert_array_equal(expand(matrix, w).codebooks[w], other.codebooks[w])
    with pytest.raises(ValueError, match="precision"):
        forward(part.params, TOKENS, part.config, precision=({2, 3, 4} - set(precisions)).pop())


def test_a_part_can_be_saved_with_what_it_is_made_of(folder: Path, tmp_path: Path) -> None:
    save(tmp_path / "part", load(folder / "compact", precisions=(3,)))
    same_leaves(
        load(tmp_path / "part", precisions=(3,)).params["layers"]["o_proj"],
        load(folder / "compact", precisions=(3,)).params["layers"]["o_proj"],
    )
    source = open_artefact(folder / "compact", precisions=(3,))
    assert source.precisions == (3,) and source.matrices["layers/o_proj"].seed_precision == 2


def test_plain_weights_are_those_of_the_decoded_codebooks(folder: Path, tmp_path: Path) -> None:
    for name in ("compact", "decoded"):
        export(folder / name, tmp_path / name, "huggingface", precision=4)
    same_leaves(load(tmp_path / "compact").params, load(tmp_path / "decoded").params)


def test_inspect_says_what_either_kind_takes(folder: Path) -> None:
    reports = {name: inspect(folder / name) for name in ("float16", "compact")}
    kinds = reports["compact"]["resident_bits_by_codebooks"]
    assert reports["float16"]["resident_bits_by_codebooks"] == kinds
    for name, report in reports.items():
        assert report["codebooks"] == [name]
        assert report["bits_per_weight"]["resident"] == pytest.approx(kinds[name])
        matrices = unfused(load(folder / name).params["layers"])
        assert sum(nbytes(matrices[linear]) for linear in LINEARS) == report["bytes"]["quantized"]
    json.dumps(reports["compact"])


def edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edited(folder: Path) -> None:
        document = json.loads((folder / "manifest.json").read_text())
        change(document)
        (folder / "manifest.json").write_text(json.dumps(document))

    return edited


def as_float32(document: dict) -> None:
    entry = document["arrays"]["layers/q_proj/scales/3"]
    entry.update(dtype="float32", nbytes=2 * entry["nbytes"])


DAMAGE: dict[str, tuple[Callable[[dict], object], str]] = {
    "mixed kinds": (lambda d: d["matrices"]["layers/q_proj"]["codebooks"].update({"3": "float16"}), "compact or none"),
    "entries missing": (lambda d: d["arrays"].pop("layers/q_proj/entries/3"), "lacks layers/q_proj/entries/3"),
    "a codebook too many": (
        lambda d: d["arrays"].update({"layers/q_proj/codebooks/3": d["arrays"]["layers/q_proj/entries/3"]}),
        "unexpected layers/q_proj/codebooks/3",
    ),
    "huge entries": (
        lambda d: d["arrays"]["layers/q_proj/entries/3"].update(shape=[2, 48, 1 << 40], nbytes=96 << 40),
        "config.json calls for",
    ),
    "scales of another type": (as_float32, "layers/q_proj/scales/3 is float32, not float16"),
    "another seed": (
        lambda d: d["matrices"]["layers/q_proj"].update(seed_precision=3, codebooks={"3": "compact", "4": "compact"}),
        "damaged",
    ),
    "a compact embedding": (
        lambda d: d["matrices"].update(embedding=d["matrices"]["layers/q_proj"] | {"k": 48}),
        "embedding has codebooks",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_hostile_manifests_are_refused(kind: str, folder: Path, tmp_path: Path) -> None:
    change, message = DAMAGE[kind]
    shutil.copytree(folder / "compact", tmp_path / "artefact")
    edit(change)(tmp_path / "artefact")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "artefact")


def test_scales_that_are_not_finite_are_refused(folder: Path, tmp_path: Path) -> None:
    """Also by a reader: whoever writes an artefact writes the checksums, too."""
    model = load(folder / "compact")
    layers = unfused(model.params["layers"])
    codebooks = layers["o_proj"].codebooks
    scales = codebooks.scales | {3: codebooks.scales[3].at[1, 2, 0].set(jnp.nan)}
    layers["o_proj"] = dataclasses.replace(layers["o_proj"], codebooks=dataclasses.replace(codebooks, scales=scales))
    changed = dataclasses.replace(model, params=model.params | {"layers": layers})
    with pytest.raises(ValueError, match="layers/o_proj of layer 1: scales/3 must be finite"):
        save(tmp_path / "broken", changed)


def test_mistakes_of_export(folder: Path, tmp_path: Path) -> None:
    for target in ("huggingface", "upstream"):
        with pytest.raises(ValueError, match="float16 or compact, of an artefact only"):
            export(folder / "float16", tmp_path / "out", target, codebooks="compact")


def anyprec(*arguments: object) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        assert cli.main([str(argument) for argument in arguments]) == 0, stderr.getvalue()
    return stdout.getvalue()


def test_the_commands(tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "tiny", num_layers=1)
    precisions = ("--seed-precision", 2, "--parent-precision", 7)
    for kind in ("float16", "compact"):
        anyprec("quantize", source, tmp_path / kind, "--uniform", *precisions, "--codebooks", kind)
    with pytest.raises(AssertionError, match="other settings"):
        anyprec("quantize", source, tmp_path / "compact", "--uniform", *precisions)
    anyprec("export", tmp_path / "float16", tmp_path / "exported", "--format", "artefact", "--codebooks", "compact")
    same_leaves(load(tmp_path / "exported").params, load(tmp_path / "compact").params)
    shown = anyprec("inspect", tmp_path / "compact")
    bits = inspect(tmp_path / "compact")["resident_bits_by_codebooks"]
    assert f"codebooks: compact; resident bits per weight with {bits['float16']:.2f} float16" in shown
