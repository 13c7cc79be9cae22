"""The log of a run as JSON lines, which reads as that of a run that was never interrupted."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

Record = Mapping[str, Any]


@runtime_checkable
class RunLog(Protocol):
    """Where `fit` writes what happens: records with a `kind`, "step" or "evaluation", the number of `step`s done, and numbers."""

    def restart(self, step: int) -> None:
        """Called once before anything is written: what was logged after `step` will be logged again."""
        ...

    def write(self, record: Record) -> None: ...


class JsonLines:
    """One JSON object a line, on the disk as soon as it is written. A context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = None

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def restart(self, step: int) -> None:
        """Cuts the file before the first record after `step`, or the first line that is no record."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+b")
        self._file.seek(0)
        kept = 0
        for line in self._file:
            if not line.endswith(b"\n") or _step_of(line) > step:
                break
            kept += len(line)
        self._file.truncate(kept)

    def write(self, record: Record) -> None:
        assert self._file is not None, "restart comes first"
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()


class SeveralLogs:
    """Writes to all of them."""

    def __init__(self, *logs: RunLog) -> None:
        self._logs = logs

    def restart(self, step: int) -> None:
        for log in self._logs:
            log.restart(step)

    def write(self, record: Record) -> None:
        for log in self._logs:
            log.write(record)


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")
