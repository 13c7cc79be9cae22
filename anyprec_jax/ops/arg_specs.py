"""Named shapes of real matrices, shared by the tests and the benchmarks of the matrix product."""

from typing import NamedTuple


class MatrixShape(NamedTuple):
    """A weight matrix `[n, k]` (outputs, inputs) of a known model."""

    name: str
    n: int
    k: int


SMOLLM2_135M = (
    MatrixShape("smollm2_135m_attention", 576, 576),
    MatrixShape("smollm2_135m_key_value", 192, 576),
    MatrixShape("smollm2_135m_gate_up", 1536, 576),
    MatrixShape("smollm2_135m_down", 576, 1536),
)
LLAMA_3_2_1B = (
    MatrixShape("llama_3_2_1b_attention", 2048, 2048),
    MatrixShape("llama_3_2_1b_key_value", 512, 2048),
    MatrixShape("llama_3_2_1b_gate_up", 8192, 2048),
    MatrixShape("llama_3_2_1b_down", 2048, 8192),
)
LLAMA_2_7B = (
    MatrixShape("llama_2_7b_attention", 4096, 4096),
    MatrixShape("llama_2_7b_gate_up", 11008, 4096),
    MatrixShape("llama_2_7b_down", 4096, 11008),
)
