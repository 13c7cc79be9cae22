"""Steps of a language model's decoding with A3 inside: what the next tokens' probabilities lose, and what it costs."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int, Int32

from a3_jax.workloads.decode_attention import StepResult, StepSetting, attend_steps
from a3_jax.workloads.decode_inputs import Concentration, StepInputs, concentration
from a3_jax.workloads.encoder_attention import Setting
from a3_jax.workloads.retrieval import QueryCounts

Attend: TypeAlias = Callable[[StepInputs], Float[np.ndarray, "heads steps d"]]
# A model that has read a text exactly up to its steps. It calls what it is given once a layer, in the order of the layers, goes on with
# what that returns, and gives the logits of the next token at every step.
Steps: TypeAlias = Callable[[Attend], Float[np.ndarray, "steps vocab"]]
Progress: TypeAlias = Callable[[str], object]

QUALITIES = ("recall", "mass", "mass_beyond_first", "error")


class Text(NamedTuple):
    """Attributes:
    steps: the model at the last positions of the text.
    targets: the token that comes next at each of them.
    """

    steps: Steps
    targets: Int[np.ndarray, " steps"]


class StepRun(NamedTuple):
    """What a setting did: one entry for every query of every text, layer, head and step, in this order.

    Attributes:
      setting: the one.
      counts: n, M, C and K.
      layer: which one asked.
      recall, mass, mass_beyond_first, error: as in `StepResult`. With errors that went through the layers before, "exact" is exact
        attention with the queries, keys and values that these left.
      nll: negative log-likelihood of the next token at every step of every text, nats; empty without a model.
      kl: divergence of the next token's probabilities from those with exact attention, nats.
    """

    setting: StepSetting
    counts: QueryCounts
    layer: Int32[np.ndarray, " queries"]
    recall: Float[np.ndarray, " queries"]
    mass: Float[np.ndarray, " queries"]
    mass_beyond_first: Float[np.ndarray, " queries"]
    error: Float[np.ndarray, " queries"]
    nll: Float[np.ndarray, " scored"]
    kl: Float[np.ndarray, " scored"]

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.nll.mean()))


class Decoded(NamedTuple):
    """The runs, exact attention first, and how peaked that is: one entry a query, as in a run."""

    runs: list[StepRun]
    concentration: Concentration


class TextRun(NamedTuple):
    """Of one text: the run, the next token's log-probabilities, and, if attention was exact, how peaked that is."""

    run: StepRun
    log_probabilities: Float[np.ndarray, "steps vocab"]
    concentration: Concentration | None


def decode_texts(
    texts: Iterable[Text],
    settings: Sequence[StepSetting],
    *,
    top: int = 5,
    progress: Progress = lambda setting: None,
) -> Decoded:
    """Every text with every setting, the first of which is exact; errors go on from layer to layer.

    Args:
      texts: taken one at a time.
      top: rows that `recall` looks for.
      progress: told the setting's name before each run.

    Raises:
      ValueError: settings that do not start with an exact one, no texts, logits that do not fit the targets, and as `attend_steps`.
    """
    _check_settings(settings)
    of_texts = []
    for text in texts:
        exact = None
        for setting in settings:
            progress(setting.name)
            of_texts.append(decode_text(text, setting, exact=exact, top=top))
            exact = of_texts[-1] if exact is None else exact
    return joined(of_texts, len(settings))


def decode_text(text: Text, setting: StepSetting, *, exact: TextRun | None, top: int = 5) -> TextRun:
    """One text with one setting; `exact` is that text's run with exact attention, None if this is it. Errors as `decode_texts`."""
    results: list[StepResult] = []
    peaked: list[Concentration] = []

    def attend(inputs: StepInputs) -> Float[np.ndarray, "heads steps d"]:
        results.append(attend_steps(inputs, setting, top=top))
        if exact is None:
            peaked.append(concentration(inputs))
        return results[-1].output

    logits = text.steps(attend)
    if logits.ndim != 2 or len(logits) != len(text.targets):
        raise ValueError(f"logits: wanted [{len(text.targets)}, vocab], got {list(logits.shape)}")
    found = _log_softmax(logits)
    expected = found if exact is None else exact.log_probabilities
    nll = -found[np.arange(len(found)), text.targets]
    kl = (np.exp(expected) * (expected - found)).sum(1)
    return TextRun(_run(setting, results, nll, kl), found, _joined_concentration(peaked) if peaked else None)


