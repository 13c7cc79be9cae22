"""GGUF files that are damaged or that nothing here can use: refused at the door, in one line, at once."""

import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from anyprec_jax.checkpoint.gguf import load_file
from tests.anyprec_jax import gguf_files
from tests.anyprec_jax import oracles_decoder as oracle


def assert_refused(path: Path, message: str) -> None:
    """In one line, and at once: a size that is not there is neither read nor allocated."""
    started = time.perf_counter()
    with pytest.raises(ValueError, match=message) as error:
        load_file(path)
    assert time.perf_counter() - started < 5
    assert str(path) in str(error.value) and "\n" not in str(error.value)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": (
        {"architecture": "mamba"},
        "architecture 'mamba' is not supported; supported are gemma2, .*llama",
    ),
    "experts that are not there": (
        {"settings": {"llama.expert_count": 8, "llama.expert_used_count": 2}},
        "lacks the tensor blk.0.ffn_gate_inp.weight",
    ),
    "a part": ({"settings": {"split.count": 3}}, "split"),
    "no size": ({"settings": {"llama.embedding_length": None}}, "metadata lack llama.embedding_length"),
    "a size in letters": ({"settings": {"llama.embedding_length": "24"}}, "llama.embedding_length should be a int"),
    "no heads": ({"settings": {"llama.attention.head_count": 0}}, "head_count is 0"),
    "heads that differ": ({"settings": {"llama.attention.head_count_kv": [2, 1]}}, "differs between layers"),
    "values of another width": ({"settings": {"llama.attention.value_length": 8}}, "value_length 8 is not supported"),
    "partial rotary": ({"settings": {"llama.rope.dimension_count": 4}}, "dimension_count 4 is not supported"),
    "a huge depth": ({"settings": {"llama.block_count": 2**32 - 1}}, "lacks the tensor blk.2"),
    "a huge width": ({"settings": {"llama.feed_forward_length": 2**31}}, r"ffn_gate.weight has shape \(40, 24\)"),
    "fewer layers": ({"settings": {"llama.block_count": 1}}, "holds blk.1"),
    "unknown scaling": (
        {"settings": {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}},
        "'longrope'",
    ),
    "factors of another width": (
        {"extra": {"rope_freqs.weight": np.ones(4, np.float32)}},
        r"rope_freqs.weight has shape \(4,\)",
    ),
    "an unknown tensor": (
        {"extra": {"blk.0.attn_q_norm.weight": np.ones(4, np.float32)}},
        "holds blk.0.attn_q_norm.weight",
    ),
    "no number as theta": ({"settings": {"llama.rope.freq_base": float("nan")}}, "rope_theta"),
    "an unknown tokenizer": ({"settings": {"tokenizer.ggml.model": "magic"}}, "'magic'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    options, message = REFUSED[name]
    path = gguf_files.tiny(tmp_path / "model.gguf", **options)
    assert_refused(path, message)


def test_missing_tensor(tmp_path: Path) -> None:
    document = oracle.config()
    weights = oracle.random_weights(document)
    for name in ("model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"):
        lacking = {other: values for other, values in weights.items() if other != name}
        with pytest.raises(ValueError, match=f"lacks the tensor {gguf_files.gguf_name(name)}"):
            load_file(gguf_files.write(tmp_path / "model.gguf", document, lacking))


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "not a GGUF file"),
    "text": (lambda p: p.write_text("Not a model at all, but a letter."), "not a GGUF file: it starts with b'Not '"),
    "version 1": (lambda p: gguf_files.patched(p, b"GGUF", 0, struct.pack("<I", 1)), "version"),
    "version 9": (lambda p: gguf_files.patched(p, b"GGUF", 0, struct.pack("<I", 9)), "version"),
    "another byte order": (lambda p: gguf_files.patched(p, b"GGUF", 0, struct.pack(">I", 3)), "GGUF"),
    "a type of tensor that does not exist": (
        lambda p: gguf_files.patched(p, b"blk.1.ffn_down.weight", 4 + 16, struct.pack("<I", 999)),
        "blk.1.ffn_down.weight is of type 999",
    ),
    "a type of tensor that cannot be decoded": (
        lambda p: gguf_files.patched(p, b"blk.1.ffn_down.weight", 4 + 16, struct.pack("<I", GGMLQuantizationType.I32)),
        "ffn_down.weight is of type I32",
    ),
    "a tensor of an impossible size": (
        lambda p: gguf_files.patched(p, b"blk.1.ffn_down.weight", 4, struct.pack("<Q", 2**61)),
        "GGUF",
    ),
    "a tensor beyond the end": (
        lambda p: gguf_files.patched(p, b"blk.1.ffn_down.weight", 4 + 16 + 4, struct.pack("<Q", 2**40)),
        "truncated",
    ),
    "a tensor beyond all ends": (
        lambda p: gguf_files.patched(p, b"blk.1.ffn_down.weight", 4 + 16 + 4, struct.pack("<Q", 2**64 - 32)),
        "GGUF",
    ),
    "an array of numbers without end": (
        lambda p: gguf_files.patched(p, b"some.numbers", 8, struct.pack("<Q", 2**62)),
        "truncated",
    ),
    "an array of strings without end": (
        lambda p: gguf_files.patched(p, b"some.strings", 8, struct.pack("<Q", 2**62)),
        "truncated",
    ),
    "a string without end": (
        lambda p: gguf_files.patched(p, b"some.strings", 16, struct.pack("<Q", 2**63)),
        "truncated",
    ),
    "more keys than there are": (lambda p: gguf_files.patched(p, b"GGUF", 12, struct.pack("<Q", 2**63)), "GGUF"),
    "more tensors than there are": (lambda p: gguf_files.patched(p, b"GGUF", 4, struct.pack("<Q", 2**63)), "GGUF"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    damage, message = DAMAGE[name]
    path = gguf_files.tiny(tmp_path / "model.gguf", settings={"some.numbers": [1, 2, 3], "some.strings": ["a", "b"]})
    load_file(path)
    damage(path)
    assert_refused(path, message)


def test_every_truncation_is_told(tmp_path: Path) -> None:
    path = gguf_files.tiny(tmp_path / "model.gguf", settings={"some.numbers": [1, 2, 3], "some.strings": ["a", "b"]})
    data = path.read_bytes()
    for size in [*range(0, 2000, 7), len(data) // 2, len(data) - 4]:
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"model\.gguf") as error:
            load_file(path)
        assert "\n" not in str(error.value)


def test_flipped_bytes_never_surprise(tmp_path: Path) -> None:
    """Whatever byte of the header changes, the file is read or refused."""
    path = gguf_files.tiny(tmp_path / "model.gguf", settings={"some.numbers": [1, 2, 3], "some.strings": ["a", "b"]})
    data = path.read_bytes()
    header = data.index(b"blk.1.ffn_up.weight")
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        damaged[int(rng.integers(4, header))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            load_file(path)
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.gguf"):
        load_file(tmp_path / "nowhere.gguf")
