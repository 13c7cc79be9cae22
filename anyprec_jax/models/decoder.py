"""The decoder: one pure function of weights, tokens and settings for every family.

Weights are a plain dict, all layers of one parameter stacked along a leading axis and scanned over (one layer is compiled, whatever
their number). `n` and `k` are outputs and inputs of a linear, L is `num_layers`:

    embedding [vocab, hidden]   final_norm [hidden]   head [vocab, hidden], absent when it is the embedding
    layers:  input_norm, post_attention_norm [L, hidden]
             q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj [L, n, k], and q_proj_bias [L, n] etc. where there are;
             qkv_proj in place of the first three, gate_up_proj in place of those two, where they are fused (`fusion`)

Each linear is an array or an `AnyPrecArray`, which is then read at the `precision` that the caller names. Embedding and head are
arrays or `AffineArray`s. Hidden states have the dtype of the embedding, float32 if it is affine; norms, rotations, softmax and logits
are computed in float32.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int, Int32

from anyprec_jax.affine import AffineArray, dequantize_rows
from anyprec_jax.array import Matrix, check_precision
from anyprec_jax.models.attention import Attention, causal_attention, dot_product_attention
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.fusion import LINEARS as LINEARS
from anyprec_jax.models.fusion import linears
from anyprec_jax.models.observed import Observed, observed_product
from anyprec_jax.models.rope import rotate, rotation
from anyprec_jax.ops import cpu, matmul, matmul_affine

_MIN_PREFIX = 128  # positions of the cache: fewer are read as fast

Params: TypeAlias = Mapping[str, Any]


class StackedMatrix(NamedTuple):
    """One layer's matrix, left in the stack it is part of: slicing it out would copy every plane."""

    stack: Matrix
    layer: Int[Array, ""]


class KVCache(NamedTuple):
    """Keys (rotated) and values of the tokens so far; position p of row b is meaningful for `p < lengths[b]`.

    Each lies as its product in attention wants it, a head's positions together and keys with their positions last: on CPU, a decode
    step that has to transpose them spends several times as long on attention.
    """

    keys: Float[Array, "layers batch kv_heads head_dim length"]
    values: Float[Array, "layers batch kv_heads length head_dim"]
    lengths: Int32[Array, " batch"]


def init_cache(config: ModelConfig, *, batch: int, length: int, dtype: DTypeLike = jnp.float32) -> KVCache:
    """An empty cache with room for `length` tokens in each of `batch` rows."""
    keys, values = _cache_shapes(config, batch=batch, length=length)
    return KVCache(jnp.zeros(keys, dtype), jnp.zeros(values, dtype), jnp.zeros(batch, jnp.int32))


