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

    @property
    def num_pairs(self) -> int:
        """Rotated pairs of a head."""
        return len(self.factors)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """LongRoPE (Ding et al., 2024): pair i's frequency divided by `short_factors[i]` in texts of up to
    `original_max_position_embeddings` tokens and by `long_factors[i]` in longer ones; cosine and sine multiplied by
    `attention_factor`.

    A text that grows past that length keeps the keys it has cached, as in `transformers`.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_position_embeddings: int
    attention_factor: float

    def __post_init__(self) -> None:
        for factor in (*self.short_factors, *self.long_factors):
            _require_number("factors", factor)
        if len(self.short_factors) != len(self.long_factors):
            raise ValueError(
                f"rope short_factor and long_factor must be as many, got {len(self.short_factors)} and {len(self.long_factors)}"
            )
        _require_positive(self, "original_max_position_embeddings", "attention_factor")

    @property
    def num_pairs(self) -> int:
        """Rotated pairs of a head."""
        return len(self.short_factors)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicScaling:
    """NTK-aware interpolation (bloc97 and emozilla, 2023): the base grows with the text once that is longer than
    `original_max_position_embeddings`.

    A text that grows keeps the keys it has cached, as in `transformers`.
    """

    factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        _require_positive(self, "factor", "original_max_position_embeddings")


RopeScaling: TypeAlias = (
    LinearScaling | Llama3Scaling | YarnScaling | FrequencyFactors | LongRopeScaling | DynamicScaling
)


def yarn_attention_factor(factor: float) -> float:
    """The factor on cosine and sine that the paper recommends (section 3.4) for a context `factor` times as long."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def scaling_from_huggingface(
    document: Mapping[str, Any], default_theta: float = _DEFAULT_THETA
) -> tuple[float, RopeScaling | None]:
    """Reads theta and scaling from a `config.json`: `rope_parameters`, or `rope_theta` and `rope_scaling` before `transformers` 5.

    Args:
      document: the JSON object.
      default_theta: where it does not say.

    Raises:
      ValueError: a scaling that is not supported (those that are get named), or a parameter that is missing or makes no sense.
    """
    given = document.get("rope_scaling") or document.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"rope_scaling should be a JSON object, got {given!r}")
    parameters = {key: value for key, value in given.items() if value is not None}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if not isinstance(kind, str) or kind not in _READERS:
        raise ValueError(f"rope scaling {kind!r} is not supported; supported are {', '.join(_READERS)}")
    longest = document.get("max_position_embeddings")
    original = document.get(_ORIGINAL) or parameters.get(_ORIGINAL) or longest
    if kind == "dynamic":
        original = longest
    parameters[_ORIGINAL] = original  # transformers looks in this order, too
    parameters.setdefault("factor", None)
    if kind == "longrope" and parameters["factor"] is None and longest and original:
        parameters["factor"] = real({"": longest}, "") / real({"": original}, "")
    theta = real({"rope_theta": document.get("rope_theta")} | parameters, "rope_theta", default_theta)
    return theta, _READERS[kind](parameters)


def scaling_to_huggingface(theta: float, scaling: RopeScaling | None, max_position_embeddings: int) -> dict[str, Any]:
    """The keys of `config.json` that describe the rotary embedding, in the old layout and in the new."""
    parameters: dict[str, Any] = {"rope_type": "default"}
    match scaling:
        case None:
            pass
        case FrequencyFactors(factors=factors):  # LongRoPE with the same factors for short texts and for long
            parameters = _longrope_to_huggingface(factors, factors, max_position_embeddings, 1.0)
        case LongRopeScaling():
            parameters = _longrope_to_huggingface(
                scaling.short_factors,
                scaling.long_factors,
                scaling.original_max_position_embeddings,
                scaling.attention_factor,
            )
        case DynamicScaling(factor=factor):
            parameters = {"rope_type": "dynamic", "factor": factor}
        case LinearScaling() | Llama3Scaling() | YarnScaling():
            parameters = {"rope_type": _NAMES[type(scaling)], **dataclasses.asdict(scaling)}
    return {
        "rope_theta": theta,
        "rope_scaling": None if scaling is None else parameters,
        "rope_parameters": {"rope_theta": theta, **parameters},
    }


def _longrope_to_huggingface(
    short: tuple[float, ...], long: tuple[float, ...], original: int, attention_factor: float
) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "original_max_position_embeddings": original,
        "short_factor": list(short),
        "long_factor": list(long),
        "attention_factor": attention_factor,
        "factor": 1.0,  # of no effect beside an attention_factor
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


def _read_longrope(parameters: Mapping[str, Any]) -> FrequencyFactors | LongRopeScaling:
    original, factor = _original_length(parameters), real(parameters, "factor", 1.0)
    derived = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    attention_factor = real(parameters, "attention_factor", derived)
    short, long = (_factors(parameters, key) for key in ("short_factor", "long_factor"))
    if short == long and attention_factor == 1:
        return FrequencyFactors(factors=short)
    return LongRopeScaling(
        short_factors=short,
        long_factors=long,
        original_max_position_embeddings=original,
        attention_factor=attention_factor,
    )


def _factors(parameters: Mapping[str, Any], key: str) -> tuple[float, ...]:
    given = parameters.get(key)
    if not isinstance(given, list):
        raise ValueError(f"rope scaling 'longrope' should have a list as {key}, got {given!r}")
    return tuple(real({key: factor}, key) for factor in given)


def _read_dynamic(parameters: Mapping[str, Any]) -> DynamicScaling:
    return DynamicScaling(
        factor=real(parameters, "factor"), original_max_position_embeddings=_original_length(parameters)
    )


_READERS: Mapping[str, Callable[[Mapping[str, Any]], RopeScaling | None]] = {
    "default": _read_default,
    "linear": _read_linear,
    "llama3": _read_llama3,
    "yarn": _read_yarn,
    "longrope": _read_longrope,
    "su": _read_longrope,  # the name that Phi-3 gave it first
    "dynamic": _read_dynamic,
}
_NAMES = {LinearScaling: "linear", Llama3Scaling: "llama3", YarnScaling: "yarn"}


def _require_positive(scaling: object, *names: str) -> None:
    for name in names:
        _require_number(name, getattr(scaling, name))


def _require_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _FLOAT32_MAX:
        raise ValueError(f"rope {name} must be a positive number, got {value!r}")
