"""Several processes that do one job through a folder that all of them see: who does what, and how they wait for each other.

What one process has done lies in the folder, complete, under the name that the others wait for. `jax.distributed` tells the processes
apart, and ends all of them when one dies.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils

_POLL_S = 0.05


class Processes(NamedTuple):
    """Those of `jax.distributed`; one, where it was not initialised."""

    number: int  # of this one, from 0
    count: int

    @property
    def is_first(self) -> bool:
        """Whether this is the one that does what is to be done once."""
        return self.number == 0


def processes() -> Processes:
    """This process among all."""
    return Processes(jax.process_index(), jax.process_count())


def meet(name: str) -> None:
    """Returns when every process has come here; they must come within seconds of each other."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def wait_for(paths: Iterable[Path], folder: Path) -> None:
    """Returns when all of these exist.

    Raises:
      ChildProcessError: `folder`, in which the job is done, is gone before they do: another process met an error that would come again.
    """
    for path in paths:
        while not path.exists():
            if not folder.exists() and not path.exists():
                raise ChildProcessError(f"{folder} is gone: another process has failed, and says why")
            time.sleep(_POLL_S)
