import dataclasses
import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from anyprec_jax import compaction
from anyprec_jax.array import AnyPrecArray, expand, validate
from anyprec_jax.bitplanes import row_codes
from anyprec_jax.checkpoint.source import dequantized_matrix
from anyprec_jax.compact_codebooks import CompactCodebooks
from anyprec_jax.compaction import compact
from anyprec_jax.config import QuantizeConfig
from anyprec_jax.layout import prepare
from anyprec_jax.quantization import quantize
from tests.anyprec_jax import oracles, oracles_compact


def array_of(codes: np.ndarray, books: dict[int, np.ndarray]) -> AnyPrecArray:
    """On the host."""
    seed, parent = min(books), max(books)
    leaves = {w: book.astype(np.float16) for w, book in books.items()}
    return AnyPrecArray(oracles.pack(codes, parent), leaves, seed, parent, codes.shape[1])  # pyright: ignore[reportArgumentType]


def nested_books(leaves: np.ndarray, codes: np.ndarray, seed: int) -> dict[int, np.ndarray]:
    """Every entry the mean of the weights that read it, or of its leaves where none does."""
    n, entries = leaves.shape
    parent = entries.bit_length() - 1
    count = np.stack([np.bincount(row, minlength=entries) for row in codes]) + 1e-9
    return {
        w: ((leaves * count).reshape(n, 2**w, -1).sum(-1) / count.reshape(n, 2**w, -1).sum(-1))
        for w in range(seed, parent + 1)
    }


def random_array(seed: int, parent: int, *, n: int = 4, k: int = 200, number: int = 0) -> AnyPrecArray:
    """Codes of any frequency, as of a heavy-tailed row."""
    rng = np.random.default_rng(number)
    leaves = np.sort(rng.standard_t(4, (n, 2**parent)), axis=1) * 0.05
    codes = np.clip(rng.normal(2.0 ** (parent - 1), 2.0**parent / 6, (n, k)), 0, 2**parent - 1).astype(np.uint8)
    return array_of(codes, nested_books(leaves, codes, seed))


def read_at(array: AnyPrecArray, precision: int) -> np.ndarray:
    return dequantized_matrix(array, precision=precision, dtype=np.dtype(np.float32))


def codes_of(array: AnyPrecArray) -> np.ndarray:
    return row_codes(np.asarray(array.bitplanes), array.k)


@pytest.mark.parametrize(("seed", "parent"), [(3, 8), (2, 8), (1, 3), (3, 6), (3, 7), (6, 7), (7, 8), (8, 8), (1, 1)])
def test_any_precisions(seed: int, parent: int) -> None:
    array = random_array(seed, parent)
    small = compact(array)
    validate(small)
    assert isinstance(small.codebooks, CompactCodebooks) and small.precisions == array.precisions
    kept = max(seed, min(6, parent))
    np.testing.assert_array_equal(codes_of(small) >> (parent - kept), codes_of(array) >> (parent - kept))
    assert compact(small) is small


@hypothesis.settings(max_examples=20)
@hypothesis.given(
    st.integers(0, 2**32 - 1), st.sampled_from([(3, 8), (2, 8), (5, 7), (7, 8)]), st.integers(1, 70), st.booleans()
)
def test_no_precision_above_6_is_worse_than_the_one_below_for_any_weight(
    number: int, precisions: tuple[int, int], k: int, is_ordered: bool
) -> None:
    """Measured from what the finest precision made of the weight, whatever the codebooks are."""
    seed, parent = precisions
    rng = np.random.default_rng(number)
    books = {w: rng.standard_normal((2, 2**w)) * 10.0 ** rng.integers(-6, 4) for w in range(seed, parent + 1)}
    if is_ordered:
        books = {w: np.sort(book, axis=1) for w, book in books.items()}
    array = array_of(rng.integers(0, 2**parent, (2, k), np.uint8), books)
    small, wanted = compact(array), read_at(array, parent).astype(np.float64)
    errors = [np.abs(read_at(small, w) - wanted) for w in range(max(6, seed), parent + 1)]
    for coarse, fine in itertools.pairwise(errors):
        assert (fine <= coarse).all()


def test_weights_above_6_bits_read_the_nearer_child() -> None:
    array = random_array(3, 8)
    small, wanted = compact(array), read_at(array, 8)
    for w in (7, 8):
        codes = codes_of(small) >> (8 - w)
        other = np.take_along_axis(np.asarray(small.codebooks[w], np.float32), (codes ^ 1).astype(np.intp), axis=1)
        assert (np.abs(read_at(small, w) - wanted) <= np.abs(other - wanted)).all()


