"""How mini-batches are sampled."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """What decides, together with the graph and its training nodes, every mini-batch of every epoch.

    Attributes:
      fanouts: neighbours drawn a node, for each hop from the seeds outwards; None takes all of them.
      batch_size: seeds a mini-batch.
      seed: of all random choices, in [0, 2**64).
      weighted: draw in proportion to edge weights.
    """

    fanouts: tuple[int | None, ...]
    batch_size: int
    seed: int = 0
    weighted: bool = False

    def __post_init__(self) -> None:
        check_fanouts(self.fanouts)
        if not _is_int(self.batch_size) or self.batch_size < 1:
            raise ValueError(f"batch_size should be an int of at least 1, got {self.batch_size!r}")
        if not _is_int(self.seed) or not 0 <= self.seed < 2**64:
            raise ValueError(f"seed should be an int in [0, 2**64), got {self.seed!r}")
        if not isinstance(self.weighted, bool):
            raise ValueError(f"weighted should be True or False, got {self.weighted!r}")


def check_fanouts(fanouts: Sequence[int | None]) -> None:
    """Raises ValueError unless there is at least one, and each is an int of at least 1, or None."""
    if len(fanouts) == 0:
        raise ValueError("there should be at least one fanout")
    for fanout in fanouts:
        if fanout is not None and (not _is_int(fanout) or fanout < 1):
            raise ValueError(f"a fanout should be an int of at least 1, or None for all neighbours, got {fanout!r}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
