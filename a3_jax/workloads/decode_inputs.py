"""What a decoder attends with at the last positions of a text, and how peaked its attention is there."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int32


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


def visible_rows(num_rows: int, steps: int) -> Bool[np.ndarray, "steps n"]:
    """The rows that each step sees: those up to its own."""
    return np.arange(num_rows)[None] <= np.arange(num_rows - steps, num_rows)[:, None]


class Concentration(NamedTuple):
    """How peaked exact attention is at every head and step.

    Attributes:
      rows: the fewest rows that have so much of the weight.
      rows_beyond_first: the same where the text's first row takes no part.
      first: weight of the text's first row.
    """

    rows: Int32[np.ndarray, "*queries"]
    rows_beyond_first: Int32[np.ndarray, "*queries"]
    first: Float[np.ndarray, "*queries"]


def concentration(inputs: StepInputs, *, mass: float = 0.9) -> Concentration:
    """Of the weight of exact attention, `mass`. O(n (d + log n)) a query. ValueError as in `check_steps`."""
    check_steps(inputs)
    heads, steps, _ = inputs.query.shape
    kv_heads, num_rows, _ = inputs.key.shape
    hidden = ~visible_rows(num_rows, steps)
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
