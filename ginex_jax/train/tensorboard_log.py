"""The log of a run as TensorBoard's event files, written with the `tensorboard` package alone."""

import time
from pathlib import Path
from types import TracebackType

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from ginex_jax.train.run_log import Record


class TensorBoardLog:
    """Every number of a record as a scalar, `step/loss` and so on. A context manager; importing this module needs `tensorboard`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = None

    def __enter__(self) -> "TensorBoardLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def restart(self, step: int) -> None:
        """Begins a file. TensorBoard forgets what earlier ones say of later steps."""
        self._folder.mkdir(parents=True, exist_ok=True)
        now = time.time_ns()  # in this order TensorBoard reads the files
        self._file = (self._folder / f"events.out.tfevents.{now // 10**9:010d}.{now % 10**9:09d}").open("xb")
        self._writer = RecordWriter(self._file)
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._add(Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, record: Record) -> None:
        values = [
            Summary.Value(tag=f"{record['kind']}/{name}", simple_value=value)
            for name, value in record.items()
            if isinstance(value, int | float) and name not in ("step", "epoch")
        ]
        self._add(Event(wall_time=time.time(), step=record["step"], summary=Summary(value=values)))

    def _add(self, event: Event) -> None:
        assert self._file is not None, "restart comes first"
        self._writer.write(event.SerializeToString())
        self._file.flush()
