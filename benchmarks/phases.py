"""Long benchmarks in phases: each in a process of its own, so that peak memory is its own; one that is done is not repeated."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

_POLL_SECONDS = 2.0
Phase = Callable[..., dict[str, Any]]


class Phases:
    """Runs phases of a module and keeps what they found in `folder`.

    The module's `main` calls `run_here` first.
    """

    def __init__(self, module: str, folder: Path, *, watch: Path | None = None) -> None:
        """`watch` is a folder whose size on disk is followed while a phase runs."""
        self._module, self._folder, self._watch = module, folder, watch
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, phase: str, /, **arguments: Any) -> dict[str, Any]:
        """What the phase found; from the folder where it has run before with the same arguments.

        Besides what the phase returns: `seconds`, unless it counted them itself; `peak_mb` (resident), `disk_read_bytes` and
        `disk_written_bytes` of its process; and `folder_peak_bytes` of the watched folder.

        Raises:
          SystemExit: it failed; what it said is on the standard error output.
        """
        done = self._folder / f"{name}.json"
        task = json.loads(json.dumps({"phase": phase, "arguments": arguments}, default=str))
        with contextlib.suppress(OSError, ValueError):
            earlier = json.loads(done.read_text(encoding="utf-8"))
            if earlier["task"] == task:
                say(f"{name}: done before, {earlier['result']['seconds']:.1f} s")
                return earlier["result"]
        say(f"{name} ...")
        task_file, result_file = self._folder / f"{name}.task", self._folder / f"{name}.result"
        task_file.write_text(json.dumps(task), encoding="utf-8")
        result_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", self._module, "--phase", str(task_file), str(result_file)]
        with self._folder_size() as sizes:
            status = subprocess.run(command, check=False).returncode
        if status != 0:
            raise SystemExit(f"error: {name} failed with status {status}; run it again to go on from there")
        result = json.loads(result_file.read_text(encoding="utf-8")) | (
            {"folder_peak_bytes": max(sizes)} if sizes else {}
        )
        result_file.write_text(json.dumps({"task": task, "result": result}, indent=1), encoding="utf-8")
        result_file.rename(done)
        task_file.unlink()
        say(f"{name}: {result['seconds']:.1f} s, {result['peak_mb']:,.0f} MB at most")
        return result

    def is_done(self, name: str) -> bool:
        """Whether there is a result, with whatever arguments."""
        return (self._folder / f"{name}.json").exists()

    def forget(self, name: str) -> None:
        """Makes the phase run again."""
        (self._folder / f"{name}.json").unlink(missing_ok=True)

    @contextlib.contextmanager
    def _folder_size(self) -> Iterator[list[int]]:
        """Sizes of the watched folder, one every two seconds."""
        sizes: list[int] = []
        ended = threading.Event()

        def watch(folder: Path) -> None:
            while True:
                sizes.append(bytes_on_disk(folder))
                if ended.wait(_POLL_SECONDS):
                    sizes.append(bytes_on_disk(folder))
                    return

        thread = threading.Thread(target=watch, args=(self._watch,), daemon=True) if self._watch else None
        if thread:
            thread.start()
        try:
            yield sizes
        finally:
            ended.set()
            if thread:
                thread.join()


def run_here(phases: Mapping[str, Phase]) -> bool:
    """Whether this process was started by `Phases.run`; the phase has run then, and its result is written."""
    if sys.argv[1:2] != ["--phase"]:
        return False
    task = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    start = time.perf_counter()
    result = phases[task["phase"]](**task["arguments"])
    counts = io_counts()
    result = {
        "seconds": time.perf_counter() - start,
        **result,
        "peak_mb": peak_mb(),
        "disk_read_bytes": counts.get("read_bytes"),
        "disk_written_bytes": counts.get("write_bytes"),
    }
    Path(sys.argv[3]).write_text(json.dumps(result, default=float), encoding="utf-8")
    return True


def say(text: str) -> None:
    """A line with the time."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


def peak_mb() -> float:
    """Of this process; `getrusage` would count what its parent had before this one was started in its place."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def io_counts() -> dict[str, int]:
    """What the process made the disk do, as the system counts it; empty where it does not tell."""
    try:
        lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {name: int(count) for name, count in (line.split(": ") for line in lines)}


def bytes_on_disk(folder: Path) -> int:
    """Blocks of all files below; files that vanish meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.lstat().st_blocks * 512
    return total