def test_one_child_is_its_parent_above_6_bits() -> None:
    small = compact(random_array(3, 8))
    for w in (7, 8):
        np.testing.assert_array_equal(small.codebooks[w][:, ::2], small.codebooks[w - 1])


def least_error(members: np.ndarray, parent: float, step: float) -> float:
    """Squared, of weights that read a parent or what lies a step from it, whichever is nearer."""
    return float(np.minimum((members - parent) ** 2, (members - oracles_compact.rounded(parent + step)) ** 2).sum())


def test_steps_are_the_best_there_are() -> None:
    """At 7 bits every factor with the better sign for each parent; at 8 every factor of either sign, by the parity of the parent."""
    array = random_array(3, 8, n=2, k=576)
    small, wanted = compact(array), read_at(array, 8).astype(np.float64)
    found = {w: (read_at(small, w) - wanted) ** 2 for w in (7, 8)}
    for row in range(2):
        for w, factors in ((7, compaction._FACTORS), (8, compaction._SIGNED_FACTORS)):
            codes = codes_of(small)[row] >> (9 - w)
            book = np.asarray(small.codebooks[w - 1][row], np.float64)
            signs = (1, -1) if w == 7 else (1,)
            errors = np.zeros((len(factors), 2))  # by parity of the parent
            for parent, value in enumerate(book):
                members = wanted[row][codes == parent]
                difference = oracles_compact.rounded(book[parent | 1] - book[parent & ~1])
                for number, factor in enumerate(factors):
                    tried = [least_error(members, value, sign * float(factor) * difference) for sign in signs]
                    errors[number, parent % 2] += min(tried)
            if w == 7:
                assert found[7][row].sum() <= errors.sum(axis=1).min() * (1 + 1e-4)
            else:
                for parity in (0, 1):
                    assert found[8][row][codes % 2 == parity].sum() <= errors[:, parity].min() * (1 + 1e-4)


def test_entries_of_pairs_are_the_best_there_are() -> None:
    """All spans and places for every parent, at the scale that was chosen, from the parent as decoded: the loop is closed."""
    array = random_array(3, 6, n=2)
    small, codes = compact(array), codes_of(array)
    entries, scales = (jax.tree.map(np.asarray, leaves) for leaves in (small.codebooks.entries, small.codebooks.scales))
    for row in range(2):
        for w in (4, 5, 6):
            count = np.bincount(codes[row] >> (6 - w), minlength=2**w)
            wanted = np.asarray(array.codebooks[w][row], np.float64)
            parents = np.asarray(small.codebooks[w - 1][row], np.float64)
            found = np.asarray(small.codebooks[w][row], np.float64)
            unit = float(scales[w][row, 0]) / 128
            spans = oracles_compact.SPANS if w == 6 else oracles_compact.SPANS[::2]
            span, place = np.repeat(spans, 16) * unit, np.tile(np.arange(-2, 14), len(spans))
            for p in range(2 ** (w - 1)):
                left, right = parents[p] - place * span, parents[p] + (11 - place) * span
                costs = count[2 * p] * (left - wanted[2 * p]) ** 2 + count[2 * p + 1] * (right - wanted[2 * p + 1]) ** 2
                cost = count[2 * p : 2 * p + 2] @ (found[2 * p : 2 * p + 2] - wanted[2 * p : 2 * p + 2]) ** 2
                rounding = 2.0**-11 * np.abs(wanted).max()  # of what was decoded to float16
                assert np.sqrt(cost) <= np.sqrt(costs.min()) + np.sqrt(count.max()) * rounding
    assert entries[4].shape == (2, 8)


