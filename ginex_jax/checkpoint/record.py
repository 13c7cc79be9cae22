"""`run.json`: what a checkpoint says of the run that it belongs to."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ginex_jax.checkpoint.arrays import ArrayEntry
from ginex_jax.models.config import ModelConfig

FORMAT = "bandwise.ginex.run"
FORMAT_VERSION = 1
_FILE = "run.json"
_MAX_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What a run must share with its checkpoints to go on from them.

    Attributes:
      dataset: `ginex_jax.store.manifest.content_digest`.
      model: its configuration.
      num_features: the width of its input.
      sampler: as `ginex_jax.sampling.shapes.to_state` writes it.
      training: the fields of the training's configuration that change what a step computes.
    """

    dataset: str
    model: ModelConfig
    num_features: int
    sampler: Mapping[str, Any]
    training: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One checkpoint, but for its arrays."""

    identity: RunIdentity
    step: int
    progress: Mapping[str, Any]
    arrays: Mapping[str, ArrayEntry]


def write_record(folder: Path, record: RunRecord) -> None:
    """Writes `run.json`."""
    document = {"format": FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(record)}
    (folder / _FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read_record(folder: Path) -> RunRecord:
    """Reads and checks `run.json`.

    Raises:
      ValueError: it is missing, damaged, or of a newer version; one line that says which.
    """
    file = folder / _FILE
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise ValueError("it is too large")
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{folder} is damaged: {_FILE}: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"{file} does not belong to a run (format {FORMAT!r} wanted)")
    if document.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{file} has format version {document.get('format_version')!r}; this version of bandwise reads {FORMAT_VERSION}"
        )
    try:
        return _parsed(document)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error!r}") from error


def _parsed(document: dict[str, Any]) -> RunRecord:
    identity = {**document["identity"], "model": ModelConfig(**document["identity"]["model"])}
    arrays = {
        name: ArrayEntry(shape=tuple(entry["shape"]), dtype=entry["dtype"], crc32c=entry["crc32c"])
        for name, entry in document["arrays"].items()
    }
    step, width = document["step"], identity["num_features"]
    if type(step) is not int or step < 0 or type(width) is not int or width < 1:
        raise ValueError(f"step {step!r} and {width!r} features should be integers")
    record = RunRecord(identity=RunIdentity(**identity), step=step, progress=dict(document["progress"]), arrays=arrays)
    if not isinstance(record.identity.sampler, dict) or not isinstance(record.identity.training, dict):
        raise ValueError("sampler and training should be objects")
    return record


def check_same_run(found: RunIdentity, wanted: RunIdentity, path: Path) -> None:
    """Raises ValueError, naming what differs first, unless a run of identity `wanted` may go on from `found`."""
    if found.dataset != wanted.dataset:
        raise ValueError(f"{path} was trained on another dataset: resume with that one, or choose another folder")
    if found.num_features != wanted.num_features:
        raise ValueError(f"{path} was trained on {found.num_features} features, and there are {wanted.num_features}")
    parts = (
        ("model", dataclasses.asdict(found.model), dataclasses.asdict(wanted.model)),
        ("sampler", found.sampler, wanted.sampler),
        ("training", found.training, wanted.training),
    )
    for what, old, new in parts:
        old, new = (_flat(part) for part in (old, new))
        for name in sorted(set(old) | set(new)):
            if old.get(name) != new.get(name):
                raise ValueError(
                    f"{path} has another {what}: {name} is {_short(old.get(name))} there and {_short(new.get(name))} now; "
                    "resume with the same, or choose another folder"
                )


def _flat(part: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has it, one level deep: lists for tuples."""
    plain = json.loads(json.dumps(dict(part)))
    config = plain.pop("config", {})
    return {**plain, **config}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:50]} ..."
