"""The product on TPU: a Pallas kernel that rebuilds codes from the planes, looks them up and feeds the matrix units.

One step takes a tile of 128 rows (outputs) and up to 128 words of every plane, 4096 columns. A centroid is exact as two
bfloat16 halves of one int32, so a looked-up vector register goes to the matrix units as it is, as twice as many bfloat16
rows. A tile's columns are divided between two ways to look codes up, because they keep different units busy:

* **along sublanes**: words on sublanes, outputs on lanes (the planes are transposed in the kernel). The instruction picks one
  of 8 sublanes, so the 3 lower bits of a code index registers of 8 centroids and the upper bits select among the registers: 1,
  2, 4, 8 look-ups and one select fewer at 3, 4, 5, 6 bits, all of it in the vector ALUs. TPU v4 and before cannot.
* **along lanes**: outputs on sublanes, words on lanes, as the planes are stored. One look-up among 128 centroids, in the
  cross-lane units, which is slow but leaves the vector ALUs free.

`docs/anyprec.md` has what each costs. Nothing is ever sliced, copied or permuted but x.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float16, Int32, UInt32

from anyprec_jax.bitplanes import WORD_BITS
from anyprec_jax.ops.tuning import LANES, SUBLANES, TpuTiles, round_up, tpu_tiles

DTYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))  # of x, and so of the result

_INDEX_BITS = 3  # of a code that a look-up along sublanes takes
_NIBBLE = 4
# Residues of a column modulo 8, in the order in which they go over to look-ups along lanes: pairs that share a nibble word first.
_LANE_ORDER = (3, 7, 2, 6, 1, 5, 0, 4)
_UPPER_HALF = -65536  # 0xFFFF0000


def matmul(
    x: Float[Array, "m k"],
    bitplanes: UInt32[Array, "layers parent n words"],
    codebook: Float16[Array, "layers n entries"],
    layer: Int32[Array, ""],
    *,
    tiles: TpuTiles | None = None,
    interpret: bool | pltpu.InterpretParams = False,
) -> Float[Array, "m n"]:
    """x @ w.T"""
    m, k = x.shape
    _, _, n, words = bitplanes.shape
    precision = codebook.shape[-1].bit_length() - 1
    if m == 0:
        return jnp.zeros((m, n), x.dtype)
    if tiles is None:
        tiles = tpu_tiles(m, n, k, precision=precision)
    sublane_columns, lane_columns = _columns(tiles)
    limbs = _limbs(x)
    padded_m, num_blocks = round_up(m, tiles.batch), pl.cdiv(words, tiles.words)
    operands = []
    if sublane_columns:
        doubled = [_doubled(limb) for limb in _by_column(limbs, sublane_columns, padded_m, num_blocks * tiles.words)]
        operands.append(jnp.stack(doubled, axis=1))
    if lane_columns:
        operands.append(jnp.stack(_by_column(limbs, lane_columns, padded_m, num_blocks * LANES), axis=1))
    product = _call(layer, operands, bitplanes, codebook, dtype=x.dtype, tiles=tiles, interpret=interpret)
    return product[:m]


def _columns(tiles: TpuTiles) -> tuple[list[int], list[int]]:
    """Which columns of a word are looked up along sublanes, and which along lanes."""
    residues = _LANE_ORDER[: tiles.lane_columns // (WORD_BITS // 8)]
    along_lanes = [column for column in range(WORD_BITS) if column % 8 in residues]
    return [column for column in range(WORD_BITS) if column not in along_lanes], along_lanes


def _limbs(x: Float[Array, "m k"]) -> list[Float[Array, "m k"]]:
    """bfloat16 arrays that add up to x exactly: x itself, or three for float32, the first holding what is not finite."""
    if x.dtype == jnp.bfloat16:
        return [x]
    limbs, rest = [], x
    for _ in range(3):
        # By its bits: a conversion and back is something that XLA may drop.
        bits = jax.lax.bitcast_convert_type(rest, jnp.int32) & _UPPER_HALF
        upper = jax.lax.bitcast_convert_type(bits, jnp.float32)
        limbs.append(upper.astype(jnp.bfloat16))
        rest = jnp.where(jnp.isfinite(x), rest - upper, 0)
    return limbs


def _by_column(limbs: list[Array], columns: list[int], padded_m: int, words: int) -> list[Array]:
    """Each limb as [column of a word, row of x, word], padded with zeros: what lies beyond the matrix then counts nothing."""
    m, k = limbs[0].shape
    padding = ((0, padded_m - m), (0, words * WORD_BITS - k))
    return [
        jnp.pad(limb, padding).reshape(padded_m, words, WORD_BITS).transpose(2, 0, 1)[jnp.array(columns)]
        for limb in limbs
    ]


def _doubled(limb: Float[Array, "column m words"]) -> Float[Array, "column m 2*words"]:
    """Every element twice, for the lower and the upper half of a centroid. What is not finite meets the upper half only:
    a lower half of 0 would make it NaN."""
    finite = jnp.where(jnp.isfinite(limb), limb, 0)
    return jnp.stack([finite, limb], axis=-1).reshape(*limb.shape[:2], -1)


def _call(layer, operands, bitplanes, codebook, *, dtype, tiles: TpuTiles, interpret) -> Array:
    _, num_limbs, padded_m, _ = operands[0].shape
    _, _, n, words = bitplanes.shape
    precision = codebook.shape[-1].bit_length() - 1
    entries = round_up(codebook.shape[-1], LANES)
    has_sublanes, has_lanes = tiles.lane_columns < WORD_BITS, tiles.lane_columns > 0
    operand_specs = [
        pl.BlockSpec(
            (operand.shape[0], num_limbs, tiles.batch, width), lambda batch, row, word, layer: (0, 0, batch, word)
        )
        for operand, width in zip(operands, [2 * tiles.words] * has_sublanes + [LANES] * has_lanes, strict=True)
    ]
    scratch = []
    if has_sublanes:
        scratch += [
            pltpu.VMEM((max(SUBLANES, 2**precision), tiles.rows), jnp.int32),
            pltpu.VMEM((num_limbs * tiles.batch, tiles.rows), jnp.float32),
        ]
    if has_lanes:
        scratch += [
            pltpu.VMEM((tiles.rows, entries), jnp.int32),
            pltpu.VMEM((num_limbs * tiles.batch, 2 * tiles.rows), jnp.float32),
        ]
    return pl.pallas_call(
        functools.partial(_kernel, precision=precision, tiles=tiles),
        out_shape=jax.ShapeDtypeStruct((padded_m, n), dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(padded_m // tiles.batch, pl.cdiv(n, tiles.rows), pl.cdiv(words, tiles.words)),
            in_specs=[
                pl.BlockSpec(
                    (None, precision, tiles.rows, LANES), lambda batch, row, word, layer: (layer[0], 0, row, word)
                ),
                pl.BlockSpec((None, tiles.rows, entries), lambda batch, row, word, layer: (layer[0], row, 0)),
                *operand_specs,
            ],
            out_specs=pl.BlockSpec((tiles.batch, tiles.rows), lambda batch, row, word, layer: (batch, row)),
            scratch_shapes=scratch,
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name="anyprec_matmul",
    )(layer.reshape(1), bitplanes, jax.lax.bitcast_convert_type(codebook, jnp.uint16), *operands)


def _kernel(layer_ref, planes_ref, codebook_ref, *refs, precision: int, tiles: TpuTiles) -> None:
    """Grid: (tiles of x, tiles of rows, tiles of words), the last one summed over."""
    del layer_ref  # the block index maps use it
    sublane_columns, lane_columns = _columns(tiles)
    num_operands = bool(sublane_columns) + bool(lane_columns)
    operands, out_ref, scratch = refs[:num_operands], refs[num_operands], iter(refs[num_operands + 1 :])
    operands = iter(operands)
    halves = []
    if sublane_columns:
        halves.append(_AlongSublanes(planes_ref, next(operands), next(scratch), next(scratch), precision, tiles))
    if lane_columns:
        halves.append(_AlongLanes(planes_ref, next(operands), next(scratch), next(scratch), precision, tiles))

    @pl.when(pl.program_id(2) == 0)
    def _():
        raw = codebook_ref[...].astype(jnp.int32)
        for half in halves:
            half.start(raw)

    _interleave([half.steps(columns) for half, columns in zip(halves, filter(None, (sublane_columns, lane_columns)))])

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        total = functools.reduce(jnp.add, [half.result() for half in halves])
        limbs = [total[start : start + tiles.batch] for start in range(0, total.shape[0], tiles.batch)]
        out_ref[...] = functools.reduce(jnp.add, limbs).astype(out_ref.dtype)


def _interleave(generators) -> None:
    """Runs them in turns, at rates that let them end together: the scheduler of the compiler sees the units' work side by side."""
    pending = [(list_, 0) for list_ in map(list, generators)]
    order = sorted(
        ((index + 1) / len(steps), which, index) for which, (steps, _) in enumerate(pending) for index in range(len(steps))
    )
    for _, which, index in order:
        pending[which][0][index]()


