"""Training of the memory network: a linear start, then softmax (Sukhbaatar et al. 2015, section 4.2)."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int32

from a3_jax.workloads.babi import EncodedQuestions
from a3_jax.workloads.memory_network import MemoryBatch, MemoryNetwork, linear_weights, softmax_weights

Parameters = Any  # what `MemoryNetwork.init` gives

# Distinct sentences of a batch are padded to a multiple of this, so that few shapes are compiled.
_SENTENCES = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train.

    Attributes:
      dim, num_hops: of the network.
      linear_epochs: epochs without softmax in the hops, first.
      epochs: epochs with it, then.
      learning_rate: of plain gradient descent on the sum of losses of a batch.
      halving_epochs: after so many epochs with softmax the rate is halved, again and again.
      batch_size: questions.
      largest_norm: of a batch's whole gradient; a longer one is scaled down to it.
      time_noise: up to so many empty memories for each sentence are thought to be among the real ones, anew in every epoch.
    """

    dim: int = 64
    num_hops: int = 3
    linear_epochs: int = 30
    epochs: int = 60
    learning_rate: float = 0.005
    halving_epochs: int = 15
    batch_size: int = 32
    largest_norm: float = 40.0
    time_noise: float = 0.1

    def __post_init__(self) -> None:
        """ValueError for what is out of range."""
        for name, least in (
            ("dim", 1),
            ("num_hops", 1),
            ("linear_epochs", 0),
            ("epochs", 0),
            ("halving_epochs", 1),
            ("batch_size", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} should be at least {least}, got {getattr(self, name)}")
        for name, least in (("learning_rate", 0), ("largest_norm", 0), ("time_noise", 0)):
            if not least <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} should be at least {least} and finite, got {getattr(self, name)}")


class Epoch(NamedTuple):
    """What happened in an epoch.

    Attributes:
      number: from 1.
      is_linear: without softmax.
      loss: mean of a question, in nats, while it was trained on.
      accuracy: share of right answers, while it was trained on.
    """

    number: int
    is_linear: bool
    loss: float
    accuracy: float


class EpochBatches(NamedTuple):
    """All batches of an epoch; `sentences` are rows of the table of all sentences, 0 where a batch has fewer."""

    sentences: Int32[Array | np.ndarray, "batches sentences"]
    stories: Int32[Array | np.ndarray, "batches batch memory"]
    times: Int32[Array | np.ndarray, "batches batch memory"]
    questions: Int32[Array | np.ndarray, "batches batch"]
    answers: Int32[Array | np.ndarray, "batches batch"]


