"""A3's approximate attention for one query: candidates, their scores, post-scoring, softmax over the rest (HPCA 2020, section IV)."""

from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Real

from a3_jax.attention.exact import attend, scale_query, score_rows
from a3_jax.attention.validation import check_shapes
from a3_jax.candidates.columns import lowest
from a3_jax.candidates.selection import Implementation, greedy_search
from a3_jax.post_scoring import Percent, select_post_scoring
from a3_jax.sorted_keys import SortedKeys

Fallback: TypeAlias = Literal["largest_product", "argmax", "all"]


class Info(NamedTuple):
    """What was selected for a query, and how much work that is for the accelerator.

    Attributes:
      candidates: rows whose score is computed, the fallback's with them.
      kept: candidates that passed post-scoring; the softmax is over these.
      lse: log of the sum of the exponentials of the kept scores, -inf without any: what a merge with attention over other rows needs.
      M: iterations of the search; 0 where there was none.
      C: number of candidates.
      K: number of rows kept.
    """

    candidates: Bool[Array, " n"]
    kept: Bool[Array, " n"]
    lse: Float[Array, ""]
    M: Int32[Array, ""]
    C: Int32[Array, ""]
    K: Int32[Array, ""]


def approx_attention(
    query: Float[Array, " d"],
    key: Float[Array, "n d"],
    value: Float[Array, "n dv"],
    sorted_keys: SortedKeys | None,
    *,
    num_iterations: Any = None,
    threshold_percent: Percent | None = None,
    scale: int | float | Float[Array, ""] = 1.0,
    mask: Bool[Array, " n"] | None = None,
    fallback: Fallback = "largest_product",
    skip_heuristic: bool = True,
    max_iterations: int | None = None,
    implementation: Implementation = "dense",
) -> tuple[Float[Array, " dv"], Info]:
    """Attention over the rows that A3 selects, for one query.

    Args:
      sorted_keys: of `sort_keys(key)`; None will do where the search is off.
      num_iterations: as for `greedy_scores`; None turns the search off: all valid rows are candidates.
      threshold_percent: as for `select_post_scoring`; None turns post-scoring off: all candidates are kept.
      scale: multiplies the query, before the search too.
      mask: rows that take part.
      fallback: the candidates where the search finds none, which the paper leaves open: the row of the largest product, which the
        hardware popped first; the row with the largest greedy score, of equal ones the first ("argmax"); or all valid rows.
      skip_heuristic, max_iterations, implementation: as for `greedy_scores`.

    Returns:
      The output, zeros where no row is valid, and what was selected. Differentiable by query, key, value and scale with the selection
      held fixed.

    Raises:
      ValueError: as `greedy_scores` and `select_post_scoring`; if the search is on without sorted keys; if the fallback is unknown;
        if shapes do not fit.

    The scores of all rows are computed and those of other rows than candidates thrown away: O(n d) besides the search.
    """
    check_fallback(fallback)
    check_shapes(query, key, value, sorted_keys=sorted_keys, mask=mask)
    query = scale_query(query, scale)
    valid = jnp.ones(key.shape[0], bool) if mask is None else mask
    if num_iterations is None:
        candidates, count = valid, jnp.int32(0)
    elif sorted_keys is None:
        raise ValueError("sorted_keys: wanted those of `sort_keys(key)` for a search, got None")
    else:
        greedy, first_row, count = greedy_search(
            query,
            sorted_keys,
            num_iterations=num_iterations,
            mask=mask,
            skip_heuristic=skip_heuristic,
            max_iterations=max_iterations,
            implementation=implementation,
        )
        candidates = greedy > 0
        candidates = jnp.where(jnp.any(candidates), candidates, fall_back(fallback, greedy, first_row, valid))
    scores = score_rows(query, key)
    kept = candidates
    if threshold_percent is not None:
        kept = select_post_scoring(scores, candidates, threshold_percent=threshold_percent)
    output, lse = attend(scores, kept, value)
    return output, Info(candidates, kept, lse, count, _count(candidates), _count(kept))


def check_fallback(name: str) -> None:
    if name not in get_args(Fallback):
        raise ValueError(f"fallback: wanted one of {', '.join(get_args(Fallback))}, got {name!r}")


def fall_back(
    fallback: Fallback, greedy: Real[Array, " n"], first_row: Int32[Array, ""], valid: Bool[Array, " n"]
) -> Bool[Array, " n"]:
    """The candidates where no greedy score is above 0."""
    if fallback == "all":
        return valid
    if fallback == "argmax":
        first_row = jnp.argmax(jnp.where(valid, greedy, lowest(greedy.dtype))).astype(jnp.int32)
    return valid & (jnp.arange(valid.shape[0], dtype=jnp.int32) == first_row)


def _count(rows: Bool[Array, " n"]) -> Int32[Array, ""]:
    return jnp.sum(rows, dtype=jnp.int32)
