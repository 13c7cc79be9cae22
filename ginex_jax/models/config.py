"""What decides a model's parameters and arithmetic."""

import dataclasses
from collections.abc import Collection

KINDS = ("sage", "gcn", "gat")
AGGREGATORS = ("mean", "max")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A graph neural network, but for the width of its input.

    Attributes:
      kind: "sage" (GraphSAGE), "gcn" or "gat".
      hidden: features of every layer but the last; those of all heads together.
      num_layers: at least 1, and as many as a mini-batch has hops.
      num_outputs: of the last layer: classes, tasks, or features of an embedding.
      aggregator: of GraphSAGE: "mean" or "max".
      dropout: how likely a feature is dropped at the door of every layer but the first, in [0, 1).
      input_dropout: the same at the door of the first layer. GCN and GAT were published with as much as inside, GraphSAGE with none.
      num_heads: of GAT; `hidden` is a multiple of it.
      dtype: of the arithmetic and of hidden features, "float32" or "bfloat16". Parameters and outputs are float32.
    """

    kind: str = "sage"
    hidden: int = 256
    num_layers: int = 3
    num_outputs: int
    aggregator: str = "mean"
    dropout: float = 0.5
    input_dropout: float = 0.0
    num_heads: int = 1
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _require_one_of("kind", self.kind, KINDS)
        _require_one_of("aggregator", self.aggregator, AGGREGATORS)
        _require_one_of("dtype", self.dtype, DTYPES)
        for name in ("hidden", "num_layers", "num_outputs", "num_heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} should be an int of at least 1, got {value!r}")
        for name in ("dropout", "input_dropout"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
                raise ValueError(f"{name} should be in [0, 1), got {value!r}")
        if self.kind == "gat" and self.hidden % self.num_heads:
            raise ValueError(f"hidden should be a multiple of {self.num_heads} heads, got {self.hidden}")


def _require_one_of(name: str, value: object, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} should be one of {', '.join(choices)}, got {value!r}")
