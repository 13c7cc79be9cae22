"""Models converted from one format into another, on disk."""

import dataclasses
import hashlib
import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from anyprec_jax.checkpoint import huggingface, load, manifest, save
from anyprec_jax.checkpoint.formats import export, open_source
from anyprec_jax.checkpoint.source import plain_source
from anyprec_jax.checkpoint.tree import chunk_shape
from anyprec_jax.layout import natural
from anyprec_jax.models.decoder import forward
from anyprec_jax.models.fusion import LINEARS, unfused
from anyprec_jax.models.model import dequantized, with_affine_head
from anyprec_jax.models.precision_map import PrecisionMap
from anyprec_jax.ops import dequantize
from tests.anyprec_jax.damage import damage_arrays
from tests.anyprec_jax.tiny import quantized_tiny_model, tiny_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "orbax_export.py"
TOKENS = np.arange(1, 13)
SIZES: dict[str, int] = {"hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model as an artefact and in the authors' layout, and a plain one."""
    folder = tmp_path_factory.mktemp("export")
    save(folder / "artefact", with_affine_head(quantized_tiny_model(**SIZES, tie_embeddings=False)))
    export(folder / "artefact", folder / "upstream", "upstream")
    save(folder / "head", quantized_tiny_model(**SIZES, tie_embeddings=False))  # whose product is that of plain rows
    save(folder / "saved", tiny_model())
    export(folder / "saved", folder / "plain", "huggingface")
    return folder


def logits(path: Path, precision: int | None = None) -> np.ndarray:
    model = load(path)
    result = forward(model.params, jnp.asarray(TOKENS[None]), model.config, precision=precision)
    assert isinstance(result, jax.Array)
    return np.asarray(result[0])


def assert_close(got: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert float(np.abs(got - expected).max()) <= tolerance * float(np.abs(expected).max())


def test_transformers_computes_what_we_do_at_that_precision(folder: Path, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    for precision in (2, 3):
        export(folder / "head", tmp_path / f"{precision}", "huggingface", precision=precision)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f"{precision}")
        assert theirs.dtype == torch.float32
        with torch.no_grad():
            got = theirs(torch.from_numpy(TOKENS[None])).logits[0].numpy()
        assert_close(got, logits(folder / "head", precision), 2e-5)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "2")("abc")["input_ids"]


def test_plain_weights_are_those_that_the_precision_stands_for(folder: Path, tmp_path: Path) -> None:
    """Linears to the bit; affine rows to a rounding, as XLA may fuse their two operations."""
    for source in ("artefact", "upstream"):
        export(folder / source, tmp_path / source, "huggingface", precision=3)
        expected = dequantized(load(folder / source), precision=3).params
        got = load(tmp_path / source).params
        assert set(got) == set(expected)
        for name in ("embedding", "head"):
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-6, atol=2.0**-22)
        for a, b in zip(jax.tree.leaves(got["layers"]), jax.tree.leaves(expected["layers"]), strict=True):
            np.testing.assert_array_equal(a, b)


