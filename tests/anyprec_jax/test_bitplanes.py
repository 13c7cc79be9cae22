import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax import bitplanes
from tests.anyprec_jax import oracles


def random_codes(n: int, k: int, *, precision: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**precision, (n, k), dtype=np.uint8)


def test_golden_words() -> None:
    codes = jnp.asarray([[0, 1, 2, 3]], jnp.uint8)
    np.testing.assert_array_equal(bitplanes.pack(codes, precision=2), [[[0b1100]], [[0b1010]]])


def test_golden_words_of_a_ramp() -> None:
    """Columns 0..63 hold the codes 0, 4, ..., 252: every plane is a square wave of its own period."""
    planes = bitplanes.pack(jnp.asarray(4 * np.arange(64)[None], jnp.uint8), precision=8)
    expected = [
        [0x00000000, 0xFFFFFFFF],
        [0xFFFF0000, 0xFFFF0000],
        [0xFF00FF00, 0xFF00FF00],
        [0xF0F0F0F0, 0xF0F0F0F0],
        [0xCCCCCCCC, 0xCCCCCCCC],
        [0xAAAAAAAA, 0xAAAAAAAA],
        [0, 0],
        [0, 0],
    ]
    np.testing.assert_array_equal(np.asarray(planes)[:, 0], np.asarray(expected, np.uint32))


@pytest.mark.parametrize("k", [1, 31, 32, 33, 576, 1056])
@pytest.mark.parametrize("precision", [1, 3, 8])
def test_pack_is_what_bit_by_bit_packing_gives(k: int, precision: int) -> None:
    codes = random_codes(3, k, precision=precision)
    planes = bitplanes.pack(jnp.asarray(codes), precision=precision)
    assert planes.dtype == jnp.uint32
    np.testing.assert_array_equal(planes, oracles.pack(codes, precision))


@pytest.mark.parametrize("k", [1, 31, 32, 33, 576, 1056])
def test_round_trip(k: int) -> None:
    codes = random_codes(5, k, precision=8, seed=k)
    np.testing.assert_array_equal(bitplanes.unpack(bitplanes.pack(jnp.asarray(codes), precision=8), k=k), codes)


@hypothesis.given(
    codes=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=70)), precision=st.integers(1, 8)
)
@hypothesis.settings(max_examples=25)
def test_a_prefix_of_the_planes_is_the_codes_of_that_precision(codes: np.ndarray, precision: int) -> None:
    planes = bitplanes.pack(jnp.asarray(codes), precision=8)
    np.testing.assert_array_equal(bitplanes.unpack(planes[:precision], k=codes.shape[1]), codes >> (8 - precision))


def test_padding_is_code_zero() -> None:
    planes = bitplanes.pack(jnp.full((2, 33), 255, jnp.uint8), precision=8)
    np.testing.assert_array_equal(planes[:, :, 1], 1)


def test_jit_changes_nothing() -> None:
    codes = jnp.asarray(random_codes(4, 45, precision=8))
    planes = bitplanes.pack(codes, precision=8)
    with jax.disable_jit():
        np.testing.assert_array_equal(bitplanes.pack(codes, precision=8), planes)
        np.testing.assert_array_equal(bitplanes.unpack(planes, k=45), codes)


def test_a_stack_is_packed_by_vmap() -> None:
    codes = np.stack([random_codes(4, 45, precision=8, seed=seed) for seed in range(3)])
    planes = jax.vmap(lambda c: bitplanes.pack(c, precision=8))(jnp.asarray(codes))
    np.testing.assert_array_equal(planes, np.stack([oracles.pack(c, 8) for c in codes]))
