"""How a model is trained."""

import dataclasses
import math
from typing import Any

LINK_TASKS = ("links", "directed-links")
TASKS = ("single-label", "multi-label", *LINK_TASKS)

# A run may be resumed with other values of these: they do not change what a step computes.
FREE_FIELDS = ("epochs", "patience", "checkpoint_every")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What decides, together with the model and the mini-batches, the parameters after every step.

    Dropout and the type that layers compute in belong to the model; the loss is always float32.

    Attributes:
      task: one class a node, any number of yes-or-no labels, or which pairs of nodes are linked, where the order of the two does not or
        does matter (`ginex_jax.train.link_scores`).
      learning_rate: of Adam.
      weight_decay: L2 regularization: this times the parameters is added to the gradient, as in Kipf and Welling (ICLR 2017).
      epochs: at most.
      eval_every: epochs between two evaluations; 0 for none.
      patience: evaluations without a better one after which training stops; 0 for never.
      checkpoint_every: steps between two checkpoints.
      log_every: steps between two lines of the log: the device is asked for its metrics then, and not before.
      seed: of the first parameters and of dropout, in [0, 2**63).
    """

    task: str = "single-label"
    learning_rate: float = 0.003
    weight_decay: float = 0.0
    epochs: int = 10
    eval_every: int = 1
    patience: int = 0
    checkpoint_every: int = 500
    log_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task should be one of {', '.join(TASKS)}, got {self.task!r}")
        for name, least in {"learning_rate": 0.0, "weight_decay": 0.0}.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value < math.inf:
                raise ValueError(f"{name} should be a finite number of at least 0, got {value!r}")
        for name, least in {"epochs": 1, "eval_every": 0, "patience": 0, "checkpoint_every": 1, "log_every": 1}.items():
            _check_int(name, getattr(self, name), least)
        _check_int("seed", self.seed, 0)
        if self.seed >= 2**63:
            raise ValueError(f"seed should be below 2**63, got {self.seed}")
        if self.patience and not self.eval_every:
            raise ValueError("patience counts evaluations, and eval_every 0 means none: set eval_every")

    @property
    def decisive(self) -> dict[str, Any]:
        """The fields that a resumed run must share with the one it goes on with."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in FREE_FIELDS}


def _check_int(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} should be an int of at least {least}, got {value!r}")
