"""What an approximate result lost and read, beside the result."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from a3_jax.attention.approximate import Info
from a3_jax.attention.exact import attend, scale_query, score_rows
from a3_jax.metrics import bytes_touched, output_error, softmax_mass, top_k_recall


class Quality(NamedTuple):
    """Of one query; each is defined in `a3_jax.metrics`.

    Attributes:
      recall: share of the rows with the largest scores that were kept.
      mass: exact softmax weight of the rows kept.
      error: of the output, relative.
      bytes_touched: by the accelerator's algorithm.
      exact_bytes: by exact attention over the valid rows.
    """

    recall: Float[Array, ""]
    mass: Float[Array, ""]
    error: Float[Array, ""]
    bytes_touched: Any
    exact_bytes: Any


def attention_quality(
    query: Float[Array, " d"],
    key: Float[Array, "n d"],
    value: Float[Array, "n dv"],
    output: Float[Array, " dv"],
    info: Info,
    *,
    top: int = 5,
    scale: int | float | Float[Array, ""] = 1.0,
    mask: Bool[Array, " n"] | None = None,
    element_bytes: int | float = 2,
    id_bytes: int | float = 4,
) -> Quality:
    """Compares a result of `approx_attention`, whose arguments these are, with exact attention.

        output, info = approx_attention(query, key, value, sort_keys(key), num_iterations=0.5, threshold_percent=5)
        quality = attention_quality(query, key, value, output, info)

    Args:
      top: rows that `recall` looks for.
      element_bytes, id_bytes: as for `bytes_touched`.

    Traceable. Computes exact attention: O(n d).
    """
    valid = jnp.ones(key.shape[0], bool) if mask is None else mask
    scores = score_rows(scale_query(query, scale), key)
    exact, _ = attend(scores, valid, value)
    sizes = {
        "key_dim": key.shape[1],
        "value_dim": value.shape[1],
        "element_bytes": element_bytes,
        "id_bytes": id_bytes,
    }
    rows = jnp.sum(valid)
    return Quality(
        recall=top_k_recall(scores, info.kept, k=top, mask=valid),
        mass=softmax_mass(scores, info.kept, mask=valid),
        error=output_error(output, exact),
        bytes_touched=bytes_touched(info.M, info.C, info.K, **sizes),
        exact_bytes=bytes_touched(0, rows, rows, **sizes),
    )
