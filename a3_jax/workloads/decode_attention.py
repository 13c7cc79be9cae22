"""A3 in the place of a decoder's attention: the last positions of a text, each of which sees the rows up to itself."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from a3_jax.attention.exact import score_rows
from a3_jax.attention.quality import attention_quality
from a3_jax.merging import windowed_attention
from a3_jax.metrics import softmax_mass
from a3_jax.workloads.encoder_attention import Setting
from a3_jax.workloads.host_search import iterations_of, search_heads


class StepInputs(NamedTuple):
    """What one layer attends with at the last positions of a text, its steps.

    Query head h reads key and value h // (heads / kv_heads). Step s is position n - steps + s and sees the rows up to its own.

    Attributes:
      query: scaled and rotated already: what is wanted is softmax(query . key) value.
      key: rotated, of all positions.
      value: of all positions.
    """

    query: Float[np.ndarray, "heads steps d"]
    key: Float[np.ndarray, "kv_heads n d"]
    value: Float[np.ndarray, "kv_heads n d"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSetting:
    """One way to attend at steps.

    Attributes:
      selection: M, a float of which counts the rows that are searched, and T. In floats.
      sinks, window: how many of the first and of the last rows are attended to exactly, in any case; the step's own row is one of the
        last. The search passes over them, and what it finds is merged with them (`windowed_attention`).
    """

    selection: Setting
    sinks: int = 0
    window: int = 0

    def __post_init__(self) -> None:
        """ValueError for an arithmetic other than float, and numbers of rows below 0."""
        if self.selection.arithmetic != "float":
            raise ValueError(f"arithmetic: decode has float only, got {self.selection.arithmetic!r}")
        for name in ("sinks", "window"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} should be at least 0, got {getattr(self, name)}")

    @property
    def name(self) -> str:
        """The selection's, and which rows are exact."""
        parts = [
            f"{which} row exact" if count == 1 else f"{which} {count} rows exact"
            for which, count in (("first", self.sinks), ("last", self.window))
            if count
        ]
        return ", ".join([self.selection.name, *parts])

    @property
    def is_exact(self) -> bool:
        """Whether every row is attended to."""
        return self.selection.is_base


class StepResult(NamedTuple):
    """Outputs of a layer's steps, and of every query what was selected and what that lost.

    Attributes:
      output: of every head and step.
      n, M, C, K: rows that the step sees, iterations, candidates, rows kept; exact rows are among C and K.
      recall: the part of the `top` rows with the largest scores that were kept.
      mass: exact softmax weight of the rows kept.
      mass_beyond_first: the same where the text's first row takes no part.
      error: of the output, relative to exact attention with the same query, keys and values.
      keys: key matrices, each of which is sorted once for the queries of its group.
    """

    output: Float[np.ndarray, "heads steps d"]
    n: Int32[np.ndarray, "heads steps"]
    M: Int32[np.ndarray, "heads steps"]
    C: Int32[np.ndarray, "heads steps"]
    K: Int32[np.ndarray, "heads steps"]
    recall: Float[np.ndarray, "heads steps"]
    mass: Float[np.ndarray, "heads steps"]
    mass_beyond_first: Float[np.ndarray, "heads steps"]
    error: Float[np.ndarray, "heads steps"]
    keys: int


def check_steps(inputs: StepInputs) -> None:
    """ValueError unless shapes fit each other: whole groups of heads, no more steps than rows, no empty axis."""
    query, key, value = (list(array.shape) for array in inputs)
    if len(query) != 3 or 0 in query:
        raise ValueError(f"queries: wanted [heads, steps, d] for a layer, none of them 0, got {query}")
    heads, steps, dim = query
    if len(key) != 3 or 0 in key or key[2] != dim:
        raise ValueError(f"keys: wanted [kv_heads, n, {dim}] for a layer, as queries have d = {dim}, got {key}")
    if value != key:
        raise ValueError(f"values: wanted {key} for a layer, as keys have, got {value}")
    if heads % key[0]:
        raise ValueError(f"queries: wanted a multiple of the keys' {key[0]} heads, got {heads}")
    if steps > key[1]:
        raise ValueError(f"queries: wanted no more steps than there are keys, {key[1]}, got {steps}")


