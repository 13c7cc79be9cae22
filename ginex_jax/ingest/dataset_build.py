"""Edges, features, labels and splits of any size to a dataset, in the memory that is given."""

import collections
import dataclasses
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, Shaped

from ginex_jax.ingest.assembly import Assembly, Progress, pieces, rows_per_block
from ginex_jax.ingest.csc import disk_bytes, write_csc
from ginex_jax.ingest.edge_blocks import EdgeBlock, clean, self_loops, with_reverse, without_self_loops
from ginex_jax.ingest.edge_sorter import EdgeSorter, SortedEdges, without_duplicates
from ginex_jax.ingest.graph_source import MatrixSource
from ginex_jax.ingest.id_mapping import IdMapping, build_mapping
from ginex_jax.ingest.labels import label_blocks, label_dtype, require_distinct_ids
from ginex_jax.ingest.node_files import feature_blocks
from ginex_jax.ingest.node_order import inverse
from ginex_jax.ingest.renumbering import order_of, renumbered
from ginex_jax.ingest.sources import Source
from ginex_jax.store.direct_features import DirectFeatures
from ginex_jax.store.layout import DTYPES, ArrayLayout
from ginex_jax.store.manifest import Manifest
from ginex_jax.store.publishing import published, require_free, require_room

_SORTING_SHARE = 0.75  # of the memory; the rest is for blocks on their way


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """How `build_dataset` treats what it reads.

    Attributes:
      num_nodes: how many nodes there are; by default as many as features or labels, or else the largest id + 1.
      map_ids: ids are text or sparse; number them in ascending order and store the table.
      feature_dtype: float32, float16 or bfloat16.
      memory_bytes: what may be resident, beside the libraries. It does not change what is written.
      undirected: add the reverse of every edge; a self loop stays one.
      drop_duplicates: keep the first of several equal edges.
      self_loops: "keep" them, "drop" them, or "add": every node gets exactly one.
      reorder: renumber nodes, most used ones first ("degree") or breadth first ("bfs").
      skip_bad_rows: leave bad edges out, and turn bad rows of features and labels into zeros and missing ones; count them.
    """

    num_nodes: int | None = None
    map_ids: bool = False
    feature_dtype: str = "float32"
    memory_bytes: int = 2 << 30
    undirected: bool = False
    drop_duplicates: bool = False
    self_loops: str = "keep"
    reorder: str | None = None
    skip_bad_rows: bool = False

    def __post_init__(self) -> None:
        if self.num_nodes is not None and not 1 <= self.num_nodes <= 1 << 32:
            raise ValueError(f"the number of nodes should be 1 to 2^32, got {self.num_nodes}")
        if self.num_nodes is not None and self.map_ids:
            raise ValueError("with mapped ids the number of nodes is how many there are: leave it out")
        if self.feature_dtype not in ("float32", "float16", "bfloat16"):
            raise ValueError(f"feature dtype should be float32, float16 or bfloat16, got {self.feature_dtype}")
        if self.self_loops not in ("keep", "drop", "add"):
            raise ValueError(f"self loops can be kept, dropped or added: keep, drop or add, got {self.self_loops!r}")
        if self.reorder not in (None, "degree", "bfs"):
            raise ValueError(f"nodes can be reordered by degree or bfs, got {self.reorder!r}")
        if self.memory_bytes < 32 << 20:
            raise ValueError(f"at least 32 MiB of memory are needed, got {self.memory_bytes:,} bytes")


class IngestReport(NamedTuple):
    """What `build_dataset` wrote."""

    num_nodes: int
    num_edges: int
    skipped_rows: int


def build_dataset(
    out: str | Path,
    source: Source,
    options: IngestOptions | None = None,
    *,
    progress: Progress = lambda phase, done, total: None,
) -> IngestReport:
    """Writes the dataset `out`, whole or not at all.

    Without options they are the defaults of `IngestOptions`.

    Peak memory is `options.memory_bytes` beside the libraries, and 24 bytes a node where nodes are reordered or ids mapped.

    Raises:
      FileExistsError: `out` exists.
      ValueError: the input is bad; file, row and value are named.
      OSError: a file cannot be read, or the disk is too small.
    """
    out, options = Path(out), IngestOptions() if options is None else options
    require_free(out)
    require_room(out, _disk_bytes(source, options))
    with published(out) as folder, Assembly(folder, progress) as assembly:
        return _Build(assembly, source, options).run()


