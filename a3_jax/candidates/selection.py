"""Greedy candidate selection for one query: A3's search over sorted keys (HPCA 2020, sections IV-B and IV-C)."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Real

from a3_jax.candidates.dense import dense_scores
from a3_jax.candidates.iterations import resolve_iterations
from a3_jax.candidates.prefixes import sorted_scores
from a3_jax.candidates.sequential import sequential_scores
from a3_jax.candidates.threshold import threshold_scores
from a3_jax.sorted_keys import SortedKeys

Implementation: TypeAlias = Literal["dense", "sorted", "threshold", "sequential"]

_FORMS = {
    "dense": dense_scores,
    "sorted": sorted_scores,
    "threshold": threshold_scores,
    "sequential": sequential_scores,
}


def form(name: str) -> Callable[..., tuple[Real[Array, " n"], Int32[Array, ""]]]:
    """The search of that name."""
    if name not in _FORMS:
        raise ValueError(f"implementation: wanted one of {', '.join(_FORMS)}, got {name!r}")
    return _FORMS[name]


def greedy_search(
    query: Real[Array, " d"],
    sorted_keys: SortedKeys,
    *,
    num_iterations: Any,
    mask: Bool[Array, " n"] | None = None,
    skip_heuristic: bool = True,
    max_iterations: int | None = None,
    implementation: Implementation = "dense",
) -> tuple[Real[Array, " n"], Int32[Array, ""], Int32[Array, ""]]:
    """`greedy_scores`, with the row of the largest product and the number of iterations that were made."""
    search = form(implementation)
    _check_shapes(query, sorted_keys, mask)
    query = jax.lax.stop_gradient(query)  # that of the keys was stopped when they were sorted
    num_columns, num_rows = sorted_keys.rows.shape
    iterations = resolve_iterations(
        num_iterations,
        max_iterations=max_iterations,
        num_rows=num_rows,
        num_columns=num_columns,
        num_valid=None if mask is None else jnp.sum(mask, dtype=jnp.int32),
    )
    scores, first_row = search(query, sorted_keys, mask, iterations=iterations, skip_heuristic=skip_heuristic)
    return scores, first_row, iterations.count


def _check_shapes(query: Any, keys: SortedKeys, mask: Any) -> None:
    """Here, because indices of arrays are clamped where they do not fit, and an axis of 1 is stretched."""
    sizes = list(keys.rows.shape)
    if len(sizes) != 2 or 0 in sizes:
        raise ValueError(f"sorted_keys: wanted [d, n], neither of them 0, got {sizes}; batches are jax.vmap")
    if list(query.shape) != sizes[:1]:
        raise ValueError(
            f"query: wanted {sizes[:1]}, as sorted_keys say, got {list(query.shape)}; batches are jax.vmap"
        )
    if mask is not None and (mask.dtype != bool or list(mask.shape) != sizes[1:]):
        raise ValueError(f"mask: wanted bool {sizes[1:]}, as sorted_keys say, got {mask.dtype} {list(mask.shape)}")


def greedy_scores(
    query: Real[Array, " d"],
    sorted_keys: SortedKeys,
    *,
    num_iterations: Any,
    mask: Bool[Array, " n"] | None = None,
    skip_heuristic: bool = True,
    max_iterations: int | None = None,
    implementation: Implementation = "dense",
) -> Real[Array, " n"]:
    """Adds the largest and the smallest products of query and keys up, row by row.

    One iteration pops the largest product `query[j] * key[i, j]` that is left of all `n * d`, and adds it to the score of row i if it
    is positive. Then it pops the smallest that is left, and adds it if it is negative; with `skip_heuristic` not if the sum of all that
    was added so far, this iteration's largest product with it, is below 0. Of equal products the one of the lowest column is popped first,
    and within a column the one that the hardware's pointer meets first: on the side of the largest from the column's top if
    `query[j] > 0`, else from its bottom; on the side of the smallest the other way round. HPCA 2020, section IV-C, figures 7 and 8.

    Args:
      query: finite, floats or int32. Batches are `jax.vmap`. Floats below the least normal number, and such products, count as 0 on a
        CPU, where XLA flushes them.
      sorted_keys: of `sort_keys`. Products are int32 for integers, where they and their sums must not overflow, and at least float32.
      num_iterations: M of the paper, clamped to valid rows times d: an int; a float f for `max(1, ceil(f * valid rows))`; or an
        integer array of no axes, which may be traced and needs `max_iterations`.
      mask: rows that take part. Others use no iteration, and their score is 0.
      max_iterations: the most that an array `num_iterations` may ask for; what is computed grows with it.
      implementation: how, not what. Sums are taken of the max pops and of the min pops apart, each in the order of the pops, and
        so all forms give the same bits on a CPU: integers exactly, floats rounded alike. (Sums of floats on a GPU may be taken in
        another order.) With m = min(M, n):
          * "dense" takes all products: O(n d log(n d)) time, O(n d) memory.
          * "sorted" takes the ends of the columns: O(d m log(d m)) time, O(d m) memory; a mask costs O(n d) time more.
          * "threshold" finds the M-th largest product by bisection of columns and takes exactly M entries: O(b d log n + M log M) time
            for products of b bits, O(M + n) memory; a mask O(n d) more.
          * "sequential" takes one iteration after the other: O(M d) time, M steps in a row, O(n + d) memory; a mask O(n d) more.
        None of them beats the exact product of keys and query on a CPU: they say what the accelerator selects. There, of batches,
        "sequential" takes the least time up to some 2,000 keys and "threshold" beyond; of single queries, for which the steps of
        "sequential" are far too small, "threshold" or "sorted" do. `benchmarks/a3_attention.py` has the figures.

    Returns:
      The scores, in the type of the products. No gradient flows: what is selected is piecewise constant.

    Raises:
      ValueError: if `num_iterations` is not positive, `max_iterations` is missing, the implementation is unknown, or shapes do not fit.
    """
    return greedy_search(
        query,
        sorted_keys,
        num_iterations=num_iterations,
        mask=mask,
        skip_heuristic=skip_heuristic,
        max_iterations=max_iterations,
        implementation=implementation,
    )[0]


def select_candidates(
    query: Real[Array, " d"],
    sorted_keys: SortedKeys,
    *,
    num_iterations: Any,
    mask: Bool[Array, " n"] | None = None,
    skip_heuristic: bool = True,
    max_iterations: int | None = None,
    implementation: Implementation = "dense",
) -> Bool[Array, " n"]:
    """The rows with a greedy score above 0; arguments, errors and cost are those of `greedy_scores`.

    There may be none, even where rows are valid, and there are at most min(M, n). More iterations may give fewer candidates: a negative
    product takes a row out again.
    """
    scores = greedy_scores(
        query,
        sorted_keys,
        num_iterations=num_iterations,
        mask=mask,
        skip_heuristic=skip_heuristic,
        max_iterations=max_iterations,
        implementation=implementation,
    )
    return scores > 0
