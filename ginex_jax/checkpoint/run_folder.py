"""The folder of a run: `checkpoints/STEP`, the last two, and `best/STEP`, that of the best evaluation.

Each is a folder of its own that appears whole or not at all: `run.json`, and `arrays`, an Orbax checkpoint. Parameters are under
`params`, and any JAX project can restore them with Orbax alone.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ginex_jax.checkpoint.arrays import (
    ArrayEntry,
    array_entry,
    flattened,
    restore_arrays,
    save_arrays,
    shapes_of,
    unflattened,
)
from ginex_jax.checkpoint.record import RunIdentity, RunRecord, check_same_run, read_record, write_record
from ginex_jax.models.config import ModelConfig
from ginex_jax.models.initialization import parameter_shapes
from ginex_jax.store.publishing import published, require_room

_KEEP = 2
_ROOM_BYTES = 4 << 20  # what Orbax writes beside the arrays, and a few blocks more
_ARRAYS = "arrays"


class Restored(NamedTuple):
    """A checkpoint in memory. `state` has the structure of the template, and arrays of the host's."""

    step: int
    state: Any
    progress: Mapping[str, Any]


class RunFolder:
    """The checkpoints of one run. One process at a time works with them, see `lock`."""

    def __init__(self, path: Path, identity: RunIdentity) -> None:
        self.path = path
        self.identity = identity

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for this process, and clears what a killed one left half written.

        Raises:
          FileExistsError: another process is training there.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FileExistsError(f"another process is training in {self.path}: wait for it") from None
            for kind in ("checkpoints", "best"):
                for partial in (self.path / kind).glob(".*.partial"):
                    shutil.rmtree(partial, ignore_errors=True)
            yield
        finally:
            os.close(descriptor)

    def check(self) -> None:
        """Raises ValueError, as `restore` does, where the last checkpoint belongs to another run or its record is damaged."""
        record = latest_record(self.path)
        if record is not None:
            check_same_run(record.identity, self.identity, self.path)

    def restore(self, template: Any) -> Restored | None:
        """The last checkpoint, or None where there is none. Evaluations after it are forgotten: they will come again.

        Args:
          template: a pytree with the structure, shapes and dtypes of the state.

        Raises:
          ValueError: the checkpoint is damaged, or belongs to another dataset, model, sampler or training, or to a newer version.
        """
        steps = saved_steps(self.path / "checkpoints")
        if not steps:
            return None
        folder = self.path / "checkpoints" / _name(steps[-1])
        record = read_record(folder)
        check_same_run(record.identity, self.identity, self.path)
        if record.step != steps[-1]:
            raise ValueError(f"{folder} is damaged: its run.json is of step {record.step}")
        leaves = restore_arrays(folder / _ARRAYS, _checked(record.arrays, shapes_of(template), folder))
        for step in saved_steps(self.path / "best"):
            if step > record.step:
                shutil.rmtree(self.path / "best" / _name(step))
        _require_best(self.path, record)
        return Restored(record.step, unflattened(template, leaves), record.progress)

    def save(self, step: int, state: Any, progress: Mapping[str, Any]) -> None:
        """Writes a checkpoint, and removes all but the last two.

        Args:
          step: steps done. Nothing happens if it is there already.
          state: a pytree of arrays.
          progress: JSON-able.

        Raises:
          OSError: the disk is full, or the folder cannot be written.
        """
        self._write("checkpoints", step, flattened(state), progress)
        self._prune("checkpoints", keep=_KEEP)
        self._prune("best", keep=1)  # only now: the checkpoint before this one may name an older best

    def save_best(self, step: int, params: Any, progress: Mapping[str, Any]) -> None:
        """Keeps the parameters of the best evaluation so far; the one before goes with the next checkpoint."""
        self._write("best", step, flattened({"params": params}), progress)

    def restore_best(self, template: Any) -> Any:
        """The parameters that `save_best` kept, or None.

        Args:
          template: a pytree with their structure, shapes and dtypes.

        Raises:
          ValueError: they are damaged.
        """
        steps = saved_steps(self.path / "best")
        return _params_of(self.path / "best" / _name(steps[-1]), template) if steps else None

    def _write(self, kind: str, step: int, leaves: dict[str, np.ndarray], progress: Mapping[str, Any]) -> None:
        folder = self.path / kind / _name(step)
        if folder.exists():
            return
        require_room(self.path, sum(leaf.nbytes for leaf in leaves.values()) + _ROOM_BYTES)
        entries = {name: array_entry(leaf) for name, leaf in leaves.items()}
        with published(folder) as partial:
            save_arrays(partial / _ARRAYS, leaves)
            write_record(partial, RunRecord(identity=self.identity, step=step, progress=progress, arrays=entries))

    def _prune(self, kind: str, *, keep: int) -> None:
        for step in saved_steps(self.path / kind)[:-keep]:
            shutil.rmtree(self.path / kind / _name(step))


