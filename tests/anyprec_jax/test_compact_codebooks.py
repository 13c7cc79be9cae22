import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax.array import AnyPrecArray, bits_per_weight, expand, nbytes, validate
from anyprec_jax.compact_codebooks import CompactCodebooks, codebooks_of, decode, leaf_shapes, row_bytes
from anyprec_jax.layout import natural, prepare
from anyprec_jax.ops import dequantize
from tests.anyprec_jax import oracles, oracles_compact

N, K = 5, 45


def random_leaves(seed: int, parent: int, *, lead: tuple[int, ...] = (), scale: float = 0.1) -> dict[str, np.ndarray]:
    """Any bytes are codebooks."""
    rng = np.random.default_rng(seed * 10 + parent)
    return {
        name: rng.integers(0, 256, (*lead, *shape), np.uint8)
        if name.startswith("entries")
        else np.clip(scale * rng.standard_normal((*lead, *shape)), -65504, 65504).astype(np.float16)
        for name, shape in leaf_shapes(seed, parent, N).items()
    }


def random_codebooks(seed: int, parent: int, **options) -> CompactCodebooks:
    return codebooks_of(random_leaves(seed, parent, **options), tuple(range(seed, parent + 1)))


def random_array(seed: int = 3, parent: int = 8) -> AnyPrecArray:
    codes = np.random.default_rng(1).integers(0, 2**parent, (N, K), dtype=np.uint8)
    books = jax.tree.map(jnp.asarray, random_codebooks(seed, parent))
    return AnyPrecArray(jnp.asarray(oracles.pack(codes, parent)), books, seed, parent, K)


@pytest.mark.parametrize(("seed", "parent"), [(3, 8), (2, 6), (1, 3), (4, 7), (6, 8), (7, 8), (8, 8), (1, 1)])
def test_decodes_to_what_the_table_says(seed: int, parent: int) -> None:
    codebooks = random_codebooks(seed, parent)
    for w in range(seed, parent + 1):
        book = codebooks[w]
        assert isinstance(book, np.ndarray) and book.dtype == np.float16
        for row in range(N):
            one = ({v: leaf[row] for v, leaf in leaves.items()} for leaves in (codebooks.entries, codebooks.scales))
            np.testing.assert_array_equal(book[row], oracles_compact.decoded_row(*one, w))


@pytest.mark.parametrize("scale", [0.1, 1e-6, 3e4])
def test_numpy_and_compiled_jax_decode_to_the_same_bits(scale: float) -> None:
    """Down to the least numbers of float16, and up to the largest: nothing becomes infinite."""
    on_host = random_codebooks(3, 8, scale=scale)
    on_device = jax.tree.map(jnp.asarray, on_host)
    book = decode(on_device, 8)
    assert isinstance(book, jax.Array) and np.isfinite(np.asarray(book)).all()
    np.testing.assert_array_equal(book, on_host[8])


def test_stacks_decode_like_their_matrices() -> None:
    stack = random_codebooks(3, 8, lead=(2, 3))
    book = stack[7]
    for index in np.ndindex(2, 3):
        one = jax.tree.map(lambda leaf, index=index: leaf[index], stack)
        np.testing.assert_array_equal(book[index], one[7])
    flat = jax.tree.map(lambda leaf: jnp.asarray(leaf).reshape(6, *leaf.shape[2:]), stack)
    np.testing.assert_array_equal(jax.vmap(lambda one: one[7])(flat), book.reshape(6, N, 128))


def test_reads_like_a_dict() -> None:
    codebooks = dataclasses.replace(random_codebooks(3, 6), readable=(4, 6))
    assert list(codebooks) == [4, 6] and len(codebooks) == 2 and 4 in codebooks and 3 not in codebooks
    assert {w: book.shape for w, book in codebooks.items()} == {4: (N, 16), 6: (N, 64)}
    with pytest.raises(KeyError):
        codebooks[3]


