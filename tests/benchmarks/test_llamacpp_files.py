"""Files for the whole-model benchmarks: what is written is the model that was asked for, and its bytes are counted right."""

import dataclasses
import gc
import math
from pathlib import Path

import gguf
import numpy as np
import pytest

from anyprec_jax.checkpoint import gguf as checkpoint
from anyprec_jax.models.config import ModelConfig
from benchmarks.llamacpp_files import (
    FILE_TYPES,
    bytes_per_token,
    file_type_number,
    float_copy,
    importance_entries,
    matrix_names,
    matrix_types,
    quantize_file,
    tensor_shapes,
    write_random_model,
)
from benchmarks.llamacpp_library import why_unavailable
from benchmarks.model_shapes import LLAMA_3_2_1B

TINY = ModelConfig(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_position_embeddings=128,
    norm_eps=1e-5,
    rope_theta=500_000.0,
    tie_embeddings=True,
)
# Weights of one layer, written out: q and o, k and v, the three of the MLP.
LAYER_WEIGHTS = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96
NORM_BYTES = 5 * 64 * 4  # two in each of two layers and one at the end, float32


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("models") / "tiny.gguf", TINY)


def test_the_1b_shape_has_the_parameters_of_llama_3_2_1b() -> None:
    # 1.24 billion, the embedding once: the figure of its model card.
    assert sum(math.prod(shape) for _, shape in tensor_shapes(LLAMA_3_2_1B)) == 1_235_814_400


def test_the_package_reads_the_model_that_was_asked_for(tiny: Path) -> None:
    assert checkpoint.load_file(tiny).config == TINY


def test_nothing_but_the_file_is_left(tiny: Path) -> None:
    assert [path.name for path in tiny.parent.iterdir()] == ["tiny.gguf"]


def test_weights_keep_the_scale_of_what_they_multiply(tiny: Path) -> None:
    for tensor in gguf.GGUFReader(tiny).tensors:
        n_and_k = tuple(int(size) for size in reversed(tensor.shape))
        values = np.asarray(tensor.data, np.float64).reshape(n_and_k)
        if len(n_and_k) == 1:
            assert (values == 1).all()
            continue
        # The mean square of N normals is off by sqrt(2 / N); six of those, and float16's rounding.
        assert abs(np.mean(values**2) * n_and_k[1] - 1) < 6 * math.sqrt(2 / values.size) + 2**-10


def test_a_tied_head_is_read_and_counted_once(tiny: Path) -> None:
    expected = {"layers": 2 * (2 * LAYER_WEIGHTS) + NORM_BYTES, "head": 2 * 320 * 64}
    assert bytes_per_token(tiny) == {**expected, "total": sum(expected.values())}


