"""Sizes of ggml's types against the block layouts that its format documents."""

import pytest

from benchmarks.ggml import WEIGHT_TYPES, bytes_per_weight

HALF, BYTE = 16, 8
# Weight type -> weights of a block, and its bits: the codes, then the scales.
BLOCKS = {
    "Q3_K": (256, 256 * 3 + 16 * 6 + HALF),  # 16 scales of 6 bits, one half
    "Q4_0": (32, 32 * 4 + HALF),
    "Q4_K": (256, 256 * 4 + 8 * 2 * 6 + 2 * HALF),  # 8 scales and 8 minima of 6 bits, two halves
    "Q5_K": (256, 256 * 5 + 8 * 2 * 6 + 2 * HALF),
    "Q6_K": (256, 256 * 6 + 16 * BYTE + HALF),
    "Q8_0": (32, 32 * 8 + HALF),
    "F16": (1, HALF),
}


def test_every_weight_type_has_its_layout_here() -> None:
    assert set(BLOCKS) == set(WEIGHT_TYPES)


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_bytes_per_weight_is_the_layouts(weight_type: str) -> None:
    weights, bits = BLOCKS[weight_type]
    assert 8 * weights * bytes_per_weight(weight_type) == bits
