"""Edge lists in files of any of the formats."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ginex_jax.ingest import edge_arrays, edge_parquet, edge_text
from ginex_jax.ingest.edge_blocks import EdgeColumns, RawEdgeBlock

_EDGES_PER_BLOCK = 1 << 20
_PARQUET = (".parquet", ".pq")
_ARRAYS = (".npy", ".npz")
_TEXT = (".csv", ".tsv", ".txt")
_FORMATS = "Parquet (.parquet, .pq), text (.csv, .tsv, .txt, perhaps with .gz) and NumPy (.npy, .npz)"


def read_edges(
    paths: Sequence[Path],
    *,
    source_column: str = "src",
    target_column: str = "dst",
    weight_column: str | None = None,
    edges_per_block: int = _EDGES_PER_BLOCK,
) -> Iterator[RawEdgeBlock]:
    """All edges of the files, in the order of the files and of their rows.

    Nothing is mapped into memory: what is held is some blocks, whatever the size of a file or of its row groups.

    Args:
      paths: files, told apart by how their names end; or folders of such files, read in the order of their names.
      source_column, target_column, weight_column: of Parquet files, of text with a header, and of `.npz` archives. Text without a header
        has them first, in this order; see `edge_text` and `edge_arrays`.
      edges_per_block: at most.

    Raises:
      ValueError: a file is damaged or has no such columns; those it has are listed.
      OSError: a file cannot be read.
    """
    columns = EdgeColumns(source_column, target_column, weight_column)
    for path in files(paths):
        match _format(path):
            case "parquet":
                yield from edge_parquet.read(path, columns, edges_per_block)
            case "arrays":
                yield from edge_arrays.read(path, columns, edges_per_block)
            case _:
                yield from edge_text.read(path, columns, edges_per_block)


def count_edges(paths: Sequence[Path], *, source_column: str = "src", target_column: str = "dst") -> int | None:
    """How many edges the files say they have; None if they would have to be read for that."""
    total = 0
    for path in files(paths):
        match _format(path):
            case "parquet":
                total += edge_parquet.count(path)
            case "arrays":
                total += edge_arrays.count(path, EdgeColumns(source_column, target_column))
            case _:
                return None
    return total


def guess_edges(paths: Sequence[Path]) -> int:
    """About how many rows the files of text among these have."""
    return sum(edge_text.guess(path) for path in files(paths) if _format(path) == "text")


def files(paths: Sequence[Path]) -> list[Path]:
    """The files, those in folders included; hidden ones and marks like `_SUCCESS` are no edge lists."""
    found = []
    for path in paths:
        if path.is_dir():
            inside = sorted(child for child in path.iterdir() if child.is_file() and child.name[0] not in "._")
            if not inside:
                raise ValueError(f"{path} is a folder without a file in it")
            found += inside
        else:
            found.append(path)
    return found


def _format(path: Path) -> str:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    suffix = path.suffix.lower()
    if suffix in _PARQUET:
        return "parquet"
    if suffix in _ARRAYS:
        return "arrays"
    if suffix in _TEXT or (suffix == ".gz" and Path(path.stem).suffix.lower() in _TEXT):
        return "text"
    raise ValueError(f"{path} is no edge list that is known by its name: {_FORMATS} are")
