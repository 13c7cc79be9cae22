"""How a model lies on several devices, and what they tell each other: tensor parallelism (Shoeybi et al., Megatron-LM, 2019).

Every device computes its share of every layer. The rows of the query, key and value projections are split by whole heads, and those of gate
and up; what comes out stays split. The columns of the output and down projections are split likewise, so that every device multiplies
what it has, and the products are summed over devices: two all-reduces a layer, and hidden states that all devices have whole. Embedding
and head are split by rows of the vocabulary.

A linear that cannot be cut this way is cut another (`plan` says when), at the price of an all-gather, or is whole on every device.

A `Split` travels with the weights, under "split" in every level of the tree that `decoder` describes: whoever computes with them sees it,
and runs on the devices of its mesh (`on_every_device`). There, each sees a `Share` in its place.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from anyprec_jax.affine import AffineArray
from anyprec_jax.array import AnyPrecArray
from anyprec_jax.bitplanes import WORD_BITS
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.families import LAYERS, parameter_shapes

AXIS = "model"  # of the mesh, along which weights are split
SPLIT, SHARE = "split", "share"
CutBy: TypeAlias = Literal["rows", "columns", "nothing"]

_ATTENTION = ("q_proj", "k_proj", "v_proj")
_INNER = ("gate_proj", "up_proj")
_OUTPUTS = ("o_proj", "down_proj")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """How one linear is computed by several devices."""

    by: CutBy = "nothing"
    takes_share: bool = False  # each device has its share of the columns of x, and not all of x
    gives_share: bool = False  # each device is left with the outputs of its rows


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Share:
    """What a device sees in place of a `Split`."""

    split: "Split"


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Split:
    """How a model lies on a mesh. Made by `plan`."""

    mesh: Mesh
    config: ModelConfig  # of the whole model
    cuts: tuple[tuple[str, Cut], ...]  # of the linears
    has_split_heads: bool  # attention is computed where its heads are; otherwise everywhere, of all heads
    has_split_vocabulary: bool

    @property
    def num_devices(self) -> int:
        """Devices that share the model."""
        return self.mesh.shape[AXIS]

    @property
    def share_config(self) -> ModelConfig:
        """What the decoder is to believe of the model on each device."""
        if not self.has_split_heads:
            return self.config
        heads, kv_heads = self.config.num_heads // self.num_devices, self.config.num_kv_heads // self.num_devices
        return dataclasses.replace(self.config, num_heads=heads, num_kv_heads=kv_heads)

    @property
    def cache_spec(self) -> P:
        """Of keys and values: [layers, batch, kv_heads, ...]."""
        return P(None, None, AXIS) if self.has_split_heads else P()

    def cut(self, linear: str) -> Cut:
        """That of a linear."""
        return dict(self.cuts)[linear]

    def specs(self, level: Mapping[str, Any]) -> dict[str, Any]:
        """A level of the tree with a `PartitionSpec` for every leaf; leaves may be of one layer or of all."""
        specs: dict[str, Any] = {}
        for name, leaf in level.items():
            if isinstance(leaf, Split):
                specs[name] = leaf
            else:
                specs[name] = self.specs(leaf) if isinstance(leaf, Mapping) else _specs(leaf, self._axis_of(name))
        return specs

    def plain_spec(self, name: str, num_axes: int) -> P:
        """Of a parameter that is a plain array."""
        return _spec(num_axes, self._axis_of(name))

    def _axis_of(self, name: str) -> int | None:
        """The axis of the weights that is cut, counted from the end."""
        if name in ("embedding", "head"):
            return -2 if self.has_split_vocabulary else None
        if name in ("q_norm", "k_norm"):
            return -2 if self.has_split_heads and self.config.head_norm == "separate" else None
        cuts = dict(self.cuts)
        if name.endswith("_bias") and (cut := cuts.get(name.removesuffix("_bias"))) is not None:
            return -1 if cut.by == "rows" else None
        by = cuts[name].by if name in cuts else "nothing"
        return {"rows": -2, "columns": -1, "nothing": None}[by]


def plan(config: ModelConfig, quantized: Collection[str], mesh: Mesh) -> Split:
    """How a model is split over the devices along the axis "model" of a mesh.

    Args:
      config: the model's, key heads already repeated where there are fewer than devices (`sharding.placed` does).
      quantized: the linears that are any-precision matrices: their columns are cut between words of 32.
      mesh: devices along its other axes compute the same.

    Heads stay together if the number of query or key heads does not divide, or queries and keys are normed over all heads: then the rows of
    the three projections are split and their outputs gathered. The columns of the output and down projections are split where every device
    gets as many words; otherwise their rows, with x and their outputs gathered. Experts are split like an MLP, every one of them, or not at
    all; their outputs are summed over devices once they are mixed. What does not divide at all is whole on every device.

    Raises:
      ValueError: the mesh has no axis "model".
    """
    if AXIS not in mesh.shape:
        raise ValueError(f"the mesh should have an axis {AXIS!r}, along which weights are split, got {mesh.axis_names}")
    mesh = Mesh(mesh.devices, mesh.axis_names)  # axes of which the compiler sees nothing until it is told
    devices, shapes = mesh.shape[AXIS], parameter_shapes(config)
    has_split_heads = divides(config, devices)
    cuts: dict[str, Cut] = {}
    for name in (name for name in (*_ATTENTION, *_INNER, *_OUTPUTS) if f"{LAYERS}{name}" in shapes):
        n, k = shapes[f"{LAYERS}{name}"][-2:]
        has_rows, has_columns = n % devices == 0, k % (devices * (WORD_BITS if name in quantized else 1)) == 0
        if name in _ATTENTION:
            cuts[name] = Cut(by="rows" if has_rows else "nothing", gives_share=has_split_heads)
        elif name in _INNER:
            cuts[name] = Cut(by="rows", gives_share=True) if has_rows else Cut()
        else:
            takes_share = has_split_heads if name == "o_proj" else k % devices == 0
            by = "columns" if has_columns else "rows" if has_rows else "nothing"
            cuts[name] = Cut(by=by, takes_share=takes_share)
    if config.num_experts and cuts["down_proj"].by != "columns":
        cuts |= {name: Cut() for name in (*_INNER, "down_proj") if name in cuts}
    return Split(
        mesh=mesh,
        config=config,
        cuts=tuple(cuts.items()),
        has_split_heads=has_split_heads,
        has_split_vocabulary=config.vocab_size % devices == 0,
    )


def cut_axis(parameter: str) -> int:
    """Along which axis of its weights a parameter is cut wherever it can be, from the end; for whoever stores it."""
    return -1 if parameter.removeprefix(LAYERS) in _OUTPUTS else -2


def divides(config: ModelConfig, num_devices: int) -> bool:
    """Whether attention can be computed head by head on so many devices."""
    return (
        config.num_heads % num_devices == 0 and config.num_kv_heads % num_devices == 0 and config.head_norm != "joint"
    )


def on_every_device(
    function: Callable[..., Any],
    params: Mapping[str, Any],
    operands: Sequence[Any],
    *,
    in_specs: Sequence[Any] | None = None,
    out_specs: Any = None,
) -> Any:
    """`function(params, *operands, config)` on every device, with its share of the weights and the settings it is to believe.

    Args:
      function: communicates by `taken`, `summed`, `gathered` and the other functions below.
      params: a level of the tree, with a `Split`.
      operands: whole on every device, unless `in_specs` says otherwise.
      in_specs: of the operands.
      out_specs: of the result, which is whole on every device unless they say otherwise.
    """
    split: Split = params[SPLIT]

    def local(params: Mapping[str, Any], *operands: Any) -> Any:
        return function(_share_of(params, split), *operands, split.share_config)

    specs = tuple(P() for _ in operands) if in_specs is None else tuple(in_specs)
    mapped = jax.shard_map(
        local,
        mesh=split.mesh,
        in_specs=(split.specs(params), *specs),
        out_specs=P() if out_specs is None else out_specs,
        check_vma=False,  # custom calls say nothing of it
    )
    return mapped(params, *operands)


def _share_of(level: Mapping[str, Any], split: Split) -> dict[str, Any]:
    """A level of the tree as a device has it: `k` is static, and is that of the share."""
    result: dict[str, Any] = {SHARE: Share(split)}
    for name, leaf in level.items():
        if isinstance(leaf, Mapping):
            result[name] = _share_of(leaf, split)
        elif isinstance(leaf, AnyPrecArray) and split.cut(name).by == "columns":
            result[name] = dataclasses.replace(leaf, k=leaf.k // split.num_devices)
        elif name != SPLIT:
            result[name] = leaf
    return result


def taken(level: Mapping[str, Any], name: str, x: Array) -> Array:
    """The columns of a linear's input that this device multiplies."""
    if (cut := _cut(level, name)) is None or (cut.by == "columns") == cut.takes_share:
        return x
    if cut.takes_share:
        return jax.lax.all_gather(x, AXIS, axis=x.ndim - 1, tiled=True)
    size = x.shape[-1] // level[SHARE].split.num_devices
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(AXIS) * size, size, axis=-1)


