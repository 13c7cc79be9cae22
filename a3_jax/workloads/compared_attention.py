"""Attention by A3 and by what it is compared with, each with the bytes that it reads and what it misses, for whole heads at once.

Arrays are those of an encoder: query [batch, heads, queries, d], key and value [batch, heads, n, .]; the query is scaled already.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from a3_jax.attention.exact import attend, score_rows
from a3_jax.baselines.budget import Selection, row_bytes
from a3_jax.baselines.quest import quest
from a3_jax.baselines.references import exact_top_k, oracle_top_k, random_rows, sliding_window
from a3_jax.baselines.sign_hash import HashedKeys, hash_keys, sign_hash
from a3_jax.baselines.sparq import mix_mean_value, sparq, sparq_weight
from a3_jax.conditioning import Conditioning, condition_keys, condition_query, fit_conditioning
from a3_jax.metrics import bytes_touched, output_error, softmax_mass, top_k_recall
from a3_jax.post_scoring import select_post_scoring
from a3_jax.workloads.decode_inputs import StepInputs, check_steps
from a3_jax.workloads.host_search import Share, iterations_of, search_heads, search_texts

ELEMENT_BYTES, _ID_BYTES = 2, 4  # bfloat16, and a row id beside a sorted number
_TOP = 5

BaselineName: TypeAlias = Literal[
    "oracle top k", "exact top k", "SparQ", "SparQ, mean value", "Quest", "sign hash", "sliding window", "random"
]


class Measured(NamedTuple):
    """Of every query; what is missed is against exact attention of the same query, key and value.

    Attributes:
      bytes, exact_bytes: read, and by exact attention, in bfloat16.
      mass: exact softmax weight of the rows used.
      recall: share of the five rows with the largest scores that were used.
      error: of the output, relative.
    """

    bytes: Float[Array | np.ndarray, "*axes"]
    exact_bytes: Float[Array | np.ndarray, "*axes"]
    mass: Float[Array | np.ndarray, "*axes"]
    recall: Float[Array | np.ndarray, "*axes"]
    error: Float[Array | np.ndarray, "*axes"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """A3, over keys as they are or over conditioned ones.

    Attributes:
      iterations: M, an int, or a float as a fraction of the rows.
      threshold_percent: T.
      center, rotate: as for `fit_conditioning`, fitted on the keys of each head of each text.
      shared: fitted on all texts of a call instead, by head: for texts with fewer rows than columns.
    """

    iterations: Share
    threshold_percent: int | float = 5
    center: bool = False
    rotate: bool = False
    shared: bool = False

    @property
    def name(self) -> str:
        words = (("centred", self.center), ("rotated", self.rotate), ("fitted on many texts", self.shared))
        return ", ".join(["A3", *(word for word, done in words if done)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baseline:
    """A method of `a3_jax.baselines`.

    Attributes:
      share: of the bytes of exact attention, which it may read.
      page_size: Quest's.

    SparQ reads as many columns as spend half of it; a sign hash has a bit for each column of the key.
    """

    name: BaselineName
    share: int | float
    page_size: int = 16

    def __post_init__(self) -> None:
        """ValueError for a name or a share that there is not."""
        if self.name not in get_args(BaselineName):
            raise ValueError(f"name: wanted one of {', '.join(get_args(BaselineName))}, got {self.name!r}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share: wanted more than 0 and at most 1, got {self.share}")


Method: TypeAlias = Search | Baseline


def attend_by(
    method: Method,
    query: Float[Array, "batch heads queries d"],
    key: Float[Array, "batch heads n d"],
    value: Float[Array, "batch heads n dv"],
    mask: Bool[Array | np.ndarray, "batch n"],
    query_mask: Bool[Array | np.ndarray, "batch queries"],
) -> tuple[Float[Array, "batch heads queries dv"], Measured]:
    """The output of every query, and what was measured; for queries that are masked anything.

    Args:
      mask: the rows that take part, the first ones of a text; at least one.
      query_mask: the queries that ask, the first ones of a text.

    A search leaves JAX. Time is that of exact attention and of the selection.
    """
    valid = jnp.broadcast_to(jnp.asarray(mask)[:, None], (*query.shape[::2], key.shape[2]))
    if isinstance(method, Baseline):
        return _attend_by_baseline(method, query, key, value, valid)
    searched, keys = _searched(method, query, key, jnp.asarray(mask))
    candidates, iterations = search_texts(
        np.asarray(searched), np.asarray(keys), np.asarray(mask), np.asarray(query_mask), method.iterations
    )
    return _attend_candidates(query, key, value, valid, candidates, iterations, method.threshold_percent)


def attend_steps_by(method: Method, inputs: StepInputs) -> tuple[Float[np.ndarray, "heads steps d"], Measured]:
    """`attend_by` for a decoder's steps, each of which sees the rows up to its own. What is fitted to keys is fitted to those that the
    first step sees. ValueError as in `check_steps`."""
    check_steps(inputs)
    heads, steps, dim = inputs.query.shape
    kv_heads, num_rows, _ = inputs.key.shape
    # Queries that share a key: group by group, as heads lie.
    query = jnp.asarray(inputs.query).reshape(1, kv_heads, -1, dim)
    key, value = jnp.asarray(inputs.key)[None], jnp.asarray(inputs.value)[None]
    seen = np.tile(np.arange(num_rows - steps + 1, num_rows + 1, dtype=np.int32), heads // kv_heads)
    valid = jnp.asarray(np.arange(num_rows) < seen[:, None])[None]
    if isinstance(method, Baseline):
        found = _attend_by_baseline(method, query, key, value, valid)
    else:
        searched, keys = _searched(method, query, key, valid[:, 0])
        wanted = [iterations_of(method.iterations, num_rows=int(rows), num_columns=dim) for rows in seen]
        iterations = np.asarray(wanted, np.int32)
        candidates = search_heads(
            np.asarray(searched)[0],
            np.asarray(keys)[0],
            num_iterations=iterations,
            ranges=np.stack([np.zeros_like(seen), seen], axis=1),
        )
        every_head = np.broadcast_to(iterations, (1, kv_heads, len(iterations)))
        found = _attend_candidates(query, key, value, valid, candidates[None], every_head, method.threshold_percent)
    output, measured = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(heads, steps, *leaf.shape[3:]), found)
    return output, measured


def _searched(method: Search, query: Array, key: Array, mask: Array) -> tuple[Array, Array]:
    """Query and key as the search sees them."""
    return _conditioned(query, key, mask, method) if method.center or method.rotate else (query, key)


@functools.partial(jax.jit, static_argnums=3)
def _conditioned(
    query: Float[Array, "batch heads queries d"],
    key: Float[Array, "batch heads n d"],
    mask: Bool[Array, "batch n"],
    method: Search,
) -> tuple[Array, Array]:
    def fit(key: Array, mask: Array) -> Conditioning:
        return fit_conditioning(key, center=method.center, rotate=method.rotate, mask=mask)

    def change(query: Array, key: Array, found: Conditioning) -> tuple[Array, Array]:
        return jax.vmap(lambda one: condition_query(one, found))(query), condition_keys(key, found)

    if method.shared:
        by_head = jnp.swapaxes(key, 0, 1).reshape(key.shape[1], -1, key.shape[3])
        fitted = jax.vmap(fit, (0, None))(by_head, mask.ravel())
        return jax.vmap(jax.vmap(change), (0, 0, None))(query, key, fitted)
    fitted = jax.vmap(jax.vmap(fit, (0, None)))(key, mask)
    return jax.vmap(jax.vmap(change))(query, key, fitted)


@functools.partial(jax.jit, static_argnums=6)
def _attend_candidates(
    query: Float[Array, "batch heads queries d"],
    key: Float[Array, "batch heads n d"],
    value: Float[Array, "batch heads n dv"],
    mask: Bool[Array, "batch queries n"],
    candidates: Bool[Array, "batch heads queries n"],
    iterations: Int32[Array, "batch heads queries"],
    threshold_percent: int | float,
) -> tuple[Array, Measured]:
    def one(query: Array, key: Array, value: Array, mask: Array, candidates: Array, iterations: Array) -> tuple:
        scores = score_rows(query, key)
        kept = select_post_scoring(scores, candidates, threshold_percent=threshold_percent)
        sizes = {"key_dim": key.shape[1], "value_dim": value.shape[1], "element_bytes": ELEMENT_BYTES}
        spent = bytes_touched(iterations, jnp.sum(candidates), jnp.sum(kept), id_bytes=_ID_BYTES, **sizes)
        return _measured(scores, kept, value, mask, attend(scores, kept, value)[0], spent, key.shape[1])

    of_head = jax.vmap(one, (0, None, None, 0, 0, 0))
    return jax.vmap(jax.vmap(of_head, (0, 0, 0, None, 0, 0)))(query, key, value, mask, candidates, iterations)


@functools.partial(jax.jit, static_argnums=0)
def _attend_by_baseline(
    method: Baseline,
    query: Float[Array, "batch heads queries d"],
    key: Float[Array, "batch heads n d"],
    value: Float[Array, "batch heads n dv"],
    mask: Bool[Array, "batch queries n"],
) -> tuple[Array, Measured]:
    def of_head(query: Array, key: Array, value: Array, mask: Array, random_keys: Array) -> tuple:
        hashed = hash_keys(key, jax.random.key(0)) if method.name == "sign hash" else None

        def one(query: Array, mask: Array, random_key: Array) -> tuple:
            scores = score_rows(query, key)
            selection = _select(method, query, key, value.shape[1], mask, hashed, random_key)
            output, spent = attend(scores, selection.selected, value)[0], selection.bytes_touched
            if method.name == "SparQ, mean value":
                columns = num_columns(method.share, key.shape[1], value.shape[1])
                weight = sparq_weight(query, key, selection.selected, num_columns=columns, mask=mask)
                output = mix_mean_value(output, weight, jnp.mean(value, axis=0, where=mask[:, None]))
                spent += value.shape[1] * ELEMENT_BYTES
            return _measured(scores, selection.selected, value, mask, output, spent, key.shape[1])

        return jax.vmap(one)(query, mask, random_keys)

    random_keys = jax.random.split(jax.random.key(0), query.shape[:3])
    return jax.vmap(jax.vmap(of_head, (0, 0, 0, None, 0)))(query, key, value, mask, random_keys)


def num_columns(share: int | float, key_dim: int, value_dim: int) -> int:
    """SparQ's r, of which the columns take half of the budget; at least 1."""
    return min(key_dim, max(1, round(share * (key_dim + value_dim) / 2)))


