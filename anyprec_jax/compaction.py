"""Float16 codebooks to compact ones (`compact_codebooks`), from a quantized matrix alone: no weights and no calibration are needed.

Everything is weighed by how many weights of the row read an entry; what no weight reads does not count. Up to 6 bits codes stay as they
are. Above, where one child of every entry is that entry itself, the bits are chosen anew: every weight goes to the child that is nearer to
what the finest precision made of it. So each precision above 6 is at least as near to that, weight by weight, as the one below it.
"""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float16, Float32, Int64, UInt8, UInt32

from anyprec_jax.array import AnyPrecArray, Matrix
from anyprec_jax.bitplanes import num_words, row_codes, row_planes
from anyprec_jax.compact_codebooks import (
    BYTE_UNITS,
    FIRST_PLACE,
    LAST_PAIRED,
    PARTS,
    SPAN_UNITS,
    SPANS,
    CompactCodebooks,
    codebooks_of,
    leaf_shapes,
    paired_children,
    step_children,
    step_factors,
    to_float16,
)
from anyprec_jax.layout import natural
from anyprec_jax.row_threads import for_rows

_ROWS_AT_ONCE = 512  # of which what is worked on, 256 numbers a row, stays in a processor's cache
# Clipping what few entries need makes the steps finer that all others are rounded to.
_SPAN_CLIPS = (1.0, 0.84, 0.7, 0.6, 0.5, 0.4)
_EVEN = slice(None, None, 2)
# A step is meant to reach the middle of what lies on one side of the parent: a quarter of the distance to its sibling, if all is even.
_FACTORS = np.array(0.8 * 0.8 ** np.arange(9), np.float16)
_SIGNED_FACTORS = np.array([-1.2, -1.0, -0.8, -0.65, -0.5, -0.4, -0.3, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 1.2], np.float16)


class _Rows(NamedTuple):
    """Some rows of a matrix: the codebooks that it has, and how many weights read each entry of the finest."""

    books: dict[int, Float32[np.ndarray, "rows _"]]
    population: Float32[np.ndarray, "rows leaves"]

    def population_at(self, precision: int) -> Float32[np.ndarray, "rows entries"]:
        return self.population.reshape(len(self.population), 2**precision, -1).sum(axis=-1)


def compact(array: Matrix) -> AnyPrecArray:
    """The matrix, or the stack, with compact codebooks, readable at the same precisions; one that has them already is returned as it is.

    Args:
      array: with the codebooks of all precisions from seed to parent.

    Returns:
      A natural array with NumPy leaves where `array` has such, else on JAX's default device. It has the codes of `array` at up to
      max(6, seed) bits.

    Raises:
      ValueError: a codebook is missing.

    Time O(n * (k + 2**parent)) on all cores, a minute of CPU time for 100 M weights in rows of 576; memory for the result.
    """
    array = natural(array)
    if isinstance(array.codebooks, CompactCodebooks):
        return array
    seed, parent, n = array.seed_precision, array.parent_precision, array.n
    if array.precisions != tuple(range(seed, parent + 1)):
        raise ValueError(
            f"compact codebooks are made from those of every precision from {seed} to {parent}, got {list(array.precisions)}"
        )
    lead = array.shape[:-2]
    planes = np.empty((*lead, parent, n, num_words(array.k)), np.uint32)
    leaves = {
        name: np.zeros((*lead, *shape), np.float16 if name.startswith("scales") else np.uint8)
        for name, shape in leaf_shapes(seed, parent, n).items()
    }
    for index in np.ndindex(*lead):
        books = {w: np.asarray(book[index]) for w, book in array.codebooks.items()}
        one = {name: leaf[index] for name, leaf in leaves.items()}
        _compact_matrix(np.asarray(array.bitplanes[index]), books, seed, array.k, planes[index], one)
    codebooks = codebooks_of(leaves, array.precisions)
    if isinstance(array.bitplanes, np.ndarray):
        return dataclasses.replace(array, bitplanes=planes, codebooks=codebooks)
    return dataclasses.replace(array, bitplanes=jax.device_put(planes), codebooks=jax.device_put(codebooks))


def _compact_matrix(
    planes: UInt32[np.ndarray, "parent n words"],
    books: dict[int, Float16[np.ndarray, "n _"]],
    seed: int,
    k: int,
    new_planes: UInt32[np.ndarray, "parent n words"],
    leaves: dict[str, np.ndarray],
) -> None:
    """Fills `new_planes` and `leaves`."""
    parent, n, _ = planes.shape

    def work(rows: slice) -> None:
        codes = row_codes(planes[:, rows], k)
        few = _Rows({w: book[rows].astype(np.float32) for w, book in books.items()}, _population(codes, 2**parent))
        leaf_codes = _compact_rows(few, seed, parent, {name: leaf[rows] for name, leaf in leaves.items()})
        new_planes[:, rows] = row_planes(np.take_along_axis(leaf_codes, codes.astype(np.intp), axis=1), parent)

    for_rows(work, num_rows=n, rows_at_once=_ROWS_AT_ONCE)


