"""Lists of all neighbours, sorted by length into the tables of a `DegreeBlock`."""

import numpy as np
from jaxtyping import Float32, Int32, Int64

from ginex_jax.batch import COMBINE_WIDTHS, TABLE_WIDTHS, DegreeBlock, DegreeRows, DegreeTable

_WIDEST = TABLE_WIDTHS[-1]


def list_positions(
    starts: Int64[np.ndarray, " lists"], lengths: Int64[np.ndarray, " lists"]
) -> Int64[np.ndarray, " positions"]:
    """Every position of lists that start at `starts`, list after list."""
    bounds = np.cumsum(lengths)
    return np.repeat(starts - bounds + lengths, lengths) + np.arange(bounds[-1] if len(bounds) else 0)


def count_rows(degrees: Int64[np.ndarray, " destinations"]) -> DegreeRows:
    """How many rows of every table lists of these lengths fill.

    Raises:
      ValueError: a list is too long for the widest.
    """
    longest = int(degrees.max(initial=0))
    if longest > _WIDEST * COMBINE_WIDTHS[-1]:
        raise ValueError(f"a node should have at most {_WIDEST * COMBINE_WIDTHS[-1]} neighbours, got {longest}")
    pieces = _pieces(degrees)
    tables = [int(((degrees > low) & (degrees <= width)).sum()) for low, width in _ranges(TABLE_WIDTHS, 0)]
    tables[-1] += int(pieces[pieces > 1].sum())
    combines = tuple(int(((pieces > low) & (pieces <= width)).sum()) for low, width in _ranges(COMBINE_WIDTHS, 1))
    return DegreeRows(tuple(tables), combines)


def degree_block(
    degrees: Int64[np.ndarray, " destinations"],
    neighbors: Int32[np.ndarray, " edges"],
    weights: Float32[np.ndarray, " edges"] | None,
) -> DegreeBlock:
    """The block of lists that lie end to end. O(edges); at most four times the memory of the lists."""
    count_rows(degrees)
    starts, pieces = np.cumsum(degrees) - degrees, _pieces(degrees)
    rows, num_rows = np.zeros(len(degrees), np.int32), 1
    first_piece = np.zeros(len(degrees), np.int64)
    tables, combines = [], []
    for low, width in _ranges(TABLE_WIDTHS, 0):
        members = np.flatnonzero((degrees > low) & ((degrees <= width) | (width == _WIDEST)))
        owners = np.repeat(members, pieces[members])
        places = list_positions(np.zeros(len(members), np.int64), pieces[members]) * width
        rows[members] = first_piece[members] = num_rows + np.cumsum(pieces[members]) - pieces[members]
        lengths = np.minimum(degrees[owners] - places, width)
        tables.append(_table(starts[owners] + places, lengths, width, neighbors, weights))
        num_rows += len(owners)
    for low, width in _ranges(COMBINE_WIDTHS, 1):
        members = np.flatnonzero((pieces > low) & (pieces <= width))
        rows[members] = num_rows + np.arange(len(members))
        mask = np.arange(width) < pieces[members, None]
        entries = np.where(mask, first_piece[members, None] + np.arange(width), 0)
        combines.append(DegreeTable(entries.astype(np.int32), mask))
        num_rows += len(members)
    return DegreeBlock(tuple(tables), tuple(combines), rows, degrees.astype(np.int32))


def _ranges(widths: tuple[int, ...], low: int) -> list[tuple[int, int]]:
    return list(zip((low, *widths[:-1]), widths, strict=True))


def _pieces(degrees: Int64[np.ndarray, " destinations"]) -> Int64[np.ndarray, " destinations"]:
    """Rows of the widest table that a list fills; 1 for a list that is empty or fits elsewhere."""
    return np.maximum(1, -(-degrees // _WIDEST))


def _table(
    starts: Int64[np.ndarray, " rows"],
    lengths: Int64[np.ndarray, " rows"],
    width: int,
    neighbors: Int32[np.ndarray, " edges"],
    weights: Float32[np.ndarray, " edges"] | None,
) -> DegreeTable:
    mask = np.arange(width) < lengths[:, None]
    positions = list_positions(starts, lengths)
    entries = np.zeros(mask.shape, np.int32)
    entries[mask] = neighbors[positions]
    if weights is None:
        return DegreeTable(entries, mask)
    table_weights = np.zeros(mask.shape, np.float32)
    table_weights[mask] = weights[positions]
    return DegreeTable(entries, mask, table_weights)
