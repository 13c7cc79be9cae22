import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from anyprec_jax.affine import dequantize_affine
from anyprec_jax.array import AnyPrecArray, validate
from anyprec_jax.checkpoint import load, manifest, save
from anyprec_jax.checkpoint.orbax import load_artefact
from anyprec_jax.checkpoint.tree import narrowest_dtype
from anyprec_jax.config import QuantizeConfig
from anyprec_jax.inspection import inspect
from anyprec_jax.model_quantization import quantize_model
from anyprec_jax.models.decoder import LINEARS, forward
from anyprec_jax.models.fusion import unfused
from anyprec_jax.models.model import dequantized, with_affine_head
from tests.anyprec_jax.damage import damage_arrays
from tests.anyprec_jax.tiny import save_tiny_model, tiny_config

CONFIG = QuantizeConfig(seed_precision=2, parent_precision=5)
TOKENS = jnp.arange(1, 13, dtype=jnp.int32)[None]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artefact")
    source = save_tiny_model(folder / "tiny", tie_embeddings=False, attention_bias=True)
    quantize_model(source, folder / "artefact", CONFIG, calibration=None)
    return folder / "artefact"


def bytes_read() -> int:
    """By this process since it started, cached or not."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["rchar"])


def test_a_round_trip_is_lossless(artefact: Path, tmp_path: Path) -> None:
    model = load(artefact)
    save(tmp_path / "copy", model)
    copy = load(tmp_path / "copy")
    assert copy.config == model.config
    for a, b in zip(jax.tree.leaves(model.params), jax.tree.leaves(copy.params), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    for name in LINEARS:
        validate(unfused(copy.params["layers"])[name])


@pytest.mark.parametrize("precisions", [(2,), (3,), (2, 3), (2, 4), (3, 5), (2, 3, 4, 5)])
def test_a_part_computes_what_the_whole_does(artefact: Path, precisions: tuple[int, ...]) -> None:
    whole, part = load(artefact), load(artefact, precisions=precisions)
    matrix = part.params["layers"]["qkv_proj"]
    assert matrix.parent_precision == max(precisions)
    assert sorted(matrix.codebooks) == sorted(precisions)
    for w in precisions:
        expected = forward(whole.params, TOKENS, whole.config, precision=w)
        np.testing.assert_array_equal(forward(part.params, TOKENS, part.config, precision=w), expected)
    for w in {2, 3, 4, 5} - set(precisions):
        with pytest.raises(ValueError, match="precision"):
            forward(part.params, TOKENS, part.config, precision=w)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes with /proc")
def test_fewer_precisions_read_fewer_bytes(tmp_path: Path) -> None:
    """At most 1.05 times the bytes of the arrays that are needed, config and tokenizer not counted."""
    source = save_tiny_model(tmp_path / "wide", hidden_size=1024, intermediate_size=1024, num_layers=1, vocab_size=300)
    quantize_model(
        source, tmp_path / "artefact", QuantizeConfig(seed_precision=3, parent_precision=6), calibration=None
    )
    arrays = manifest.read(tmp_path / "artefact").arrays
    load(tmp_path / "artefact", precisions=(3,))  # modules are imported on first use, and count as read
    for precisions in [(3,), (3, 4), (5,)]:
        planes = [f"/bitplanes/{p}" for p in range(max(precisions))]
        books = [f"/codebooks/{w}" for w in precisions]
        needed = sum(
            entry.nbytes
            for name, entry in arrays.items()
            if name.endswith((*planes, *books)) or ("bitplanes" not in name and "codebooks" not in name)
        )
        files = sum(f.stat().st_size for f in (tmp_path / "artefact").glob("*.json"))
        before = bytes_read()
        load(tmp_path / "artefact", precisions=precisions)
        assert bytes_read() - before <= 1.05 * needed + files


def test_orbax_alone_reads_it(artefact: Path) -> None:
    """One leaf per plane, as any JAX project would restore it."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(artefact.absolute() / "checkpoint")
    matrix = load(artefact).params["layers"]["down_proj"]
    for p in range(5):
        np.testing.assert_array_equal(restored["layers"]["down_proj"]["bitplanes"][str(p)], matrix.bitplanes[:, p])
    for w in CONFIG.precisions:
        np.testing.assert_array_equal(restored["layers"]["down_proj"]["codebooks"][str(w)], matrix.codebooks[w])