def summed(level: Mapping[str, Any], name: str, product: Array) -> Array:
    """What a linear's columns give together."""
    cut = _cut(level, name)
    return product if cut is None or cut.by != "columns" else jax.lax.psum(product, AXIS)


def gathered(level: Mapping[str, Any], name: str, outputs: Array) -> Array:
    """A linear's outputs, biases added, as who comes after it wants them."""
    cut = _cut(level, name)
    if cut is None or cut.by != "rows" or cut.gives_share:
        return outputs
    return jax.lax.all_gather(outputs, AXIS, axis=outputs.ndim - 1, tiled=True)


def _cut(level: Mapping[str, Any], name: str) -> Cut | None:
    return level[SHARE].split.cut(name) if SHARE in level else None


def has_split_vocabulary(level: Mapping[str, Any]) -> bool:
    """Whether this device has a share of embedding and head."""
    return SHARE in level and level[SHARE].split.has_split_vocabulary


def own_rows(ids: Array, rows: Callable[[Array], Array], num_rows: int) -> Array:
    """`rows(ids)` of an embedding of which each device has `num_rows`: all others add zeros, so that the sum is exact."""
    local = ids - jax.lax.axis_index(AXIS) * num_rows
    is_here = (local >= 0) & (local < num_rows)
    found = rows(jnp.clip(local, 0, num_rows - 1))
    return jax.lax.psum(jnp.where(is_here[..., None], found, jnp.zeros_like(found)), AXIS)