def _population(codes: UInt8[np.ndarray, "rows k"], entries: int) -> Float32[np.ndarray, "rows entries"]:
    cells = np.arange(len(codes))[:, None] * entries + codes
    return np.bincount(cells.ravel(), minlength=len(codes) * entries).reshape(-1, entries).astype(np.float32)


def _compact_rows(
    rows: _Rows, seed: int, parent: int, leaves: dict[str, np.ndarray]
) -> UInt8[np.ndarray, "rows leaves"]:
    """Fills `leaves`; returns the new code of every code of the finest precision."""
    last_kept = max(seed, min(LAST_PAIRED, parent))
    book = _fill_seed(rows, seed, leaves)
    for w in range(seed + 1, last_kept + 1):
        book = _fill_pairs(rows, book, w, leaves)
    codes = np.broadcast_to(np.arange(2**parent) >> (parent - last_kept), rows.population.shape)
    for w in range(last_kept + 1, parent + 1):
        current = _Current.of(rows, book, codes)
        if w == last_kept + 1:
            signs, scales = _first_step(current, book)
            leaves[f"entries/{w}"][...] = signs
        else:
            signs, scales = None, _second_step(current, book)
        leaves[f"scales/{w}"][...] = scales
        book = step_children(book, step_factors(signs, scales.astype(np.float32), np), np)
        codes = 2 * codes + (current.gain(book) > 0)
    return codes.astype(np.uint8)


def _fill_seed(rows: _Rows, seed: int, leaves: dict[str, np.ndarray]) -> Float16[np.ndarray, "rows entries"]:
    """Bytes evenly spaced from the least to the largest entry that is read."""
    book, read = rows.books[seed], rows.population_at(seed) > 0
    low = np.where(read, book, np.inf).min(axis=1, keepdims=True)
    high = np.where(read, book, -np.inf).max(axis=1, keepdims=True)
    scale = to_float16((high - low) * np.float32(BYTE_UNITS / 255), np)
    unit = scale.astype(np.float32) / np.float32(BYTE_UNITS)
    entries = np.clip(np.rint((book - low) / np.where(unit > 0, unit, 1)), 0, 255)
    leaves[f"entries/{seed}"][...] = entries
    leaves[f"scales/{seed}"][...] = np.concatenate([scale, low.astype(np.float16)], axis=1)
    return to_float16(low + entries * unit, np)


def _fill_pairs(
    rows: _Rows, parents: Float16[np.ndarray, "rows parents"], w: int, leaves: dict[str, np.ndarray]
) -> Float16[np.ndarray, "rows entries"]:
    """Spans and places at the scale, of a few, that leaves the least squared error."""
    pairs = _Pairs.of(rows.books[w], parents, rows.population_at(w), SPANS if w == LAST_PAIRED else SPANS[_EVEN])
    widest = np.maximum(pairs.likely_span().max(axis=1, keepdims=True), 0)
    longest = PARTS * float(pairs.spans[-1])
    scales = [to_float16(widest * np.float32(clip * SPAN_UNITS / longest), np) for clip in _SPAN_CLIPS]
    errors = [pairs.fit(scale, near=True)[-1].sum(axis=1) for scale in scales]
    scale = np.take_along_axis(np.stack(scales), np.argmin(errors, axis=0)[None, :, None], axis=0)[0]
    number, place, _ = pairs.fit(scale, near=False)
    if w == LAST_PAIRED:
        bits = np.packbits(number & 1, axis=1, bitorder="little")
        entries = np.concatenate([number >> 1 << 4 | place, bits], axis=1)
    else:
        entries = number << 4 | place
    leaves[f"entries/{w}"][...] = entries
    leaves[f"scales/{w}"][...] = scale
    return paired_children(parents, entries, scale.astype(np.float32), np)