def test_a_precision_that_is_not_stored(artefact: Path) -> None:
    for precisions in [(6,), (1,), (3, 9), ()]:
        with pytest.raises(ValueError, match=r"which holds 2, 3, 4, 5"):
            load(artefact, precisions=precisions)


def truncate_largest(folder: Path) -> None:
    largest = max((f for f in (folder / "checkpoint").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def edit_manifest(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        document = json.loads((folder / "manifest.json").read_text())
        change(document)
        (folder / "manifest.json").write_text(json.dumps(document))

    return edit


def huge(document: dict) -> None:
    entry = document["arrays"]["layers/q_proj/bitplanes/0"]
    entry["shape"] = [3, 1 << 40, 2]
    entry["nbytes"] = 3 * (1 << 40) * 2 * 4


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate_largest, "damaged"),
    "bits flipped": (damage_arrays, "damaged"),
    "no checkpoint": (lambda folder: shutil.rmtree(folder / "checkpoint"), "damaged or incomplete"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "config of another model": (
        lambda folder: (folder / "config.json").write_text(
            (folder / "config.json").read_text().replace('"num_hidden_layers": 3', '"num_hidden_layers": 4')
        ),
        "config.json calls for",
    ),
    "manifest cut short": (
        lambda folder: (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:100]),
        "damaged",
    ),
    "newer": (edit_manifest(lambda d: d.update(format_version=2)), "format version 2"),
    "another format": (edit_manifest(lambda d: d.update(format="other")), "not the manifest of"),
    "an array missing": (edit_manifest(lambda d: d["arrays"].pop("final_norm")), "lacks final_norm"),
    "an array too many": (edit_manifest(lambda d: d["arrays"].update(x=d["arrays"]["final_norm"])), "unexpected x"),
    "a huge shape": (edit_manifest(huge), "config.json calls for"),
    "a codebook of a newer kind": (
        edit_manifest(lambda d: d["matrices"]["layers/q_proj"]["codebooks"].update({"2": "deltas"})),
        "kind 'deltas'",
    ),
    "an affine linear": (
        edit_manifest(
            lambda d: d["matrices"]["layers/o_proj"].update(
                seed_precision=8, parent_precision=8, codebooks={"8": "affine"}
            )
        ),
        "layers/o_proj has codebooks",
    ),
    "an affine codebook among others": (
        edit_manifest(lambda d: d["matrices"]["layers/o_proj"]["codebooks"].update({"2": "affine"})),
        "an affine one is alone",
    ),
    "a huge embedding": (
        edit_manifest(
            lambda d: d["arrays"]["embedding/codes"].update(shape=[1 << 40, 48], nbytes=48 << 40)  # checked, not made
        ),
        "config.json calls for",
    ),
    "scales missing": (edit_manifest(lambda d: d["arrays"].pop("embedding/scale")), "lacks embedding/scale"),
    "codes of another type": (
        edit_manifest(
            lambda d: d["arrays"]["embedding/codes"].update(
                dtype="float32", nbytes=4 * d["arrays"]["embedding/codes"]["nbytes"]
            )
        ),
        "embedding/codes is float32, not uint8",
    ),
    "nonsense precisions": (
        edit_manifest(lambda d: d["matrices"]["layers/q_proj"].update(parent_precision=99)),
        "damaged",
    ),
    "manifest nested beyond reason": (lambda folder: (folder / "manifest.json").write_text("[" * 200_000), "damaged"),
    "config nested beyond reason": (
        lambda folder: (folder / "config.json").write_text("[" * 200_000),
        "cannot be used",
    ),
    "a million axes": (
        edit_manifest(lambda d: d["arrays"]["final_norm"].update(shape=[1] * 1_000_000)),
        r"shape \(1, 1, .{,80} is not a list of sizes",
    ),
    "a truth for a size": (
        edit_manifest(lambda d: d["arrays"]["final_norm"].update(shape=[True])),
        "not a list of sizes",
    ),
    "a truth for k": (edit_manifest(lambda d: d["matrices"]["layers/q_proj"].update(k=True)), "should be integers"),
    "a name that leads outside": (
        edit_manifest(lambda d: d["arrays"].update({"../../final_norm": d["arrays"].pop("final_norm")})),
        "damaged",
    ),
    "errors of another model": (
        edit_manifest(lambda d: d.update(errors={"precisions": [2, 3, 4], "linears": {"q_proj": [[3, 2, 1]] * 3}})),
        "the errors in its manifest are not those of its matrices",
    ),
    "no arrays at all": (edit_manifest(lambda d: d.pop("arrays")), "damaged"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_clear_line(artefact: Path, tmp_path: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    folder = tmp_path / "artefact"
    shutil.copytree(artefact, folder)
    damage(folder)
    with pytest.raises(ValueError, match=message) as raised:
        load(folder)
    assert "\n" not in str(raised.value)


def test_inspect_does_not_believe_any_k(artefact: Path, tmp_path: Path) -> None:
    shutil.copytree(artefact, tmp_path / "artefact")
    edit_manifest(lambda d: d["matrices"]["layers/q_proj"].update(k=1 << 60))(tmp_path / "artefact")
    with pytest.raises(ValueError, match="layers/q_proj has k = 1152921504606846976, config.json says"):
        inspect(tmp_path / "artefact")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (edit_manifest(lambda d: d["arrays"].pop("layers/q_proj/bitplanes/0")), "lacks layers/q_proj/bitplanes/0"),
        (edit_manifest(lambda d: d["arrays"].pop("embedding/codes")), "lacks embedding/codes"),
    ],
)
def test_inspect_refuses_a_damaged_artefact(break_it, message: str, artefact: Path, tmp_path: Path) -> None:
    shutil.copytree(artefact, tmp_path / "artefact")
    break_it(tmp_path / "artefact")
    with pytest.raises(ValueError, match=message):
        inspect(tmp_path / "artefact")


def test_inspect_counts_bits_from_shapes_alone(artefact: Path) -> None:
    report = inspect(artefact)
    config = tiny_config()
    hidden, intermediate, kv = config.hidden_size, config.intermediate_size, config.num_kv_heads * config.head_dim
    matrices = [(hidden, hidden), (kv, hidden), (kv, hidden), (hidden, hidden)]
    matrices += [(intermediate, hidden), (intermediate, hidden), (hidden, intermediate)]
    weights = sum(n * k for n, k in matrices)
    assert report["quantized_weights"] == config.num_layers * weights
    for w in (2, 3, 4, 5):
        read = sum(n * (w * 32 * -(-k // 32) + 16 * 2**w) for n, k in matrices) / weights
        assert report["bits_per_weight"]["read"][str(w)] == pytest.approx(read, rel=1e-12)
    resident = sum(n * (5 * 32 * -(-k // 32) + 16 * (4 + 8 + 16 + 32)) for n, k in matrices) / weights
    assert report["bits_per_weight"]["resident"] == pytest.approx(resident, rel=1e-12)
    assert report["arrays"]["layers/q_proj/bitplanes/0"]["shape"] == [3, 48, 2]
    json.dumps(report)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1.0, 1.5, 2.0**100], ml_dtypes.bfloat16),
        ([1.0, 1.0009765625], np.float16),
        ([1.0, 1.0009765625, 2.0**100], np.float32),
        ([0.1], np.float32),
        ([np.inf, 1.0], ml_dtypes.bfloat16),
    ],
)
def test_narrowest_dtype(values: list[float], dtype: type) -> None:
    array = np.asarray(values, np.float32)
    narrow = narrowest_dtype(lambda: [array], array.dtype)
    assert narrow == dtype
    np.testing.assert_array_equal(array.astype(narrow).astype(np.float32), array)


def test_narrowest_dtype_of_several() -> None:
    """Each alone would fit into 16 bits, but not into the same ones."""
    wide, fine = np.asarray([2.0**100], np.float32), np.asarray([1.0009765625], np.float32)
    assert narrowest_dtype(lambda: [wide, fine], wide.dtype) == np.float32
    assert narrowest_dtype(lambda: [fine, np.ones(1, np.float32)], fine.dtype) == np.float16


def test_a_matrix_that_breaks_its_invariants_is_not_saved(artefact: Path, tmp_path: Path) -> None:
    model = load(artefact)
    stack: AnyPrecArray = model.params["layers"]["o_proj"]
    books = stack.codebooks | {5: stack.codebooks[5].at[0, 1, 2].set(jnp.inf)}
    broken = AnyPrecArray(stack.bitplanes, books, stack.seed_precision, stack.parent_precision, stack.k)
    params = model.params | {"layers": model.params["layers"] | {"o_proj": broken}}
    with pytest.raises(ValueError, match="layers/o_proj of layer 0: codebook 5 must be finite, but row 1"):
        save(tmp_path / "broken", type(model)(config=model.config, params=params, tokenizer=None))
    assert list(tmp_path.iterdir()) == []


def test_saving_over_something_keeps_it(artefact: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(FileExistsError, match="already exists"):
        save(tmp_path / "file", load(artefact))
    assert (tmp_path / "file").read_text() == "precious"


def test_unquantized_leaves_come_back_in_float32(artefact: Path) -> None:
    assert load(artefact).params["final_norm"].dtype == jnp.float32


def test_unquantized_leaves_come_in_the_dtype_that_is_asked_for(artefact: Path) -> None:
    wide, narrow = load(artefact).params, load_artefact(artefact, dtype=jnp.bfloat16).params
    for wanted, got in (
        (wide["final_norm"], narrow["final_norm"]),
        (wide["layers"]["qkv_proj_bias"], narrow["layers"]["qkv_proj_bias"]),
    ):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_array_equal(got, np.asarray(wanted).astype(jnp.bfloat16))


def test_an_artefact_holds_the_seven_linears_and_memory_the_fused(artefact: Path) -> None:
    matrices = manifest.read(artefact).matrices
    assert {name for name in matrices if name.startswith("layers/")} == {f"layers/{name}" for name in LINEARS}
    assert set(load(artefact).params["layers"]) == {
        *("input_norm", "post_attention_norm", "o_proj", "o_proj_bias", "down_proj"),
        *("qkv_proj", "qkv_proj_bias", "gate_up_proj"),
    }


def test_embedding_and_head_are_affine(artefact: Path) -> None:
    found = manifest.read(artefact)
    assert {name for name, entry in found.matrices.items() if entry.is_affine} == {"embedding", "head"}
    assert found.matrices["embedding"].codebooks == {"8": "affine"}
    assert found.arrays["embedding/codes"].dtype == "uint8"
    assert found.precisions == (2, 3, 4, 5)


def test_an_artefact_without_an_affine_head_still_loads(artefact: Path, tmp_path: Path) -> None:
    """What versions before affine rows wrote: no kind but float16, embedding and head plain arrays."""
    model = load(artefact)
    plain = dict(model.params) | {name: dequantize_affine(model.params[name]) for name in ("embedding", "head")}
    save(tmp_path / "old", dataclasses.replace(model, params=plain))
    assert not any(entry.is_affine for entry in manifest.read(tmp_path / "old").matrices.values())
    old = load(tmp_path / "old")
    np.testing.assert_array_equal(old.params["embedding"], plain["embedding"])
    assert inspect(tmp_path / "old")["affine"] == {}
    a, b = (forward(m.params, TOKENS, m.config, precision=4) for m in (model, old))
    # The native product of affine rows rounds activations to 16 bits, the plain one nothing.
    np.testing.assert_allclose(a, b, atol=5e-4 * float(jnp.abs(jnp.asarray(b)).max()))


def test_an_affine_head_alone_is_not_saved(artefact: Path, tmp_path: Path) -> None:
    model = with_affine_head(dequantized(load(artefact), precision=5))
    with pytest.raises(ValueError, match="quantize it first"):
        save(tmp_path / "head", model)
    assert list(tmp_path.iterdir()) == []
