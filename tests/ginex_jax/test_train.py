"""Training: what a step computes, what is learned, and when it stops."""

import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ginex_jax.checkpoint.run_folder import latest_record, load_run
from ginex_jax.models.config import ModelConfig
from ginex_jax.models.construction import build_model
from ginex_jax.models.initialization import initial_parameters
from ginex_jax.store.direct_reads import aligned_bytes
from ginex_jax.train.config import TrainConfig
from ginex_jax.train.devices import OneDevice
from ginex_jax.train.evaluation import batch_evaluator
from ginex_jax.train.inputs import NodeArrays, check_labels, step_inputs
from ginex_jax.train.loop import Update, fit
from ginex_jax.train.metrics import mean_loss, tally
from ginex_jax.train.step import compiled_step, initial_state, random_keys
from tests.ginex_jax import small_runs
from tests.ginex_jax.small_runs import (
    MODEL,
    NUM_CLASSES,
    TEST,
    VALID,
    WIDTH,
    planted_loader,
    planted_nodes,
    planted_run,
    training,
)


class Records(list):
    """A log in memory."""

    def restart(self, step: int) -> None:
        self.clear()

    write = list.append

    def losses(self) -> list[float]:
        return [record["loss"] for record in self if record["kind"] == "step"]


def test_single_label_loss_and_accuracy_by_hand() -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((7, 3)).astype(np.float32), np.array([0, -1, 2, 1, 1, -1, 0], np.int32)
    known = targets >= 0
    shifted = logits[known].astype(float)
    nll = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(5), targets[known]]
    sums = tally(jnp.asarray(logits), targets, "single-label")
    np.testing.assert_allclose(float(mean_loss(sums)), nll.mean(), rtol=1e-6)
    np.testing.assert_allclose(sums.loss, nll.mean(), rtol=1e-6)
    assert sums.score == np.mean(logits[known].argmax(axis=1) == targets[known])


def test_multi_label_loss_and_f1_by_hand() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((7, 3)).astype(np.float32)
    targets = rng.choice(np.array([0, 1, np.nan], np.float32), (7, 3))
    known = ~np.isnan(targets)
    p = 1 / (1 + np.exp(-logits[known].astype(float)))
    bce = -np.where(targets[known] == 1, np.log(p), np.log(1 - p))
    predicted, positive = logits[known] > 0, targets[known] == 1
    precision, recall = (predicted & positive).sum() / predicted.sum(), (predicted & positive).sum() / positive.sum()
    sums = tally(jnp.asarray(logits), targets, "multi-label")
    np.testing.assert_allclose(float(mean_loss(sums)), bce.mean(), rtol=1e-6)
    np.testing.assert_allclose(sums.score, 2 * precision * recall / (precision + recall), rtol=1e-6)


@pytest.mark.parametrize("task", ["single-label", "multi-label"])
def test_without_labels_there_is_no_loss_and_no_gradient(task: str) -> None:
    targets = np.full(4, -1, np.int32) if task == "single-label" else np.full((4, 3), np.nan, np.float32)
    loss, gradient = jax.value_and_grad(lambda x: mean_loss(tally(x, targets, task)))(jnp.ones((4, 3)))
    assert loss == 0 and not gradient.any()


