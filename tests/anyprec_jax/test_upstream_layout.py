"""The authors' order of bits, against a formula for every column and vectors recorded from their `pack.py`."""

import numpy as np
import pytest

from anyprec_jax.bitplanes import pack
from anyprec_jax.checkpoint.upstream_layout import from_upstream, to_upstream
from tests.anyprec_jax import oracles_upstream as oracle

WIDTHS = (32, 64, 96, 1024, 1056, 2048, 2560)


@pytest.mark.parametrize("k", WIDTHS)
@pytest.mark.parametrize("n", [1, 5])
def test_every_bit_lies_where_the_formula_says(k: int, n: int) -> None:
    codes = np.random.default_rng(k + n).integers(0, 256, (n, k), np.uint8)
    theirs = oracle.qweight(codes, 8)
    ours = from_upstream(theirs)
    np.testing.assert_array_equal(oracle.natural_codes(ours, k), codes)
    np.testing.assert_array_equal(to_upstream(ours), theirs)


def test_vectors_recorded_from_upstream() -> None:
    """codes = 4 * arange(64), n = 1, 8 bits."""
    planes = np.asarray(pack((4 * np.arange(64)).astype(np.uint8)[None], precision=8))
    words = [[0x0000FFFF] * 2, [0x00FF00FF] * 2, [0, 0xFFFFFFFF], [0x0F0F0F0F] * 2, [0x33333333] * 2, [0x55555555] * 2]
    expected = np.asarray([*words, [0, 0], [0, 0]], np.uint32)[:, None]
    np.testing.assert_array_equal(to_upstream(planes).view(np.uint32), expected)
    np.testing.assert_array_equal(from_upstream(expected.view(np.int32)), planes)


def test_leading_axes_and_views() -> None:
    planes = np.random.default_rng(0).integers(0, 2**32, (2, 3, 4, 33), np.uint32)
    each = np.stack([[to_upstream(row) for row in stack] for stack in planes])
    np.testing.assert_array_equal(to_upstream(planes), each)
    np.testing.assert_array_equal(to_upstream(planes[:, ::-1]), each[:, ::-1])