def all_logits(logits: Array) -> Array:
    """Those of the whole vocabulary."""
    return jax.lax.all_gather(logits, AXIS, axis=logits.ndim - 1, tiled=True)


def _specs(leaf: Any, axis: int | None) -> Any:
    """Of an array, or of all leaves of a matrix."""
    if isinstance(leaf, AnyPrecArray):
        # Whatever kind they are, rows have codebooks of their own, and columns share them.
        books = jax.tree.map(lambda book: _spec(book.ndim, axis if axis == -2 else None), leaf.codebooks)
        return dataclasses.replace(leaf, bitplanes=_spec(leaf.bitplanes.ndim, axis), codebooks=books)
    if isinstance(leaf, AffineArray):
        return jax.tree.map(lambda _: P() if axis is None else P(AXIS), leaf)
    return _spec(leaf.ndim, axis)


def _spec(num_axes: int, axis: int | None) -> P:
    """The axis of the mesh at `axis`, counted from the end."""
    if axis is None:
        return P()
    return P(*(AXIS if position == num_axes + axis else None for position in range(num_axes)))


def shardings(level: Mapping[str, Any], split: Split) -> dict[str, Any]:
    """`Split.specs` as shardings of the mesh."""
    return jax.tree.map(
        lambda spec: NamedSharding(split.mesh, spec), split.specs(level), is_leaf=lambda leaf: isinstance(leaf, P)
    )