def test_first_losses_equal_those_of_a_model_over_the_whole_graph() -> None:
    """With all neighbours: dense matrices, Adam from its paper (Kingma and Ba, algorithm 1), no blocks, batches or optax."""
    config = training(weight_decay=5e-3, log_every=1, epochs=2, eval_every=0)
    model_config = ModelConfig(kind="sage", hidden=16, num_layers=2, num_outputs=NUM_CLASSES, dropout=0.0)
    model, loader, log = build_model(model_config), planted_loader(fanouts=(None, None)), Records()
    fit(model, loader, planted_nodes(), config, num_features=WIDTH, log=log)

    graph, x, labels = small_runs.planted_graph(), small_runs.planted()["features"], small_runs.planted()["labels"]
    mean = np.zeros((len(x), len(x)), np.float32)
    np.add.at(mean, (np.repeat(np.arange(len(x)), np.diff(graph.indptr)), graph.indices), 1 / 8)

    def loss_of(params: dict, seeds: np.ndarray) -> jax.Array:
        h = x
        for layer in range(2):
            weights = params["params"][f"layers_{layer}"]
            h = h @ weights["own"]["kernel"] + mean @ h @ weights["neighbors"]["kernel"]
            h = h + weights["neighbors"]["bias"][None, :]
            h = jax.nn.relu(h) if layer == 0 else h
        return -jnp.mean(jax.nn.log_softmax(h[seeds])[np.arange(len(seeds)), jnp.asarray(labels)[seeds]])

    @jax.jit
    def adam(params: dict, m: dict, v: dict, t: int, seeds: np.ndarray) -> tuple:
        loss, gradient = jax.value_and_grad(loss_of)(params, seeds)
        gradient = jax.tree.map(lambda g, p: g + config.weight_decay * p, gradient, params)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, gradient)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, v, gradient)
        scale = config.learning_rate * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        return loss, jax.tree.map(lambda p, m, v: p - scale * m / (jnp.sqrt(v) + 1e-8), params, m, v), m, v

    params = initial_parameters(model, WIDTH, random_keys(config.seed)[0])
    m = v = jax.tree.map(jnp.zeros_like, params)
    losses = []
    for step, loaded in enumerate(loader.stream(0, 2 * loader.steps_per_epoch)):
        seeds = loaded.batch.node_ids[loaded.batch.seed_positions][loaded.batch.seed_mask]
        loss, params, m, v = adam(params, m, v, step + 1, seeds)
        losses.append(float(loss))
    np.testing.assert_allclose(log.losses(), losses, rtol=2e-4)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", ["sage", "gcn", "gat"])
def test_a_planted_partition_is_learned(kind: str) -> None:
    """Evaluation is exact: no node has more than 8 neighbours."""
    model = build_model(ModelConfig(kind=kind, hidden=16, num_layers=2, num_outputs=NUM_CLASSES, dropout=0.2))
    nodes, log = planted_nodes(), Records()
    valid = batch_evaluator(model, planted_loader(VALID, fanouts=(8, 8)), nodes, "single-label")
    config = training(epochs=12)
    result = fit(model, planted_loader(), nodes, config, num_features=WIDTH, evaluate=valid, log=log)
    test = batch_evaluator(model, planted_loader(TEST, fanouts=(8, 8)), nodes, "single-label")
    assert test(result.params) > 0.9
    scores = [record["score"] for record in log if record["kind"] == "evaluation"]
    assert len(scores) == 12 and result.best_score == max(scores) == valid(result.params)
    assert result.best_step == (1 + scores.index(max(scores))) * 7
    assert log.losses()[-1] < log.losses()[0]


def test_many_labels_are_learned() -> None:
    labels = small_runs.planted()["labels"]
    many = np.stack([labels == 0, labels < 2, labels % 2 == 0], axis=1).astype(np.float32)
    many[::7, 1] = np.nan
    model = build_model(ModelConfig(kind="sage", hidden=16, num_layers=2, num_outputs=3, dropout=0.0))
    nodes = planted_nodes(many)
    result = fit(model, planted_loader(), nodes, training(task="multi-label", epochs=15), num_features=WIDTH)
    test = batch_evaluator(model, planted_loader(TEST, fanouts=(8, 8)), nodes, "multi-label")
    assert test(result.params) > 0.9


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not() -> None:
    model = build_model(MODEL)

    def params(seed: int) -> list[np.ndarray]:
        result = fit(model, planted_loader(), planted_nodes(), training(epochs=1, seed=seed), num_features=WIDTH)
        return jax.tree.leaves(result.params)

    first, again, other = params(5), params(5), params(5 + 2**32)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_step_compiles_once_for_each_shape() -> None:
    model, loader, config = build_model(MODEL), planted_loader(batch_size=48), training(weight_decay=1e-3)
    step, state = (
        compiled_step(model, config),
        initial_state(initial_parameters(model, WIDTH, jax.random.key(0)), config),
    )
    before, shapes, key = step._cache_size(), set(), jax.random.key(1)
    for loaded in loader.stream(0, 3 * loader.steps_per_epoch):
        shapes.add(loaded.batch.shape)
        state, _ = step(state, step_inputs(loaded, planted_nodes()), loaded.step, key)
    assert step._cache_size() - before == len(shapes) <= 4


