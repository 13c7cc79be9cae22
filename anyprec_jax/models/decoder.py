"""The decoder: one pure function of weights, tokens and settings for every family.

Weights are a plain dict, all layers of one parameter stacked along a leading axis and scanned over (one layer is compiled, whatever
their number). `n` and `k` are outputs and inputs of a linear, L is `num_layers`:

    embedding [vocab, hidden]   final_norm [hidden]   head [vocab, hidden], absent when it is the embedding
    layers:  input_norm, post_attention_norm [L, hidden]
             q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj [L, n, k], and q_proj_bias [L, n] etc. where there are;
             qkv_proj in place of the first three, gate_up_proj in place of those two, where they are fused (`fusion`)

and where `ModelConfig` calls for them:

    position_embedding [positions, hidden]   project_in [hidden, width of the embedding]   project_out, the other way round
    layers:  attention_output_norm, mlp_output_norm [L, hidden]   q_norm, k_norm [L, head_dim] (or [L, heads, head_dim], or of all heads)
             router [L, experts, hidden]; gate_proj, up_proj and down_proj are then [L, experts, n, k]
             input_norm_bias [L, hidden] etc.

`families.parameter_shapes` spells them out. A layer has the norms that are there, and `ModelConfig` says the rest.

A model on several devices has a `Split` beside its weights, and computes where they are (`split`).

Each linear is an array or an `AnyPrecArray`, which is then read at the `precision` that the caller names; compact codebooks are decoded
once a call (`expansion.expanded` does so once for many). Embedding and head are
arrays or `AffineArray`s. Hidden states have the dtype of the embedding, float32 if it is affine; norms, rotations, softmax and logits
are computed in float32.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int, Int32

from anyprec_jax.affine import AffineArray, dequantize_rows
from anyprec_jax.array import Matrix, check_precision
from anyprec_jax.models.attention import Attention, capped_attention, causal_attention
from anyprec_jax.models.cached_attention import cached_attention
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.expansion import expanded
from anyprec_jax.models.fusion import LINEARS as LINEARS
from anyprec_jax.models.fusion import linears
from anyprec_jax.models.layer_kinds import Rotations, rotation_of, rotations, window_of
from anyprec_jax.models.layer_kinds import with_kinds as with_kinds
from anyprec_jax.models.linear import StackedMatrix as StackedMatrix
from anyprec_jax.models.linear import dense_product, project
from anyprec_jax.models.linear import linear as linear
from anyprec_jax.models.mlp import mlp
from anyprec_jax.models.norms import normed
from anyprec_jax.models.norms import rms_norm as rms_norm
from anyprec_jax.models.precision_map import Precision, PrecisionMap, check_map
from anyprec_jax.models.rope import rotate
from anyprec_jax.models.split import SPLIT, all_logits, has_split_vocabulary, on_every_device, own_rows
from anyprec_jax.ops import matmul_affine

Params: TypeAlias = Mapping[str, Any]


class KVCache(NamedTuple):
    """Keys (rotated) and values of the tokens so far; position p of row b is meaningful for `p < lengths[b]`.

    Each lies as its product in attention wants it, a head's positions together and keys with their positions last: on CPU, a decode
    step that has to transpose them spends several times as long on attention.
    """

    keys: Float[Array, "layers batch kv_heads head_dim length"]
    values: Float[Array, "layers batch kv_heads length head_dim"]
    lengths: Int32[Array, " batch"]


def init_cache(
    config: ModelConfig, *, batch: int, length: int, dtype: DTypeLike = jnp.float32, params: Params | None = None
) -> KVCache:
    """An empty cache with room for `length` tokens in each of `batch` rows; on their devices, if `params` are split."""
    keys, values = _cache_shapes(config, batch=batch, length=length)
    split = None if params is None else params.get(SPLIT)
    heads, whole = (None, None) if split is None else (NamedSharding(split.mesh, s) for s in (split.cache_spec, P()))
    return KVCache(
        jnp.zeros(keys, dtype, device=heads),
        jnp.zeros(values, dtype, device=heads),
        jnp.zeros(batch, jnp.int32, device=whole),
    )


def _cache_shapes(config: ModelConfig, *, batch: int, length: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    lead = (config.num_layers, batch, config.num_kv_heads)
    return (*lead, config.head_dim, length), (*lead, length, config.head_dim)


def forward(
    params: Params,
    tokens: Int[Array | np.ndarray, "batch seq"],
    config: ModelConfig,
    *,
    precision: Precision | None,
    cache: KVCache | None = None,
    lengths: Int[Array | np.ndarray, " batch"] | None = None,
    attention: Attention | None = None,
) -> Float32[Array, "batch seq vocab"] | tuple[Float32[Array, "batch seq vocab"], KVCache]:
    """Logits of the next token at every position.

    Without a cache the rows are whole texts. With one, each row continues what the cache holds of it, and the cache comes back with
    the tokens appended; donate it (`jax.jit(..., donate_argnames="cache")`) and it is updated in place.

    Args:
      params: see the module.
      tokens: ids; a row may be padded on the right with anything.
      config: the model's settings.
      precision: bits at which to read every `AnyPrecArray`, or a `PrecisionMap`; static. None for a model that has none.
      cache: what the rows so far have left.
      lengths: how many tokens of each row are real; None means all. Logits of the others are meaningless.
      attention: takes the place of `dot_product_attention`, whose contract it must keep. Any hashable callable.

    Returns:
      Logits, and the new cache if one was given. A compiled function cannot raise: logits are NaN for a row that does not fit in
      its cache, and from a token outside the vocabulary, or a position that the model has not learned, on.

    Raises:
      ValueError: `precision` does not fit the weights, shapes do not fit each other, or `attention` is given for a model that caps
        its scores.
    """
    states = hidden_states(
        params, tokens, config, precision=precision, cache=cache, lengths=lengths, attention=attention
    )
    if isinstance(states, tuple):
        hidden, cache = states
        return unembed(params, hidden, config), cache
    return unembed(params, states, config)


def hidden_states(
    params: Params,
    tokens: Int[Array | np.ndarray, "batch seq"],
    config: ModelConfig,
    *,
    precision: Precision | None,
    cache: KVCache | None = None,
    lengths: Int[Array | np.ndarray, " batch"] | None = None,
    attention: Attention | None = None,
) -> Float[Array, "batch seq hidden"] | tuple[Float[Array, "batch seq hidden"], KVCache]:
    """What `forward` computes before `unembed`, for callers that need the logits of a few positions only."""
    _check_precision(params, precision)
    _check_shapes(tokens, config, cache, lengths)
    params = {**params, "layers": expanded(params["layers"], precision)}
    attend = _attention_of(config, attention)
    if lengths is None:
        lengths = np.full(tokens.shape[:1], tokens.shape[1])
    tokens, lengths = jnp.asarray(tokens, jnp.int32), jnp.asarray(lengths, jnp.int32)
    if cache is None:
        return _whole_sequences(params, tokens, lengths, config, precision=precision, attention=attend)
    return _continued_sequences(params, tokens, lengths, cache, config, precision=precision, attention=attend)


def embed(
    params: Params,
    tokens: Int[Array, "*batch"],
    config: ModelConfig,
    positions: Int[Array, "*batch"] | None = None,
) -> Float[Array, "*batch hidden"]:
    """The embeddings of tokens: no other rows are read. Positions count from 0 along the last axis if they are not given."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape) if positions is None else positions
    return (_embed_split if SPLIT in params else _embed)(params, tokens, positions, config)