def test_bytes_of_a_row() -> None:
    """8 + 4 bytes of the seed, 8 + 2, 16 + 2 and 32 + 4 + 2 of pairs, 8 + 2 of signs, 4 of factors."""
    assert row_bytes(3, 8) == 92
    array = random_array()
    assert nbytes(array) == sum(leaf.nbytes for leaf in jax.tree.leaves(array)) == array.bitplanes.nbytes + 92 * N
    assert nbytes(array, precision=5) == array.bitplanes[:5].nbytes + N * 32 * 2


def test_resident_bits_of_narrow_rows() -> None:
    planes = jax.ShapeDtypeStruct((8, 4, 18), jnp.uint32)
    shapes = {
        name: jax.ShapeDtypeStruct(shape, jnp.uint8 if name.startswith("entries") else jnp.float16)
        for name, shape in leaf_shapes(3, 8, 4).items()
    }
    array = AnyPrecArray(planes, codebooks_of(shapes, (3, 4, 5, 6, 7, 8)), 3, 8, 576)  # pyright: ignore[reportArgumentType]
    assert bits_per_weight(array) == 8 + 92 * 8 / 576 < 9.3


def test_expand_decodes_what_will_be_read() -> None:
    array = random_array()
    validate(array)
    assert array.precisions == (3, 4, 5, 6, 7, 8)
    for wanted, precisions in ((5, (5,)), ((6, 3), (3, 6))):
        plain = expand(array, wanted)
        validate(plain)
        assert plain.precisions == precisions and plain.bitplanes is array.bitplanes
        for w in precisions:
            np.testing.assert_array_equal(plain.codebooks[w], array.codebooks[w])
    with pytest.raises(ValueError, match="one of 3, 4, 5, 6, 7, 8"):
        expand(array, 2)
    assert expand(plain, 3) is plain


def test_products_read_compact_arrays_as_they_are() -> None:
    array = random_array(3, 6)
    expected = dequantize(expand(array, 5), precision=5)
    np.testing.assert_array_equal(dequantize(array, precision=5), expected)
    prepared = prepare(array)
    validate(prepared)
    assert isinstance(prepared.codebooks, CompactCodebooks)
    np.testing.assert_array_equal(dequantize(natural(expand(prepared, 5)), precision=5), expected)


def changed(name: str, leaf: np.ndarray | None) -> AnyPrecArray:
    leaves: dict = random_leaves(3, 8) | {name: leaf}
    books = codebooks_of({n: leaf for n, leaf in leaves.items() if leaf is not None}, (3, 4, 5, 6, 7, 8))
    return dataclasses.replace(random_array(), codebooks=books)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (changed("entries/5", None), "lack entries/5"),
        (changed("scales/8", None), "lack|cannot be read at 8"),
        (changed("entries/8", np.zeros((N, 16), np.uint8)), "an extra entries/8"),
        (changed("entries/4", np.zeros((N, 16), np.uint8)), r"entries/4 must be uint8 \(5, 8\), got uint8 \(5, 16\)"),
        (changed("entries/4", np.zeros((N, 8), np.int8)), "entries/4 must be uint8"),
        (changed("scales/6", np.zeros((N, 1), np.float32)), "scales/6 must be float16"),
        (changed("scales/6", np.full((N, 1), np.nan, np.float16)), r"scales/6 must be finite, but at \[0, 0\]"),
        (
            dataclasses.replace(random_array(), codebooks=dataclasses.replace(random_codebooks(3, 8), readable=())),
            "at least one",
        ),
    ],
)
def test_validate_names_the_leaf(array: AnyPrecArray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(array)


def test_every_leaf_has_rows_last_but_one() -> None:
    """What fuses linears, takes them apart and cuts stacks up knows no other rule."""
    for seed, parent in ((1, 8), (7, 8)):
        assert all(shape[-2] == 9 and math.prod(shape) > 0 for shape in leaf_shapes(seed, parent, 9).values())