def saved_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in `folder`, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal() and entry.is_dir())


def latest_record(path: Path) -> RunRecord | None:
    """That of the last checkpoint of a run, or None where there is none.

    Raises:
      ValueError: it is damaged, or of a newer version.
    """
    steps = saved_steps(path / "checkpoints")
    return read_record(path / "checkpoints" / _name(steps[-1])) if steps else None


def load_run(path: str | Path) -> tuple[ModelConfig, Any]:
    """The model of a run: its configuration, and the parameters of the best evaluation, or the last ones where there was none.

        config, params = load_run("run")
        outputs = build_model(config).apply(params, batch.blocks, features)

    Args:
      path: the folder that `ginex train` wrote.

    Raises:
      ValueError: there is no checkpoint, or it is damaged or of a newer version.
    """
    record, folder = best_record(Path(path))
    config = record.identity.model
    return config, _params_of(folder, parameter_shapes(config, record.identity.num_features))


def best_record(path: Path) -> tuple[RunRecord, Path]:
    """The record of the checkpoint that `load_run` takes, and its folder; raises ValueError as that does."""
    for kind in ("best", "checkpoints"):
        if steps := saved_steps(path / kind):
            folder = path / kind / _name(steps[-1])
            record = read_record(folder)
            _require_best(path, record)
            return record, folder
    raise ValueError(f"{path} has no checkpoint: `ginex train` writes them")


def _require_best(path: Path, record: RunRecord) -> None:
    """Raises ValueError where a checkpoint names a best evaluation and its parameters have gone: others would pass for them."""
    step = record.progress.get("best_step")
    if step is not None and not saved_steps(path / "best"):
        raise ValueError(
            f"{path / 'best'} lacks the parameters of step {step}, the best evaluation: put the folder back, or train again"
        )


def _params_of(folder: Path, template: Any) -> Any:
    tree = {"params": template}
    arrays = {name: entry for name, entry in read_record(folder).arrays.items() if name.startswith("params/")}
    leaves = restore_arrays(folder / _ARRAYS, _checked(arrays, shapes_of(tree), folder))
    return unflattened(tree, leaves)["params"]


def _checked(
    found: Mapping[str, ArrayEntry], wanted: Mapping[str, tuple[tuple[int, ...], str]], folder: Path
) -> Mapping[str, ArrayEntry]:
    """Nothing is allocated on the word of the file alone."""
    if differing := sorted(set(found) ^ set(wanted)):
        side = "lacks" if differing[0] in wanted else "has an unexpected"
        raise ValueError(f"{folder} is damaged: it {side} {differing[0]}")
    for name, entry in found.items():
        if (entry.shape, entry.dtype) != wanted[name]:
            raise ValueError(
                f"{folder} is damaged: {name} is {entry.dtype} {entry.shape}, and {wanted[name]} is wanted"
            )
    return found


def _name(step: int) -> str:
    return f"{step:09d}"