def test_batches_are_released_in_order_after_their_step() -> None:
    """A loader that writes over the features of a released batch changes nothing."""

    class Reusing:
        def __init__(self) -> None:
            self.loader, self.held, self.released = planted_loader(), 0, []

        def __getattr__(self, name: str) -> object:
            return getattr(self.loader, name)

        def stream(self, first: int, stop: int) -> "Reusing":
            self.steps = self.loader.stream(first, stop)
            return self

        def __iter__(self):
            for loaded in self.steps:
                self.held += 1
                assert self.held <= 2
                yield loaded.__class__(**{**vars(loaded), "release": lambda one=loaded: self.give_back(one)})

        def give_back(self, loaded) -> None:
            self.held -= 1
            self.released.append(loaded.step)
            loaded.features[:] = np.nan

        def __next__(self) -> None: ...
        def __enter__(self) -> "Reusing":
            return self

        def __exit__(self, *_: object) -> None: ...
        def close(self) -> None: ...

    model, plain, reused, loader = build_model(MODEL), Records(), Records(), Reusing()
    fit(model, planted_loader(), planted_nodes(), training(), num_features=WIDTH, log=plain)
    fit(model, loader, planted_nodes(), training(), num_features=WIDTH, log=reused)
    assert plain.losses() == reused.losses()
    assert loader.released == list(range(28))


def test_training_stops_when_it_gets_no_better() -> None:
    scores = itertools.chain([0.1, 0.3, 0.2, 0.3, 0.25], itertools.repeat(0.9))
    seen = []

    def evaluate(params: object) -> float:
        seen.append(next(scores))
        return seen[-1]

    config = training(epochs=20, patience=3)
    model, loader = build_model(MODEL), planted_loader()
    result = fit(model, loader, planted_nodes(), config, num_features=WIDTH, evaluate=evaluate)
    assert seen == [0.1, 0.3, 0.2, 0.3, 0.25] and result.stopped_early and not result.interrupted
    assert (result.best_score, result.best_step, result.step) == (0.3, 14, 35)
    same = fit(model, loader, planted_nodes(), training(epochs=2), num_features=WIDTH)
    assert all(map(np.array_equal, jax.tree.leaves(same.params), jax.tree.leaves(result.params)))


def test_lines_and_reports() -> None:
    log, updates = Records(), []
    config = training(log_every=3, eval_every=2, epochs=3)
    arguments = build_model(MODEL), planted_loader(), planted_nodes(), config
    fit(*arguments, num_features=WIDTH, evaluate=lambda params: 0.5, log=log, report=updates.append)
    steps = [record["step"] for record in log if record["kind"] == "step"]
    assert steps == [3, 6, 7, 9, 12, 14, 15, 18, 21]
    assert [record["step"] for record in log if record["kind"] == "evaluation"] == [14, 21]
    assert all(record["rows"] == record["misses"] > 0 for record in log if record["kind"] == "step")
    assert [update.step for update in updates] == list(range(1, 22))
    last = updates[-1]
    assert isinstance(last, Update) and last.num_steps == 21 and last.seconds_left == 0 and last.hit_rate == 0
    assert last.loss == log.losses()[-1]


