"""How a matrix is quantized."""

import dataclasses

MAX_PRECISION = 8  # codes are uint8


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """The precisions of one artefact: `1 <= seed_precision <= parent_precision <= 8`.

    Attributes:
      seed_precision: bits of the codes that are clustered directly, and the fewest that can be read.
      parent_precision: bits of the finest codes, and the most that can be read.
    """

    seed_precision: int = 3
    parent_precision: int = 8

    def __post_init__(self) -> None:
        for name in ("seed_precision", "parent_precision"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name} must be an int, got {value!r}")
        if not 1 <= self.seed_precision <= self.parent_precision <= MAX_PRECISION:
            raise ValueError(
                f"precisions must satisfy 1 <= seed_precision <= parent_precision <= {MAX_PRECISION}, got "
                f"seed_precision={self.seed_precision}, parent_precision={self.parent_precision}"
            )

    @property
    def precisions(self) -> range:
        """Every precision the artefact can be read at, ascending."""
        return range(self.seed_precision, self.parent_precision + 1)
