"""Peak memory of the command, measured in a process of its own."""

import os
import re
import subprocess
import sys

import jax

from anyprec_jax.models.decoder import LINEARS
from anyprec_jax.models.model import Model

# Not ru_maxrss, which a child inherits from the process that started it until it executes another program.
_PROGRAM = """
import re, sys
from pathlib import Path
from anyprec_jax import cli
status = cli.main()
if status == 0:
    print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1))
sys.exit(status)
"""


def peak_bytes(*arguments: str) -> int:
    """The most memory that `anyprec ARGUMENTS` had resident, in bytes. Linux only."""
    # One heap: with a heap for every thread, what was freed in one is not found by another, and the peak depends on who was first.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", _PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    peak = re.search(r"peak (\d+)", done.stdout)
    assert peak is not None
    return int(peak.group(1)) * 1024


def allowed_bytes(model: Model) -> float:
    """The bound on quantizing a model at the best quality: 1.25 times its float32 weights and moments, and 1 GB."""
    weights = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    moments = sum(leaf.shape[0] * leaf.shape[2] ** 2 for leaf in (model.params["layers"][name] for name in LINEARS))
    return 1.25 * 4 * (weights + moments) + 1e9