def test_of_an_untied_embedding_no_more_than_a_row_is_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "untied.gguf", "llama")
    for name, rows in (("token_embd", 50), ("output", 40), ("blk.0.attn_q", 30)):
        writer.add_tensor(f"{name}.weight", np.zeros((rows, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert bytes_per_token(tmp_path / "untied.gguf") == {"layers": 30 * 64, "head": 40 * 64, "total": 70 * 64}


def test_file_types_are_llama_cpps_numbers() -> None:
    # enum llama_ftype of include/llama.h
    assert [file_type_number(name) for name in FILE_TYPES] == [12, 2, 15, 17, 18, 7]


def test_an_unknown_file_type_is_refused() -> None:
    with pytest.raises(ValueError, match="'Q4_X' is no file type"):
        file_type_number("Q4_X")


def test_a_float_copy_is_the_same_model_unquantized(tmp_path: Path) -> None:
    """Metadata as they were, Q8_0 and float16 as float32: blocks of 32 weights, each a scale times a byte."""
    source = tmp_path / "mixed.gguf"
    writer = gguf.GGUFWriter(source, "llama")
    writer.add_context_length(64)
    writer.add_token_list(["a", "b"])
    writer.add_layer_norm_rms_eps(1e-5)
    half = np.linspace(-1, 1, 64, dtype=np.float16).reshape(2, 32)
    writer.add_tensor("half.weight", half)
    codes, scales = np.arange(-32, 32, dtype=np.int8).reshape(2, 32), np.array([[0.5], [0.25]], np.float16)
    packed = np.concatenate([scales.view(np.uint8), codes.view(np.uint8)], axis=1)
    writer.add_tensor("packed.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    reader = gguf.GGUFReader(float_copy(source, tmp_path / "float.gguf"))
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32"}
    np.testing.assert_array_equal(found["half.weight"].data, half.astype(np.float32))
    np.testing.assert_array_equal(found["packed.weight"].data, scales.astype(np.float32) * codes)
    for name, expected in (
        ("general.architecture", "llama"),
        ("llama.context_length", 64),
        ("tokenizer.ggml.tokens", ["a", "b"]),
        ("general.file_type", 0),
    ):
        field = reader.get_field(name)
        assert field is not None and field.contents() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float.gguf", "mixed.gguf"]


def test_importance_is_passed_on_whole() -> None:
    """Read back through the pointers, after what they were made of is gone."""
    entries = importance_entries({f"blk.{i}.attn_q.weight": np.arange(i, i + 4, dtype=np.float32) for i in range(3)})
    gc.collect()
    assert len(entries) == 4 and entries[3].name is None
    for i, entry in enumerate(entries[:3]):
        assert entry.name == f"blk.{i}.attn_q.weight".encode()
        assert entry.data[: entry.size] == [float(i + j) for j in range(4)]


def test_matrices_of_a_file(tiny: Path) -> None:
    names = matrix_names(TINY)
    assert names["down_proj", 1] == "blk.1.ffn_down.weight"
    weights = {name for name, shape in tensor_shapes(TINY) if len(shape) == 2} - {"token_embd.weight"}
    assert set(names.values()) == weights
    assert matrix_types(tiny, weights) == (16.0, {"F16": 1.0})


needs_llamacpp = pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable()))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelConfig, Path]:
    """Rows of 256, which llama.cpp's 256-wide blocks divide, and of 96, which they do not."""
    config = dataclasses.replace(TINY, hidden_size=256, head_dim=64)
    return config, write_random_model(tmp_path_factory.mktemp("models") / "wide.gguf", config)


@needs_llamacpp
def test_types_and_bits_of_what_llamacpp_makes(wide: tuple[ModelConfig, Path], tmp_path: Path) -> None:
    """Rows of 256 get Q6_K, those of 96 the 32-wide blocks that llama.cpp falls back to; the embedding stays as it was asked to."""
    config, source = wide
    target = quantize_file(source, tmp_path / "q.gguf", "Q6_K", keep_embedding=True)
    narrow = 2 * 256 * 96
    all_weights = 2 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 256 * 96)
    bits = (all_weights - narrow) * (6 + (16 * 8 + 16) / 256) + narrow * (8 + 16 / 32)
    found = matrix_types(target, matrix_names(config).values())
    assert found.bits_per_weight == pytest.approx(bits / all_weights, rel=1e-12)
    assert found.shares == pytest.approx({"Q6_K": 1 - narrow / all_weights, "Q8_0": narrow / all_weights}, rel=1e-12)
    embedding = next(t for t in gguf.GGUFReader(target).tensors if t.name == "token_embd.weight")
    assert embedding.tensor_type.name == "F32"


@needs_llamacpp
def test_what_llamacpp_made_is_read_back_as_the_gguf_package_reads_it(
    wide: tuple[ModelConfig, Path], tmp_path: Path
) -> None:
    """Rows of q and k come in another order; every other matrix as it lies in the file. And it is near what it was made of."""
    config, source = wide
    target = quantize_file(source, tmp_path / "q.gguf", "Q4_K_M", keep_embedding=True)
    ours = {path: checkpoint.load_file(path).params["layers"] for path in (source, target)}
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(target).tensors}
    for (linear, layer), name in matrix_names(config).items():
        own = np.asarray(ours[target][linear][layer])
        theirs = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
        if linear in ("q_proj", "k_proj"):
            own, theirs = (np.sort(values, axis=0) for values in (own, theirs))
        np.testing.assert_array_equal(own, theirs)
        error = np.asarray(ours[target][linear][layer]) - np.asarray(ours[source][linear][layer])
        assert np.linalg.norm(error) < 0.12 * np.linalg.norm(ours[source][linear][layer])


@needs_llamacpp
def test_importance_moves_the_error_to_columns_that_do_not_matter(
    wide: tuple[ModelConfig, Path], tmp_path: Path
) -> None:
    config, source = wide
    names = matrix_names(config)
    heavy = {
        name: np.where(np.arange(96 if "ffn_down" in name else 256) % 8 == 0, 100.0, 0.01) for name in names.values()
    }
    importance = {name: values.astype(np.float32) for name, values in heavy.items()}
    plain = quantize_file(source, tmp_path / "plain.gguf", "Q3_K_M", keep_embedding=True)
    guided = quantize_file(source, tmp_path / "guided.gguf", "Q3_K_M", keep_embedding=True, importance=importance)
    layers = {path: checkpoint.load_file(path).params["layers"]["gate_proj"] for path in (source, plain, guided)}
    errors = {path: np.square(layers[path] - layers[source])[..., ::8].sum() for path in (plain, guided)}
    assert errors[guided] < 0.5 * errors[plain]