def test_every_step_has_a_dropout_of_its_own() -> None:
    """The same batch and parameters: equal losses for equal steps, others for others, and none of this without dropout."""
    loaded = planted_loader().load(0)
    inputs, config = step_inputs(loaded, planted_nodes()), training()
    first_key, dropout_key = random_keys(config.seed)

    def losses(model_config: ModelConfig) -> list[float]:
        model = build_model(model_config)
        step = compiled_step(model, config)
        # A state of its own for each: a step consumes it.
        states = [initial_state(initial_parameters(model, WIDTH, first_key), config) for _ in range(4)]
        numbered = zip(states, (0, 1, 2, 0), strict=True)
        return [float(step(state, inputs, number, dropout_key)[1]) for state, number in numbered]

    first, second, third, again = losses(MODEL)
    assert first == again and len({first, second, third}) == 3
    assert len(set(losses(dataclasses.replace(MODEL, dropout=0.0)))) == 1


def test_what_is_on_the_device_outlives_the_loader_s_memory() -> None:
    loaded = planted_loader().load(0)
    memory = aligned_bytes(loaded.features.nbytes).view(np.float32).reshape(loaded.features.shape)
    memory[:] = loaded.features
    inputs = OneDevice().inputs(dataclasses.replace(loaded, features=memory), planted_nodes(), ())
    memory[:] = np.nan  # the next batch is read into it
    np.testing.assert_array_equal(inputs.features, loaded.features)


def test_a_loss_that_is_not_finite_stops_it() -> None:
    with pytest.raises(ValueError, match="the loss is .* by step"):
        fit(build_model(MODEL), planted_loader(), planted_nodes(), training(learning_rate=1e30), num_features=WIDTH)


@pytest.mark.parametrize("learning_rate", [1e30, 1e38])
def test_no_checkpoint_is_made_of_what_is_not_finite(tmp_path: Path, learning_rate: float) -> None:
    config, loader = training(learning_rate=learning_rate, checkpoint_every=1, log_every=1000), planted_loader()
    run = planted_run(tmp_path / "run", loader, config)
    arguments = build_model(MODEL), loader, planted_nodes(), config
    with pytest.raises(ValueError, match="the loss is .* by step|parameters are not finite after step"):
        fit(*arguments, num_features=WIDTH, checkpoints=run)
    record = latest_record(run.path)
    assert record is not None and record.step <= 3  # those before it went wrong
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_run(run.path)[1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "none"}, "task should be one of single-label, multi-label"),
        ({"learning_rate": float("nan")}, "learning_rate should be a finite number"),
        ({"weight_decay": -1.0}, "weight_decay should be"),
        ({"epochs": 0}, "epochs should be an int of at least 1"),
        ({"log_every": True}, "log_every should be an int"),
        ({"seed": 2**63}, "seed should be below"),
        ({"patience": 3, "eval_every": 0}, "set eval_every"),
    ],
)
def test_bad_configurations(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


def test_labels_that_do_not_fit() -> None:
    check_labels(NodeArrays(np.array([-1, 2])), "single-label", 3)
    for labels, task, outputs, message in [
        (np.array([-1, 3]), "single-label", 3, "in \\[-1, 3\\)"),
        (np.zeros((2, 3), np.float32), "single-label", 3, "needs one integer a node"),
        (np.array([0, 1]), "multi-label", 2, "needs 2 floats a node"),
        (np.zeros((2, 3), np.float32), "multi-label", 2, "needs 2 floats a node"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_labels(NodeArrays(labels), task, outputs)


@pytest.mark.parametrize(
    "changes",
    [{"rows": "7"}, {"misses": -1}, {"best_score": "high"}, {"best_score": 0.5}, {"best_step": 3}, {"steps": 1}],
)
def test_progress_that_cannot_be(changes: dict[str, object]) -> None:
    from ginex_jax.train.loop import RunProgress

    with pytest.raises(ValueError, match="progress is damaged"):
        RunProgress.restored({"rows": 1, "misses": 0, **changes}, 5)
    assert RunProgress.restored({"rows": 1, "best_score": 0.5, "best_step": 3}, 5).step == 5
