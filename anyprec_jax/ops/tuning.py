"""Tile sizes of the Pallas kernels: pure functions of the shapes, so that a choice can be read, tested and overridden."""

import dataclasses

from anyprec_jax.bitplanes import WORD_BITS, num_words

LANES, SUBLANES = 128, 8  # of a vector register of a TPU
LANE_GROUP = 4  # columns of a word that go over from one kind of look-up to the other together
MAX_TPU_BATCH = 32
MAX_GPU_BATCH = 8
_GPU_PROGRAMS = 256  # about two for each multiprocessor of the largest
_GPU_TILE_WORDS = 512  # four for each thread

# Static cycles of TPU v5e per 1024 weights, by precision, where every column of a word is looked up the same way; measured by
# `make aot`. Along lanes all 128 of them are paid for, used or not.
_ALONG_SUBLANES = {1: 1.4, 2: 1.4, 3: 1.4, 4: 2.2, 5: 3.8, 6: 6.6, 7: 12.0, 8: 23.0}
_ALONG_LANES = {1: 4.3, 2: 4.3, 3: 4.3, 4: 4.3, 5: 4.6, 6: 4.6, 7: 4.7, 8: 8.5}
# Where both cost about the same, some of each keeps more units busy.
_MIXED_COLUMNS = {5: 8}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuTiles:
    """What one step of the TPU kernel works on."""

    rows: int  # of the matrix, a multiple of 128
    words: int  # of every plane, a multiple of 8 up to 128
    batch: int  # rows of x, a multiple of 8
    lane_columns: int = 0  # of the 32 columns of a word, how many are looked up along lanes; the others along sublanes

    def __post_init__(self) -> None:
        if self.rows < LANES or self.rows % LANES:
            raise ValueError(f"rows must be a multiple of {LANES}, got {self.rows}")
        if not SUBLANES <= self.words <= LANES or self.words % SUBLANES:
            raise ValueError(f"words must be a multiple of {SUBLANES} up to {LANES}, got {self.words}")
        if self.batch < SUBLANES or self.batch % SUBLANES:
            raise ValueError(f"batch must be a multiple of {SUBLANES}, got {self.batch}")
        if not 0 <= self.lane_columns <= WORD_BITS or self.lane_columns % LANE_GROUP:
            raise ValueError(
                f"lane_columns must be a multiple of {LANE_GROUP} from 0 to {WORD_BITS}, got {self.lane_columns}"
            )
        if self.lane_columns and self.words != LANES:
            raise ValueError(f"words must be {LANES} where lane_columns is not 0, got {self.words}")


def tpu_tiles(m: int, n: int, k: int, *, precision: int, sublane_gather: bool = True) -> TpuTiles:
    """For x [m, k] and a matrix [n, k]; `sublane_gather` is False on TPU v4 and before, which lack that instruction."""
    words = num_words(k)
    rows = 2 * LANES if _round_up(n, 2 * LANES) == _round_up(n, LANES) else LANES
    batch = min(MAX_TPU_BATCH, _round_up(m, SUBLANES))
    lane_columns = _lane_columns(words, precision) if sublane_gather else WORD_BITS
    blocks = -(-words // LANES)
    if words % LANES and not lane_columns:  # no larger than it has to be
        return TpuTiles(rows=rows, words=_round_up(-(-words // blocks), SUBLANES), batch=batch)
    return TpuTiles(rows=rows, words=LANES, batch=batch, lane_columns=lane_columns)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuTiles:
    """What one program of the GPU kernel works on, at a time: powers of two, as Triton wants them."""

    rows: int  # of the matrix
    words: int  # of every plane; the program walks along the row
    batch: int  # rows of x
    num_warps: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"{field.name} must be a power of two, got {value}")


def gpu_tiles(m: int, n: int, k: int) -> GpuTiles:
    """For x [m, k] and a matrix [n, k]: fewer rows to a program where there are few, so that there are enough programs."""
    rows = next((rows for rows in (16, 8, 4) if n >= _GPU_PROGRAMS * rows), 2)
    words = min(_GPU_TILE_WORDS // rows, _power_of_two(num_words(k)))
    return GpuTiles(rows=rows, words=words, batch=min(MAX_GPU_BATCH, _power_of_two(m)), num_warps=4)


def _lane_columns(words: int, precision: int) -> int:
    lanes = _ALONG_LANES[precision] * _round_up(words, LANES) / words
    if words >= LANES and precision in _MIXED_COLUMNS:
        return _MIXED_COLUMNS[precision]
    return WORD_BITS if lanes < _ALONG_SUBLANES[precision] else 0


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _power_of_two(number: int) -> int:
    """The next one, at least `number`."""
    return 1 << max(0, number - 1).bit_length()
