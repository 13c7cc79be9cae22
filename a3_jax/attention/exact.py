"""Softmax attention of one query over chosen rows."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from a3_jax.attention.validation import check_shapes


def attend(
    scores: Float[Array, " n"], kept: Bool[Array, " n"], value: Float[Array, "n dv"]
) -> tuple[Float[Array, " dv"], Float[Array, ""]]:
    """The average of the kept values by the softmax of their scores, and the log of the sum of exponentials.

    Zeros and -inf where no row is kept; gradients are finite there too.
    """
    any_kept = jnp.any(kept)
    largest = jax.lax.stop_gradient(jnp.max(scores, where=kept, initial=-jnp.inf))
    shifted = jnp.where(kept, scores - jnp.where(any_kept, largest, 0), 0)
    weights = jnp.where(kept, jnp.exp(shifted), 0)
    total = jnp.where(any_kept, jnp.sum(weights), 1)
    lse = jnp.where(any_kept, jnp.log(total) + largest, -jnp.inf)
    # Divided once, after the sum over rows.
    output = jnp.matmul(weights, value.astype(jnp.promote_types(value.dtype, weights.dtype))) / total
    return output.astype(value.dtype), lse


def scale_query(query: Float[Array, " d"], scale: int | float | Float[Array, ""]) -> Float[Array, " d"]:
    """At least in float32: 1 / sqrt(d) of most d is no narrow float, and a product with it none either."""
    query = query.astype(jnp.promote_types(query.dtype, jnp.float32))
    return query * jnp.asarray(scale, query.dtype)


def score_rows(query: Float[Array, " d"], key: Float[Array, "n d"]) -> Float[Array, " n"]:
    """Dot products, at least in float32."""
    # Narrow numbers are widened first: XLA on a CPU refuses many a product of bfloat16 that is to be float32.
    dtype = jnp.promote_types(jnp.result_type(query, key), jnp.float32)
    return jnp.matmul(key.astype(dtype), query.astype(dtype))


def exact_attention(
    query: Float[Array, " d"],
    key: Float[Array, "n d"],
    value: Float[Array, "n dv"],
    *,
    scale: int | float | Float[Array, ""] = 1.0,
    mask: Bool[Array, " n"] | None = None,
) -> Float[Array, " dv"]:
    """`softmax(scale * key @ query) @ value`, for one query: base A3 in floats (HPCA 2020, figure 5).

    Args:
      scale: multiplies the query. The paper has none; transformers use `1 / sqrt(d)`.
      mask: rows that take part.

    Returns:
      Zeros where no row takes part.

    Raises:
      ValueError: if shapes do not fit.

    O(n d).
    """
    check_shapes(query, key, value, mask=mask)
    kept = jnp.ones(key.shape[0], bool) if mask is None else mask
    return attend(score_rows(scale_query(query, scale), key), kept, value)[0]