def attend_steps(inputs: StepInputs, setting: StepSetting, *, top: int = 5) -> StepResult:
    """All steps of a layer as the setting says.

    Args:
      top: rows that `recall` looks for.

    Raises:
      ValueError: shapes as in `check_steps`; a first step that sees no row beside the exact ones.

    The search of a query of n rows takes O(M log d + n), everything else O(n d), with some arrays of [heads, steps, n] floats; sorting
    O(n d log n) a key head.
    """
    check_steps(inputs)
    heads, steps, dim = inputs.query.shape
    kv_heads, num_rows, _ = inputs.key.shape
    group = heads // kv_heads
    seen = np.arange(num_rows - steps + 1, num_rows + 1, dtype=np.int32)
    if seen[0] <= setting.sinks + setting.window:
        raise ValueError(
            f"sinks and window: wanted fewer than the {seen[0]} rows that the first step sees, "
            f"got {setting.sinks} + {setting.window}"
        )
    # Queries that share a key: group by group, as heads lie.
    query = np.ascontiguousarray(inputs.query, np.float32).reshape(kv_heads, group * steps, dim)
    key = np.ascontiguousarray(inputs.key, np.float32)
    rows = np.arange(num_rows)[None]
    valid = rows < seen[:, None]
    exact_rows = valid & ((rows < setting.sinks) | (rows >= seen[:, None] - setting.window))
    iterations = np.zeros(steps, np.int32)
    candidates = np.broadcast_to(np.tile(valid, (group, 1)), (kv_heads, group * steps, num_rows))
    if (share := setting.selection.iterations) is not None:
        ranges = np.stack([np.full(steps, setting.sinks), seen - setting.window], axis=1).astype(np.int32)
        searched = ranges[:, 1] - ranges[:, 0]
        iterations[:] = [iterations_of(share, num_rows=int(count), num_columns=dim) for count in searched]
        candidates = search_heads(
            query, key, num_iterations=np.tile(iterations, group), ranges=np.tile(ranges, (group, 1))
        )
    found = _attend_candidates(
        query,
        key,
        inputs.value.astype(np.float32),
        candidates,
        np.tile(exact_rows, (group, 1)),
        np.tile(valid, (group, 1)),
        jnp.float32(setting.selection.threshold_percent or 0),  # 0 keeps every candidate
        min(top, num_rows),
    )
    output, *of_queries = (np.asarray(array).reshape(heads, steps, *array.shape[2:]) for array in found)
    every_head = (np.tile(counts, (heads, 1)) for counts in (seen, iterations))
    return StepResult(output, *every_head, *of_queries, keys=kv_heads)


class Concentration(NamedTuple):
    """How peaked exact attention is at every head and step.

    Attributes:
      rows: the fewest rows that have so much of the weight.
      rows_beyond_first: the same where the text's first row takes no part.
      first: weight of the text's first row.
    """

    rows: Int32[np.ndarray, "heads steps"]
    rows_beyond_first: Int32[np.ndarray, "heads steps"]
    first: Float[np.ndarray, "heads steps"]


def concentration(inputs: StepInputs, *, mass: float = 0.9) -> Concentration:
    """Of the weight of exact attention, `mass`. O(n (d + log n)) a query. ValueError as in `check_steps`."""
    check_steps(inputs)
    heads, steps, _ = inputs.query.shape
    kv_heads, num_rows, _ = inputs.key.shape
    hidden = np.arange(num_rows)[None] > np.arange(num_rows - steps, num_rows)[:, None]
    found = []
    for head, query in enumerate(inputs.query.astype(np.float32)):
        scores = query @ inputs.key[head // (heads // kv_heads)].astype(np.float32).T
        scores[hidden] = -np.inf
        weights = np.exp(scores - scores.max(1, keepdims=True))
        found.append((_fewest(weights, mass), _fewest(weights[:, 1:], mass), weights[:, 0] / weights.sum(1)))
    return Concentration(*(np.stack(arrays) for arrays in zip(*found, strict=True)))


def _fewest(weights: Float[np.ndarray, "steps n"], mass: float) -> Int32[np.ndarray, " steps"]:
    """Of weights that need not add up to 1. 0 where there are none."""
    if not weights.shape[1]:
        return np.zeros(len(weights), np.int32)
    reached = np.cumsum(np.sort(weights, axis=1)[:, ::-1], axis=1, dtype=np.float64)
    return (reached < mass * reached[:, -1:]).sum(1, dtype=np.int32) + np.int32(1)


@functools.partial(jax.jit, static_argnames="top")
def _attend_candidates(
    query: Float[Array, "kv_heads queries d"],
    key: Float[Array, "kv_heads n d"],
    value: Float[Array, "kv_heads n d"],
    candidates: Bool[Array, "kv_heads queries n"],
    exact_rows: Bool[Array, "queries n"],
    valid: Bool[Array, "queries n"],
    threshold_percent: Float[Array, ""],
    top: int,
) -> tuple[Array, ...]:
    """Output, C, K, recall, mass, mass beyond the first row and error of every query; candidates are known."""

    def attend(query: Array, candidates: Array, exact_rows: Array, valid: Array, key: Array, value: Array) -> tuple:
        output, info = windowed_attention(
            query,
            key,
            value,
            None,
            exact_rows=exact_rows,
            threshold_percent=threshold_percent,
            mask=candidates | exact_rows,
        )
        quality = attention_quality(query, key, value, output, info, top=top, mask=valid)
        beyond = softmax_mass(score_rows(query, key), info.kept, mask=valid & (jnp.arange(len(key)) > 0))
        return output, info.C, info.K, quality.recall, quality.mass, beyond, quality.error

    of_head = jax.vmap(attend, (0, 0, 0, 0, None, None))
    return jax.vmap(of_head, (0, 0, None, None, 0, 0))(query, candidates, exact_rows, valid, key, value)
