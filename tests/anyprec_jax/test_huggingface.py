"""Hugging Face folders: what is read, what is written, and what is refused."""

import json
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from anyprec_jax.array import AnyPrecArray
from anyprec_jax.checkpoint import huggingface
from anyprec_jax.checkpoint.huggingface import load_folder, save_folder
from anyprec_jax.models.model import Model
from tests.anyprec_jax import oracles_decoder as oracle
from tests.anyprec_jax.tiny import byte_tokenizer

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def write(folder: Path, document: Mapping[str, Any], weights: Mapping[str, np.ndarray], *, shards: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(document))
    names = list(weights)
    if shards == 1:
        save_file(dict(weights), folder / WEIGHTS, metadata={"format": "pt"})
        return folder
    weight_map = {name: f"model-{number % shards}.safetensors" for number, name in enumerate(names)}
    for shard in set(weight_map.values()):
        save_file({name: weights[name] for name in names if weight_map[name] == shard}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def tiny(folder: Path, *, shards: int = 1, dtype: Any = np.float32, **changes: Any) -> Path:
    document = oracle.config(**changes)
    weights = {name: values.astype(dtype) for name, values in oracle.random_weights(document).items()}
    return write(folder, document, weights, shards=shards)


def assert_same_tree(got: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    jax.tree.map(np.testing.assert_array_equal, dict(got), dict(expected))


class TestLoad:
    @pytest.mark.parametrize("shards", [1, 3])
    @pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
    def test_every_tensor_lands_in_its_place(self, shards: int, stored: Any, tmp_path: Path) -> None:
        document = oracle.config(attention_bias=True, mlp_bias=True)
        weights = {name: values.astype(stored) for name, values in oracle.random_weights(document).items()}
        model = load_folder(write(tmp_path, document, weights, shards=shards))
        assert_same_tree(model.params, oracle.stacked({name: v.astype(np.float32) for name, v in weights.items()}, 3))
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(model.params))
        assert model.config.attention_bias and model.config.mlp_bias
        assert model.tokenizer is None

    def test_dtype_in_memory(self, tmp_path: Path) -> None:
        model = load_folder(tiny(tmp_path), dtype=jnp.bfloat16)
        assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(model.params))

    def test_tokenizer_is_read(self, tmp_path: Path) -> None:
        byte_tokenizer().save(tiny(tmp_path))
        tokenizer = load_folder(tmp_path).tokenizer
        assert tokenizer is not None
        assert tokenizer.decode(tokenizer.encode("So be it.", special_tokens=False)) == "So be it."

    @pytest.mark.parametrize(
        ("changes", "extra"),
        [
            ({"tie_word_embeddings": True}, "lm_head.weight"),
            ({}, "model.layers.1.self_attn.rotary_emb.inv_freq"),
        ],
    )
    def test_tensors_that_follow_from_others_are_ignored(
        self, changes: dict[str, Any], extra: str, tmp_path: Path
    ) -> None:
        document = oracle.config(**changes)
        weights = oracle.random_weights(document)
        model = load_folder(write(tmp_path, document, weights | {extra: np.zeros(3, np.float32)}))
        assert_same_tree(model.params, oracle.stacked(weights, 3))

    def test_not_a_number_is_read_as_it_is(self, tmp_path: Path) -> None:
        document = oracle.config()
        weights = oracle.random_weights(document)
        weights["model.layers.1.mlp.up_proj.weight"][2, 5] = np.nan
        model = load_folder(write(tmp_path, document, weights))
        assert [tuple(where) for where in np.argwhere(np.isnan(model.params["layers"]["up_proj"]))] == [(1, 2, 5)]

    def test_memory_is_the_weights_and_one_tensor(self, tmp_path: Path) -> None:
        sizes = {"vocab_size": 500, "hidden_size": 300, "intermediate_size": 900, "num_hidden_layers": 6}
        document = oracle.config(**sizes, num_attention_heads=6, num_key_value_heads=3, head_dim=50)
        weights = oracle.random_weights(document)
        folder = write(tmp_path, document, weights)
        total, largest = sum(v.nbytes for v in weights.values()), max(v.nbytes for v in weights.values())
        del weights
        tracemalloc.start()
        model = load_folder(folder)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert model.config.num_layers == 6
        # The tensor as bytes and as an array, and a quarter of a megabyte of Python objects.
        assert peak < total + 2 * largest + 250_000


