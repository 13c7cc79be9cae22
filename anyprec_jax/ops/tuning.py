"""Tile sizes of the Pallas kernels: pure functions of the shapes, so that a choice can be read, tested and overridden."""

import dataclasses

from anyprec_jax.bitplanes import WORD_BITS, num_words

LANES = 128  # of a vector register of a TPU, which has 8 sublanes of them
SUBLANES = 8
LANE_GROUP = 4  # columns that change between the two kinds of look-up together


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuTiles:
    """What one step of the TPU kernel works on."""

    rows: int  # of the matrix, a multiple of 128
    words: int  # of every plane: 128, or for a narrower matrix a smaller multiple of 8
    batch: int  # rows of x, a multiple of 8
    lane_columns: int  # of the 32 columns of a word, how many are looked up along lanes; the others along sublanes

    def __post_init__(self) -> None:
        if self.rows < LANES or self.rows % LANES:
            raise ValueError(f"rows must be a multiple of {LANES}, got {self.rows}")
        if not SUBLANES <= self.words <= LANES or self.words % SUBLANES:
            raise ValueError(f"words must be a multiple of {SUBLANES} and at most {LANES}, got {self.words}")
        if self.batch < SUBLANES or self.batch % SUBLANES:
            raise ValueError(f"batch must be a multiple of {SUBLANES}, got {self.batch}")
        if not 0 <= self.lane_columns <= WORD_BITS or self.lane_columns % LANE_GROUP:
            raise ValueError(
                f"lane_columns must be a multiple of {LANE_GROUP} in [0, {WORD_BITS}], got {self.lane_columns}"
            )


def tpu_tiles(m: int, n: int, k: int, *, precision: int, sublane_gather: bool = True) -> TpuTiles:
    """For x [m, k] and a matrix [n, k]; `sublane_gather` is False on TPU v4 and before, which lack the instruction."""
    del n
    words = min(LANES, round_up(num_words(k), SUBLANES))
    lane_columns = WORD_BITS if precision >= 7 or not sublane_gather else 0
    return TpuTiles(rows=LANES, words=words, batch=min(128, round_up(m, SUBLANES)), lane_columns=lane_columns)


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
