"""Attention over disjoint sets of rows, merged; and what that is for: recent rows exactly, of the others what A3 selects."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from a3_jax.attention.approximate import Fallback, Info, approx_attention
from a3_jax.attention.exact import attend, score_rows
from a3_jax.candidates.selection import Implementation
from a3_jax.post_scoring import Percent
from a3_jax.sorted_keys import SortedKeys

Rows = int | Int32[Array, ""]


def merge_attention(
    outputs: Float[Array, "parts dv"], lses: Float[Array, " parts"]
) -> tuple[Float[Array, " dv"], Float[Array, ""]]:
    """One attention out of several over disjoint rows: outputs weighted by the softmax of their `lse`.

    Exact, but for rounding: the same as attention over all the rows at once (online softmax, Milakov and Gimelshein 2018). Rows that are
    in two parts are counted twice.

    Args:
      lses: log of the sum of exponentials of each part's scores, all of the same scale and shift; -inf for a part without rows.

    Returns:
      The output, and the `lse` of all parts. Zeros and -inf where no part has rows; gradients are finite there too.

    O(parts dv).
    """
    any_rows = jnp.any(lses > -jnp.inf)
    largest = jax.lax.stop_gradient(jnp.where(any_rows, jnp.max(lses), 0))
    weights = jnp.exp(lses - largest)
    total = jnp.where(any_rows, jnp.sum(weights), 1)
    merged = jnp.matmul(weights.astype(outputs.dtype), outputs, preferred_element_type=weights.dtype) / total
    return merged.astype(outputs.dtype), jnp.where(any_rows, jnp.log(total) + largest, -jnp.inf)


def window_rows(mask: Bool[Array, " n"], *, window: Rows, sinks: Rows = 0) -> Bool[Array, " n"]:
    """The last `window` and the first `sinks` of the rows that take part: recent tokens, and those that a decoder dumps attention on.

    Args:
      window, sinks: at least 0; may be traced. Where they overlap, rows are taken once.

    O(n). Sinks and their use: StreamingLLM (Xiao et al., ICLR 2024).
    """
    place = jnp.cumsum(mask, dtype=jnp.int32) - 1
    num_valid = jnp.sum(mask, dtype=jnp.int32)
    return mask & ((place < sinks) | (place >= num_valid - window))


def windowed_attention(
    query: Float[Array, " d"],
    key: Float[Array, "n d"],
    value: Float[Array, "n dv"],
    sorted_keys: SortedKeys | None,
    *,
    exact_rows: Bool[Array, " n"],
    num_iterations: Any = None,
    threshold_percent: Percent | None = None,
    scale: int | float | Float[Array, ""] = 1.0,
    mask: Bool[Array, " n"] | None = None,
    fallback: Fallback = "largest_product",
    skip_heuristic: bool = True,
    max_iterations: int | None = None,
    implementation: Implementation = "dense",
) -> tuple[Float[Array, " dv"], Info]:
    """`exact_rows` attended to exactly, and of the others those that A3 selects, merged by `merge_attention`.

    The search passes over exact rows as over masked ones, so that no row counts twice and no iteration is spent on them. Sorted
    keys that lack recent rows will do, as long as those rows are exact (see `growing_keys`). Post-scoring compares searched rows with
    the largest of themselves.

    Args:
      exact_rows: such as those of `window_rows`. Only those that `mask` lets take part count.
      sorted_keys, num_iterations, threshold_percent, scale, mask, fallback, skip_heuristic, max_iterations, implementation: as for
        `approx_attention`. A float `num_iterations` counts the rows that are searched.

    Returns:
      The output, and `Info` of both parts together: exact rows are among `candidates` and `kept` and counted in C and K, as their keys and
      values are read; M is the search's.

    Raises:
      ValueError: as `approx_attention`.

    Cost: that of `approx_attention` with a mask.
    """
    valid = jnp.ones(key.shape[0], bool) if mask is None else mask
    exact_rows = exact_rows & valid
    searched, info = approx_attention(
        query,
        key,
        value,
        sorted_keys,
        num_iterations=num_iterations,
        threshold_percent=threshold_percent,
        scale=scale,
        mask=valid & ~exact_rows,
        fallback=fallback,
        skip_heuristic=skip_heuristic,
        max_iterations=max_iterations,
        implementation=implementation,
    )
    scores = score_rows(query * jnp.asarray(scale, query.dtype), key)
    exact, exact_lse = attend(scores, exact_rows, value)
    output, lse = merge_attention(jnp.stack([searched, exact]), jnp.stack([info.lse, exact_lse]))
    num_exact = jnp.sum(exact_rows, dtype=jnp.int32)
    return output, Info(
        candidates=info.candidates | exact_rows,
        kept=info.kept | exact_rows,
        lse=lse,
        M=info.M,
        C=info.C + num_exact,
        K=info.K + num_exact,
    )