class _Build:
    """One run of `build_dataset`: what is known so far."""

    def __init__(self, assembly: Assembly, source: Source, options: IngestOptions) -> None:
        self.assembly, self.source, self.options = assembly, source, options
        self.skipped: collections.Counter[str] = collections.Counter()
        self.mapping: IdMapping | None = None

    def run(self) -> IngestReport:
        num_nodes = self._known_num_nodes()
        if self.options.map_ids:
            self.mapping = self._build_mapping()
            num_nodes = self.mapping.num_nodes
            self._require_rows(num_nodes)
        if num_nodes is not None:
            _require_nodes(num_nodes)
        sorter = self._sorted_edges(num_nodes)
        num_nodes = num_nodes if num_nodes is not None else sorter.max_id + 1
        _require_nodes(num_nodes)
        written = disk_bytes(sorter.num_edges, num_nodes, weighted=self.source.weighted, num_edges_known=True)
        require_room(self.assembly.folder.parent, written - sorter.spilled_bytes)  # a single large id makes many nodes
        order = self._write_graph(sorter, num_nodes)
        self._write_node_data(num_nodes, order)
        manifest = self._finish(num_nodes, order)
        return IngestReport(num_nodes, manifest.num_edges, sum(self.skipped.values()))

    def _known_num_nodes(self) -> int | None:
        """From the options or the files, which must agree; None if only the edges will tell."""
        if self.options.map_ids:
            return None
        said = self.options.num_nodes if self.options.num_nodes is not None else self.source.num_nodes
        matrices = [matrix for matrix in (self.source.features, self.source.labels) if matrix is not None]
        if said is None and matrices:
            said = matrices[0].num_rows
        if said is not None:
            self._require_rows(said)
        return said

    def _require_rows(self, num_nodes: int) -> None:
        for what, matrix in (("features", self.source.features), ("labels", self.source.labels)):
            if matrix is not None and matrix.num_rows == 0:
                raise ValueError(f"{what} {matrix.name} has no rows")
            if matrix is not None and matrix.num_rows != num_nodes:
                raise ValueError(f"{what} {matrix.name} has {matrix.num_rows} rows, and there are {num_nodes} nodes")

    def _build_mapping(self) -> IdMapping:
        self.assembly.progress("reading ids", 0, 0)
        node_ids = [ids for ids in (self.source.feature_ids(), self.source.label_ids()) if ids is not None]
        return build_mapping(
            self.source.blocks(), memory_bytes=int(self.options.memory_bytes * _SORTING_SHARE), extra_ids=node_ids
        )

    def _sorted_edges(self, num_nodes: int | None) -> EdgeSorter:
        sorter = EdgeSorter(
            self.assembly.spill / "edges",
            memory_bytes=int(self.options.memory_bytes * _SORTING_SHARE),
            weighted=self.source.weighted,
            progress=self.assembly.progress,
        )
        for block in self._edges(num_nodes):
            sorter.append(block.targets, block.sources, block.weights)
            self.assembly.progress("reading edges", sorter.num_edges, self.source.num_edges or 0)
        if self.options.self_loops == "add":
            for block in self_loops(num_nodes if num_nodes is not None else sorter.max_id + 1, self.source.weighted):
                sorter.append(block.targets, block.sources, block.weights)
        return sorter

    def _edges(self, num_nodes: int | None) -> Iterator[EdgeBlock]:
        for raw in self.source.blocks():
            block = clean(
                raw if self.mapping is None else self.mapping.apply(raw),
                num_nodes=num_nodes,
                skip_bad_rows=self.options.skip_bad_rows,
                skipped=self.skipped,
            )
            if self.options.self_loops != "keep":
                block = without_self_loops(block)
            yield with_reverse(block) if self.options.undirected else block

    def _write_graph(self, sorter: EdgeSorter, num_nodes: int) -> Int64[np.ndarray, " nodes"] | None:
        """Returns what node v was numbered before, where nodes are reordered."""
        write = functools.partial(write_csc, self.assembly.spill, num_nodes=num_nodes, weighted=self.source.weighted)
        runs: Iterator[SortedEdges] = sorter.sorted_runs()
        num_edges: int | None = sorter.num_edges
        if self.options.drop_duplicates:
            runs, num_edges = without_duplicates(runs), None
        if self.options.reorder is None:
            write(runs, num_edges=num_edges, make_writer=self.assembly.make_writer)
            return None
        with Assembly(self._spill_folder("graph"), self.assembly.progress) as unordered:
            counts = write(runs, num_edges=num_edges, make_writer=unordered.make_writer)
        first = unordered.folder
        order = order_of(first, self.options.reorder, self.assembly.progress)
        again = EdgeSorter(
            self.assembly.spill / "renumbered",
            memory_bytes=int(self.options.memory_bytes * _SORTING_SHARE),
            weighted=self.source.weighted,
            progress=self.assembly.progress,
        )
        for run in renumbered(first, order):
            again.append(run.targets, run.sources, run.weights)
        shutil.rmtree(first)
        write(again.sorted_runs(), num_edges=counts.num_edges, make_writer=self.assembly.make_writer)
        return order

    def _write_node_data(self, num_nodes: int, order: Int64[np.ndarray, " nodes"] | None) -> None:
        source = self.source
        if source.features is not None:
            self._write_features(self._rows(source.features, source.feature_ids(), num_nodes, order))
        if source.labels is not None:
            self._write_labels(self._rows(source.labels, source.label_ids(), num_nodes, order))
        renamed = None if order is None else inverse(order)
        for name, read in source.splits.items():
            ids = (
                read(num_nodes)
                if self.mapping is None
                else self._numbers(read(None), num_nodes, str(source.provenance.get(name, name)))
            )
            if renamed is not None:
                ids = renamed[ids]
            self.assembly.write(name, ids.shape, np.dtype(np.int64), pieces(ids))

    def _numbers(self, ids: Shaped[np.ndarray, " ids"], num_nodes: int, name: str) -> Int64[np.ndarray, " ids"]:
        """Which nodes these ids are, no two of them the same."""
        numbers = ids if self.mapping is None else self.mapping.numbers_of(ids, name)
        require_distinct_ids(numbers, num_nodes, name)
        return numbers

    def _rows(
        self,
        matrix: MatrixSource,
        ids: Shaped[np.ndarray, " rows"] | None,
        num_nodes: int,
        order: Int64[np.ndarray, " nodes"] | None,
    ) -> Int64[np.ndarray, " nodes"] | None:
        """Which row of a file belongs to node v; None if it is row v."""
        if ids is None:
            return order
        rows = inverse(self._numbers(ids, num_nodes, matrix.name))  # as many as nodes, and distinct: all of them
        return rows if order is None else rows[order]

    def _write_features(self, rows: Int64[np.ndarray, " nodes"] | None) -> None:
        matrix, dtype = self.source.features, DTYPES[self.options.feature_dtype]
        assert matrix is not None
        shape = (matrix.num_rows, matrix.width)
        blocks = self._counted_features(matrix, dtype)
        if rows is None:
            self.assembly.write("features", shape, dtype, blocks)
            return
        with Assembly(self._spill_folder("staged"), self.assembly.progress) as staged:
            staged.write("features", shape, dtype, blocks)
        with DirectFeatures(staged.folder / "features") as store:
            moved = (store.read_rows(piece) for piece in pieces(rows, rows_per_block(matrix.width, dtype)))
            self.assembly.write("features", shape, dtype, moved)
        shutil.rmtree(staged.folder)

    def _counted_features(self, matrix: Any, dtype: np.dtype[Any]) -> Iterator[Shaped[np.ndarray, "rows width"]]:
        for block in feature_blocks(matrix, dtype=dtype, skip_bad_rows=self.options.skip_bad_rows):
            self.skipped["features"] += block.num_bad_rows
            yield block.rows

    def _write_labels(self, rows: Int64[np.ndarray, " nodes"] | None) -> None:
        matrix = self.source.labels
        assert matrix is not None
        dtype = label_dtype(matrix)
        shape = (matrix.num_rows,) if matrix.width == 1 else (matrix.num_rows, matrix.width)
        blocks = self._counted_labels(matrix)
        if rows is not None:
            blocks = pieces(np.concatenate([np.empty((0, *shape[1:]), dtype), *blocks])[rows])
        self.assembly.write("labels", shape, dtype, blocks)

    def _counted_labels(self, matrix: Any) -> Iterator[Shaped[np.ndarray, "rows ..."]]:
        for block in label_blocks(matrix, skip_bad_rows=self.options.skip_bad_rows):
            self.skipped["labels"] += block.num_bad_rows
            yield block.labels

    def _spill_folder(self, name: str) -> Path:
        folder = self.assembly.spill / name
        folder.mkdir()
        return folder

    def _finish(self, num_nodes: int, order: Int64[np.ndarray, " nodes"] | None) -> Manifest:
        mapping, options = self.mapping, self.options
        has_string_ids = mapping is not None and mapping.has_string_ids
        if mapping is not None and has_string_ids:
            mapping.write_parquet(self.assembly.folder / "original_ids.parquet", order)
        elif mapping is not None or order is not None:
            ids = order if mapping is None else mapping.ids if order is None else mapping.ids[order]
            assert ids is not None
            self.assembly.write("original_ids", ids.shape, np.dtype(np.int64), pieces(ids))
        told = {name: value for name, value in dataclasses.asdict(options).items() if name != "memory_bytes"}
        skipped = {"skipped_rows": dict(sorted((+self.skipped).items()))} if options.skip_bad_rows else {}
        return self.assembly.finish(
            num_nodes=num_nodes,
            provenance={**self.source.provenance, **told, **skipped},
            node_order=options.reorder or "original",
            has_string_ids=has_string_ids,
        )


def _require_nodes(num_nodes: int) -> None:
    if num_nodes == 0:
        raise ValueError("no edge and nothing else says that there is a node: is the input empty?")


def _disk_bytes(source: Source, options: IngestOptions) -> int:
    """At the peak; edges that are not counted before they are read are guessed."""
    num_nodes = options.num_nodes or source.num_nodes or 0
    known = source.num_edges if source.num_edges is not None else source.guessed_edges
    num_edges = known * (2 if options.undirected else 1)
    graph = disk_bytes(num_edges, num_nodes, weighted=source.weighted, num_edges_known=not options.drop_duplicates)
    is_moved = options.reorder is not None or options.map_ids  # by way of a copy
    features = 0
    if source.features is not None:
        shape = (source.features.num_rows, source.features.width)
        features = ArrayLayout(shape=shape, dtype=DTYPES[options.feature_dtype]).nbytes
    return (graph + features) * (2 if is_moved else 1)
