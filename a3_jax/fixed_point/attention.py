"""A3's pipeline in integers, base and approximate, for one query (HPCA 2020, sections III to V)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from a3_jax.attention.approximate import Fallback, Info, check_fallback, fall_back
from a3_jax.attention.validation import check_shapes
from a3_jax.candidates.iterations import resolve_iterations
from a3_jax.candidates.selection import Implementation, greedy_search
from a3_jax.fixed_point.division import divide
from a3_jax.fixed_point.exponent import exponent
from a3_jax.fixed_point.formats import AttentionFormat
from a3_jax.fixed_point.numbers import FixedPoint
from a3_jax.fixed_point.thresholds import threshold_units
from a3_jax.sorted_keys import SortedKeys


def fixed_point_attention(
    query: Int32[Array, " d"],
    key: Int32[Array, "n d"],
    value: Int32[Array, "n v"],
    sorted_keys: SortedKeys | None,
    *,
    format: AttentionFormat,
    num_iterations: Any = None,
    threshold_percent: float | int | None = None,
    mask: Bool[Array, " n"] | None = None,
    fallback: Fallback = "largest_product",
    skip_heuristic: bool = True,
    max_iterations: int | None = None,
    implementation: Implementation = "dense",
) -> tuple[Int32[Array, " v"], Info]:
    """`approx_attention` in the integers of the accelerator, to the last bit.

    The dot products of the candidates, their distances from the largest, the exponents, their sum, the division and the sum of the values
    have the widths and roundings of `format`; nothing can overflow. int32 throughout, with and without 64-bit types in JAX. There is no
    `scale`: multiply the query by it before it is quantized.

    Args:
      query, key, value: of `format.input.quantize`, |x| at most `format.input.largest`. Batches are `jax.vmap`.
      sorted_keys: `sort_keys(key)` of the integers, whose ties the hardware sees; None will do where the search is off.
      format: static.
      num_iterations: M, as in `greedy_scores`; None makes all valid rows candidates, which is the base pipeline.
      threshold_percent: T, a number; None keeps all candidates. Compared exactly, see `threshold_units`.
      mask: valid rows; others never count. Without any, the output is 0.
      fallback: who is a candidate if no greedy score is above 0, as in `approx_attention`.
      skip_heuristic, max_iterations, implementation: as in `greedy_scores`.

    Returns:
      The output in units of `format.output`, 2^-3f, and what was selected; `lse` is a float of the integers, the logarithm of the sum of
      exponentials that the exponent unit gives.

    Raises:
      ValueError: for shapes that do not fit or are beyond the format's n and d, an M for which the sum that the skip heuristic watches
        can overflow, a search without sorted keys, an unknown fallback, and arguments that `greedy_scores` and `threshold_units` refuse.

    Cost: that of the candidate search and O(n (d + v)) time; the dot products of all rows are computed and those of others than
    candidates not used.
    """
    check_shapes(query, key, value, sorted_keys=sorted_keys, mask=mask)
    check_fallback(fallback)
    if key.shape[0] > format.n or key.shape[1] > format.d:
        raise ValueError(f"key: wanted at most [{format.n}, {format.d}], as the format says, got {list(key.shape)}")
    valid = jnp.ones(key.shape[0], bool) if mask is None else mask
    candidates, iterations = valid, jnp.int32(0)
    if num_iterations is not None:
        if sorted_keys is None:
            raise ValueError("sorted_keys: wanted those of `sort_keys(key)` for a search, got None")
        candidates, iterations = _candidates(
            query,
            sorted_keys,
            format,
            fallback=fallback,
            num_iterations=num_iterations,
            mask=mask,
            skip_heuristic=skip_heuristic,
            max_iterations=max_iterations,
            implementation=implementation,
        )
    dot_products = jnp.dot(key, query, preferred_element_type=jnp.int32)
    largest = jnp.max(jnp.where(candidates, dot_products, -(2**31)))
    distance = jnp.where(candidates, largest - dot_products, 0)
    kept = candidates
    if threshold_percent is not None:
        kept &= distance <= threshold_units(threshold_percent, fraction_bits=2 * format.fraction_bits)
    score = jnp.where(kept, exponent(distance, format), 0)
    expsum = jnp.sum(score, dtype=jnp.int32)
    output = _weighted_values(score, expsum, value, format)
    lse = _log_sum(largest, expsum, format)
    counts = (jnp.sum(rows, dtype=jnp.int32) for rows in (candidates, kept))
    return output, Info(candidates, kept, lse, iterations, *counts)


def _candidates(
    query: Int32[Array, " d"],
    keys: SortedKeys,
    format: AttentionFormat,
    *,
    fallback: Fallback,
    num_iterations: Any,
    mask: Bool[Array, " n"] | None,
    skip_heuristic: bool,
    max_iterations: int | None,
    implementation: Implementation,
) -> tuple[Bool[Array, " n"], Int32[Array, ""]]:
    """The candidates, fallback included, and the iterations that were made."""
    columns, rows = keys.rows.shape
    if skip_heuristic:
        limit = resolve_iterations(
            num_iterations, max_iterations=max_iterations, num_rows=rows, num_columns=columns, num_valid=None
        ).limit
        format.running_sum(limit)
    scores, first_row, count = greedy_search(
        query,
        keys,
        num_iterations=num_iterations,
        mask=mask,
        skip_heuristic=skip_heuristic,
        max_iterations=max_iterations,
        implementation=implementation,
    )
    found = scores > 0
    valid = jnp.ones(rows, bool) if mask is None else mask
    return jnp.where(jnp.any(found), found, fall_back(fallback, scores, first_row, valid)), count


def _weighted_values(
    score: Int32[Array, " n"], expsum: Int32[Array, ""], value: Int32[Array, "n v"], format: AttentionFormat
) -> Int32[Array, " v"]:
    """The sum of the values by score, over the sum of the scores: divided before or after. 0 without any score."""
    division = {
        "denominator": jnp.maximum(expsum, 1),
        "fraction_bits": 2 * format.fraction_bits,
        "denominator_bits": format.signals()["expsum"].bound.bit_length(),
        "rounding": format.division_rounding,
    }
    if format.division == "late":
        return divide(jnp.dot(score, value, preferred_element_type=jnp.int32), **division)
    # The weight of a single row is 1.0, which saturates as its score does.
    weight = jnp.minimum(divide(score, **division), format.largest_score)
    return jnp.dot(weight, value, preferred_element_type=jnp.int32)


def _log_sum(largest: Int32[Array, ""], expsum: Int32[Array, ""], format: AttentionFormat) -> Float[Array, ""]:
    """Of the exponentials as they are in the integers; minus infinity without any."""
    to_float = FixedPoint(0, 2 * format.fraction_bits).to_float
    return jnp.where(expsum > 0, to_float(largest) + jnp.log(to_float(jnp.maximum(expsum, 1))), -jnp.inf)