@functools.partial(jax.jit, static_argnames="config")
def _embed_split(params: Params, tokens: Array, positions: Array, config: ModelConfig) -> Array:
    return on_every_device(_embed, params, (tokens, positions))


def _embed(params: Params, tokens: Array, positions: Array, config: ModelConfig) -> Array:
    known = jnp.clip(tokens, 0, config.vocab_size - 1)
    embedding = params["embedding"]

    def rows_of(ids: Array) -> Array:
        return dequantize_rows(embedding, ids) if isinstance(embedding, AffineArray) else jnp.asarray(embedding)[ids]

    rows = own_rows(known, rows_of, embedding.shape[0]) if has_split_vocabulary(params) else rows_of(known)
    if config.embedding_scale != 1.0:
        rows = rows * jnp.asarray(config.embedding_scale, rows.dtype)
    if "project_in" in params:
        rows = linear(rows, params["project_in"], None, None)
    if not config.learned_positions:
        return rows
    learned = jnp.clip(positions + config.position_offset, 0, config.num_positions - 1)
    return rows + jnp.asarray(params["position_embedding"])[learned].astype(rows.dtype)


def hidden_dtype(params: Params) -> jnp.dtype:
    """That of the hidden states."""
    embedding = params["embedding"]
    return jnp.dtype(jnp.float32) if isinstance(embedding, AffineArray) else jnp.dtype(embedding.dtype)


