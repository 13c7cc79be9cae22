"""What `config.json` says of single layers: which have a window, which are not rotated."""

from collections.abc import Mapping, Sequence
from typing import Any

from anyprec_jax.models.config import ModelConfig

SLIDING, FULL = "sliding_attention", "full_attention"


def window_of_all(document: Mapping[str, Any], default: int | None) -> dict[str, Any]:
    """Every layer has the window that `sliding_window` gives; null is none."""
    return {"window": document.get("sliding_window", default)}


def window_of_some(
    document: Mapping[str, Any], fields: Mapping[str, Any], window: int | None, usual: Sequence[str]
) -> dict[str, Any]:
    """`layer_types` says which layers have the window, `usual` does where it is absent."""
    kinds = document.get("layer_types")
    kinds = usual if kinds is None else kinds
    count = fields["num_layers"]
    known = isinstance(kinds, list | tuple) and len(kinds) == count and set(kinds) <= {SLIDING, FULL}
    if not known:
        raise ValueError(f"layer_types should say {SLIDING} or {FULL} for each of {count!r} layers, got {kinds!r}")
    if window is None or SLIDING not in kinds:
        return {}
    return {"window": window, "global_layers": tuple(layer for layer, kind in enumerate(kinds) if kind == FULL)}


def window_if_used(document: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen: a window only with `use_sliding_window`, in the layers from `max_window_layers` on."""
    count = count_of(fields)
    first = document.get("max_window_layers", 28)
    if not isinstance(first, int):
        raise ValueError(f"max_window_layers should be an integer, got {first!r}")
    window = document.get("sliding_window", 4096) if document.get("use_sliding_window") else None
    usual = [SLIDING if window is not None and layer >= first else FULL for layer in range(count)]
    return window_of_some(document, fields, window, usual)


def layer_types(config: ModelConfig) -> list[str]:
    """The kinds of a model's layers, as `config.json` spells them."""
    is_full = [config.window is None or layer in config.global_layers for layer in range(config.num_layers)]
    return [FULL if full else SLIDING for full in is_full]


def written_windows(config: ModelConfig) -> dict[str, Any]:
    """The keys that `window_of_some` reads."""
    return {"layer_types": layer_types(config), "sliding_window": config.window}


def written_windows_if_used(config: ModelConfig) -> dict[str, Any]:
    """The keys that `window_if_used` reads."""
    return {
        **written_windows(config),
        "use_sliding_window": config.window is not None,
        "max_window_layers": config.num_layers,
    }


def count_of(fields: Mapping[str, Any]) -> int:
    """The number of layers, or 0 where it is none: `ModelConfig` says what it should be."""
    count = fields["num_layers"]
    return count if isinstance(count, int) and 0 < count < 1_000_000 else 0
