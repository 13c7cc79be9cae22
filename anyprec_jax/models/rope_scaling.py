"""The ways of stretching rotary embedding to longer contexts, and how `config.json` spells them."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

_FLOAT32_MAX = 2.0**127
_DEFAULT_THETA = 10_000.0
_ORIGINAL = "original_max_position_embeddings"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Position interpolation (Chen et al., 2023): every frequency divided by `factor`."""

    factor: float

    def __post_init__(self) -> None:
        _require_positive(self, "factor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1: wavelengths above `original / low_freq_factor` are divided by `factor`, those below `original / high_freq_factor`
    are left alone, and those between are blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        _require_positive(self, "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor {self.high_freq_factor} must exceed low_freq_factor {self.low_freq_factor}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (Peng et al., 2023): pairs that turn less than `beta_slow` times in the original context are interpolated, those that
    turn more than `beta_fast` times are not, a linear ramp lies between, and cosine and sine are multiplied by `attention_factor`.

    `truncate` rounds the ends of the ramp outwards to whole pairs.
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        names = ("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow")
        _require_positive(self, *names)
        if not isinstance(self.truncate, bool):
            raise ValueError(f"rope truncate must be true or false, got {self.truncate!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrequencyFactors:
    """Pair i's frequency divided by `factors[i]`: what a GGUF file stores, and LongRoPE with one set of factors."""

    factors: tuple[float, ...]

    def __post_init__(self) -> None:
        for factor in self.factors:
            _require_number("factors", factor)


RopeScaling: TypeAlias = LinearScaling | Llama3Scaling | YarnScaling | FrequencyFactors


def yarn_attention_factor(factor: float) -> float:
    """The factor on cosine and sine that the paper recommends (section 3.4) for a context `factor` times as long."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def scaling_from_huggingface(document: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Reads theta and scaling from a `config.json`: `rope_parameters`, or `rope_theta` and `rope_scaling` before `transformers` 5.

    Raises:
      ValueError: a scaling that is not supported (those that are get named), or a parameter that is missing or makes no sense.
    """
    given = document.get("rope_scaling") or document.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"rope_scaling should be a JSON object, got {given!r}")
    parameters = {key: value for key, value in given.items() if value is not None}
    for settings in (parameters, document):
        if settings.get("partial_rotary_factor") not in (None, 1):
            raise ValueError(
                f"partial_rotary_factor {settings['partial_rotary_factor']!r} is not supported; supported is 1"
            )
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if not isinstance(kind, str) or kind not in _READERS:
        raise ValueError(f"rope scaling {kind!r} is not supported; supported are {', '.join(_READERS)}")
    original = document.get(_ORIGINAL) or parameters.get(_ORIGINAL) or document.get("max_position_embeddings")
    parameters[_ORIGINAL] = original  # transformers looks in this order, too
    theta = real({"rope_theta": document.get("rope_theta")} | parameters, "rope_theta", _DEFAULT_THETA)
    return theta, _READERS[kind](parameters)


def scaling_to_huggingface(theta: float, scaling: RopeScaling | None, max_position_embeddings: int) -> dict[str, Any]:
    """The keys of `config.json` that describe the rotary embedding, in the old layout and in the new."""
    parameters: dict[str, Any] = {"rope_type": "default"}
    match scaling:
        case None:
            pass
        case FrequencyFactors(factors=factors):
            # What transformers calls LongRoPE is this, with one set of factors for short texts and one for long.
            parameters = {"rope_type": "longrope", "original_max_position_embeddings": max_position_embeddings}
            parameters |= {
                "short_factor": list(factors),
                "long_factor": list(factors),
                "attention_factor": 1.0,
                "factor": 1.0,
            }
        case LinearScaling() | Llama3Scaling() | YarnScaling():
            parameters = {"rope_type": _NAMES[type(scaling)], **dataclasses.asdict(scaling)}
    return {
        "rope_theta": theta,
        "rope_scaling": None if scaling is None else parameters,
        "rope_parameters": {"rope_theta": theta, **parameters},
    }


def real(settings: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A number of a JSON object, which may be written as an integer."""
    value = default if settings.get(key) is None else settings[key]
    if value is None:
        raise ValueError(f"{key} is missing")
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _FLOAT32_MAX:
        raise ValueError(f"{key} should be a number, got {value!r}")
    return float(value)


def _original_length(parameters: Mapping[str, Any]) -> int:
    length = real(parameters, _ORIGINAL)
    if not length.is_integer():
        raise ValueError(f"{_ORIGINAL} should be an integer, got {length}")
    return int(length)


def _read_default(parameters: Mapping[str, Any]) -> None:
    return None


def _read_linear(parameters: Mapping[str, Any]) -> LinearScaling:
    return LinearScaling(factor=real(parameters, "factor"))


def _read_llama3(parameters: Mapping[str, Any]) -> Llama3Scaling:
    return Llama3Scaling(
        factor=real(parameters, "factor"),
        low_freq_factor=real(parameters, "low_freq_factor"),
        high_freq_factor=real(parameters, "high_freq_factor"),
        original_max_position_embeddings=_original_length(parameters),
    )


def _read_yarn(parameters: Mapping[str, Any]) -> YarnScaling:
    if parameters.get("mscale") or parameters.get("mscale_all_dim"):
        raise ValueError("rope scaling 'yarn' with mscale is not supported: give its attention_factor")
    factor, truncate = real(parameters, "factor"), parameters.get("truncate", True)
    if not isinstance(truncate, bool):
        raise ValueError(f"rope truncate must be true or false, got {truncate!r}")
    return YarnScaling(
        factor=factor,
        original_max_position_embeddings=_original_length(parameters),
        attention_factor=real(parameters, "attention_factor", yarn_attention_factor(factor)),
        beta_fast=real(parameters, "beta_fast", 32.0),
        beta_slow=real(parameters, "beta_slow", 1.0),
        truncate=truncate,
    )


def _read_longrope(parameters: Mapping[str, Any]) -> FrequencyFactors:
    short, long = parameters.get("short_factor"), parameters.get("long_factor")
    if not isinstance(short, list) or short != long or parameters.get("attention_factor") != 1:
        raise ValueError(
            "rope scaling 'longrope' is supported with equal short_factor and long_factor and attention_factor 1"
        )
    return FrequencyFactors(factors=tuple(real({"factor": factor}, "factor") for factor in short))


_READERS: Mapping[str, Callable[[Mapping[str, Any]], RopeScaling | None]] = {
    "default": _read_default,
    "linear": _read_linear,
    "llama3": _read_llama3,
    "yarn": _read_yarn,
    "longrope": _read_longrope,
}
_NAMES = {LinearScaling: "linear", Llama3Scaling: "llama3", YarnScaling: "yarn"}


def _require_positive(scaling: object, *names: str) -> None:
    for name in names:
        _require_number(name, getattr(scaling, name))


def _require_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _FLOAT32_MAX:
        raise ValueError(f"rope {name} must be a positive number, got {value!r}")
