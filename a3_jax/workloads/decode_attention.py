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
from a3_jax.workloads.decode_inputs import StepInputs, check_steps, visible_rows
from a3_jax.workloads.encoder_attention import Setting
from a3_jax.workloads.host_search import iterations_of, search_heads


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


def attend_steps(inputs: StepInputs, setting: StepSetting, *, top: int = 5) -> StepResult:
    """All steps of a layer as the setting says.

    Args:
      top: rows that `recall` looks for.

    Raises:
      ValueError: shapes as in `check_steps`; a first step that sees no row beside the exact ones.

    The search of a query of n rows takes O(M log d + n), sorting O(n d log n) a key head; the rest as `attend_rows`.
    """
    check_steps(inputs)
    heads, steps, dim = inputs.query.shape
    kv_heads, num_rows, _ = inputs.key.shape
    visible = visible_rows(num_rows, steps)
    seen = visible.sum(1, dtype=np.int32)
    if seen[0] <= setting.sinks + setting.window:
        raise ValueError(
            f"sinks and window: wanted fewer than the {seen[0]} rows that the first step sees, "
            f"got {setting.sinks} + {setting.window}"
        )
    rows = np.arange(num_rows)[None]
    exact_rows = visible & ((rows < setting.sinks) | (rows >= seen[:, None] - setting.window))
    if (share := setting.selection.iterations) is None:
        iterations, candidates = np.zeros(steps, np.int32), np.broadcast_to(visible, (heads, steps, num_rows))
    else:
        ranges = np.stack([np.full(steps, setting.sinks), seen - setting.window], axis=1).astype(np.int32)
        searched = (ranges[:, 1] - ranges[:, 0]).tolist()
        wanted = [iterations_of(share, num_rows=count, num_columns=dim) for count in searched]
        iterations, group = np.array(wanted, np.int32), heads // kv_heads
        candidates = search_heads(
            _by_key(inputs.query, kv_heads),
            np.asarray(inputs.key, np.float32),
            num_iterations=np.tile(iterations, group),
            ranges=np.tile(ranges, (group, 1)),
        ).reshape(heads, steps, num_rows)
    return attend_rows(
        inputs,
        candidates,
        exact_rows=exact_rows,
        iterations=iterations,
        threshold_percent=setting.selection.threshold_percent,
        top=top,
    )


def attend_rows(
    inputs: StepInputs,
    candidates: Bool[np.ndarray, "heads steps n"],
    *,
    exact_rows: Bool[np.ndarray, "steps n"] | None = None,
    iterations: Int32[np.ndarray, " steps"] | None = None,
    threshold_percent: int | float | None = None,
    top: int = 5,
) -> StepResult:
    """All steps of a layer over rows that somebody selected: any selection can be compared with A3's.

    Args:
      candidates: rows that get their score. Only those that a step sees count.
      exact_rows: kept whatever their score, and compared with no other.
      iterations: M of each step, to be reported; 0 with None.
      threshold_percent: T; None keeps every candidate.
      top: rows that `recall` looks for.

    Raises:
      ValueError: shapes as in `check_steps`, or of rows that do not fit them.

    O(n d) a query, with some arrays of [heads, steps, n] floats.
    """
    check_steps(inputs)
    heads, steps, _ = inputs.query.shape
    kv_heads, num_rows, _ = inputs.key.shape
    if candidates.shape != (heads, steps, num_rows):
        raise ValueError(f"candidates: wanted [{heads}, {steps}, {num_rows}], got {list(candidates.shape)}")
    group, visible = heads // kv_heads, visible_rows(num_rows, steps)
    exact_rows = np.zeros_like(visible) if exact_rows is None else exact_rows & visible
    found = _attend_candidates(
        _by_key(inputs.query, kv_heads),
        inputs.key.astype(np.float32),
        inputs.value.astype(np.float32),
        (candidates & visible).reshape(kv_heads, group * steps, num_rows),
        np.tile(exact_rows, (group, 1)),
        np.tile(visible, (group, 1)),
        jnp.float32(threshold_percent or 0),  # 0 keeps every candidate
        min(top, num_rows),
    )
    output, *of_queries = (np.asarray(array).reshape(heads, steps, *array.shape[2:]) for array in found)
    counts = visible.sum(1, dtype=np.int32), np.zeros(steps, np.int32) if iterations is None else iterations
    return StepResult(output, *(np.tile(count, (heads, 1)) for count in counts), *of_queries, keys=kv_heads)


def _by_key(query: Float[np.ndarray, "heads steps d"], kv_heads: int) -> Float[np.ndarray, "kv_heads queries d"]:
    """Queries that share a key in a row, as heads lie already."""
    return np.ascontiguousarray(query, np.float32).reshape(kv_heads, -1, query.shape[2])


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