def _cache_shapes(config: ModelConfig, *, batch: int, length: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    lead = (config.num_layers, batch, config.num_kv_heads)
    return (*lead, config.head_dim, length), (*lead, length, config.head_dim)


def forward(
    params: Params,
    tokens: Int[Array | np.ndarray, "batch seq"],
    config: ModelConfig,
    *,
    precision: int | None,
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
      precision: bits at which to read every `AnyPrecArray`; None for a model that has none.
      cache: what the rows so far have left.
      lengths: how many tokens of each row are real; None means all. Logits of the others are meaningless.
      attention: takes the place of `dot_product_attention`, whose contract it must keep. Any hashable callable.

    Returns:
      Logits, and the new cache if one was given. A compiled function cannot raise: logits are NaN for a row that does not fit in
      its cache, and from a token outside the vocabulary on.

    Raises:
      ValueError: `precision` does not fit the weights, or shapes do not fit each other.
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
    precision: int | None,
    cache: KVCache | None = None,
    lengths: Int[Array | np.ndarray, " batch"] | None = None,
    attention: Attention | None = None,
) -> Float[Array, "batch seq hidden"] | tuple[Float[Array, "batch seq hidden"], KVCache]:
    """What `forward` computes before `unembed`, for callers that need the logits of a few positions only."""
    _check_precision(params, precision)
    _check_shapes(tokens, config, cache, lengths)
    attend = dot_product_attention if attention is None else attention
    if lengths is None:
        lengths = np.full(tokens.shape[:1], tokens.shape[1])
    tokens, lengths = jnp.asarray(tokens, jnp.int32), jnp.asarray(lengths, jnp.int32)
    if cache is None:
        return _whole_sequences(params, tokens, lengths, config, precision=precision, attention=attend)
    return _continued_sequences(params, tokens, lengths, cache, config, precision=precision, attention=attend)


def embed(params: Params, tokens: Int[Array, "*batch"], config: ModelConfig) -> Float[Array, "*batch hidden"]:
    """The embeddings of tokens: no other rows are read."""
    known = jnp.clip(tokens, 0, config.vocab_size - 1)
    embedding = params["embedding"]
    return dequantize_rows(embedding, known) if isinstance(embedding, AffineArray) else jnp.asarray(embedding)[known]


def hidden_dtype(params: Params) -> jnp.dtype:
    """That of the hidden states."""
    embedding = params["embedding"]
    return jnp.dtype(jnp.float32) if isinstance(embedding, AffineArray) else jnp.dtype(embedding.dtype)


@functools.partial(jax.jit, static_argnames="config")
def unembed(
    params: Params, hidden: Float[Array, "*batch hidden"], config: ModelConfig
) -> Float32[Array, "*batch vocab"]:
    """Logits of hidden states: the final norm and the output head."""
    normed = rms_norm(hidden, params["final_norm"], config.rms_norm_eps)
    head = params["embedding" if config.tie_embeddings else "head"]
    if isinstance(head, AffineArray):
        return matmul_affine(normed, head)
    return _matmul(normed, jnp.asarray(head).astype(normed.dtype))


def layer_forward(
    layer: Params,
    hidden: Float[Array, "batch seq hidden"],
    config: ModelConfig,
    *,
    precision: int | None = None,
    attention: Attention | None = None,
) -> Float[Array, "batch seq hidden"]:
    """One decoder layer over whole sequences that start at position 0.

    Args:
      layer: one layer's slice of `params["layers"]`.
      hidden: the output of the layer before, or of `embed`.
      config, precision, attention: as for `forward`.
    """
    positions = jnp.arange(hidden.shape[1])[None, :]
    angles = rotation(positions, head_dim=config.head_dim, theta=config.rope_theta, scaling=config.rope_scaling)
    attend = functools.partial(causal_attention, attention=dot_product_attention if attention is None else attention)
    attended = jax.vmap(attend)(*_attention_inputs(layer, hidden, angles, config, precision))
    return _layer_output(layer, hidden, attended, config, precision)


def rms_norm(
    x: Float[Array, "*batch hidden"], weight: Float[Array, " hidden"], eps: float
) -> Float[Array, "*batch hidden"]:
    """`x / sqrt(mean(x**2) + eps) * weight`, in float32, result in the dtype of `x`."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    weight = jnp.asarray(weight).astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
    return (wide * scale * weight).astype(x.dtype)


def linear(
    x: Float[Array, "*batch k"], weight: Any, bias: Float[Array, " n"] | None, precision: int | None
) -> Float[Array, "*batch n"]:
    """`x @ weight.T + bias`, in the dtype of `x`: the one place that knows what a weight can be.

    Args:
      x: inputs.
      weight: `[n, k]`: an array, an `AnyPrecArray`, a `StackedMatrix` or an `Observed` array.
      bias: or None.
      precision: bits at which to read an `AnyPrecArray`.
    """
    if isinstance(weight, Matrix | StackedMatrix):
        if precision is None:
            raise ValueError("an any-precision weight is read at a precision, and none was given")
        array, index = weight if isinstance(weight, StackedMatrix) else (weight, None)
        product = matmul(x, array, precision=precision, layer=index)
    elif isinstance(weight, Observed):
        product = observed_product(x, weight.weight.astype(x.dtype), weight.moment).astype(x.dtype)
    else:
        dense = jnp.asarray(weight).astype(x.dtype)
        product = _matmul(x, dense).astype(x.dtype)
    return product if bias is None else product + bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def _matmul(x: Array, weight: Array) -> Array:
    """`x @ weight.T` in float32, whatever the inputs are: float32 is not to become TF32 or bfloat16 on the way."""
    return jnp.einsum("...k,nk->...n", x, weight, precision="highest", preferred_element_type=jnp.float32)


@functools.partial(jax.jit, static_argnames=("config", "precision", "attention"))
def _whole_sequences(
    params: Params, tokens: Array, lengths: Array, config: ModelConfig, *, precision: int | None, attention: Attention
) -> Array:
    stacks, sliced = _split(params["layers"])

    def step(hidden: Array, indexed: tuple[Array, Params]) -> tuple[Array, None]:
        layer = _join(stacks, *indexed)
        return layer_forward(layer, hidden, config, precision=precision, attention=attention), None

    hidden, _ = jax.lax.scan(step, embed(params, tokens, config), (jnp.arange(config.num_layers), sliced))
    return _nan_unless(_are_known(tokens, lengths, config), hidden)


@functools.partial(jax.jit, static_argnames=("config", "precision", "attention"))
def _continued_sequences(
    params: Params,
    tokens: Array,
    lengths: Array,
    cache: KVCache,
    config: ModelConfig,
    *,
    precision: int | None,
    attention: Attention,
) -> tuple[Array, KVCache]:
    batch, seq = tokens.shape
    room = cache.values.shape[3]
    offsets = jnp.arange(seq, dtype=jnp.int32)[None, :]
    positions = cache.lengths[:, None] + offsets
    # Padding is written nowhere: the scatter below drops what is outside the cache.
    slots = jnp.where(offsets < lengths[:, None], positions, room + offsets)
    rows = jnp.arange(batch, dtype=jnp.int32)[:, None]
    stacks, sliced = _split(params["layers"])
    mask = jnp.arange(room, dtype=jnp.int32)[None, None, :] <= positions[:, :, None]
    angles = rotation(positions, head_dim=config.head_dim, theta=config.rope_theta, scaling=config.rope_scaling)

    # Keys and values of all layers are carried whole and written in place; as inputs and outputs of the scan they would be copied.
    def step(
        carry: tuple[Array, Array, Array], indexed: tuple[Array, Params]
    ) -> tuple[tuple[Array, Array, Array], None]:
        hidden, keys, values = carry
        index, layer = indexed[0], _join(stacks, *indexed)
        query, key, value = _attention_inputs(layer, hidden, angles, config, precision)
        keys = keys.at[index, rows, :, :, slots].set(key.astype(keys.dtype), mode="drop", unique_indices=True)
        values = values.at[index, rows, :, slots].set(value.astype(values.dtype), mode="drop", unique_indices=True)
        attended = _cached_attention(query, keys, values, index, mask, positions, attention)
        return (_layer_output(layer, hidden, attended, config, precision), keys, values), None

    start = (embed(params, tokens, config), cache.keys, cache.values)
    (hidden, keys, values), _ = jax.lax.scan(step, start, (jnp.arange(config.num_layers), sliced))
    fits = cache.lengths + lengths <= room
    hidden = _nan_unless(fits[:, None] & _are_known(tokens, lengths, config), hidden)
    return hidden, KVCache(keys, values, cache.lengths + lengths)


def _cached_attention(
    query: Array, keys: Array, values: Array, index: Array, mask: Array, positions: Array, attention: Attention
) -> Array:
    """`attention` of new positions [batch, seq, heads, head_dim] to what one layer's cache holds, themselves included.

    One position at a time, exact attention on CPU is a native call that reads the cache in place.
    """
    plain = functools.partial(_prefix_attention, attention=attention)
    is_step = query.shape[1] == 1 and attention is dot_product_attention
    if not is_step or query.dtype != jnp.float32 or keys.dtype != jnp.float32 or cpu.why_unavailable() is not None:
        return plain(query, keys, values, index, mask, positions)

    def native(query: Array, keys: Array, values: Array, index: Array, mask: Array, positions: Array) -> Array:
        # A row that does not fit into its cache becomes NaN elsewhere.
        lengths = jnp.clip(positions[:, 0] + 1, 1, mask.shape[2])
        return cpu.attention(query[:, 0], keys, values, index, lengths)[:, None]

    return jax.lax.platform_dependent(query, keys, values, index, mask, positions, cpu=native, default=plain)


def _prefix_attention(
    query: Array, keys: Array, values: Array, index: Array, mask: Array, positions: Array, *, attention: Attention
) -> Array:
    """The same in XLA, whatever `attention` is.

    One position at a time, only as much of the cache is read as is filled, up to the next power of two. That costs a compiled
    branch for every power: longer pieces read all of it.
    """
    room = mask.shape[2]

    def attend(size: int) -> Array:
        def prefix(cache: Array, axis: int) -> Array:
            """[batch, size, kv_heads, head_dim], as `attention` takes it, of a cache with positions along `axis`."""
            layer = jax.lax.dynamic_index_in_dim(cache, index, keepdims=False)
            layer = jax.lax.slice_in_dim(layer, 0, size, axis=axis)
            return jnp.moveaxis(layer, axis, 1).astype(query.dtype)

        return jax.vmap(attention)(query, prefix(keys, 3), prefix(values, 2), mask[:, :, :size])

    sizes = [room]
    while query.shape[1] == 1 and sizes[0] > _MIN_PREFIX:
        sizes.insert(0, -(-sizes[0] // 2))
    if len(sizes) == 1:
        return attend(room)
    filled = jnp.max(jnp.sum(mask, axis=-1))
    branch = jnp.searchsorted(jnp.asarray(sizes[:-1]), filled)
    return jax.lax.switch(branch, [functools.partial(attend, size) for size in sizes])


def _are_known(tokens: Array, lengths: Array, config: ModelConfig) -> Array:
    """bool [batch, seq]: no real token up to here is outside the vocabulary."""
    real = jnp.arange(tokens.shape[1])[None, :] < lengths[:, None]
    unknown = real & ((tokens < 0) | (tokens >= config.vocab_size))
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
    layer: Params, hidden: Array, angles: tuple[Array, Array], config: ModelConfig, precision: int | None
) -> tuple[Array, Array, Array]:
    """Query (rotated and scaled), key (rotated) and value of every position: [batch, seq, heads, head_dim] each."""
    normed = rms_norm(hidden, layer["input_norm"], config.rms_norm_eps)

    if "qkv_proj" in layer:
        sizes = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim)
        fused = _project(layer, "qkv_proj", normed, precision)
        projected = jnp.split(fused, (sizes[0], sum(sizes)), axis=-1)
    else:
        projected = [_project(layer, name, normed, precision) for name in ("q_proj", "k_proj", "v_proj")]
    query, key, value = (x.reshape(*hidden.shape[:2], -1, config.head_dim) for x in projected)
    query = rotate(query, *angles) * config.head_dim**-0.5
    return query.astype(hidden.dtype), rotate(key, *angles).astype(hidden.dtype), value


def _layer_output(layer: Params, hidden: Array, attended: Array, config: ModelConfig, precision: int | None) -> Array:
    """The rest of a layer after attention: the output projection and the gated MLP, each added to its input."""
    hidden = hidden + _project(layer, "o_proj", attended.reshape(*hidden.shape[:2], -1), precision)
    normed = rms_norm(hidden, layer["post_attention_norm"], config.rms_norm_eps)
    if "gate_up_proj" in layer:
        gate, up = jnp.split(_project(layer, "gate_up_proj", normed, precision), 2, axis=-1)
    else:
        gate, up = (_project(layer, name, normed, precision) for name in ("gate_proj", "up_proj"))
    return hidden + _project(layer, "down_proj", jax.nn.silu(gate) * up, precision)


def _project(layer: Params, name: str, x: Array, precision: int | None) -> Array:
    with jax.named_scope(name):
        return linear(x, layer[name], layer.get(f"{name}_bias"), precision)


def _check_precision(params: Params, precision: int | None) -> None:
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
