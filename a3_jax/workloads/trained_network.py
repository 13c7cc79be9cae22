"""A trained memory network as a file, so that it is trained once."""

import dataclasses
import hashlib
import json
import math
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from a3_jax.workloads.babi import MEMORY_SIZE, EncodedQuestions
from a3_jax.workloads.memory_network import MemoryNetwork
from a3_jax.workloads.memory_training import Epoch, Parameters, TrainingConfig, train

_FORMAT = 1
_MOST_BYTES = 2**28
_ARRAYS = ("embeddings", "times")


class TrainedNetwork(NamedTuple):
    """A network with what it was trained on.

    Attributes:
      identity: what decides the parameters: seed, configuration and a digest of the training questions.
      seconds: that training took, when it was done.
    """

    network: MemoryNetwork
    parameters: Parameters
    identity: dict[str, Any]
    seconds: float


def train_or_load(
    file: Path | None,
    training: EncodedQuestions,
    num_words: int,
    config: TrainingConfig,
    *,
    seed: int,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> TrainedNetwork:
    """What the file has; where there is none, a network that is trained now, and the file with it if a name is given.

    ValueError if the file is no network, or was trained with another seed, configuration or other questions; OSError if it can be
    neither read nor written.
    """
    network = MemoryNetwork(num_words, MEMORY_SIZE, config.dim, config.num_hops)
    identity = {"seed": seed, "config": dataclasses.asdict(config), "questions": digest(training), "words": num_words}
    if file is not None and file.exists():
        return load_network(file, network, identity)
    if file is not None and not file.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {file.absolute().parent} for {file.name}")
    start = time.perf_counter()
    parameters = train(training, network, config, seed=seed, on_epoch=on_epoch)
    trained = TrainedNetwork(network, parameters, identity, time.perf_counter() - start)
    if file is not None:
        save_network(file, trained)
    return trained


def digest(questions: EncodedQuestions) -> str:
    """Of all arrays and their shapes."""
    found = hashlib.sha256()
    for array in questions:
        found.update(f"{array.shape}".encode())
        found.update(np.ascontiguousarray(array, "<i4").tobytes())
    return found.hexdigest()


def save_network(file: Path, trained: TrainedNetwork) -> None:
    """Writes `embeddings`, `times` and a header in JSON as an .npz file, whole or not at all."""
    header = json.dumps({"format": _FORMAT, "seconds": trained.seconds, **trained.identity})
    embeddings, times = (np.asarray(trained.parameters["params"][name]) for name in _ARRAYS)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            np.savez(stream, header=np.array(header), embeddings=embeddings, times=times)
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def load_network(file: Path, network: MemoryNetwork, identity: dict[str, Any]) -> TrainedNetwork:
    """The network of a file that `save_network` wrote. Errors are those of `train_or_load`."""
    shapes = {
        "embeddings": (network.num_hops + 1, network.num_words, network.dim),
        "times": (network.num_hops + 1, network.memory_size, network.dim),
    }
    try:
        with zipfile.ZipFile(file) as archive:
            if sum(member.file_size for member in archive.infolist()) > _MOST_BYTES:
                raise ValueError(f"it would be larger than {_MOST_BYTES:,} bytes")
        with np.load(file, allow_pickle=False) as contents:
            header = json.loads(str(contents["header"]))
            arrays = {name: contents[name] for name in _ARRAYS}
        if not isinstance(header, dict) or header.get("format") != _FORMAT or not _is_time(header.get("seconds")):
            raise ValueError("its header is of another format")
    except (ValueError, KeyError, EOFError, NotImplementedError, RecursionError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is no network that was saved here: {error}; remove it to train a new one") from None
    for name, wanted in identity.items():
        if header.get(name) != wanted:
            raise ValueError(
                f"{file} was trained with another {_WHAT[name]}: give another file, or remove it to train anew"
            )
    for name, shape in shapes.items():
        _require_numbers(file, name, arrays[name], shape)
    parameters = {"params": {name: jnp.asarray(array) for name, array in arrays.items()}}
    return TrainedNetwork(network, parameters, identity, float(header["seconds"]))


_WHAT = {"seed": "seed", "config": "configuration", "questions": "set of questions", "words": "vocabulary"}


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < math.inf


def _require_numbers(file: Path, name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype != np.float32:
        raise ValueError(f"{file}: {name} should be float32 {list(shape)}, got {array.dtype} {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{file}: {name} has NaN or infinity in it")
