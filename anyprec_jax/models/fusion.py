"""Linears that read the same input, made one: a decode step then makes four products a layer instead of seven.

The query, key and value projections become `qkv_proj`, gate and up `gate_up_proj`: stacks whose rows are the rows of the parts, in
that order. Rows of a matrix are independent: a decode step computes the same to the bit (of many rows at once XLA's dense product may
order its sums otherwise). Only any-precision stacks are fused, and only in memory: artefacts hold the seven linears.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from anyprec_jax.array import AnyPrecArray
from anyprec_jax.layout import natural

PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
)
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def linears(layers: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of the linears, fused or not, by name."""
    return {name: layers[name] for name in (*LINEARS, *PARTS) if name in layers}


def fused(layers: Mapping[str, Any]) -> dict[str, Any]:
    """Fuses what can be: parts that are any-precision stacks of the same k and precisions. The others stay as they are.

    `layers` is one level of the tree that `decoder` describes. While one linear is fused it exists twice.
    """
    result = dict(layers)
    for whole, parts in PARTS.items():
        if not _are_alike([result.get(part) for part in parts]):
            continue
        result[whole] = _join([result.pop(part) for part in parts])
        if f"{parts[0]}_bias" in result:
            result[f"{whole}_bias"] = jnp.concatenate([result.pop(f"{part}_bias") for part in parts], axis=-1)
    return result


def unfused(layers: Mapping[str, Any]) -> dict[str, Any]:
    """The seven linears again. Slices of NumPy leaves share their memory, those of JAX arrays are copies."""
    result = dict(layers)
    for whole, parts in PARTS.items():
        if whole not in result:
            continue
        rows = part_rows(result, whole)
        weight, bias = natural(result.pop(whole)), result.pop(f"{whole}_bias", None)
        for part, (start, stop) in zip(parts, rows, strict=True):
            result[part] = jax.tree.map(lambda leaf, start=start, stop=stop: leaf[..., start:stop, :], weight)
            if bias is not None:
                result[f"{part}_bias"] = bias[..., start:stop]
    return result


def part_rows(layers: Mapping[str, Any], whole: str) -> list[tuple[int, int]]:
    """Where the rows of each part of a fused linear start and stop.

    Keys and values have as many, and queries as the output projection has inputs; gate and up are halves.
    """
    n = layers[whole].shape[-2]
    if whole == "qkv_proj":
        queries = layers["o_proj"].shape[-1]
        sizes = (queries, (n - queries) // 2, (n - queries) // 2)
    else:
        sizes = (n // 2, n // 2)
    stops = np.cumsum(sizes).tolist()
    return list(zip([0, *stops[:-1]], stops, strict=True))


def _are_alike(parts: list[Any]) -> bool:
    if not all(isinstance(part, AnyPrecArray) for part in parts):
        return False
    kinds = [(jax.tree.structure(part), part.bitplanes.ndim) for part in parts]  # k, precisions and kind of codebooks
    return all(kind == kinds[0] for kind in kinds)


def _join(parts: list[AnyPrecArray]) -> AnyPrecArray:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=-2), *parts)
