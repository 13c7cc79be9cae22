"""A synthetic dataset of any size: R-MAT edges, features, and labels that can be learned from neighbours."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ginex_jax.ingest.assembly import Assembly, Progress, pieces, rows_per_block
from ginex_jax.ingest.csc import write_csc
from ginex_jax.ingest.edge_sorter import EdgeSorter, SortedEdges
from ginex_jax.ingest.neighbor_labels import MajorityLabels
from ginex_jax.ingest.rmat import LatentFeatures, rmat_edges, write_edge_list
from ginex_jax.store.layout import DTYPES, ArrayLayout
from ginex_jax.store.manifest import Manifest
from ginex_jax.store.publishing import published, require_free, require_room

_EDGES_AT_ONCE = 1 << 20
_MAX_SCALE = 31


@dataclasses.dataclass(frozen=True, kw_only=True)
class RmatOptions:
    """What `generate_rmat` makes.

    Attributes:
      scale: there are 2**scale nodes.
      edge_factor: edges per node.
      feature_dim: width of the features; 0 for none.
      feature_dtype: float32, float16 or bfloat16.
      classes: of the labels; 0 for neither labels nor splits. Features are drawn around one centroid a class.
      seed: the same seed gives the same files.
      memory_bytes: the most that sorting may take. It does not change what is written.
    """

    scale: int
    edge_factor: int
    feature_dim: int = 0
    feature_dtype: str = "float32"
    classes: int = 0
    seed: int = 0
    memory_bytes: int = 2 << 30

    def __post_init__(self) -> None:
        if not 1 <= self.scale <= _MAX_SCALE:
            raise ValueError(f"scale should be 1 to {_MAX_SCALE}, got {self.scale}")
        if self.edge_factor < 1:
            raise ValueError(f"the edge factor should be at least 1, got {self.edge_factor}")
        if self.feature_dim < 0 or self.classes < 0 or self.classes > 1 << 20:
            raise ValueError(
                f"feature dim and classes should be at least 0 (at most {1 << 20:,} classes), got {self.feature_dim} and {self.classes}"
            )
        if self.feature_dtype not in ("float32", "float16", "bfloat16"):
            raise ValueError(f"feature dtype should be float32, float16 or bfloat16, got {self.feature_dtype}")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"the seed should be in [0, 2**63), got {self.seed}")

    @property
    def num_nodes(self) -> int:
        return 1 << self.scale

    @property
    def num_edges(self) -> int:
        return self.edge_factor << self.scale


def generate_rmat(
    out: str | Path, options: RmatOptions, *, edge_list: Path | None = None, progress: Progress
) -> Manifest:
    """Writes the dataset `out`, whole or not at all; and the same edges to the Parquet file `edge_list`, if given.

    The CSC is sorted from the generator's stream, and what it spilled is gone before the features are written.

    Raises:
      FileExistsError: `out` or `edge_list` exists.
      OSError: the disk is too small.
    """
    out = Path(out)
    require_free(out)
    require_room(out, _disk_bytes(options))
    if edge_list is not None:
        write_edge_list(edge_list, options.scale, options.edge_factor, seed=options.seed)
    with published(out) as folder, Assembly(folder, progress) as assembly:
        labels = None
        if options.classes:
            labels = MajorityLabels(options.num_nodes, seed=options.seed, num_classes=options.classes)
        _write_graph(assembly, options, labels)
        if labels is not None:
            assembly.write("labels", (options.num_nodes,), np.dtype(np.int64), labels.blocks(_EDGES_AT_ONCE))
            for name, ids in labels.split_ids().items():
                assembly.write(name, ids.shape, np.dtype(np.int64), pieces(ids))
        if options.feature_dim:
            _write_features(assembly, options)
        provenance = {
            "source": "rmat",
            **{name: value for name, value in dataclasses.asdict(options).items() if name != "memory_bytes"},
        }
        return assembly.finish(num_nodes=options.num_nodes, provenance=provenance)


def _write_graph(assembly: Assembly, options: RmatOptions, labels: MajorityLabels | None) -> None:
    def observe(run: SortedEdges) -> None:
        if labels is not None:
            labels.observe(run.targets, run.sources)

    sorter = EdgeSorter(assembly.spill / "edges", memory_bytes=options.memory_bytes, progress=assembly.progress)
    for sources, targets in _edges(options):
        sorter.append(targets, sources)
        assembly.progress("making edges", sorter.num_edges, options.num_edges)
    write_csc(
        assembly.spill,
        sorter.sorted_runs(),
        num_nodes=options.num_nodes,
        num_edges=options.num_edges,
        weighted=False,
        make_writer=assembly.make_writer,
        observe=observe,
    )


def _edges(options: RmatOptions) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, options.num_edges, _EDGES_AT_ONCE):
        stop = min(start + _EDGES_AT_ONCE, options.num_edges)
        yield rmat_edges(options.scale, options.edge_factor, seed=options.seed, start=start, stop=stop)


def _write_features(assembly: Assembly, options: RmatOptions) -> None:
    shape, dtype = (options.num_nodes, options.feature_dim), DTYPES[options.feature_dtype]
    # Without classes all nodes share one centroid: noise, of the right size.
    features = LatentFeatures(*shape, seed=options.seed, num_classes=max(1, options.classes))
    assembly.write("features", shape, dtype, features.blocks(rows_per_block(shape[1], np.dtype(np.float32))))


def _disk_bytes(options: RmatOptions) -> int:
    """Of the dataset, or of its graph and what sorting spills, whichever is more."""
    graph = 8 * options.num_nodes + 4 * options.num_edges
    features = 0
    if options.feature_dim:
        shape = (options.num_nodes, options.feature_dim)
        features = ArrayLayout(shape=shape, dtype=DTYPES[options.feature_dtype]).nbytes
    return graph + max(features + 9 * options.num_nodes * bool(options.classes), 8 * options.num_edges)