@functools.partial(jax.jit, static_argnames="config")
def unembed(
    params: Params, hidden: Float[Array, "*batch hidden"], config: ModelConfig
) -> Float32[Array, "*batch vocab"]:
    """Logits of hidden states: the final norm and the output head."""
    if SPLIT in params:
        top = {name: leaf for name, leaf in params.items() if name != "layers"}
        return on_every_device(unembed, top, (hidden,))
    states = normed(params, "final_norm", hidden, config)
    if "project_out" in params:
        states = linear(states, params["project_out"], None, None)
    head = params["embedding" if config.tie_embeddings else "head"]
    is_affine = isinstance(head, AffineArray)
    logits = matmul_affine(states, head) if is_affine else dense_product(states, jnp.asarray(head).astype(states.dtype))
    if has_split_vocabulary(params):
        logits = all_logits(logits)
    return logits if config.logit_cap is None else config.logit_cap * jnp.tanh(logits / config.logit_cap)


def layer_forward(
    layer: Params,
    hidden: Float[Array, "batch seq hidden"],
    config: ModelConfig,
    *,
    precision: Precision | None = None,
    attention: Attention | None = None,
    lengths: Int[Array, " batch"] | None = None,
) -> Float[Array, "batch seq hidden"]:
    """One decoder layer over whole sequences that start at position 0.

    Args:
      layer: one layer's slice of `with_kinds(params["layers"], config)`.
      hidden: the output of the layer before, or of `embed`.
      precision: an int, as for `forward`, or None: one layer does not know its place in a map.
      config, attention, lengths: as for `forward`.
    """
    batch, seq, _ = hidden.shape
    lengths = jnp.full(batch, seq, jnp.int32) if lengths is None else lengths
    if SPLIT in layer:

        def share(layer: Params, hidden: Array, lengths: Array, config: ModelConfig) -> Array:
            return layer_forward(layer, hidden, config, precision=precision, attention=attention, lengths=lengths)

        return on_every_device(share, layer, (hidden, lengths))
    positions = jnp.broadcast_to(jnp.arange(seq), (batch, seq))
    kinds = rotations(config, positions, lengths)
    return _layer(layer, hidden, kinds, config, precision=precision, attention=_attention_of(config, attention))


def _layer(
    layer: Params,
    hidden: Array,
    kinds: Rotations | None,
    config: ModelConfig,
    *,
    precision: Precision | None,
    attention: Attention,
) -> Array:
    window = window_of(layer, hidden.shape[1], config)
    attend = functools.partial(causal_attention, attention=attention, window=window)
    angles = rotation_of(layer, kinds, config)
    attended = jax.vmap(attend)(*_attention_inputs(layer, hidden, angles, config, precision))
    return _layer_output(layer, hidden, attended, config, precision)


def _attention_of(config: ModelConfig, attention: Attention | None) -> Attention:
    if attention is None:
        return capped_attention(config.score_cap)
    if config.score_cap is not None:
        raise ValueError(
            f"this model caps its attention scores at {config.score_cap}: its attention cannot be replaced"
        )
    return attention


@functools.partial(jax.jit, static_argnames=("config", "precision", "attention"))
def _whole_sequences(
    params: Params,
    tokens: Array,
    lengths: Array,
    config: ModelConfig,
    *,
    precision: Precision | None,
    attention: Attention,
) -> Array:
    if SPLIT in params:
        body = functools.partial(_whole_sequences, precision=precision, attention=attention)
        return on_every_device(body, params, (tokens, lengths))
    stacks, sliced = _split(with_kinds(params["layers"], config))
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    kinds = rotations(config, positions, lengths)

    def step(hidden: Array, indexed: tuple[Array, Params]) -> tuple[Array, None]:
        layer = _join(stacks, *indexed)
        return _layer(layer, hidden, kinds, config, precision=precision, attention=attention), None

    hidden, _ = jax.lax.scan(step, embed(params, tokens, config, positions), (jnp.arange(config.num_layers), sliced))
    return _nan_unless(_are_known(tokens, positions, lengths, config), hidden)