def _exact_bytes(mask: Bool[Array, " n"], key_dim: int, value_dim: int) -> Float[Array, ""]:
    return jnp.sum(mask).astype(jnp.float32) * row_bytes(key_dim, value_dim, ELEMENT_BYTES)


def _select(
    method: Baseline,
    query: Float[Array, " d"],
    key: Float[Array, "n d"],
    value_dim: int,
    mask: Bool[Array, " n"],
    hashed: HashedKeys | None,
    random_key: Array,
) -> Selection:
    budget = method.share * _exact_bytes(mask, key.shape[1], value_dim)
    options = {"budget": budget, "value_dim": value_dim, "element_bytes": ELEMENT_BYTES, "mask": mask}
    if method.name.startswith("SparQ"):
        return sparq(query, key, num_columns=num_columns(method.share, key.shape[1], value_dim), **options)
    if method.name == "Quest":
        return quest(query, key, page_size=method.page_size, **options)
    if hashed is not None:
        return sign_hash(query, hashed, **options)
    if method.name == "random":
        return random_rows(query, key, random_key, **options)
    references = {"oracle top k": oracle_top_k, "exact top k": exact_top_k, "sliding window": sliding_window}
    return references[method.name](query, key, **options)


def _measured(
    scores: Float[Array, " n"],
    used: Bool[Array, " n"],
    value: Float[Array, "n dv"],
    mask: Bool[Array, " n"],
    output: Float[Array, " dv"],
    spent: Any,
    key_dim: int,
) -> tuple[Float[Array, " dv"], Measured]:
    """`scores` are those of all rows."""
    exact, _ = attend(scores, mask, value)
    return output, Measured(
        bytes=jnp.asarray(spent, jnp.float32),
        exact_bytes=_exact_bytes(mask, key_dim, value.shape[1]),
        mass=softmax_mass(scores, used, mask=mask),
        recall=top_k_recall(scores, used, k=_TOP, mask=mask),
        error=output_error(output, exact),
    )
