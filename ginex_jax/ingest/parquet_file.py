"""Opens Parquet files in the one way that keeps memory small."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def opened_parquet(path: Path, *, read_bytes: int) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile` that is read page by page and not by row group.

    Args:
      read_bytes: at once, of each column.

    Raises:
      OSError: the file is not there.
      ValueError: it is damaged; pyarrow's words, and the file's name.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with pq.ParquetFile(path, buffer_size=read_bytes, pre_buffer=False) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} is damaged, or no Parquet file: {str(error).splitlines()[0]}") from error