@functools.partial(jax.jit, static_argnames=("config", "precision", "attention"))
def _continued_sequences(
    params: Params,
    tokens: Array,
    lengths: Array,
    cache: KVCache,
    config: ModelConfig,
    *,
    precision: Precision | None,
    attention: Attention,
) -> tuple[Array, KVCache]:
    if SPLIT in params:
        heads = params[SPLIT].cache_spec
        specs = KVCache(heads, heads, P())  # pyright: ignore[reportArgumentType]
        body = functools.partial(_continued_sequences, precision=precision, attention=attention)
        in_specs, out_specs = (P(), P(), specs), (P(), specs)
        return on_every_device(body, params, (tokens, lengths, cache), in_specs=in_specs, out_specs=out_specs)
    batch, seq = tokens.shape
    room = cache.values.shape[3]
    offsets = jnp.arange(seq, dtype=jnp.int32)[None, :]
    positions = cache.lengths[:, None] + offsets
    # Padding is written nowhere: the scatter below drops what is outside the cache.
    slots = jnp.where(offsets < lengths[:, None], positions, room + offsets)
    rows = jnp.arange(batch, dtype=jnp.int32)[:, None]
    stacks, sliced = _split(with_kinds(params["layers"], config))
    kinds = rotations(config, positions, cache.lengths + lengths)

    # Keys and values of all layers are carried whole and written in place; as inputs and outputs of the scan they would be copied.
    def step(
        carry: tuple[Array, Array, Array], indexed: tuple[Array, Params]
    ) -> tuple[tuple[Array, Array, Array], None]:
        hidden, keys, values = carry
        index, layer = indexed[0], _join(stacks, *indexed)
        angles = rotation_of(layer, kinds, config)
        query, key, value = _attention_inputs(layer, hidden, angles, config, precision)
        keys = keys.at[index, rows, :, :, slots].set(key.astype(keys.dtype), mode="drop", unique_indices=True)
        values = values.at[index, rows, :, slots].set(value.astype(values.dtype), mode="drop", unique_indices=True)
        window = window_of(layer, room, config)
        attended = cached_attention(query, keys, values, index, positions, window, attention)
        return (_layer_output(layer, hidden, attended, config, precision), keys, values), None

    start = (embed(params, tokens, config, positions), cache.keys, cache.values)
    (hidden, keys, values), _ = jax.lax.scan(step, start, (jnp.arange(config.num_layers), sliced))
    fits = cache.lengths + lengths <= room
    hidden = _nan_unless(fits[:, None] & _are_known(tokens, positions, lengths, config), hidden)
    return hidden, KVCache(keys, values, cache.lengths + lengths)


def _are_known(tokens: Array, positions: Array, lengths: Array, config: ModelConfig) -> Array:
    """bool [batch, seq]: no real token up to here is outside the vocabulary, or where no position was learned."""
    real = jnp.arange(tokens.shape[1])[None, :] < lengths[:, None]
    unknown = real & ((tokens < 0) | (tokens >= config.vocab_size))
    if config.learned_positions:
        unknown = unknown | (real & (positions >= config.max_position_embeddings))
    return jnp.cumsum(unknown, axis=1) == 0


def _nan_unless(good: Array, hidden: Array) -> Array:
    return jnp.where(good[:, :, None], hidden, jnp.asarray(jnp.nan, hidden.dtype))


def _split(layers: Params) -> tuple[dict[str, Matrix], dict[str, Array]]:
    """The leaves that a layer reads out of their stack, and those that a scan slices for it."""
    stacks = {name: leaf for name, leaf in layers.items() if isinstance(leaf, Matrix)}
    return stacks, {name: leaf for name, leaf in layers.items() if name not in stacks}


def _join(stacks: Mapping[str, Matrix], index: Array, sliced: Params) -> dict[str, Any]:
    """One layer's parameters."""
    return {**sliced, **{name: StackedMatrix(stack, index) for name, stack in stacks.items()}}