def train(
    questions: EncodedQuestions,
    network: MemoryNetwork,
    config: TrainingConfig,
    *,
    seed: int,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Parameters:
    """Trained parameters; the same bits for the same arguments on the same machine.

    All questions are trained on, and none is looked at to choose anything. `on_epoch` is told of each epoch at its end. ValueError for
    a negative seed.
    """
    if seed < 0:
        raise ValueError(f"seed should be at least 0, got {seed}")
    rng = np.random.default_rng(seed)
    parameters = initial_parameters(network, seed)
    steps = -(-len(questions.answers) // config.batch_size)
    optimizer = build_optimizer(config, steps)
    state = optimizer.init(parameters)
    table = jnp.asarray(questions.sentences)
    for number in range(1, config.linear_epochs + config.epochs + 1):
        is_linear = number <= config.linear_epochs
        batches = epoch_batches(questions, config, rng)
        parameters, state, loss, right = _run_epoch(parameters, state, table, batches, network, optimizer, is_linear)
        if on_epoch is not None:
            on_epoch(
                Epoch(number, is_linear, float(loss) / len(questions.answers), int(right) / len(questions.answers))
            )
    return parameters


def initial_parameters(network: MemoryNetwork, seed: int) -> Parameters:
    """Independent normal numbers of deviation 0.1."""
    # By way of the method that computes least: which one it is makes no difference.
    return network.init(jax.random.key(seed), jnp.zeros((1, network.dim)), method="answer")


def build_optimizer(config: TrainingConfig, steps: int) -> optax.GradientTransformation:
    """Clipped gradient descent whose rate is halved every `halving_epochs` epochs after the linear start; `steps` make an epoch."""
    boundaries = range(
        config.linear_epochs + config.halving_epochs, config.linear_epochs + config.epochs, config.halving_epochs
    )
    rate = optax.piecewise_constant_schedule(config.learning_rate, {epoch * steps: 0.5 for epoch in boundaries})
    return optax.chain(optax.clip_by_global_norm(config.largest_norm), optax.sgd(rate))


@functools.partial(jax.jit, static_argnames=("network", "optimizer", "is_linear"))
def _run_epoch(
    parameters: Parameters,
    state: Any,
    table: Int32[Array, "all words"],
    batches: EpochBatches,
    network: MemoryNetwork,
    optimizer: optax.GradientTransformation,
    is_linear: bool,
) -> tuple[Parameters, Any, Array, Array]:
    """All steps in one compiled loop: a step is milliseconds, and a call for each would be as much again."""
    weigh = linear_weights if is_linear else softmax_weights

    def loss_of(parameters: Parameters, batch: EpochBatches) -> tuple[Array, Array]:
        inputs = MemoryBatch(table[batch.sentences], batch.stories, batch.times, batch.questions)
        logits = cast(Array, network.apply(parameters, inputs, weigh))
        return summed_loss(logits, batch.answers), jnp.sum(jnp.argmax(logits, 1) == batch.answers)

    def step(carry: tuple[Parameters, Any], batch: EpochBatches) -> tuple[tuple[Parameters, Any], tuple[Array, Array]]:
        parameters, state = carry
        (loss, right), gradient = jax.value_and_grad(loss_of, has_aux=True)(parameters, batch)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(parameters, updates), state), (loss, right)

    (parameters, state), (losses, right) = jax.lax.scan(step, (parameters, state), batches)
    return parameters, state, jnp.sum(losses), jnp.sum(right)


def summed_loss(logits: Float[Array, "batch words"], answers: Int32[Array | np.ndarray, " batch"]) -> Float[Array, ""]:
    """Cross entropies in nats, added up over the questions whose answer is not -1."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(answers, 0))
    return jnp.sum(jnp.where(answers >= 0, losses, 0))


def epoch_batches(questions: EncodedQuestions, config: TrainingConfig, rng: np.random.Generator) -> EpochBatches:
    """All questions in a new order, with new times; the last batch is filled up with questions whose answer is -1."""
    count, size = len(questions.answers), config.batch_size
    order = rng.permutation(count)
    rows = np.resize(order, -(-count // size) * size).reshape(-1, size)
    answers = questions.answers[rows]
    answers.ravel()[count:] = -1
    times = noisy_times(questions.story_sizes[order], questions.stories.shape[1], config.time_noise, rng)
    times = np.resize(times, (rows.size, times.shape[1])).reshape(*rows.shape, -1)
    sentences, stories, asked = number_sentences(questions.stories[rows], questions.questions[rows])
    return EpochBatches(sentences, stories, times, asked, answers)


def number_sentences(
    stories: Int32[np.ndarray, "batches batch memory"], asked: Int32[np.ndarray, "batches batch"]
) -> tuple[
    Int32[np.ndarray, "batches sentences"],
    Int32[np.ndarray, "batches batch memory"],
    Int32[np.ndarray, "batches batch"],
]:
    """The distinct sentences of each batch, the empty one first, and stories and questions in terms of these."""
    found = list(_distinct(stories, asked))
    most = max(len(distinct) for distinct, _ in found)
    sentences = np.zeros((len(found), -(-most // _SENTENCES) * _SENTENCES), np.int32)
    for row, (distinct, _) in zip(sentences, found, strict=True):
        row[: len(distinct)] = distinct
    numbers = np.stack([inverse for _, inverse in found]).astype(np.int32)
    return sentences, numbers[:, :, :-1], numbers[:, :, -1]


def _distinct(stories: np.ndarray, asked: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for story, question in zip(stories, asked, strict=True):
        together = np.concatenate([story, question[:, None]], axis=1)
        # The empty sentence in front, whether or not one occurs, so that it is number 0.
        distinct, inverse = np.unique(np.concatenate([[0], together.ravel()]), return_inverse=True)
        yield distinct, inverse[1:].reshape(together.shape)


def noisy_times(
    sizes: Int32[np.ndarray, " questions"], memory: int, noise: float, rng: np.random.Generator
) -> Int32[np.ndarray, "questions {memory}"]:
    """How long ago the sentences of each story were, if up to `ceil(noise * size)` empty ones were among them.

    The number of empty ones and their places are drawn uniformly. Ages are below `memory`, also where this makes two equal.
    """
    most = np.ceil(noise * sizes).astype(np.int32)
    room = sizes + rng.integers(0, most, endpoint=True)
    places = np.arange(memory + int(most.max(initial=0)))
    drawn = np.where(places < room[:, None], rng.random((len(sizes), len(places))), 2)
    chosen = np.argsort(drawn, axis=1)[:, :memory]
    # What lies beyond a story is sorted to its end, and counts as nothing there.
    chosen = np.sort(np.where(np.arange(memory) < sizes[:, None], chosen, len(places)), axis=1)
    return np.minimum(chosen, memory - 1).astype(np.int32)
