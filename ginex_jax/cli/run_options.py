"""What `ginex train` can be told: by flags, by a file, by the run that it goes on with, by default; in this order."""

import contextlib
import dataclasses
import difflib
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ginex_jax.cli.byte_sizes import parse_bytes
from ginex_jax.models.config import ModelConfig
from ginex_jax.sampling.config import SamplerConfig
from ginex_jax.train.config import LINK_TASKS, TrainConfig

RUN_TASKS = ("nodes", *LINK_TASKS)
POLICIES = ("belady", "lru", "static", "none")
_MAX_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Every option of a run; a file may have the same names, with - or _."""

    task: str = "nodes"
    negatives: int = 1
    held_out: float = 0.1
    model: str = "sage"
    fanouts: str = "10,10,10"
    batch_size: int = 1000
    memory: str = "2GiB"
    policy: str = "belady"
    epochs: int = 10
    hidden: int = 256
    aggregator: str = "mean"
    heads: int = 1
    dropout: float = 0.5
    input_dropout: float = 0.0
    precision: str = "float32"
    lr: float = 0.003
    weight_decay: float = 0.0
    weighted: bool = False
    seed: int = 0
    eval_every: int = 1
    patience: int = 0
    checkpoint_every: int = 500
    log_every: int = 20
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.task not in RUN_TASKS:
            raise ValueError(f"task should be one of {', '.join(RUN_TASKS)}, got {self.task!r}")
        if self.policy not in POLICIES:
            raise ValueError(f"policy should be one of {', '.join(POLICIES)}, got {self.policy!r}")
        parse_bytes(self.memory)
        parse_fanouts(self.fanouts)

    @property
    def memory_bytes(self) -> int:
        return parse_bytes(self.memory)

    def sampler(self) -> SamplerConfig:
        return SamplerConfig(
            fanouts=parse_fanouts(self.fanouts), batch_size=self.batch_size, seed=self.seed, weighted=self.weighted
        )

    def model_config(self, num_outputs: int) -> ModelConfig:
        return ModelConfig(
            kind=self.model,
            hidden=self.hidden,
            num_layers=len(parse_fanouts(self.fanouts)),
            num_outputs=num_outputs,
            aggregator=self.aggregator,
            dropout=self.dropout,
            input_dropout=self.input_dropout,
            num_heads=self.heads,
            dtype=self.precision,
        )

    def training(self, task: str) -> TrainConfig:
        return TrainConfig(
            task=task,
            learning_rate=self.lr,
            weight_decay=self.weight_decay,
            epochs=self.epochs,
            eval_every=self.eval_every,
            patience=self.patience,
            checkpoint_every=self.checkpoint_every,
            log_every=self.log_every,
            seed=self.seed,
        )


def parse_fanouts(text: str) -> tuple[int | None, ...]:
    """Of a list such as `10,10` or `25,all`; None takes all neighbours.

    Raises:
      ValueError: it is another text.
    """
    try:
        return tuple(None if part.strip() == "all" else int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"fanouts are numbers or all, with commas between them, got {text!r}") from None


def merged(flags: Mapping[str, Any], *files: Path | None) -> RunOptions:
    """Flags that are not None win over the first file, that one over the next, the last one over the defaults.

    Raises:
      ValueError: a file is no YAML mapping, or has an unknown key or a value of the wrong kind; the message names it.
      OSError: a file cannot be read.
    """
    values: dict[str, Any] = {}
    for file in reversed(files):
        if file is not None:
            values |= _read(file)
    return RunOptions(**values | {name: value for name, value in flags.items() if value is not None})


def write_options(file: Path, options: RunOptions) -> None:
    """As YAML that `merged` reads. The file is there whole, the old or the new one, also when the process is killed or the disk is full."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(yaml.safe_dump(dataclasses.asdict(options), sort_keys=False), encoding="utf-8")
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _read(file: Path) -> dict[str, Any]:
    if file.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{file} is too large for a configuration")
    try:
        document = yaml.load(file.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ValueError(f"{file} should have one option a line, such as `hidden: 256`")
    options: dict[str, Any] = {}
    for key, value in document.items():
        name, value = _checked(file, key, value)
        if name in options:
            raise ValueError(f"{file}: {name} is there twice")
        options[name] = value
    return options


class _UniqueKeys(yaml.SafeLoader):
    """Where PyYAML would take the last of several equal keys, an error; no merge keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := [value for number, (tag, value) in enumerate(keys) if (tag, value) in keys[:number]]:
            raise yaml.YAMLError(f"{repeated[0][:50]} is there twice")
        return super().construct_mapping(node, deep)


def _checked(file: Path, key: Any, value: Any) -> tuple[str, Any]:
    """The name of a field and a value of its type."""
    types = {field.name: type(field.default) for field in dataclasses.fields(RunOptions)}
    name = str(key).replace("-", "_")
    if name not in types:
        near = difflib.get_close_matches(name, types, n=1, cutoff=0.0)[0]
        raise ValueError(f"{file}: there is no option {str(key)[:50]!r}; did you mean {near!r}?")
    kind = types[name]
    if name == "fanouts" and isinstance(value, list) and all(type(part) in (int, str) for part in value):
        value = ",".join(str(part) for part in value)
    if (name == "fanouts" and type(value) is int) or (name == "memory" and type(value) is int):
        value = str(value)
    if kind is float and type(value) is int:
        value = float(value)
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 5e-4 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    if type(value) is not kind:
        raise ValueError(f"{file}: {key} should be {kind.__name__}, got {reprlib.repr(value)}")
    return name, value
