"""A3 in the place of an encoder's attention: which rows, and in which arithmetic."""

import dataclasses
import functools
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, Real

from a3_jax.attention.approximate import approx_attention
from a3_jax.fixed_point.attention import fixed_point_attention
from a3_jax.fixed_point.formats import AttentionFormat
from a3_jax.workloads.encoder import Attention, Counts, exact_heads
from a3_jax.workloads.host_search import Share, iterations_of, search_texts

Arithmetic: TypeAlias = Literal["float", "input-quantised float", "fixed point"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to attend; the defaults are exact attention.

    Attributes:
      name: what tables call it.
      iterations: M, an int, or a float as a fraction of a text's tokens; None: no search, every row is a candidate.
      threshold_percent: T; None: no post-scoring, every candidate is kept.
      arithmetic: "float" is float32. "input-quantised float" rounds query, key and value to i integer and f fraction bits and goes on in
        float32. "fixed point" is the accelerator's pipeline to the last bit, every signal in int32.
      integer_bits, fraction_bits: i and f of the two latter.
      division: of fixed point, as in `AttentionFormat`.
    """

    name: str
    iterations: Share | None = None
    threshold_percent: int | float | None = None
    arithmetic: Arithmetic = "float"
    integer_bits: int = 4
    fraction_bits: int = 4
    division: Literal["early", "late"] = "early"

    def __post_init__(self) -> None:
        """ValueError for an M, T or arithmetic that there is not."""
        if self.iterations is not None:
            iterations_of(self.iterations, num_rows=1, num_columns=1)
        if self.threshold_percent is not None and not 0 < self.threshold_percent <= 100:
            raise ValueError(f"T: wanted more than 0 and at most 100 per cent, got {self.threshold_percent}")
        if self.arithmetic not in get_args(Arithmetic):
            raise ValueError(f"arithmetic: wanted one of {', '.join(get_args(Arithmetic))}, got {self.arithmetic!r}")

    @property
    def is_base(self) -> bool:
        """Whether nothing is selected: the base pipeline."""
        return self.iterations is None and self.threshold_percent is None

    def format_for(self, *, num_rows: int, head_dim: int) -> AttentionFormat:
        """Of texts of so many tokens. ValueError, saying which signal, where int32 does not hold this setting in fixed point."""
        made = AttentionFormat(
            integer_bits=self.integer_bits,
            fraction_bits=self.fraction_bits,
            n=num_rows,
            d=head_dim,
            division=self.division,
        )
        if self.iterations is not None:
            made.running_sum(iterations_of(self.iterations, num_rows=num_rows, num_columns=head_dim))
        return made


def attention_of(setting: Setting) -> Attention:
    """The attention that `encode` calls. It leaves JAX where there is a search, which runs on the host.

    Calls raise ValueError where `Setting.format_for` does. Time, of a text of n tokens and a head: O(n^2 d), and O(n (M log d + n)) for
    the search.
    """
    if setting.is_base and setting.arithmetic == "float":
        return exact_heads
    return functools.partial(_attend, setting)


def _attend(
    setting: Setting,
    query: Float[Array, "batch heads seq head_dim"],
    key: Float[Array, "batch heads seq head_dim"],
    value: Float[Array, "batch heads seq head_dim"],
    mask: Bool[Array | np.ndarray, "batch seq"],
) -> tuple[Float[Array, "batch heads seq head_dim"], Counts]:
    arrays: tuple[Array, ...] = (query, key, value)
    made = None
    if setting.arithmetic != "float":
        made = AttentionFormat(integer_bits=setting.integer_bits, fraction_bits=setting.fraction_bits)
        if setting.arithmetic == "fixed point":
            made = setting.format_for(num_rows=query.shape[2], head_dim=query.shape[3])
        arrays = tuple(made.input.quantize(array) for array in arrays)
        if setting.arithmetic == "input-quantised float":
            arrays, made = tuple(made.input.to_float(array) for array in arrays), None
    candidates, iterations = _candidates(setting, arrays[0], arrays[1], np.asarray(mask))
    output, counts = _attend_candidates(*arrays, candidates, setting.threshold_percent, made)
    return output, Counts(jnp.asarray(iterations), *counts)


def _candidates(
    setting: Setting,
    query: Real[Array, "batch heads seq head_dim"],
    key: Real[Array, "batch heads seq head_dim"],
    mask: Bool[np.ndarray, "batch seq"],
) -> tuple[Bool[np.ndarray, "batch heads seq seq"], Int32[np.ndarray, "batch heads seq"]]:
    """By query the rows that get their score, and M. Padding asks for nothing and gets the first row."""
    if setting.iterations is None:
        candidates = np.broadcast_to(mask[:, None, None, :], (*query.shape[:3], query.shape[2]))
        return candidates, np.zeros(query.shape[:3], np.int32)
    return search_texts(np.asarray(query), np.asarray(key), mask, mask, setting.iterations)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _attend_candidates(
    query: Real[Array, "batch heads seq head_dim"],
    key: Real[Array, "batch heads seq head_dim"],
    value: Real[Array, "batch heads seq head_dim"],
    candidates: Bool[Array, "batch heads seq seq"],
    threshold_percent: int | float | None,
    format: AttentionFormat | None,
) -> tuple[Float[Array, "batch heads seq head_dim"], tuple[Array, Array]]:
    """Post-scoring and softmax over candidates that are known: the pipelines with a mask and without a search; and C and K."""

    def attend(query: Array, key: Array, value: Array, candidates: Array) -> tuple[Array, tuple[Array, Array]]:
        options = {"threshold_percent": threshold_percent, "mask": candidates}
        if format is None:
            output, info = approx_attention(query, key, value, None, **options)
            return output, (info.C, info.K)
        output, info = fixed_point_attention(query, key, value, None, format=format, **options)
        return format.output.to_float(output), (info.C, info.K)

    of_head = jax.vmap(attend, (0, None, None, 0))
    return jax.vmap(jax.vmap(of_head))(query, key, value, candidates)
