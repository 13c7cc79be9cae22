import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax.array import AnyPrecArray, bits_per_weight, check_precision, nbytes, validate
from tests.anyprec_jax import oracles

SEED, PARENT, N, K = 3, 5, 4, 45


def small_array() -> AnyPrecArray:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**PARENT, (N, K), dtype=np.uint8)
    codebooks = {
        w: jnp.asarray(np.sort(rng.standard_normal((N, 2**w)), axis=1), jnp.float16) for w in range(SEED, PARENT + 1)
    }
    return AnyPrecArray(jnp.asarray(oracles.pack(codes, PARENT)), codebooks, SEED, PARENT, K)


def stacked(array: AnyPrecArray, layers: int) -> AnyPrecArray:
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * layers), array)


def test_shape_and_precisions() -> None:
    array = small_array()
    assert (array.n, array.k, array.shape) == (N, K, (N, K))
    assert array.precisions == (3, 4, 5)
    assert stacked(array, 6).shape == (6, N, K)


def test_is_a_pytree_that_keeps_its_static_fields() -> None:
    array = small_array()
    leaves, treedef = jax.tree.flatten(array)
    assert len(leaves) == 1 + len(array.precisions)
    rebuilt = jax.tree.unflatten(treedef, leaves)
    assert (rebuilt.seed_precision, rebuilt.parent_precision, rebuilt.k) == (SEED, PARENT, K)
    validate(rebuilt)
    assert jax.tree.map(lambda leaf: leaf.shape, array).bitplanes == (PARENT, N, 2)  # leaves need not be arrays


def test_replace() -> None:
    array = small_array()
    replaced = dataclasses.replace(array, bitplanes=jnp.zeros_like(array.bitplanes))
    validate(replaced)
    assert replaced.codebooks is array.codebooks


def test_crosses_jit_vmap_and_scan() -> None:
    array = small_array()
    assert jax.jit(lambda a: a)(array).k == K
    stack = stacked(array, 3)
    assert jax.vmap(lambda a: a.codebooks[SEED].sum())(stack).shape == (3,)
    _, shapes = jax.lax.scan(lambda carry, a: (carry, jnp.asarray(a.shape)), 0, stack)
    np.testing.assert_array_equal(shapes, [(N, K)] * 3)


def test_nbytes_is_the_size_of_the_leaves() -> None:
    array = small_array()
    assert nbytes(array) == sum(leaf.nbytes for leaf in jax.tree.leaves(array))
    for w in array.precisions:
        assert nbytes(array, precision=w) == array.bitplanes[:w].nbytes + array.codebooks[w].nbytes
    assert nbytes(stacked(array, 3)) == 3 * nbytes(array)