class _Pairs(NamedTuple):
    """What both children of every parent should be, from the parent as decoded, and how many weights read them."""

    left: Float32[np.ndarray, "rows parents"]
    right: Float32[np.ndarray, "rows parents"]
    left_weight: Float32[np.ndarray, "rows parents"]
    right_weight: Float32[np.ndarray, "rows parents"]
    spans: UInt8[np.ndarray, " spans"]  # to choose from

    @classmethod
    def of(cls, book: np.ndarray, parents: np.ndarray, population: np.ndarray, spans: np.ndarray) -> "_Pairs":
        offsets = book - np.repeat(parents.astype(np.float32), 2, axis=1)
        return cls(offsets[:, ::2], offsets[:, 1::2], population[:, ::2], population[:, 1::2], spans)

    def likely_span(self) -> Float32[np.ndarray, "rows parents"]:
        """Of a pair of which one child is read, as if the other lay on the other side of the parent."""
        one = np.where(self.left_weight > 0, np.abs(self.left), np.where(self.right_weight > 0, np.abs(self.right), 0))
        return np.where((self.left_weight > 0) & (self.right_weight > 0), self.right - self.left, 2 * one)

    def fit(
        self, scale: Float16[np.ndarray, "rows 1"], *, near: bool
    ) -> tuple[
        UInt8[np.ndarray, "rows parents"], UInt8[np.ndarray, "rows parents"], Float32[np.ndarray, "rows parents"]
    ]:
        """The best spans, by number, and places at this scale, and their weighted squared errors; `near` tries three spans only."""
        unit = scale.astype(np.float32) / np.float32(SPAN_UNITS)
        shape, count = self.left.shape, len(self.spans)
        span, best = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        least = np.full(shape, np.inf, np.float32)
        if near:
            likely = self.likely_span() / np.where(unit > 0, PARTS * unit, 1)
            nearest = np.searchsorted((self.spans[1:] + self.spans[:-1].astype(np.float32)) / 2, likely)
            numbers = [np.clip(nearest + offset, 0, count - 1) for offset in (-1, 0, 1)]
        else:
            numbers = [np.full(shape, number) for number in range(count)]
        for number in numbers:
            place, error = self._fit_place(self.spans[number] * unit)
            better = error < least
            least[better], span[better], best[better] = error[better], number[better], place[better]
        return span, best, least

    def _fit_place(self, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The best place, 0 to 15, for children that are PARTS * `part` apart, and the error."""
        weight = np.maximum(self.left_weight + self.right_weight, 1)
        shift = self.right_weight * (PARTS * part - self.right) - self.left_weight * self.left
        place = np.clip(np.rint(shift / (weight * np.where(part > 0, part, 1))) - FIRST_PLACE, 0, 15)
        left, right = -(place + FIRST_PLACE) * part, (PARTS - FIRST_PLACE - place) * part
        error = self.left_weight * (left - self.left) ** 2 + self.right_weight * (right - self.right) ** 2
        return place, error


class _Current(NamedTuple):
    """What every code of the finest precision is read as at some lower one, and how far that is from what it should be."""

    target: Float32[np.ndarray, "rows leaves"]
    codes: Int64[np.ndarray, "rows leaves"]  # at the lower precision
    error: Float32[np.ndarray, "rows leaves"]  # squared
    population: Float32[np.ndarray, "rows leaves"]

    @classmethod
    def of(cls, rows: _Rows, book: Float16[np.ndarray, "rows entries"], codes: np.ndarray) -> "_Current":
        target = rows.books[max(rows.books)]
        error = (target - np.take_along_axis(book.astype(np.float32), codes, axis=1)) ** 2
        return cls(target, codes, error, rows.population)

    def gain(self, children: Float16[np.ndarray, "rows entries"]) -> Float32[np.ndarray, "rows leaves"]:
        """By how much the error of all weights falls that are nearer to the odd child of their code, the even one being where they are."""
        moved = np.take_along_axis(children[:, 1::2].astype(np.float32), self.codes, axis=1)
        return self.population * np.maximum(self.error - (self.target - moved) ** 2, 0)


def _first_step(
    current: _Current, book: Float16[np.ndarray, "rows parents"]
) -> tuple[UInt8[np.ndarray, "rows bytes"], Float16[np.ndarray, "rows 1"]]:
    """The factor, of a few, at which weights gain most, if the step of every parent goes where its own gain most."""
    n, parents = book.shape
    chosen = np.zeros((n, parents // 8), np.uint8)
    scales, most = np.zeros((n, 1), np.float16), np.full(n, -1, np.float32)
    for factor in _FACTORS:
        gains = []
        for sign in (1, -1):
            children = step_children(book, np.full((1, 1, 1), sign * factor, np.float32), np)
            gains.append(current.gain(children).reshape(n, parents, -1).sum(axis=-1))  # a parent's leaves lie together
        total = np.maximum(*gains).sum(axis=1)
        better = total > most
        most[better], scales[better] = total[better], factor
        chosen[better] = np.packbits(gains[1] > gains[0], axis=1, bitorder="little")[better]
    return chosen, scales


def _second_step(current: _Current, book: Float16[np.ndarray, "rows parents"]) -> Float16[np.ndarray, "rows 2"]:
    """The factor, of a few and with its sign, at which weights gain most, for parents of even and of odd code."""
    scales, most = np.zeros((len(book), 2), np.float16), np.full((len(book), 2), -1, np.float32)
    is_odd = (current.codes % 2).astype(np.float32)
    for factor in _SIGNED_FACTORS:
        gain = current.gain(step_children(book, np.full((1, 1, 1), factor, np.float32), np))
        odd = (gain * is_odd).sum(axis=1)
        total = np.stack([gain.sum(axis=1) - odd, odd], axis=1)
        better = total > most
        most[better], scales[better] = total[better], factor
    return scales
