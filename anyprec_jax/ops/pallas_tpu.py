"""The product on TPU: a Pallas kernel that rebuilds codes from the planes, looks them up and feeds the matrix units.

A centroid, 11 significant bits, is the sum of two bfloat16, its halves, and both travel in one int32: a vector register of
looked-up centroids goes to the matrix units as it is, read as twice as many bfloat16. The 32 columns of a word are divided
between two ways to look codes up, which keep different units busy:

* **along sublanes**: words on sublanes, rows of the matrix on lanes. The instruction picks one of 8 sublanes, so the 3 lower bits
  of a code index registers of 8 centroids, and the upper bits select among the registers: 1, 2, 4, 8 look-ups and one select
  fewer at 3, 4, 5, 6 bits, all in the vector ALUs. TPU v4 and before lack it.
* **along lanes**: rows of the matrix on sublanes, words on lanes. One look-up among 128 centroids, in the cross-lane units, which
  are slow but leave the vector ALUs free.

`docs/anyprec.md` says what each costs. Planes and codebooks are read where they are, in the layout that XLA gives them.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float16, Int32, UInt32

from anyprec_jax.bitplanes import WORD_BITS
from anyprec_jax.ops.tuning import LANES, SUBLANES, TpuTiles, tpu_tiles

NAME = "anyprec_matmul_tpu"
DTYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))  # of x, and so of the result

_INDEX_BITS = 3  # of a code, that a look-up along sublanes takes
_NIBBLE, _BYTE = 4, 8
# Columns modulo 8 in the order in which they go over to look-ups along lanes: first those that share a nibble.
_LANE_ORDER = (3, 7, 2, 6, 1, 5, 0, 4)
_UPPER_HALF = -(1 << 16)  # 0xFFFF0000 as int32


def why_unavailable() -> str | None:
    """None: it can always be lowered for TPU. Whether there is a TPU is for `jax.lax.platform_dependent` to know."""
    return None


def matmul(
    x: Float[Array, "m k"],
    bitplanes: UInt32[Array, "layers parent n words"],
    codebook: Float16[Array, "layers n entries"],
    layer: Int32[Array, ""],
    *,
    tiles: TpuTiles | None = None,
    interpret: bool | pltpu.InterpretParams = False,
) -> Float[Array, "m n"]:
    """The product of `x` with one matrix of a stack: exact products, sums in float32, rounded to the dtype of `x` at the end.

    Off by at most `6 * k * 2**-24 * (abs(x) @ abs(w).T)`, plus the rounding of the result to bfloat16 where that is its dtype:
    a float32 is the sum of three bfloat16 and a centroid of two, so their six partial products are exact, and what errs is a sum
    of 6 * k terms in any order.

    Only the first `precision` planes are read. Neither differentiable nor batched by itself. What is not finite in `x` makes its
    row of the result not finite.

    Args:
      x: float32 or bfloat16; meant for few rows.
      bitplanes: plane 0 is the most significant. Where `k` is no multiple of 256, XLA's layout on TPU interleaves the planes, and
        it will copy the stack first.
      codebook: 2**precision centroids a row, finite.
      layer: which matrix, 0 <= layer < layers; not checked.
      tiles: None for those of `tuning.tpu_tiles`.
      interpret: run on the host, as `pallas_call` does; `pltpu.InterpretParams` simulates a TPU's memories.

    Memory besides the operands: 128 bytes for each element of `x` at most.
    """
    m, k = x.shape
    n, words = bitplanes.shape[2:]
    if m == 0:
        return jnp.zeros((m, n), x.dtype)
    precision = codebook.shape[-1].bit_length() - 1
    if tiles is None:
        tiles = tpu_tiles(m, n, k, precision=precision, sublane_gather=_has_sublane_gather())
    plan = _Plan(
        precision=precision,
        tiles=tiles,
        words_first=tiles.words < LANES or _is_turned(n, words),  # along lanes a block has 128 words, or all
        entries_first=_is_turned(n, codebook.shape[-1]),
        interpret=bool(interpret),
    )
    by_column = jnp.stack([_by_column(limb, words, tiles) for limb in _limbs(x)], axis=1)
    operands = []
    if plan.sublane_columns:
        operands.append(_doubled(_take(by_column, plan.sublane_columns)))
    if plan.lane_columns:
        operands.append(_take(by_column, plan.lane_columns))
    return _call(layer, operands, bitplanes, codebook, dtype=x.dtype, plan=plan, interpret=interpret)[:m]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """What the kernel needs to know when it is traced."""

    precision: int
    tiles: TpuTiles
    words_first: bool  # planes come as [words, n], codebooks ...
    entries_first: bool  # ... as [entries, n]
    interpret: bool

    @property
    def lane_columns(self) -> tuple[int, ...]:
        residues = _LANE_ORDER[: self.tiles.lane_columns * len(_LANE_ORDER) // WORD_BITS]
        return tuple(column for column in range(WORD_BITS) if column % 8 in residues)

    @property
    def sublane_columns(self) -> tuple[int, ...]:
        return tuple(sorted(set(range(WORD_BITS)) - set(self.lane_columns)))


def _has_sublane_gather() -> bool:
    """Of the TPU that is here, or else of those that are new enough."""
    kind = jax.devices()[0].device_kind if jax.default_backend() == "tpu" else ""
    return not kind.startswith(("TPU v2", "TPU v3", "TPU v4"))


def _is_turned(n: int, minor: int) -> bool:
    """Whether XLA stores the last two axes [n, minor] the other way round on TPU: where that pads less.

    To take them so is then no copy. `make aot` fails where this guess makes XLA copy the operands.
    """

    def padded(sublanes: int, lanes: int) -> int:
        return pl.cdiv(sublanes, SUBLANES) * pl.cdiv(lanes, LANES)

    return padded(minor, n) < padded(n, minor)


def _limbs(x: Float[Array, "m k"]) -> list[Float[Array, "m k"]]:
    """bfloat16 arrays that add up to x exactly: x itself, or three for float32. What is not finite is in the first."""
    if x.dtype == jnp.bfloat16:
        return [x]
    limbs, rest = [], x
    for _ in range(3):
        # Cut off by its bits: a conversion and back is something that XLA may leave out.
        bits = jax.lax.bitcast_convert_type(rest, jnp.int32) & _UPPER_HALF
        upper = jax.lax.bitcast_convert_type(bits, jnp.float32)
        limbs.append(upper.astype(jnp.bfloat16))
        rest = jnp.where(jnp.isfinite(x), rest - upper, 0)
    return limbs


def _by_column(limb: Float[Array, "m k"], words: int, tiles: TpuTiles) -> Float[Array, "32 blocks padded_m tile_words"]:
    """Padded with zeros, so that it counts nothing what the kernel reads beyond the matrix."""
    m, k = limb.shape
    padded_m, blocks = pl.cdiv(m, tiles.batch) * tiles.batch, pl.cdiv(words, tiles.words)
    padded = jnp.pad(limb, ((0, padded_m - m), (0, blocks * tiles.words * WORD_BITS - k)))
    return padded.reshape(padded_m, blocks, tiles.words, WORD_BITS).transpose(3, 1, 0, 2)


def _take(by_column: Array, columns: tuple[int, ...]) -> Array:
    return by_column if len(columns) == WORD_BITS else by_column[jnp.array(columns)]


def _doubled(by_column: Float[Array, "column limb block m words"]) -> Float[Array, "column limb block m 2*words"]:
    """For the lower and the upper half of each centroid. What is not finite meets the upper half only: a lower half may be 0."""
    doubled = jnp.repeat(by_column, 2, axis=-1)
    is_upper = (jnp.arange(doubled.shape[-1]) % 2 == 1).reshape(1, 1, 1, 1, -1)
    return jnp.where(is_upper | jnp.isfinite(doubled), doubled, 0)


def _call(layer, operands: list[Array], bitplanes, codebook, *, dtype, plan: _Plan, interpret) -> Array:
    tiles, entries = plan.tiles, codebook.shape[-1]
    _, num_limbs, _, padded_m, _ = operands[0].shape
    n, words = bitplanes.shape[2:]
    codebook = jax.lax.bitcast_convert_type(codebook, jnp.uint16)  # TPUs have no float16
    planes_block = pl.BlockSpec(
        (None, plan.precision, tiles.rows, tiles.words), lambda batch, row, word, layer: (layer[0], 0, row, word)
    )
    if plan.words_first:
        bitplanes = bitplanes.swapaxes(2, 3)
        planes_block = pl.BlockSpec(
            (None, plan.precision, tiles.words, tiles.rows), lambda batch, row, word, layer: (layer[0], 0, word, row)
        )
    codebook_block = pl.BlockSpec((None, tiles.rows, entries), lambda batch, row, word, layer: (layer[0], row, 0))
    if plan.entries_first:
        codebook = codebook.swapaxes(1, 2)
        codebook_block = pl.BlockSpec((None, entries, tiles.rows), lambda batch, row, word, layer: (layer[0], 0, row))
    x_blocks = [
        pl.BlockSpec(
            (len(operand), num_limbs, None, tiles.batch, operand.shape[-1]),
            lambda batch, row, word, layer: (0, 0, word, batch, 0),
        )
        for operand in operands
    ]
    return pl.pallas_call(
        functools.partial(_kernel, plan=plan),
        out_shape=jax.ShapeDtypeStruct((padded_m, n), dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(padded_m // tiles.batch, pl.cdiv(n, tiles.rows), pl.cdiv(words, tiles.words)),
            in_specs=[planes_block, codebook_block, *x_blocks],
            out_specs=pl.BlockSpec((tiles.batch, tiles.rows), lambda batch, row, word, layer: (batch, row)),
            scratch_shapes=_scratch(plan, num_limbs * tiles.batch),
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name=NAME,
    )(layer.reshape(1), bitplanes, codebook, *operands)


def _scratch(plan: _Plan, rows_of_x: int) -> list:
    """A table of centroids and the sums, for each way to look up."""
    rows, entries = plan.tiles.rows, 2**plan.precision
    scratch = []
    if plan.sublane_columns:
        scratch += [
            pltpu.VMEM((max(SUBLANES, entries), rows), jnp.int32),
            pltpu.VMEM((rows_of_x, rows), jnp.float32),
        ]
    if plan.lane_columns:
        scratch += [
            pltpu.VMEM((rows, max(LANES, entries)), jnp.int32),
            pltpu.VMEM((rows_of_x, 2 * rows), jnp.float32),
        ]
    return scratch


class _Way(NamedTuple):
    """One of the ways to look up: its operand, scratch and functions."""

    x_ref: Any  # JAX publishes no type for a reference
    table_ref: Any
    sum_ref: Any
    along_lanes: bool


def _kernel(layer_ref, planes_ref, codebook_ref, *refs, plan: _Plan) -> None:
    """Grid: tiles of x, tiles of rows, tiles of words; summed over the last."""
    del layer_ref  # for the index maps
    along_lanes = [False] * bool(plan.sublane_columns) + [True] * bool(plan.lane_columns)
    xs, out_ref, scratch = refs[: len(along_lanes)], refs[len(along_lanes)], refs[len(along_lanes) + 1 :]
    ways = list(map(_Way, xs, scratch[0::2], scratch[1::2], along_lanes))

    @pl.when(pl.program_id(2) == 0)
    def _():
        for way in ways:
            way.table_ref[...] = _table(codebook_ref, way, plan)
            way.sum_ref[...] = jnp.zeros(way.sum_ref.shape, jnp.float32)

    totals = [jnp.zeros(way.sum_ref.shape, jnp.float32) for way in ways]
    for which, (position, weights) in _in_turns(
        [
            (_weights_along_lanes if way.along_lanes else _weights_along_sublanes)(planes_ref, way.table_ref, plan)
            for way in ways
        ],
        [way.x_ref.shape[0] for way in ways],
    ):
        x = ways[which].x_ref[position].reshape(totals[which].shape[0], -1)
        contract = 1 if ways[which].along_lanes else 0
        totals[which] += _dot(x, pltpu.bitcast(weights, jnp.bfloat16), contract=contract)
    for way, total in zip(ways, totals, strict=True):
        way.sum_ref[...] += total

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        total = _sum([_joined(way.sum_ref[...]) if way.along_lanes else way.sum_ref[...] for way in ways])
        batch = plan.tiles.batch
        limbs = [total[start : start + batch] for start in range(0, total.shape[0], batch)]
        out_ref[...] = _sum(limbs[::-1]).astype(out_ref.dtype)  # the smallest first


def _in_turns(iterators: list[Iterator], lengths: list[int]) -> Iterator[tuple[int, tuple[int, Array]]]:
    """Items of all, with the number of their iterator, each at a rate that lets all end together.

    The compiler schedules instructions near where they stand: what keeps different units busy has to stand side by side.
    """
    turns = [((item + 1) / length, which) for which, length in enumerate(lengths) for item in range(length)]
    for _, which in sorted(turns):
        yield which, next(iterators[which])


def _dot(x: Array, weights: Array, *, contract: int) -> Array:
    return jax.lax.dot_general(x, weights, (((1,), (contract,)), ((), ())), preferred_element_type=jnp.float32)


def _sum(arrays: list[Array]) -> Array:
    return functools.reduce(jnp.add, arrays)


def _turned(tile: Array) -> Array:
    """Transposed, in pieces of [128, 128] or what is left."""
    columns = [tile[:, start : start + LANES].T for start in range(0, tile.shape[1], LANES)]
    return jnp.concatenate(columns, axis=0)


def _table(codebook_ref, way: _Way, plan: _Plan) -> Array:
    """The centroids as pairs of halves, [entries, rows] or along lanes [rows, entries]; padded with anything."""
    table = codebook_ref[...].astype(jnp.int32)
    entries_axis = 0 if plan.entries_first else 1
    wanted = way.table_ref.shape[1 if way.along_lanes else 0]
    if plan.entries_first == way.along_lanes:
        wanted = max(wanted, LANES)
    missing = wanted - table.shape[entries_axis]
    if missing > 0:
        padding = [table.shape[0], table.shape[1]]
        padding[entries_axis] = missing
        table = jnp.concatenate([table, jnp.zeros(padding, jnp.int32)], axis=entries_axis)
    if plan.entries_first == way.along_lanes:
        table = _turned(table)
    return _halves(table[: way.table_ref.shape[0], : way.table_ref.shape[1]])


def _halves(bits: Int32[Array, "..."]) -> Int32[Array, "..."]:
    """float16, given by its bits, as the two bfloat16 that add up to it: the upper half is cut off, not rounded."""
    magnitude = bits & 0x7FFF
    normal = jax.lax.bitcast_convert_type((magnitude << 13) + (112 << 23), jnp.float32)  # another bias of the exponent
    subnormal = magnitude.astype(jnp.float32) * 2.0**-24
    value = jnp.where(magnitude < 0x400, subnormal, normal)
    value = jnp.where(bits >= 0x8000, -value, value)
    upper = jax.lax.bitcast_convert_type(value, jnp.int32) & _UPPER_HALF
    lower = jax.lax.bitcast_convert_type(value - jax.lax.bitcast_convert_type(upper, jnp.float32), jnp.uint32)
    return upper | jax.lax.bitcast_convert_type(lower >> jnp.uint32(16), jnp.int32)


def _weights_along_sublanes(planes_ref, table_ref, plan: _Plan) -> Iterator[tuple[int, Int32[Array, "words rows"]]]:
    planes = [planes_ref[plane] if plan.words_first else _turned(planes_ref[plane]) for plane in range(plan.precision)]
    tables = [table_ref[start : start + SUBLANES] for start in range(0, table_ref.shape[0], SUBLANES)]
    selectors, index_planes = planes[:-_INDEX_BITS], planes[-_INDEX_BITS:]
    for first in range(_NIBBLE):
        columns = [column for column in plan.sublane_columns if column % _NIBBLE == first]
        if not columns:
            continue
        fields = _fields(index_planes, first, _NIBBLE)
        for column in columns:
            index = _field(fields, column // _NIBBLE, _NIBBLE, min(plan.precision, _INDEX_BITS))
            values = [_gather_sublanes(table, index, whole=plan.interpret) for table in tables]
            for plane in selectors[::-1]:
                is_odd = (plane & jnp.uint32(1 << column)) != jnp.uint32(0)
                values = [jnp.where(is_odd, odd, even) for even, odd in zip(values[0::2], values[1::2], strict=True)]
            yield plan.sublane_columns.index(column), values[0]


def _weights_along_lanes(planes_ref, table_ref, plan: _Plan) -> Iterator[tuple[int, Int32[Array, "rows words"]]]:
    planes = [_turned(planes_ref[plane]) if plan.words_first else planes_ref[plane] for plane in range(plan.precision)]
    tables = [table_ref[:, start : start + LANES] for start in range(0, table_ref.shape[1], LANES)]
    width = _NIBBLE if plan.precision <= _NIBBLE else _BYTE
    for first in range(width):
        columns = [column for column in plan.lane_columns if column % width == first]
        if not columns:
            continue
        fields = _fields(planes, first, width)
        for column in columns:
            code = _field(fields, column // width, width, plan.precision)
            index = code & (LANES - 1) if len(tables) > 1 else code
            values = [jnp.take_along_axis(table, index, axis=1, mode="promise_in_bounds") for table in tables]
            yield plan.lane_columns.index(column), jnp.where(code < LANES, *values) if len(values) > 1 else values[0]


def _fields(planes: list[Array], first: int, width: int) -> Array:
    """The codes of columns `first`, `first + width`, ... of each word, in fields of `width` bits."""
    mask = sum(1 << start for start in range(0, WORD_BITS, width))
    bits = [
        _shifted_right(plane, first - place) & jnp.uint32(mask << place)
        for place, plane in zip(reversed(range(len(planes))), planes, strict=True)
    ]
    return functools.reduce(jnp.bitwise_or, bits)


def _field(fields: Array, position: int, width: int, bits: int) -> Int32[Array, "..."]:
    field = _shifted_right(fields, position * width)
    if (position + 1) * width < WORD_BITS:  # above the last there is nothing
        field &= jnp.uint32((1 << bits) - 1)
    return jax.lax.bitcast_convert_type(field, jnp.int32)


def _shifted_right(words: Array, distance: int) -> Array:
    if distance == 0:
        return words
    return words >> jnp.uint32(distance) if distance > 0 else words << jnp.uint32(-distance)


def _gather_sublanes(
    table: Int32[Array, "8 rows"], index: Int32[Array, "words rows"], *, whole: bool
) -> Int32[Array, "words rows"]:
    """`table[index[i, j], j]`, a register of 8 sublanes at a time, or at once, which the interpreter compiles sooner."""
    step = len(index) if whole else SUBLANES
    parts = [
        jnp.take_along_axis(table, index[start : start + step], axis=0, mode="promise_in_bounds")
        for start in range(0, len(index), step)
    ]
    return jnp.concatenate(parts, axis=0)


def _joined(sums: Float[Array, "m twice_rows"]) -> Float[Array, "m twice_rows//2"]:
    """Adds the sums of lower halves, on even lanes, to those of upper halves beside them, and closes the gaps."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (sums.shape[0], LANES), 1)
    parts = []
    for start in range(0, sums.shape[1], LANES):
        lower = sums[:, start : start + LANES]
        upper = pltpu.roll(lower, LANES - 1, 1)
        whole = jnp.where(jnp.abs(upper) < jnp.inf, lower + upper, upper)  # 0 times infinity is in the lower sum only
        parts.append(jnp.take_along_axis(whole, 2 * lane % LANES, axis=1, mode="promise_in_bounds"))
    pairs = zip(parts[0::2], parts[1::2], strict=True)
    return jnp.concatenate([jnp.where(lane < LANES // 2, left, right) for left, right in pairs], axis=1)
