"""The papers' formulas, edge by edge in float64: what a layer gives for lists of neighbours."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ginex_jax.models.config import ModelConfig


def layer(
    config: ModelConfig,
    parameters: dict[str, Any],
    index: int,
    lists: Sequence[Sequence[int]],
    x: np.ndarray,
    degrees: np.ndarray,
) -> np.ndarray:
    """Layer `index` for destinations 0 up to len(lists), which have these sources as neighbours. `degrees` are those of the sources."""
    is_last = index == config.num_layers - 1
    rows = LAYERS[config.kind](
        config, wide(parameters["params"][f"layers_{index}"]), lists, x.astype(np.float64), degrees, is_last
    )
    if is_last:
        return np.array(rows)
    return np.array([elu(row) if config.kind == "gat" else np.maximum(row, 0) for row in rows])


def network(
    config: ModelConfig,
    parameters: dict[str, Any],
    hops: Sequence[Sequence[Sequence[int]]],
    x: np.ndarray,
    degrees: np.ndarray,
) -> np.ndarray:
    for index, lists in enumerate(hops):
        x = layer(config, parameters, index, lists, x, degrees)
    return x


def wide(tree: Any) -> Any:
    return {k: wide(v) for k, v in tree.items()} if isinstance(tree, dict) else np.asarray(tree, np.float64)


def elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def sage(config, p, lists, x, degrees, is_last):
    rows = []
    for v, neighbors in enumerate(lists):
        total = np.zeros(x.shape[1])
        if config.aggregator == "mean":
            for u in neighbors:
                total = total + x[u] / len(neighbors)
        else:
            for u in neighbors:  # at least 0 each, so that 0 is where to start from
                total = np.maximum(total, np.maximum(x[u] @ p["pool"]["kernel"] + p["pool"]["bias"], 0))
        rows.append(x[v] @ p["own"]["kernel"] + total @ p["neighbors"]["kernel"] + p["neighbors"]["bias"])
    return rows


def gcn(config, p, lists, x, degrees, is_last):
    rows = []
    for v, neighbors in enumerate(lists):
        total = np.zeros(x.shape[1])
        for u in neighbors:
            total = total + x[u] / np.sqrt((degrees[u] + 1.0) * (degrees[v] + 1.0)) * degrees[v] / len(neighbors)
        total = total + x[v] / (degrees[v] + 1.0)
        rows.append(total @ p["dense"]["kernel"] + p["dense"]["bias"])
    return rows


def gat(config, p, lists, x, degrees, is_last):
    rows = []
    for v, neighbors in enumerate(lists):
        heads = []
        for head in range(config.num_heads):
            kernel = p["dense"]["kernel"][:, head]
            scores = []
            for u in [*neighbors, v]:
                score = x[u] @ kernel @ p["source_attention"][head] + x[v] @ kernel @ p["destination_attention"][head]
                scores.append(score if score > 0 else 0.2 * score)
            shares = np.exp(np.array(scores) - max(scores))
            shares = shares / shares.sum()
            heads.append(sum(share * (x[u] @ kernel) for share, u in zip(shares, [*neighbors, v], strict=True)))
        rows.append((np.mean(heads, axis=0) if is_last else np.concatenate(heads)) + p["bias"])
    return rows


LAYERS = {"sage": sage, "gcn": gcn, "gat": gat}