def edited(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def replaced(folder: Path, name: str, values: np.ndarray | None) -> None:
    weights = load_file(folder / WEIGHTS)
    if values is None:
        del weights[name]
    else:
        weights[name] = values
    save_file(weights, folder / WEIGHTS)


def cut(folder: Path, size: int) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def indexed(folder: Path, index: str) -> None:
    (folder / WEIGHTS).rename(folder.parent / "outside.safetensors")
    (folder / INDEX).write_text(index)


OUTSIDE = json.dumps({"weight_map": {"lm_head.weight": "../outside.safetensors"}})
DAMAGE: dict[str, tuple[Callable[[Path], None], type[Exception], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), FileNotFoundError, "no config.json"),
    "config is not JSON": (lambda f: (f / "config.json").write_text("{"), ValueError, "config.json"),
    "config is binary": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), ValueError, "config.json"),
    "config is too deep": (lambda f: (f / "config.json").write_text("[" * 10**5), ValueError, "config.json"),
    "another architecture": (
        lambda f: edited(f, model_type="bert", architectures=["BertModel"]),
        ValueError,
        "BertModel.*supported are LlamaForCausalLM",
    ),
    "a huge vocabulary": (
        lambda f: edited(f, vocab_size=10**12),
        ValueError,
        r"embed_tokens.*\(61, 24\).*1000000000000",
    ),
    "a huge depth": (lambda f: edited(f, num_hidden_layers=10**12), ValueError, "lacks the tensor model.layers.3"),
    "a negative size": (lambda f: edited(f, intermediate_size=-40), ValueError, "intermediate_size"),
    "a size in letters": (lambda f: edited(f, hidden_size="24"), ValueError, "hidden_size"),
    "fewer layers than stored": (
        lambda f: edited(f, num_hidden_layers=2),
        ValueError,
        "model.layers.2.* does not call for",
    ),
    "biases that the config denies": (
        lambda f: replaced(f, "model.layers.0.self_attn.q_proj.bias", np.zeros(60, np.float32)),
        ValueError,
        "q_proj.bias",
    ),
    "a missing tensor": (
        lambda f: replaced(f, "model.norm.weight", None),
        ValueError,
        "lacks the tensor model.norm.weight",
    ),
    "a wrong shape": (
        lambda f: replaced(f, "model.layers.1.mlp.up_proj.weight", np.zeros((40, 23), np.float32)),
        ValueError,
        r"layers.1.mlp.up_proj.weight has shape \(40, 23\), config.json calls for \(40, 24\)",
    ),
    "integers": (lambda f: replaced(f, "model.norm.weight", np.zeros(24, np.int8)), ValueError, "norm.weight is I8"),
    "empty": (lambda f: cut(f, 0), ValueError, WEIGHTS),
    "cut in the header": (lambda f: cut(f, 200), ValueError, WEIGHTS),
    "cut in the data": (lambda f: cut(f, -5), ValueError, WEIGHTS),
    "text": (lambda f: (f / WEIGHTS).write_text("Not weights at all, but a letter."), ValueError, WEIGHTS),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), FileNotFoundError, "no weights"),
    "pickles": (pickled, ValueError, "pytorch_model.bin: pickles can run code"),
    "index is not JSON": (lambda f: indexed(f, "]"), ValueError, INDEX),
    "index without a map": (lambda f: indexed(f, "{}"), ValueError, "weight_map"),
    "index with a number": (lambda f: indexed(f, '{"weight_map": {"lm_head.weight": 3}}'), ValueError, "weight_map"),
    "index that leads outside": (lambda f: indexed(f, OUTSIDE), ValueError, "same folder"),
    "index with an absolute path": (
        lambda f: indexed(f, OUTSIDE.replace("..", str(f.parent))),
        ValueError,
        "same folder",
    ),
    "missing shard": (
        lambda f: indexed(f, OUTSIDE.replace("../", "")),
        FileNotFoundError,
        "outside.safetensors is missing",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_cannot_be_read_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    damage, kind, message = DAMAGE[name]
    folder = tiny(tmp_path / "model")
    damage(folder)
    tracemalloc.start()
    with pytest.raises(kind, match=message) as error:
        load_folder(folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(error.value)
    assert peak < 10_000_000  # nothing is allocated on a file's word


def test_shard_that_lacks_what_the_index_promises(tmp_path: Path) -> None:
    folder = tiny(tmp_path, shards=2)
    shard = load_file(folder / "model-0.safetensors")
    del shard["model.embed_tokens.weight"]
    save_file(shard, folder / "model-0.safetensors")
    with pytest.raises(ValueError, match=r"model-0.safetensors lacks the tensor model.embed_tokens.weight"):
        load_folder(folder)


class TestSave:
    @pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}])
    @pytest.mark.parametrize("max_shard_bytes", [10**9, 8000])
    def test_what_is_written_reads_the_same(
        self, changes: dict[str, Any], max_shard_bytes: int, tmp_path: Path
    ) -> None:
        model = load_folder(tiny(tmp_path / "in", **changes))
        save_folder(tmp_path / "out", model, max_shard_bytes=max_shard_bytes)
        back = load_folder(tmp_path / "out")
        assert back.config == model.config
        assert_same_tree(back.params, model.params)
        original = load_file(tmp_path / "in" / WEIGHTS)
        files = sorted((tmp_path / "out").glob("*.safetensors"))
        assert (len(files) > 1) == (max_shard_bytes == 8000)
        for file in files:
            for name, values in load_file(file).items():
                np.testing.assert_array_equal(values, original.pop(name))
            with safe_open(file, framework="numpy") as stream:
                assert stream.metadata() == {"format": "pt"}
        assert not original

    def test_shards_keep_to_their_size(self, tmp_path: Path) -> None:
        save_folder(tmp_path / "out", load_folder(tiny(tmp_path / "in")), max_shard_bytes=8000)
        sizes = {
            file.name: sum(v.nbytes for v in load_file(file).values())
            for file in (tmp_path / "out").glob("*.safetensors")
        }
        assert max(sizes.values()) <= 8000
        index = json.loads((tmp_path / "out" / INDEX).read_text())
        assert index["metadata"]["total_size"] == sum(sizes.values())
        assert set(index["weight_map"].values()) == set(sizes)

    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    def test_dtype_is_kept_and_said(self, dtype: str, tmp_path: Path) -> None:
        save_folder(tmp_path / "out", load_folder(tiny(tmp_path / "in"), dtype=jnp.dtype(dtype)))
        assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype
        assert {values.dtype.name for values in load_file(tmp_path / "out" / WEIGHTS).values()} == {dtype}

    def test_tokenizer_goes_along(self, tmp_path: Path) -> None:
        model = load_folder(tiny(tmp_path / "in"))
        save_folder(tmp_path / "out", Model(model.config, model.params, byte_tokenizer()))
        assert load_folder(tmp_path / "out").tokenizer is not None

    def test_quantized_model_is_refused(self, tmp_path: Path) -> None:
        model = load_folder(tiny(tmp_path / "in"))
        matrix = AnyPrecArray(
            bitplanes=jnp.zeros((3, 3, 60, 1), jnp.uint32),
            codebooks={3: jnp.zeros((3, 60, 8), jnp.float16)},
            seed_precision=3,
            parent_precision=3,
            k=24,
        )
        params = model.params | {"layers": model.params["layers"] | {"q_proj": matrix}}
        with pytest.raises(ValueError, match=r"layers/q_proj.*dequantize"):
            save_folder(tmp_path / "out", Model(model.config, params))
        assert not (tmp_path / "out").exists()

    def test_nothing_is_left_behind_by_a_failure(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = load_folder(tiny(tmp_path / "in"))

        def full_disk(*_: Any, **__: Any) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr(huggingface, "write_safetensors", full_disk)
        with pytest.raises(OSError, match="No space left"):
            save_folder(tmp_path / "out", model)
        assert [entry.name for entry in tmp_path.iterdir()] == ["in"]

    def test_what_is_there_is_not_overwritten(self, tmp_path: Path) -> None:
        model = load_folder(tiny(tmp_path / "in"))
        with pytest.raises(FileExistsError, match="already exists"):
            save_folder(tmp_path / "in", model)