def test_every_matrix_at_a_precision_of_its_own(folder: Path, tmp_path: Path) -> None:
    layers = range(load(folder / "artefact").config.num_layers)
    mixed = PrecisionMap({name: [(2, 3, 4)[(i + len(name)) % 3] for i in layers] for name in LINEARS})
    for target in ("huggingface", "orbax"):
        export(folder / "artefact", tmp_path / target, target, precision=mixed)
        got = load(tmp_path / target).params["layers"]
        for name, stack in unfused(load(folder / "artefact").params["layers"]).items():
            for layer in layers if name in LINEARS else ():
                one = jax.tree.map(lambda leaf, layer=layer: leaf[layer], natural(stack))
                np.testing.assert_array_equal(got[name][layer], dequantize(one, precision=mixed.of(name)[layer]))
    record = json.loads((tmp_path / "huggingface" / "export.json").read_text())
    assert record["read_at"] == {name: list(mixed.of(name)) for name in LINEARS}
    for wrong, complaint in (
        (PrecisionMap({"o_proj": (3,)}), "the precision map has no"),
        (PrecisionMap(dict.fromkeys(LINEARS, (3,))), "layers"),
    ):
        with pytest.raises(ValueError, match=complaint):
            export(folder / "artefact", tmp_path / "out", "huggingface", precision=wrong)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrower_weights(dtype: str, folder: Path, tmp_path: Path) -> None:
    """float16 holds every centroid exactly, bfloat16 rounds."""
    export(folder / "artefact", tmp_path / "out", "huggingface", precision=4, dtype=dtype)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype
    stored = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    full = dequantized(load(folder / "artefact"), precision=4).params["layers"]["o_proj"]
    for layer in range(3):
        values = stored[f"model.layers.{layer}.self_attn.o_proj.weight"]
        assert values.dtype.name == dtype
        np.testing.assert_array_equal(values, np.asarray(full)[layer].astype(values.dtype))
    assert (dtype == "float16") == np.array_equal(values.astype(np.float32), np.asarray(full)[2])


def test_weights_too_large_for_float16_are_named(tmp_path: Path) -> None:
    model = tiny_model()
    layers = model.params["layers"]
    params = model.params | {"layers": layers | {"up_proj": layers["up_proj"].at[1, 2, 3].set(1e6)}}
    save(tmp_path / "plain", dataclasses.replace(model, params=params))
    with pytest.raises(ValueError, match="layers/up_proj of layer 1 has weights beyond float16's 65504"):
        export(tmp_path / "plain", tmp_path / "out", "huggingface", dtype="float16")
    assert not (tmp_path / "out").exists()
    export(tmp_path / "plain", tmp_path / "out", "huggingface", dtype="bfloat16")


def test_plain_models_keep_their_dtypes(tmp_path: Path) -> None:
    """From safetensors of several dtypes into an Orbax folder and back."""
    save(tmp_path / "plain", tiny_model())
    tensors = safetensors.numpy.load_file(tmp_path / "plain" / "model.safetensors")
    mixed = {
        name: values.astype(ml_dtypes.bfloat16 if "mlp" in name else np.float16 if "attn" in name else np.float32)
        for name, values in tensors.items()
    }
    safetensors.numpy.save_file(mixed, tmp_path / "plain" / "model.safetensors")
    export(tmp_path / "plain", tmp_path / "orbax", "orbax")
    arrays = manifest.read(tmp_path / "orbax").arrays
    assert arrays["layers/up_proj"].dtype == "bfloat16" and arrays["layers/q_proj"].dtype == "float16"
    export(tmp_path / "orbax", tmp_path / "back", "huggingface")
    back = safetensors.numpy.load_file(tmp_path / "back" / "model.safetensors")
    assert set(back) == set(mixed)
    for name, values in mixed.items():
        assert back[name].dtype == values.dtype
        np.testing.assert_array_equal(back[name], values)
    with pytest.raises(ValueError, match="no precisions to choose from"):
        load(tmp_path / "orbax", precisions=[3])


def test_an_orbax_folder_is_a_model(folder: Path, tmp_path: Path) -> None:
    export(folder / "head", tmp_path / "orbax", "orbax", precision=3)
    found = manifest.read(tmp_path / "orbax")
    assert found.matrices == {} and found.provenance["read_at"] == 3
    assert_close(logits(tmp_path / "orbax"), logits(folder / "head", 3), 1e-5)


def test_the_example_computes_our_logits_without_us(folder: Path, tmp_path: Path) -> None:
    example = runpy.run_path(str(EXAMPLE))
    config = json.loads((folder / "head" / "config.json").read_text())
    export(folder / "head", tmp_path / "orbax", "orbax", precision=4)
    for path, precision in ((folder / "head", 2), (tmp_path / "orbax", None)):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            got = example["logits"](example["parameters"](path, precision), config, jnp.asarray(TOKENS))
        assert_close(got, logits(folder / "head", precision or 4), 1e-5)