class _AlongSublanes:
    def __init__(self, planes_ref, x_ref, table_ref, sum_ref, precision, tiles):
        self.planes_ref, self.x_ref, self.table_ref, self.sum_ref = planes_ref, x_ref, table_ref, sum_ref
        self.precision, self.tiles = precision, tiles

    def start(self, raw):
        self.sum_ref[...] = jnp.zeros(self.sum_ref.shape, jnp.float32)
        for row in range(0, self.tiles.rows, LANES):
            turned = raw[row : row + LANES, : round_up(2**self.precision, LANES)].T
            self.table_ref[:, row : row + LANES] = _two_halves(turned[: self.table_ref.shape[0]])

    def steps(self, columns):
        tiles = self.tiles
        planes = [
            jnp.concatenate([self.planes_ref[p, r : r + LANES, :].T[: tiles.words] for r in range(0, tiles.rows, LANES)], axis=1)
            for p in range(self.precision)
        ]
        tables = [self.table_ref[t : t + SUBLANES] for t in range(0, self.table_ref.shape[0], SUBLANES)]
        total = [jnp.zeros(self.sum_ref.shape, jnp.float32)]

        def step(column, fields, last):
            code = _field(fields, column // _NIBBLE, _NIBBLE, min(_INDEX_BITS, self.precision))
            weights = _look_up_along_sublanes(tables, code, planes[:-_INDEX_BITS], column)
            x = self.x_ref[columns.index(column)].reshape(total[0].shape[0], 2 * tiles.words)
            total[0] += jnp.dot(x, pltpu.bitcast(weights, jnp.bfloat16), preferred_element_type=jnp.float32)
            if last:
                self.sum_ref[...] += total[0]
        out = []
        fields = {}
        ordered = sorted(columns, key=lambda c: (c % _NIBBLE, c))
        for column in ordered:
            s = column % _NIBBLE
            def run(column=column, s=s):
                if s not in fields:
                    fields[s] = _fields(planes[-_INDEX_BITS:], s, _NIBBLE)
                step(column, fields[s], column == ordered[-1])
            out.append(run)
        return out

    def result(self):
        return self.sum_ref[...]


class _AlongLanes:
    def __init__(self, planes_ref, x_ref, table_ref, sum_ref, precision, tiles):
        self.planes_ref, self.x_ref, self.table_ref, self.sum_ref = planes_ref, x_ref, table_ref, sum_ref
        self.precision, self.tiles = precision, tiles

    def start(self, raw):
        self.sum_ref[...] = jnp.zeros(self.sum_ref.shape, jnp.float32)
        self.table_ref[...] = _two_halves(raw)

    def steps(self, columns):
        width = _NIBBLE if self.precision <= _NIBBLE and all((c ^ 4) in columns for c in columns) else 8
        tables = [self.table_ref[:, t : t + LANES] for t in range(0, self.table_ref.shape[1], LANES)]
        total = [jnp.zeros(self.sum_ref.shape, jnp.float32)]
        planes = [self.planes_ref[p] for p in range(self.precision)]
        fields, out = {}, []
        ordered = sorted(columns, key=lambda c: (c % width, c))
        for column in ordered:
            def run(column=column):
                s = column % width
                if s not in fields:
                    fields[s] = _fields(planes, s, width)
                code = _field(fields[s], column // width, width, self.precision)
                weights = _look_up_along_lanes(tables, code)
                x = self.x_ref[columns.index(column)].reshape(total[0].shape[0], LANES)
                total[0] += jax.lax.dot_general(x, pltpu.bitcast(weights, jnp.bfloat16), (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
                if column == ordered[-1]:
                    self.sum_ref[...] += total[0]
            out.append(run)
        return out

    def result(self):
        """even lanes lower halves, odd upper"""
        both = self.sum_ref[...]
        parts = []
        lane = jax.lax.broadcasted_iota(jnp.int32, (both.shape[0], LANES), 1)
        for start in range(0, both.shape[1], 2 * LANES):
            picked = []
            for s in (start, start + LANES):
                lower = both[:, s : s + LANES]
                upper = pltpu.roll(lower, LANES - 1, 1)
                whole = jnp.where(jnp.abs(upper) < jnp.inf, lower + upper, upper)
                picked.append(jnp.take_along_axis(whole, (2 * lane) % LANES, axis=1, mode="promise_in_bounds"))
            parts.append(jnp.where(lane < LANES // 2, picked[0], picked[1]))
        return jnp.concatenate(parts, axis=1)


def _two_halves(raw):
    """The bits of a float16 -> the two bfloat16 that add up to it, in one int32: the upper half is cut off, not rounded."""
    magnitude = raw & 0x7FFF
    normal = jax.lax.bitcast_convert_type((magnitude << 13) + (112 << 23), jnp.float32)
    subnormal = magnitude.astype(jnp.float32) * 2.0**-24
    value = jnp.where(magnitude < 0x400, subnormal, normal)
    value = jnp.where(raw >= 0x8000, -value, value)
    upper = jax.lax.bitcast_convert_type(value, jnp.int32) & _UPPER_HALF
    rest = jax.lax.bitcast_convert_type(value - jax.lax.bitcast_convert_type(upper, jnp.float32), jnp.uint32)
    return upper | jax.lax.bitcast_convert_type(rest >> jnp.uint32(16), jnp.int32)


def _fields(planes, first, width):
    """The codes of columns `first`, `first + width`, ... of every word, each in a field of `width` bits."""
    mask = sum(1 << (width * i) for i in range(WORD_BITS // width))
    bits = []
    for place, plane in zip(range(len(planes) - 1, -1, -1), planes, strict=True):
        bits.append(_shift_right(plane, first - place) & jnp.uint32(mask << place))
    return functools.reduce(jnp.bitwise_or, bits)


def _field(word, position, width, bits):
    shifted = _shift_right(word, width * position)
    if width * position + bits < WORD_BITS and not (width * (position + 1) == WORD_BITS):
        shifted &= jnp.uint32((1 << bits) - 1)
    return jax.lax.bitcast_convert_type(shifted, jnp.int32)


def _shift_right(word, distance):
    if distance == 0:
        return word
    return word >> jnp.uint32(distance) if distance > 0 else word << jnp.uint32(-distance)


def _look_up_along_sublanes(tables, code, selectors, column):
    def look_up(table):
        pieces = [
            jnp.take_along_axis(table, code[row : row + SUBLANES], axis=0, mode="promise_in_bounds")
            for row in range(0, code.shape[0], SUBLANES)
        ]
        return jnp.concatenate(pieces, axis=0)

    values = [look_up(table) for table in tables]
    for plane in selectors[::-1]:
        is_odd = (plane & jnp.uint32(1 << column)) != jnp.uint32(0)
        values = [jnp.where(is_odd, odd, even) for even, odd in zip(values[0::2], values[1::2], strict=True)]
    return values[0]


def _look_up_along_lanes(tables, code):
    if len(tables) == 1:
        return jnp.take_along_axis(tables[0], code, axis=1, mode="promise_in_bounds")
    values = [jnp.take_along_axis(table, code & (LANES - 1), axis=1, mode="promise_in_bounds") for table in tables]
    return jnp.where(code < LANES, *values)
