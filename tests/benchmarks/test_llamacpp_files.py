"""Files for the whole-model benchmarks: what is written is the model that was asked for, and its bytes are counted right."""

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
    tensor_shapes,
    write_random_model,
)
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