def test_errors_do_not_add_up() -> None:
    """Each precision's entries are as far off as its own spans and places are coarse, whatever those below have lost.

    Where both children are read equally often: the nearest span S' to a span S is off by |S' - S| / 2 at either child; places move both
    together, in steps of S' / 11, up to 15 / 22 of S' to either side.
    """
    n = 3
    leaves = np.sort(np.random.default_rng(0).standard_normal((n, 64)), axis=1)
    codes = np.broadcast_to(np.arange(64, dtype=np.uint8), (n, 64)).copy()
    array = array_of(codes, nested_books(leaves, codes, 3))
    small = compact(array)
    for w in (4, 5, 6):
        wanted, found = (np.asarray(a.codebooks[w], np.float64).reshape(n, -1, 2) for a in (array, small))
        parents = np.asarray(small.codebooks[w - 1], np.float64)
        widths = wanted[..., 1] - wanted[..., 0]
        numbers = np.array(oracles_compact.SPANS if w == 6 else oracles_compact.SPANS[::2])
        spans = 11 * numbers * np.asarray(small.codebooks.scales[w], np.float64) / 128
        nearest = np.take_along_axis(spans, np.abs(spans[:, None] - widths[..., None]).argmin(-1), axis=1)
        beyond = np.maximum(0, np.abs(wanted.mean(axis=-1) - parents) - nearest * 15 / 22)
        off = np.sqrt(((found - wanted) ** 2).mean(axis=-1))
        rounding = 2.0**-11 * np.abs(wanted).max()  # to float16
        assert (off <= np.hypot((nearest - widths) / 2, nearest / 22 + beyond) + rounding).all()


def test_what_no_weight_reads_does_not_count() -> None:
    """Entries of empty clusters may be anything; the range is that of the others."""
    array = random_array(3, 6)
    books = {w: np.array(book) for w, book in array.codebooks.items()}
    codes = codes_of(array)
    for w, book in books.items():
        for row in range(array.n):
            book[row, np.bincount(codes[row] >> (6 - w), minlength=2**w) == 0] = 6e4
    spoilt = compact(dataclasses.replace(array, codebooks=books))
    for w in (3, 4, 5, 6):
        off = np.abs(read_at(spoilt, w) - read_at(array, w))
        assert np.sqrt((off**2).mean()) < 0.02 * np.abs(read_at(array, w)).max()


@pytest.mark.parametrize("value", [0.0, -0.3, 65504.0, 6e-8])
def test_a_row_of_one_value_is_exact(value: float) -> None:
    books = {w: np.full((1, 2**w), value) for w in range(3, 9)}
    small = compact(array_of(np.arange(40, dtype=np.uint8)[None], books))
    for w in range(3, 9):
        np.testing.assert_array_equal(small.codebooks[w], np.float16(np.full((1, 2**w), value)))


def test_rows_are_independent_and_stacks_are_matrices() -> None:
    array = random_array(3, 8, n=6)
    whole = compact(array)
    order = [4, 1, 5]
    books = {w: book[order] for w, book in array.codebooks.items()}
    part = compact(dataclasses.replace(array, bitplanes=array.bitplanes[:, order], codebooks=books))
    for a, b in zip(jax.tree.leaves(part.codebooks), jax.tree.leaves(whole.codebooks), strict=True):
        np.testing.assert_array_equal(a, b[order])
    np.testing.assert_array_equal(part.bitplanes, whole.bitplanes[:, order])
    stack = compact(jax.tree.map(lambda *leaves: np.stack(leaves), array, array))
    for a, b in zip(jax.tree.leaves(stack), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a[1], b)


def test_a_prepared_stack_on_the_device() -> None:
    array = random_array(3, 6)
    prepared = prepare(jax.tree.map(jnp.asarray, array))
    small, expected = compact(prepared), compact(array)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(small))
    for a, b in zip(jax.tree.leaves(small), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_missing_codebook_is_refused() -> None:
    array = random_array(3, 6)
    some = dataclasses.replace(array, codebooks={w: array.codebooks[w] for w in (3, 6)})
    with pytest.raises(ValueError, match=r"every precision from 3 to 6, got \[3, 6\]"):
        compact(some)


def test_quantized_rows_lose_little() -> None:
    """Heavy-tailed rows as wide as a small model's: at most a tenth of the squared error more up to 6 bits, less at 7 and 8."""
    weights = np.random.default_rng(0).standard_t(5, (24, 576)).astype(np.float32) * 0.05
    array = jax.tree.map(np.asarray, quantize(weights, np.ones_like(weights), QuantizeConfig()))
    small = compact(array)
    error = {w: [float(((read_at(a, w) - weights) ** 2).sum()) for a in (array, small)] for w in range(3, 9)}
    for w in (3, 4, 5, 6):
        assert error[w][1] <= 1.1 * error[w][0]
    assert error[8][1] < error[7][1] < error[6][1]
    np.testing.assert_array_equal(expand(small, 8).codebooks[8], small.codebooks[8])