def joined(of_texts: Sequence[TextRun], num_settings: int) -> Decoded:
    """Runs of `decode_text`: text by text, and of each all settings in one order, the exact one first. ValueError for no texts."""
    peaked = [found.concentration for found in of_texts if found.concentration is not None]
    return _decoded([[found.run for found in of_texts[place::num_settings]] for place in range(num_settings)], peaked)


def measure_steps(
    texts: Iterable[Iterable[StepInputs]],
    settings: Sequence[StepSetting],
    *,
    top: int = 5,
    progress: Progress = lambda setting: None,
) -> Decoded:
    """The layers of texts with every setting, each with the inputs that are given: nothing goes on to a later layer.

    Arguments and errors are those of `decode_texts`; a text is its layers, and `progress` is told before each of them.
    """
    _check_settings(settings)
    runs: list[list[StepRun]] = [[] for _ in settings]
    peaked = []
    nothing = np.zeros(0)
    for layers in texts:
        results: list[list[StepResult]] = [[] for _ in settings]
        for number, inputs in enumerate(layers):
            progress(f"layer {number}")
            peaked.append(concentration(inputs))
            for place, setting in enumerate(settings):
                results[place].append(attend_steps(inputs, setting, top=top))
        for place, setting in enumerate(settings):
            runs[place].append(_run(setting, results[place], nothing, nothing))
    return _decoded(runs, peaked)


def record_inputs(steps: Steps) -> list[StepInputs]:
    """What every layer attends with, the layers before it attending exactly."""
    exact = StepSetting(selection=Setting(name="exact"))
    inputs: list[StepInputs] = []

    def attend(layer: StepInputs) -> Float[np.ndarray, "heads steps d"]:
        inputs.append(layer)
        return attend_steps(layer, exact).output

    steps(attend)
    return inputs


def _check_settings(settings: Sequence[StepSetting]) -> None:
    if not settings or not settings[0].is_exact:
        raise ValueError("settings: wanted exact attention first, which the others are compared with")


def _log_softmax(logits: Float[np.ndarray, "steps vocab"]) -> Float[np.ndarray, "steps vocab"]:
    """In float64: differences of exact and approximate ones are small."""
    wide = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(1, keepdims=True))


def _run(
    setting: StepSetting,
    layers: Sequence[StepResult],
    nll: Float[np.ndarray, " steps"],
    kl: Float[np.ndarray, " steps"],
) -> StepRun:
    """Of one text."""
    if not layers:
        raise ValueError("texts: wanted at least one layer of each")

    def flat(name: str) -> np.ndarray:
        return np.concatenate([getattr(layer, name).ravel() for layer in layers])

    counts = QueryCounts(flat("n"), flat("M"), flat("C"), flat("K"), keys=sum(layer.keys for layer in layers))
    layer = np.repeat(np.arange(len(layers), dtype=np.int32), [layer.n.size for layer in layers])
    return StepRun(setting, counts, layer, nll=nll, kl=kl, **{name: flat(name) for name in QUALITIES})


def _decoded(runs: Sequence[Sequence[StepRun]], peaked: Sequence[Concentration]) -> Decoded:
    """Texts joined."""
    if not peaked:
        raise ValueError("texts: wanted at least one")
    return Decoded([_joined(of_texts) for of_texts in runs], _joined_concentration(peaked))


def _joined_concentration(peaked: Sequence[Concentration]) -> Concentration:
    """One entry a query."""
    return Concentration(*(np.concatenate([array.ravel() for array in arrays]) for arrays in zip(*peaked, strict=True)))


def _joined(runs: Sequence[StepRun]) -> StepRun:
    counts = (np.concatenate(arrays) for arrays in zip(*(run.counts[:4] for run in runs), strict=True))
    others = (np.concatenate(arrays) for arrays in zip(*(run[2:] for run in runs), strict=True))
    return StepRun(runs[0].setting, QueryCounts(*counts, keys=sum(run.counts.keys for run in runs)), *others)
