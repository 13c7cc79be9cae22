"""Ids of any kind, text or sparse numbers, to the numbers of nodes."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, Shaped

from ginex_jax.ingest.edge_blocks import RawEdgeBlock, as_arrow, shown
from ginex_jax.ingest.row_numbers import nth_row
from ginex_jax.ingest.text_numbers import compute, is_plain_whole_number

_WAITING_IDS = 1 << 20  # at least so many distinct ones of single blocks are merged at once
_BYTES_PER_NUMBER = 24  # what is merged, twice, and what comes out
_BYTES_PER_TEXT = 64  # offsets, hash table and order, besides the text itself
_COPIES_OF_TEXT = 3


class IdMapping(NamedTuple):
    """Node v is called `ids[v]`; ids ascend, numbers by value and text by its UTF-8 bytes.

    `ids` is int64 in a NumPy array, or text in a `pyarrow.Array`.
    """

    ids: Any

    @property
    def num_nodes(self) -> int:
        return len(self.ids)

    @property
    def has_string_ids(self) -> bool:
        return not isinstance(self.ids, np.ndarray)

    def apply(self, block: RawEdgeBlock) -> RawEdgeBlock:
        """The block with nodes' numbers in the place of ids; what was no id is missing. O(edges + distinct ids * log nodes)."""
        return block._replace(
            sources=self._column(block.sources),
            targets=self._column(block.targets),
            originals=(block.sources, block.targets),
        )

    def numbers_of(self, ids: Any, name: str = "ids") -> Int64[np.ndarray, " ids"]:
        """Nodes' numbers of ids in an array of integers, text or objects, or a `pyarrow.Array`; `name` is where they are from.

        Raises:
          ValueError: one of them is no node's id.
        """
        numbers = self._lookup(ids)
        if (unknown := np.flatnonzero(numbers < 0)).size:
            row = int(unknown[0])
            raise ValueError(
                f"{name} {nth_row(row)}: id {shown(ids, row)} has no edge, and so it is no node; {unknown.size} are like it"
            )
        return numbers

    def write_parquet(self, path: Path, order: Int64[np.ndarray, " nodes"] | None = None) -> None:
        """Writes the column `id`: in row v the id of node v, or of `order[v]`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        ids = self.ids if order is None else self.ids.take(pa.array(order)) if self.has_string_ids else self.ids[order]
        pq.write_table(pa.table({"id": ids}), path)

    def _column(self, column: Any) -> Any:
        import pyarrow as pa

        numbers = self._lookup(column)
        return pa.array(numbers, mask=numbers < 0) if (numbers < 0).any() else numbers

    def _lookup(self, column: Any) -> Int64[np.ndarray, " ids"]:
        """-1 for what is not there. Every distinct id is looked up once."""
        import pyarrow as pa

        if len(column) == 0:
            return np.empty(0, np.int64)
        encoded = _ids(column).dictionary_encode()
        distinct, codes = encoded.dictionary, encoded.indices.fill_null(-1).to_numpy()
        if self.has_string_ids:
            numbers = _found_text(distinct.cast(pa.large_string()), self.ids)
        elif pa.types.is_integer(distinct.type):
            numbers = _found(distinct.to_numpy(), self.ids)
        else:
            numbers = _found_as_numbers(distinct, self.ids)
        return np.append(numbers, -1)[codes]  # code -1, what is missing, meets the -1 at the end


def build_mapping(
    blocks: Iterable[RawEdgeBlock], memory_bytes: int, extra_ids: Iterable[Shaped[np.ndarray, "..."]] = ()
) -> IdMapping:
    """Numbers all ids that are met, in ascending order: it does not depend on the order of files, rows and blocks.

    Ids are numbers if all of them are integers or text that is integers in their shortest form; else all of them are text. Missing
    values, empty text and floats that are no integers are no ids.

    Args:
      memory_bytes: what this may use, 24 bytes for each number; text takes three times its length and 64 bytes.
      extra_ids: of nodes that may have no edge.

    Raises:
      ValueError: the distinct ids need more memory; the message says how much is missing at least.

    Time O(ids * log ids).
    """
    import pyarrow as pa

    pc = compute()
    numbers, texts = _DistinctNumbers(memory_bytes), _DistinctTexts(memory_bytes)
    for name, first_row, column in _columns(blocks, extra_ids):
        try:
            ids = _ids(column)
        except TooLargeError as error:
            row = nth_row(first_row + error.index)
            raise ValueError(
                f"{name} {row}: id {shown(column, error.index)} {error}: store such ids as text"
            ) from error
        if pa.types.is_integer(ids.type):
            numbers.add(ids.drop_null().to_numpy())
        else:
            texts.add(ids.drop_null())
    distinct_texts = texts.all()
    if pc.all(is_plain_whole_number(distinct_texts), min_count=0).as_py():
        if len(distinct_texts):
            numbers.add(distinct_texts.cast(pa.int64()).to_numpy())
        return IdMapping(numbers.all())
    texts.add(pa.array(numbers.all()).cast(pa.large_string()))
    return IdMapping(_sorted_texts(texts.all()))


class TooLargeError(ValueError):
    """An id beyond int64: the one at `index` of its column."""

    def __init__(self, index: int) -> None:
        super().__init__("is above 2^63 - 1")
        self.index = index


class _DistinctNumbers:
    """Distinct integers, ascending."""

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._ids = np.empty(0, np.int64)
        self._waiting: list[np.ndarray] = []
        self._num_waiting = 0

    def add(self, ids: Int64[np.ndarray, " ids"]) -> None:
        self._waiting.append(np.unique(ids))
        self._num_waiting += len(self._waiting[-1])
        if self._num_waiting >= max(_WAITING_IDS, len(self._ids) // 2):
            self._merge()

    def all(self) -> Int64[np.ndarray, " ids"]:
        self._merge()
        return self._ids

    def _merge(self) -> None:
        merged = np.concatenate([self._ids, *self._waiting])
        self._ids, self._waiting, self._num_waiting = np.empty(0, np.int64), [], 0
        merged.sort()
        is_new = np.ones(len(merged), np.bool_)
        np.not_equal(merged[1:], merged[:-1], out=is_new[1:])
        self._ids = merged[is_new]
        _require_memory(len(self._ids), len(self._ids) * _BYTES_PER_NUMBER, self._memory_bytes)


class _DistinctTexts:
    """Distinct texts, in no order."""

    def __init__(self, memory_bytes: int) -> None:
        import pyarrow as pa

        self._memory_bytes = memory_bytes
        self._ids = pa.array([], pa.large_string())
        self._waiting: list[Any] = []
        self._num_waiting = 0

    def add(self, ids: Any) -> None:
        import pyarrow as pa

        self._waiting.append(ids.unique().cast(pa.large_string()))
        self._num_waiting += len(self._waiting[-1])
        if self._num_waiting >= max(_WAITING_IDS, len(self._ids) // 2):
            self._merge()

    def all(self) -> Any:
        self._merge()
        return self._ids

    def _merge(self) -> None:
        import pyarrow as pa

        self._ids = pa.chunked_array([self._ids, *self._waiting]).unique()
        self._waiting, self._num_waiting = [], 0
        num_bytes = _COPIES_OF_TEXT * self._ids.nbytes + _BYTES_PER_TEXT * len(self._ids)
        _require_memory(len(self._ids), num_bytes, self._memory_bytes)


def _require_memory(num_ids: int, num_bytes: int, memory_bytes: int) -> None:
    if num_bytes > memory_bytes:
        raise ValueError(
            f"at least {num_ids:,} distinct ids need {num_bytes:,} bytes of memory, and {memory_bytes:,} are given to them: "
            "give more, or number the nodes from 0 beforehand"
        )


def _columns(blocks: Iterable[RawEdgeBlock], extra_ids: Iterable[Any]) -> Iterator[tuple[str, int, Any]]:
    """Each with its file and how many rows there are before it."""
    for block in blocks:
        yield from ((block.path, block.first_row - 1, column) for column in (block.sources, block.targets))
    yield from (("column id of features or labels", 0, ids) for ids in extra_ids)


def _ids(column: Any) -> Any:
    """A column as a `pyarrow.Array` of int64 or text, missing where there is no id."""
    import pyarrow as pa

    pc = compute()
    ids = as_arrow(column)
    if pa.types.is_integer(ids.type):
        if (
            pa.types.is_uint64(ids.type)
            and (large := pc.greater_equal(ids.fill_null(0), pa.scalar(1 << 63, pa.uint64()))).true_count
        ):
            raise TooLargeError(large.index(True).as_py())
        return ids.cast(pa.int64())
    if pa.types.is_null(ids.type):
        return ids.cast(pa.int64())
    if pa.types.is_floating(ids.type):
        ids = ids.cast(pa.float64())
        whole = pc.and_(pc.equal(ids, pc.floor(ids)), pc.less(pc.abs(ids), 2.0**53))
        return pc.if_else(pc.fill_null(whole, False), ids, pa.scalar(None, pa.float64())).cast(pa.int64())
    if not (pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)):
        raise ValueError(f"ids should be integers or text, got {ids.type}")
    return pc.if_else(pc.equal(ids, ""), pa.scalar(None, ids.type), ids)


def _sorted_texts(texts: Any) -> Any:
    pc = compute()
    return texts.take(pc.array_sort_indices(texts))


def _found(wanted: Int64[np.ndarray, " wanted"], ids: Int64[np.ndarray, " ids"]) -> Int64[np.ndarray, " wanted"]:
    """Where ids, ascending, has what is wanted; -1 where it has not."""
    places = np.searchsorted(ids, wanted)
    return np.where(_at(ids, places) == wanted, places, -1) if len(ids) else np.full(len(wanted), -1)


def _at(ids: Int64[np.ndarray, " ids"], places: Int64[np.ndarray, " wanted"]) -> Int64[np.ndarray, " wanted"]:
    return ids[np.minimum(places, len(ids) - 1)]


def _found_as_numbers(texts: Any, ids: Int64[np.ndarray, " ids"]) -> Int64[np.ndarray, " wanted"]:
    """Of texts: those that are integers in their shortest form may be there."""
    import pyarrow as pa

    pc = compute()
    is_plain = is_plain_whole_number(texts)
    numbers = pc.if_else(is_plain, texts, "0").cast(pa.int64()).to_numpy()
    return np.where(is_plain.to_numpy(zero_copy_only=False), _found(numbers, ids), -1)


def _found_text(wanted: Any, ids: Any) -> Int64[np.ndarray, " wanted"]:
    """As `_found`, of texts."""
    from ginex_jax.ingest.text_search import positions

    return positions(wanted, ids)