def _attention_inputs(
    layer: Params, hidden: Array, angles: tuple[Array, Array] | None, config: ModelConfig, precision: Precision | None
) -> tuple[Array, Array, Array]:
    """Query (rotated and scaled), key (rotated) and value of every position: [batch, seq, heads, head_dim] each."""
    entering = normed(layer, "input_norm", hidden, config)
    if "qkv_proj" in layer:
        sizes = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim)
        fused = project(layer, "qkv_proj", entering, precision)
        query, key, value = jnp.split(fused, (sizes[0], sum(sizes)), axis=-1)
    else:
        query, key, value = (project(layer, name, entering, precision) for name in ("q_proj", "k_proj", "v_proj"))
    if config.head_norm == "joint":
        query, key = normed(layer, "q_norm", query, config), normed(layer, "k_norm", key, config)
    if (limit := config.qkv_limit) is not None:
        query, key, value = (jnp.clip(x, -limit, limit) for x in (query, key, value))
    query, key, value = (x.reshape(*hidden.shape[:2], -1, config.head_dim) for x in (query, key, value))
    if config.head_norm in ("shared", "separate"):
        query, key = normed(layer, "q_norm", query, config), normed(layer, "k_norm", key, config)
    if angles is not None:
        query, key = rotate(query, *angles), rotate(key, *angles)
    query = query * (config.head_dim**-0.5 if config.query_scale is None else config.query_scale)
    return query.astype(hidden.dtype), key.astype(hidden.dtype), value


def _layer_output(
    layer: Params, hidden: Array, attended: Array, config: ModelConfig, precision: Precision | None
) -> Array:
    """The rest of a layer after attention: the output projection and the MLP, each added to its input."""
    mixed = project(layer, "o_proj", attended.reshape(*hidden.shape[:2], -1), precision)
    if config.residual != "sequential":
        name = "input_norm" if config.residual == "parallel_one_norm" else "post_attention_norm"
        return hidden + mixed + mlp(layer, normed(layer, name, hidden, config), config, precision)
    hidden = _add_normed(layer, "attention_output_norm", hidden, mixed, config)
    output = mlp(layer, normed(layer, "post_attention_norm", hidden, config), config, precision)
    return _add_normed(layer, "mlp_output_norm", hidden, output, config)


def _add_normed(layer: Params, name: str, hidden: Array, output: Array, config: ModelConfig) -> Array:
    if config.norm_order == "sum":
        return normed(layer, name, hidden + output, config)
    return hidden + normed(layer, name, output, config)


def _check_precision(params: Params, precision: Precision | None) -> None:
    if isinstance(precision, PrecisionMap):
        check_map(params["layers"], precision)
        return
    matrices = [(name, w) for name, w in linears(params["layers"]).items() if isinstance(w, Matrix)]
    if precision is None and matrices:
        precisions = matrices[0][1].precisions
        raise ValueError(f"the model is quantized: give a precision from {precisions[0]} to {precisions[-1]}")
    if precision is not None and not matrices:
        raise ValueError(f"the model is not quantized: precision must be None, got {precision!r}")
    for name, matrix in matrices:
        try:
            check_precision(matrix, precision)  # pyright: ignore[reportArgumentType]
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def _check_shapes(
    tokens: Array | np.ndarray, config: ModelConfig, cache: KVCache | None, lengths: Array | np.ndarray | None
) -> None:
    if tokens.ndim != 2 or tokens.size == 0 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens must be integers [batch, seq], at least one, got {tokens.dtype} {tokens.shape}")
    batch = tokens.shape[0]
    if lengths is not None and lengths.shape != (batch,):
        raise ValueError(f"lengths must be [{batch}], one per row of tokens, got {lengths.shape}")
    if cache is not None:
        shapes = _cache_shapes(config, batch=batch, length=cache.values.shape[3])
        for name, leaf, wanted in zip(("keys", "values"), cache, shapes, strict=False):
            if (shape := leaf.shape) != wanted:
                raise ValueError(f"cache {name} for these tokens and this model must be {wanted}, got {shape}")
        if cache.lengths.shape != (batch,):
            raise ValueError(f"cache lengths must be [{batch}], one per row of tokens, got {cache.lengths.shape}")
