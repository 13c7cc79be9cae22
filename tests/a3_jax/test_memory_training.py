"""Training: what a batch holds, how a step is made, and that something is learned, the same thing each time."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from a3_jax.workloads.babi import encode, parse_stories, vocabulary_of
from a3_jax.workloads.memory_evaluation import Setting, evaluate, memory_sizes
from a3_jax.workloads.memory_network import MemoryBatch, MemoryNetwork, softmax_weights
from a3_jax.workloads.memory_training import (
    TrainingConfig,
    build_optimizer,
    epoch_batches,
    initial_parameters,
    noisy_times,
    number_sentences,
    summed_loss,
    train,
)
from a3_jax.workloads.stories import generate_stories

CONFIG = TrainingConfig(dim=16, num_hops=1, linear_epochs=3, epochs=4, halving_epochs=2, batch_size=32)


@pytest.fixture(scope="module")
def stories():
    """Training and test questions of "Where is Mary?", and the number of words."""
    texts = [parse_stories(generate_stories(1, count, seed=seed), 1) for count, seed in ((900, 0), (200, 1))]
    vocabulary = vocabulary_of(texts[0])
    return *(encode(questions, vocabulary) for questions in texts), len(vocabulary)


class TestTimes:
    def test_without_noise(self):
        found = noisy_times(np.array([1, 3, 5], np.int32), 5, 0.0, np.random.default_rng(0))
        for row, size in zip(found, (1, 3, 5), strict=True):
            assert row[:size].tolist() == list(range(size))

    def test_sentences_stay_in_order_and_so_many_are_put_between(self):
        sizes = np.repeat(np.arange(1, 51, dtype=np.int32), 40)
        found = noisy_times(sizes, 50, 0.1, np.random.default_rng(1))
        assert found.min() >= 0 and found.max() < 50
        for row, size in zip(found, sizes, strict=True):
            times = row[:size]
            assert all(b > a or a == b == 49 for a, b in itertools.pairwise(times))
            assert times[-1] <= size - 1 + math.ceil(0.1 * size)

    def test_places_are_uniform(self):
        """Three sentences, none or one empty memory: with one each of four places is as likely."""
        count = 20_000
        found = noisy_times(np.full(count, 3, np.int32), 10, 0.1, np.random.default_rng(2))[:, :3]
        seen = {tuple(row): number for row, number in zip(*np.unique(found, axis=0, return_counts=True), strict=True)}
        chances = {(0, 1, 2): 1 / 2 + 1 / 8, (0, 1, 3): 1 / 8, (0, 2, 3): 1 / 8, (1, 2, 3): 1 / 8}
        assert seen.keys() == chances.keys()
        for times, chance in chances.items():
            assert abs(seen[times] - count * chance) < 5 * math.sqrt(count * chance * (1 - chance))


def test_an_epoch_has_every_question_once(stories):
    training, _, _ = stories
    found = epoch_batches(training, CONFIG, np.random.default_rng(0))
    rows = [batch.ravel() for batch in (found.questions, found.answers)]
    real = rows[1] >= 0
    assert (real.sum(), (~real).sum()) == (900, -900 % 32)

    def told(sentences, stories, questions, answers):
        return sorted(
            (*sentences[story].tolist(), int(sentences[question]), int(answer))
            for story, question, answer in zip(stories, questions, answers, strict=True)
            if answer >= 0
        )

    epoch = [row for batch in zip(*found, strict=True) for row in told(batch[0], batch[1], *batch[3:])]
    own = np.arange(len(training.sentences))
    assert sorted(epoch) == told(own, training.stories, training.questions, training.answers)
    # The age of the first sentence is 0 unless an empty memory is thought to be before it.
    silent = epoch_batches(training, dataclasses.replace(CONFIG, time_noise=0.0), np.random.default_rng(0))
    assert found.times[..., 0].any() and not silent.times[..., 0].any()
    again = epoch_batches(training, CONFIG, np.random.default_rng(1))
    assert not np.array_equal(again.answers, found.answers)


def test_sentences_are_numbered_once():
    stories, asked = np.array([[[5, 3, 0], [3, 9, 5]]], np.int32), np.array([[7, 3]], np.int32)
    sentences, numbered, questions = number_sentences(stories, asked)
    assert sentences.shape == (1, 64) and sentences[0, :6].tolist() == [0, 3, 5, 7, 9, 0]
    np.testing.assert_array_equal(sentences[0][numbered[0]], stories[0])
    np.testing.assert_array_equal(sentences[0][questions[0]], asked[0])


def test_the_rate_is_halved_after_the_linear_start():
    steps = 5
    optimizer = build_optimizer(CONFIG, steps)
    parameters = {"x": jnp.zeros(3)}
    state = optimizer.init(parameters)
    gradient = {"x": jnp.asarray([0.0, 3.0, 4.0])}
    rates = []
    for _ in range((CONFIG.linear_epochs + CONFIG.epochs) * steps):
        update, state = optimizer.update(gradient, state)
        rates.append(float(-update["x"][1]) / 3)
    per_epoch = [0.005] * 3 + [0.005] * 2 + [0.0025] * 2
    np.testing.assert_allclose(rates, np.repeat(per_epoch, steps), rtol=1e-6)


@pytest.mark.parametrize(("length", "scale"), [(39.0, 1.0), (80.0, 0.5)])
def test_long_gradients_are_cut(length, scale):
    optimizer = build_optimizer(CONFIG, 1)
    gradient = {"x": jnp.asarray([0.6 * length]), "y": jnp.asarray([[0.8 * length]])}
    update, _ = optimizer.update(gradient, optimizer.init(gradient))
    np.testing.assert_allclose(update["x"], [-0.005 * scale * 0.6 * length], rtol=1e-6)


def test_loss_is_summed_over_real_questions():
    logits = np.random.default_rng(3).normal(size=(3, 4)).astype(np.float32)
    answers = np.array([1, -1, 3], np.int32)
    wanted = sum(
        math.log(sum(math.exp(x) for x in row)) - row[a] for row, a in zip(logits, answers, strict=True) if a >= 0
    )
    assert float(summed_loss(jnp.asarray(logits), jnp.asarray(answers))) == pytest.approx(wanted, rel=1e-5)


def test_one_epoch_of_one_batch_is_one_step(stories):
    """The compiled loop against a step taken by hand."""
    training, _, num_words = stories
    few = training._replace(
        **{name: getattr(training, name)[:32] for name in ("stories", "questions", "answers", "tasks")}
    )
    config = TrainingConfig(dim=16, num_hops=1, linear_epochs=0, epochs=1, time_noise=0.0)
    network = MemoryNetwork(num_words, 50, 16, 1)
    found = train(few, network, config, seed=5)
    start = initial_parameters(network, 5)
    times = jnp.broadcast_to(jnp.arange(50, dtype=jnp.int32), few.stories.shape)
    batch = MemoryBatch(*map(jnp.asarray, (few.sentences, few.stories)), times, jnp.asarray(few.questions))

    def loss(parameters):
        weights = jax.nn.log_softmax(network.apply(parameters, batch, softmax_weights))
        return -jnp.sum(weights[jnp.arange(32), few.answers])

    gradient = jax.jit(jax.grad(loss))(start)
    step = 0.005 * min(1.0, 40 / float(optax.tree.norm(gradient)))
    jax.tree.map(
        lambda new, old, g: np.testing.assert_allclose(new, old - step * g, rtol=1e-4, atol=1e-6),
        found,
        start,
        gradient,
    )


def test_something_is_learned_and_the_same_each_time(stories):
    """One of six places is right by chance: of 200 answers 60 would be five deviations more."""
    training, test, num_words = stories
    network = MemoryNetwork(num_words, 50, 16, 1)
    epochs = []
    parameters = train(training, network, CONFIG, seed=0, on_epoch=epochs.append)
    assert [(epoch.number, epoch.is_linear) for epoch in epochs] == [(n, n <= 3) for n in range(1, 8)]
    assert epochs[-1].loss < epochs[0].loss and epochs[-1].accuracy > epochs[0].accuracy
    (outcome,) = evaluate(test, network, parameters, [Setting(None, None)], sizes=memory_sizes(training))
    assert outcome.accuracy > 0.3
    again = train(training, network, CONFIG, seed=0)
    jax.tree.map(np.testing.assert_array_equal, parameters, again)
    other = initial_parameters(network, 1)
    assert not np.array_equal(other["params"]["times"], initial_parameters(network, 0)["params"]["times"])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"dim": 0}, "dim"),
        ({"epochs": -1}, "epochs"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"time_noise": -0.1}, "time_noise"),
    ],
)
def test_refused_configurations(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        TrainingConfig(**changes)


def test_a_negative_seed(stories):
    training, _, num_words = stories
    with pytest.raises(ValueError, match="seed should be at least 0"):
        train(training, MemoryNetwork(num_words), CONFIG, seed=-1)