def test_the_example_imports_nothing_of_ours(folder: Path) -> None:
    program = (
        f"import runpy, sys; sys.argv[1:] = [{str(folder / 'artefact')!r}, '--precision', '3']; "
        f"runpy.run_path({str(EXAMPLE)!r}, run_name='__main__'); "
        "assert not any(name.split('.')[0] in ('anyprec_jax', 'bandwise_commands') for name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    best = int(np.argmax(logits_after(folder / "artefact", [1, 2, 3])))
    assert done.stdout.splitlines()[0].startswith(f"token {best}: ")


def logits_after(path: Path, tokens: list[int]) -> np.ndarray:
    model = load(path)
    result = forward(model.params, jnp.asarray([tokens]), model.config, precision=3)
    assert isinstance(result, jax.Array)
    return np.asarray(result[0, -1])


def test_sizes_and_checksums(folder: Path, tmp_path: Path) -> None:
    """As `sha256sum` would give them, beside where the files came from."""
    export(folder / "artefact", tmp_path / "out", "huggingface", precision=2)
    for path, file in ((tmp_path / "out", "model.safetensors"), (folder / "upstream", "pytorch_model.bin")):
        record = json.loads((path / "export.json").read_text())
        content = (path / file).read_bytes()
        assert record["files"] == {file: {"nbytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
        assert record["source"] == "artefact"
    assert json.loads((tmp_path / "out" / "export.json").read_text())["read_at"] == 2


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    file.write_bytes(bytes(content))


def largest_of(folder: Path) -> Path:
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def changed_record(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        record = json.loads((folder / "export.json").read_text())
        change(record)
        (folder / "export.json").write_text(json.dumps(record))

    return edit


def changed_checksum(folder: Path) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    document["arrays"]["layers/o_proj/bitplanes/1"]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(document))


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "plain, a bit": ("plain", lambda p: flip(p / "model.safetensors"), "does not match its checksum in export.json"),
    "plain, cut short": ("plain", lambda p: largest_of(p).write_bytes(largest_of(p).read_bytes()[:-9]), "not a whole"),
    "plain, missing": ("plain", lambda p: (p / "model.safetensors").unlink(), "no weights"),
    "upstream, a bit": ("upstream", lambda p: flip(p / "pytorch_model.bin"), "does not match its checksum"),
    "artefact, bits": ("artefact", damage_arrays, "damaged"),
    "artefact, a checksum": ("artefact", changed_checksum, "layers/o_proj/bitplanes/1 does not match its checksum"),
    "record of another file": ("plain", changed_record(lambda r: r["files"].update(a={"nbytes": 1, "sha256": ""})), "a is missing"),
    "record that leads outside": (
        "plain", changed_record(lambda r: r["files"].update({"../a": {"nbytes": 1, "sha256": ""}})), "export.json is damaged",
    ),
    "record of another size": (
        "plain", changed_record(lambda r: r["files"]["model.safetensors"].update(nbytes=7)), "export.json says 7",
    ),
    "record of nonsense": ("plain", changed_record(lambda r: r.update(files=3)), "export.json is damaged"),
    "record in pieces": ("plain", lambda p: (p / "export.json").write_text("[" * 100_000), "export.json is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_source_leaves_nothing(kind: str, folder: Path, tmp_path: Path) -> None:
    name, damage, message = DAMAGE[kind]
    shutil.copytree(folder / name, tmp_path / "in")
    damage(tmp_path / "in")
    precision = None if name == "plain" else 4
    for attempt in (
        lambda: load(tmp_path / "in"),
        lambda: export(tmp_path / "in", tmp_path / "out", "huggingface", precision=precision),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
            attempt()
        assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_full_disk_is_said_before_anything_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    for source, target, precision in (
        ("artefact", "huggingface", 3),
        ("artefact", "orbax", 3),
        ("artefact", "upstream", None),
        ("upstream", "artefact", None),
    ):
        with pytest.raises(OSError, match=r"needs about .* MB, and 0.0 MB are free: make room"):
            export(folder / source, tmp_path / "out", target, precision=precision)
    assert list(tmp_path.iterdir()) == []


MISTAKES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "no precision": ("artefact", "huggingface", {}, "a precision is needed for .*, which holds 2, 3, 4"),
    "no precision for Orbax": ("upstream", "orbax", {}, "a precision is needed for .*, which holds 2, 3, 4"),
    "another precision": ("upstream", "huggingface", {"precision": 5}, "precision 5 is not in .*, which holds 2, 3, 4"),
    "precision of a plain model": ("plain", "orbax", {"precision": 3}, "no precisions to choose from"),
    "precision of codes": ("artefact", "upstream", {"precision": 3}, "give neither a precision nor a dtype"),
    "dtype of codes": ("upstream", "artefact", {"dtype": "float16"}, "give neither a precision nor a dtype"),
    "codes of a plain model": ("plain", "upstream", {}, "is not quantized: there are no codes"),
    "an artefact of a plain model": ("plain", "artefact", {}, "is not quantized: there are no codes"),
    "another format": ("plain", "onnx", {}, "format 'onnx' is not one of huggingface, orbax, upstream, artefact"),
    "another dtype": ("plain", "orbax", {"dtype": "int8"}, "dtype 'int8' is not one of float32, float16, bfloat16"),
    "nothing there": ("nowhere", "orbax", {}, "nowhere does not exist"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes(kind: str, folder: Path, tmp_path: Path) -> None:
    source, target, options, message = MISTAKES[kind]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        export(folder / source, tmp_path / "out", target, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["huggingface", "orbax", "upstream", "artefact"])
def test_what_is_there_is_not_overwritten(target: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="already exists"):
        export(folder / "artefact", tmp_path / "out", target)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_weights_are_read_layer_after_layer(folder: Path, tmp_path: Path) -> None:
    """In the order of the model, each once: what a reader of shards meets, and what checks the checksums."""
    source = plain_source(open_source(folder / "head", precisions=[2]), precision=2, dtype=None)
    read: list[tuple[str, int | None]] = []

    def recorded(parameter: str, layer: int | None) -> Any:
        read.append((parameter, layer))
        return source.read(parameter, layer)

    huggingface.write_folder(tmp_path / "out", dataclasses.replace(source, read=recorded), max_shard_bytes=30_000)
    assert len(read) == len(set(read))
    assert [layer for _, layer in read if layer is not None] == sorted(layer for _, layer in read if layer is not None)
    assert read[0] == ("embedding", None) and read[-1][1] is None
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 3
    record = json.loads((tmp_path / "out" / "export.json").read_text())["files"]
    assert set(record) == set(index.values())
    assert_close(logits(tmp_path / "out"), logits(folder / "head", 2), 1e-5)


@pytest.mark.parametrize(
    ("shape", "itemsize", "chunk"),
    [
        ((80, 28672, 256), 4, [1, 448, 256]),  # a plane of a large model: a layer in 64 parts of its rows
        ((80, 28672, 8), 2, [1, 3584, 8]),  # eight parts of 56 KiB
        ((3, 48, 2), 4, [1, 48, 2]),
        ((128256, 8192), 1, [2004, 8192]),
        ((80, 8192), 2, [10, 8192]),
        ((8192,), 4, [8192]),
        ((80, 1001, 4096), 4, [1, 1001, 4096]),  # an odd number of rows stays whole
    ],
)
def test_chunks(shape: tuple[int, ...], itemsize: int, chunk: list[int]) -> None:
    assert chunk_shape(shape, itemsize) == chunk