def abstract(n: int, k: int, *, seed: int = 3, parent: int = 8) -> AnyPrecArray:
    """Shapes only: too large to allocate is no obstacle."""
    planes = jax.ShapeDtypeStruct((parent, n, -(-k // 32)), jnp.uint32)
    codebooks = {w: jax.ShapeDtypeStruct((n, 2**w), jnp.float16) for w in range(seed, parent + 1)}
    return AnyPrecArray(planes, codebooks, seed, parent, k)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("k", "codebook_bits"), [(576, 14.0), (1024, 7.875), (4096, 1.96875), (14336, 0.5625)])
def test_bits_per_weight_of_real_rows(k: int, codebook_bits: float) -> None:
    """504 float16 entries a row for 3..8 bits."""
    assert bits_per_weight(abstract(8, k)) == pytest.approx(8 + codebook_bits)
    assert bits_per_weight(abstract(8, k), precision=4) == pytest.approx(4 + 16 * 16 / k)


def test_llama_2_7b_takes_the_papers_8_4_gb() -> None:
    linears = 4 * [(4096, 4096)] + 2 * [(11008, 4096)] + [(4096, 11008)]
    embedding_and_head = 2 * 32000 * 4096 * 2
    total = 32 * sum(nbytes(abstract(n, k)) for n, k in linears) + embedding_and_head
    assert total == pytest.approx(8.4e9, rel=0.01)


@pytest.mark.parametrize("precision", [2, 6, 0, True])
def test_bits_at_a_precision_that_does_not_exist(precision: int) -> None:
    with pytest.raises(ValueError, match="one of 3, 4, 5, .* got"):
        check_precision(small_array(), precision)


def test_valid_arrays_pass() -> None:
    validate(small_array())
    validate(stacked(small_array(), 3))


def with_codebook(array: AnyPrecArray, precision: int, change: Callable[[np.ndarray], None]) -> AnyPrecArray:
    codebook = np.array(array.codebooks[precision])
    change(codebook)
    return dataclasses.replace(array, codebooks={**array.codebooks, precision: jnp.asarray(codebook)})


def with_padding_bit(array: AnyPrecArray) -> AnyPrecArray:
    return dataclasses.replace(array, bitplanes=array.bitplanes.at[1, 2, 1].set(jnp.uint32(1 << 13)))


BROKEN: dict[str, tuple[Callable[[AnyPrecArray], AnyPrecArray], str]] = {
    "seed above parent": (lambda a: dataclasses.replace(a, seed_precision=6), "1 <= seed <= parent <= 8"),
    "k zero": (lambda a: dataclasses.replace(a, k=0), "k must be at least 1"),
    "k too small": (lambda a: dataclasses.replace(a, k=32), "must be \\[5, n, 1\\]"),
    "plane missing": (lambda a: dataclasses.replace(a, bitplanes=a.bitplanes[1:]), "parent_precision 5"),
    "signed planes": (lambda a: dataclasses.replace(a, bitplanes=a.bitplanes.astype(jnp.int32)), "must be uint32"),
    "flat planes": (
        lambda a: dataclasses.replace(a, bitplanes=a.bitplanes[0]),
        "must be uint32 \\[parent, n, words\\]",
    ),
    "no codebook": (lambda a: dataclasses.replace(a, codebooks={}), "precisions from 3 to 5, at least one, got \\[\\]"),
    "codebook beyond the parent": (
        lambda a: dataclasses.replace(a, codebooks={**a.codebooks, 6: a.codebooks[5]}),
        "precisions from 3 to 5, at least one, got \\[3, 4, 5, 6\\]",
    ),
    "codebook of another precision": (
        lambda a: dataclasses.replace(a, codebooks=a.codebooks | {4: a.codebooks[3]}),
        "codebook 4 must be float16 \\(4, 16\\)",
    ),
    "float32 codebook": (
        lambda a: dataclasses.replace(a, codebooks=a.codebooks | {4: a.codebooks[4].astype(jnp.float32)}),
        "codebook 4 must be float16",
    ),
    "infinite centroid": (lambda a: with_codebook(a, 4, lambda c: c.__setitem__((1, 15), np.inf)), "finite, but row 1"),
    "used padding": (with_padding_bit, "from k = 45 on must be code 0, but row 2 has a bit set there in plane 1"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_validate_names_the_broken_invariant(case: str) -> None:
    change, message = BROKEN[case]
    with pytest.raises(ValueError, match=message):
        validate(change(small_array()))


def test_codebooks_may_be_left_out() -> None:
    array = small_array()
    validate(dataclasses.replace(array, codebooks={4: array.codebooks[4]}))
    some = dataclasses.replace(array, codebooks={3: array.codebooks[3], 5: array.codebooks[5]})
    validate(some)
    assert some.precisions == (3, 5)
    assert nbytes(some) == nbytes(array) - array.codebooks[4].nbytes
    with pytest.raises(ValueError, match="one of 3, 5, .* got 4"):
        nbytes(some, precision=4)


def test_validate_names_the_matrix_of_a_stack() -> None:
    stack = stacked(small_array(), 3)
    codebook = stack.codebooks[4].at[2, 1, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="codebook 4 must be finite, but row 1 of matrix 2 of the stack"):
        validate(dataclasses.replace(stack, codebooks=stack.codebooks | {4: codebook}))


def test_centroids_need_not_ascend() -> None:
    """Codes that are optimised jointly are no intervals of the sorted row."""
    array = small_array()
    validate(with_codebook(array, 4, lambda codebook: codebook.__setitem__(2, codebook[2, ::-1].copy())))
