"""Comparisons in one run, on the same inputs, in turns; and their records."""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_LIBRARIES = ("jax", "jaxlib", "numpy", "numba")


def alternate(calls: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, list[float]]:
    """Seconds of `repeats` rounds of calling each in turn, after one round that is not counted.

    A machine that slows down for a while slows all of them; ratios of medians last where times do not.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for measured in (False, *[True] * repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            elapsed = time.perf_counter() - start
            if measured:
                seconds[name].append(elapsed)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def record(name: str, arguments: Mapping[str, Any], results: Any) -> Path:
    """Writes results/NAME.json, whole or not at all: where, when, with what and what came out. Returns its path."""
    arguments = {name: _without_place(value) for name, value in arguments.items()}
    contents = {**environment(), "arguments": arguments, "results": results}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(contents, indent=1, default=str) + "\n", encoding="utf-8")
    return partial.rename(path)


def _without_place(value: Any) -> Any:
    """Of a path only the last part, where the others are nobody else's business."""
    return value.name if isinstance(value, Path) and value.is_absolute() else value


def environment() -> dict[str, Any]:
    """Commit, time, machine and versions."""
    return {
        "commit": _commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {"processor": _processor(), "cpus": len(os.sched_getaffinity(0)), "system": platform.platform()},
        "versions": {
            "python": platform.python_version(),
            **{library: importlib.metadata.version(library) for library in _LIBRARIES},
        },
    }


def _commit() -> str | None:
    """Of the source tree, with `-dirty` where it was changed since: what benchmarks write aside, records and figures."""
    git = ["git", "-C", str(RESULTS.parent.parent)]
    changes = [
        *git,
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ".",
        f":!{RESULTS.relative_to(RESULTS.parent.parent)}",
        ":!docs/figures",
    ]
    try:
        commit, changed = (
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            for command in ([*git, "rev-parse", "HEAD"], changes)
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("-dirty" if changed else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
