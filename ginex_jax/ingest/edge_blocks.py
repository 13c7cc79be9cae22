"""Edges a block at a time: as they are read, checked, and with what is added to them or dropped."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64, Integer, Shaped

from ginex_jax.ingest.row_numbers import nth_row
from ginex_jax.ingest.text_numbers import parsed

MAX_NODES = 1 << 32
_EDGES_AT_ONCE = 1 << 20
_SHOWN = 60


class EdgeColumns(NamedTuple):
    """What the columns of an edge list are called."""

    source: str = "src"
    target: str = "dst"
    weight: str | None = None


class BadRow(NamedTuple):
    """A row that could not even be split into columns."""

    row: int
    text: str
    reason: str


class RawEdgeBlock(NamedTuple):
    """Consecutive rows of an edge list, nothing checked.

    Columns are NumPy arrays of numbers, NumPy arrays of objects, or `pyarrow.Array`s of numbers or text, with gaps perhaps. Rows are
    counted from 1, a header and empty lines not among them; `bad_rows`, in ascending order, lie between the others.
    """

    sources: Any
    targets: Any
    weights: Any  # None where edges have none
    path: str
    first_row: int
    bad_rows: tuple[BadRow, ...] = ()
    originals: tuple[Any, Any] | None = None  # sources and targets before they were mapped, for messages

    def row_of(self, index: int) -> int:
        """In which row of the file edge `index` of this block stands."""
        row = self.first_row + index
        for bad in self.bad_rows:
            row += bad.row <= row
        return row


class EdgeBlock(NamedTuple):
    """Edges between nodes, edge i from `sources[i]` to `targets[i]`; weights are finite and at least 0."""

    sources: Int64[np.ndarray, " edges"]
    targets: Int64[np.ndarray, " edges"]
    weights: Float32[np.ndarray, " edges"] | None


def in_memory_edges(
    sources: Shaped[np.ndarray, " sources"],
    targets: Shaped[np.ndarray, " targets"],
    weights: Shaped[np.ndarray, " weights"] | None = None,
    *,
    name: str = "arrays",
    edges_per_block: int = _EDGES_AT_ONCE,
) -> Iterator[RawEdgeBlock]:
    """Arrays as blocks, without a copy.

    Raises:
      ValueError: their lengths differ.
    """
    lengths = {len(column) for column in (sources, targets, weights) if column is not None}
    if len(lengths) > 1:
        raise ValueError(f"{name}: sources, targets and weights should be of one length, got {sorted(lengths)}")
    for start in range(0, len(sources), edges_per_block):
        piece = slice(start, start + edges_per_block)
        yield RawEdgeBlock(sources[piece], targets[piece], None if weights is None else weights[piece], name, start + 1)


def clean(
    block: RawEdgeBlock, *, num_nodes: int | None, skip_bad_rows: bool, skipped: Counter[str] | None = None
) -> EdgeBlock:
    """The block as numbers, each of them checked.

    Args:
      num_nodes: ids lie in [0, num_nodes); below 2^32 if None.
      skip_bad_rows: drop bad rows and count them in `skipped["edges"]`.

    Raises:
      ValueError: a row is bad and `skip_bad_rows` is off: an id is missing, no whole number or out of range; a weight is missing, NaN,
        infinite in float32 or negative; or the row has another number of columns than the first. File, row and value are named.

    Time O(edges).
    """
    stop = MAX_NODES if num_nodes is None else num_nodes
    sources, bad_sources = _node_ids(block.sources, stop)
    targets, bad_targets = _node_ids(block.targets, stop)
    weights, bad_weights = (None, None) if block.weights is None else _weights(block.weights)
    bad = _any_of(bad_sources, bad_targets, bad_weights)
    if bad is None and not block.bad_rows:
        return EdgeBlock(sources, targets, weights)
    if not skip_bad_rows:
        raise ValueError(_complaint(block, (bad_sources, bad_targets, bad_weights), stop))
    if skipped is not None:
        skipped["edges"] += len(block.bad_rows) + (0 if bad is None else int(bad.sum()))
    if bad is None:
        return EdgeBlock(sources, targets, weights)
    return EdgeBlock(sources[~bad], targets[~bad], None if weights is None else weights[~bad])


def without_self_loops(block: EdgeBlock) -> EdgeBlock:
    """Drops the edges from a node to itself."""
    kept = block.sources != block.targets
    if kept.all():
        return block
    return EdgeBlock(block.sources[kept], block.targets[kept], None if block.weights is None else block.weights[kept])


def with_reverse(block: EdgeBlock) -> EdgeBlock:
    """Puts its reverse right after every edge; a self loop has none. The order does not depend on where blocks begin."""
    first = np.arange(0, 2 * len(block.sources), 2)
    kept = np.ones(2 * len(block.sources), np.bool_)
    kept[first[block.sources == block.targets] + 1] = False
    return EdgeBlock(
        _interleaved(block.sources, block.targets)[kept],
        _interleaved(block.targets, block.sources)[kept],
        None if block.weights is None else np.repeat(block.weights, 2)[kept],
    )


def self_loops(num_nodes: int, weighted: bool) -> Iterator[EdgeBlock]:
    """One for every node, of weight 1."""
    for start in range(0, num_nodes, _EDGES_AT_ONCE):
        nodes = np.arange(start, min(start + _EDGES_AT_ONCE, num_nodes))
        yield EdgeBlock(nodes, nodes, np.ones(len(nodes), np.float32) if weighted else None)


def as_numbers(column: Any) -> Shaped[np.ndarray, " rows"]:
    """A column of a `RawEdgeBlock` as integers or floats, NaN where there is no number."""
    if isinstance(column, np.ndarray) and column.dtype.kind in "iuf":
        return column
    import pyarrow as pa

    column = as_arrow(column)
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return column.to_numpy(zero_copy_only=False)  # floats where there are gaps
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    return parsed(column.cast(pa.large_string()))


def as_arrow(column: Any) -> Any:
    """A column of a `RawEdgeBlock` as a `pyarrow.Array`; where numbers and text are mixed, all of it becomes text."""
    import pyarrow as pa

    if isinstance(column, pa.DictionaryArray):
        return column.dictionary_decode()
    if isinstance(column, pa.Array):
        return column
    if column.dtype.kind != "O":
        return pa.array(column)
    try:
        return pa.array(column, from_pandas=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([None if value is None else str(value) for value in column], pa.large_string())


def shown(column: Any, index: int) -> str:
    """A value as a message shows it."""
    value = column[index]
    value = value.as_py() if hasattr(value, "as_py") else value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str) and len(value) > _SHOWN:
        value = f"{value[:_SHOWN]}..."
    return "missing" if value is None else repr(value)


def _node_ids(column: Any, stop: int) -> tuple[Int64[np.ndarray, " rows"], Bool[np.ndarray, " rows"] | None]:
    """Ids, and which of them are bad, None if none is; bad ones are 0."""
    numbers = as_numbers(column)
    if len(numbers) == 0:
        return numbers.astype(np.int64), None
    if numbers.dtype.kind != "f":
        if numbers.min() >= 0 and numbers.max() < stop:
            return numbers.astype(np.int64, copy=False), None
        bad = (numbers < 0) | (numbers >= stop)
    else:
        numbers = numbers.astype(np.float64)
        bad = ~((numbers >= 0) & (numbers < stop) & (numbers == np.floor(numbers)))
    return np.where(bad, 0, numbers).astype(np.int64), bad if bad.any() else None


def _weights(column: Any) -> tuple[Float32[np.ndarray, " rows"], Bool[np.ndarray, " rows"] | None]:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and bad
        weights = as_numbers(column).astype(np.float32)
    bad = ~(np.isfinite(weights) & (weights >= 0))
    return weights, bad if bad.any() else None


def _any_of(*masks: Bool[np.ndarray, " rows"] | None) -> Bool[np.ndarray, " rows"] | None:
    given = [mask for mask in masks if mask is not None]
    return np.logical_or.reduce(given) if given else None


def _interleaved(
    first: Int64[np.ndarray, " edges"], second: Int64[np.ndarray, " edges"]
) -> Integer[np.ndarray, " twice"]:
    return np.stack([first, second], axis=1).reshape(-1)


def _complaint(block: RawEdgeBlock, masks: tuple[Bool[np.ndarray, " rows"] | None, ...], stop: int) -> str:
    """About the first bad row, and in it the first bad column."""
    sources, targets = block.originals or (block.sources, block.targets)
    wanted = f"a whole number from 0 to {stop - 1}" if block.originals is None else "a whole number, or text"
    columns = (
        ("source", sources, wanted),
        ("target", targets, wanted),
        ("weight", block.weights, "finite in float32 and at least 0"),
    )
    complaints = [(bad.row, f"value {bad.text!r:.{_SHOWN}}: {bad.reason}") for bad in block.bad_rows[:1]]
    for (name, column, reason), bad in zip(columns, masks, strict=True):
        if bad is not None:
            index = int(bad.argmax())
            what = shown(column, index)
            complaints.append(
                (block.row_of(index), f"value {what} of {name}: it should be {reason}{_hint(name, what)}")
            )
    row, text = min(complaints, key=lambda complaint: complaint[0])
    return f"{block.path} {nth_row(row - 1)}: {text}"


def _hint(name: str, what: str) -> str:
    """For ids with a letter in them: a number that is too large, or nothing at all, would not be helped."""
    is_text = what.startswith(("'", '"')) and any(character.isalpha() for character in what)
    return " (ids that are text need to be mapped: --map-ids)" if is_text and name != "weight" else ""
