"""Models against the papers' formulas, edge by edge, over sampled, whole and padded neighbourhoods."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ginex_jax.batch import BatchShape, DegreeRows, MiniBatch, padded
from ginex_jax.graph import CSCGraph
from ginex_jax.models.config import ModelConfig
from ginex_jax.models.construction import build_model
from ginex_jax.models.gat import GAT
from ginex_jax.models.gcn import GCN, aggregate_gcn
from ginex_jax.models.sage import GraphSAGE
from ginex_jax.sampling.neighbors import sample_batch
from tests.ginex_jax import oracles_models as oracles
from tests.ginex_jax.test_sampling import rows_of

CONFIGS = {
    name: ModelConfig(hidden=6, num_layers=2, num_outputs=3, dropout=0.5, input_dropout=0.2, **options)
    for name, options in {
        "sage mean": {"kind": "sage"},
        "sage max": {"kind": "sage", "aggregator": "max"},
        "gcn": {"kind": "gcn"},
        "gat": {"kind": "gat", "num_heads": 2},
    }.items()
}
NUM_NODES, WIDTH = 120, 5
FANOUTS = [(3, 4), (None, None)]


def graph_with_hubs() -> CSCGraph:
    """Nodes without neighbours, repeated edges, loops, and lists of up to twelve rows of the widest table."""
    rng = np.random.default_rng(3)
    degrees = rng.integers(0, 12, NUM_NODES)
    degrees[[0, 7]] = 0
    degrees[[1, 2, 3, 4]] = 257, 700, 2900, 256
    indptr = np.concatenate([[0], np.cumsum(degrees)]).astype(np.int64)
    return CSCGraph(indptr, rng.integers(0, NUM_NODES, indptr[-1]).astype(np.int32))


GRAPH = graph_with_hubs()
DEGREES = np.diff(GRAPH.indptr).astype(np.float32)
FEATURES = np.random.default_rng(4).standard_normal((NUM_NODES, WIDTH)).astype(np.float32)


@functools.cache
def sampled(fanouts: tuple[int | None, ...]) -> MiniBatch:
    return sample_batch(GRAPH, np.array([2, 0, 3, 50, 1, 99]), fanouts=fanouts, seed=0, epoch=0, index=0)


@functools.cache
def parameters_of(name: str) -> dict[str, Any]:
    model, batch = build_model(CONFIGS[name]), sampled((3, 4))
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch.blocks, *inputs(batch))
    rng = np.random.default_rng(5)  # biases too
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), shapes)


def inputs(batch: MiniBatch) -> tuple[np.ndarray, np.ndarray]:
    return batch.pad_features(FEATURES[batch.node_ids]), batch.pad_features(DEGREES[batch.node_ids])


def hops_of(batch: MiniBatch) -> list[list[list[int]]]:
    sizes = reversed(batch.level_sizes[:-1])
    return [[[u for u, _ in row] for row in rows_of(block, n)] for block, n in zip(batch.blocks, sizes, strict=True)]


@functools.cache
def compiled(name: str) -> Any:
    """(parameters, blocks, x, degrees) -> outputs, and the gradients of the sum of sin(outputs of the seeds)."""

    def loss(parameters: Any, x: jax.Array, blocks: Any, degrees: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs = build_model(CONFIGS[name]).apply(parameters, blocks, x, degrees)
        assert isinstance(outputs, jax.Array)
        return jnp.sum(jnp.sin(outputs[: sampled((3, 4)).level_sizes[0]])), outputs

    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)

    def evaluate(parameters: Any, blocks: Any, x: jax.Array, degrees: jax.Array) -> tuple[Any, Any, Any]:
        (_, outputs), (by_parameter, by_x) = gradient(parameters, x, blocks, degrees)
        return outputs, by_parameter, by_x

    return jax.jit(evaluate)


def evaluated(name: str, batch: MiniBatch) -> tuple[Any, Any, Any]:
    return compiled(name)(parameters_of(name), batch.blocks, *inputs(batch))


def larger(shape: BatchShape) -> BatchShape:
    """Room for more of everything but very long lists, whose tables are wide."""
    rows = tuple(
        DegreeRows(tuple(n + 5 + i for i, n in enumerate(rows.tables)), (rows.combines[0] + 2, *rows.combines[1:]))
        for rows in shape.degree_rows
        if rows is not None
    )
    return BatchShape(shape.batch_size + 3, tuple(n + 9 * (i + 1) for i, n in enumerate(shape.level_sizes)), rows)


def close(result: Any, expected: Any) -> None:
    scale = np.abs(np.asarray(expected)).max()
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("fanouts", FANOUTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_the_papers(name: str, fanouts: tuple[int | None, ...]) -> None:
    batch = sampled(fanouts)
    expected = oracles.network(CONFIGS[name], parameters_of(name), hops_of(batch), *inputs(batch))
    outputs, _, _ = evaluated(name, batch)
    assert outputs.dtype == jnp.float32
    close(outputs, expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_changes_nothing_whatever_it_holds(name: str) -> None:
    """Outputs, and gradients of parameters and features."""
    batch = sampled((None, None))
    wide, size, seeds = padded(batch, larger(batch.shape)), len(batch.node_ids), batch.level_sizes[0]

    def results(junk: float) -> tuple[Any, ...]:
        x, degrees = (array.copy() for array in inputs(wide))
        x[size:], degrees[size:] = junk, abs(junk)
        outputs, by_parameter, by_x = compiled(name)(parameters_of(name), wide.blocks, x, degrees)
        assert not by_x[size:].any()
        return outputs[:seeds], by_parameter, by_x[:size]

    found, other = results(-3e4), results(7.0)
    jax.tree.map(np.testing.assert_array_equal, found, other)
    jax.tree.map(close, found, evaluated(name, batch))


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_finite_differences(name: str) -> None:
    batch = sampled((None, None))
    x, degrees = inputs(batch)
    rng = np.random.default_rng(6)
    by_x = rng.standard_normal(x.shape)
    by_parameter = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), parameters_of(name))

    def oracle(step: float) -> float:
        moved = jax.tree.map(lambda leaf, d: leaf.astype(np.float64) + step * d, parameters_of(name), by_parameter)
        return float(np.sin(oracles.network(CONFIGS[name], moved, hops_of(batch), x + step * by_x, degrees)).sum())

    _, *gradients = evaluated(name, batch)
    products = jax.tree.map(lambda a, b: float(np.sum(np.asarray(a) * b)), tuple(gradients), (by_parameter, by_x))
    expected = (oracle(1e-7) - oracle(-1e-7)) / 2e-7
    assert sum(jax.tree.leaves(products)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", ["gcn"])
def test_a_layer_alone_and_without_jit(name: str) -> None:
    batch, model = sampled((3, 4)), build_model(CONFIGS[name])
    x, degrees = inputs(batch)
    h = model.apply(parameters_of(name), 0, batch.blocks[0], x, degrees, method="layer")
    assert isinstance(h, jax.Array)
    assert h.shape == (batch.level_sizes[1], 6)
    outputs = model.apply(parameters_of(name), 1, batch.blocks[1], h, degrees[: len(h)], method="layer")
    close(outputs, evaluated(name, batch)[0])


@pytest.mark.parametrize("name", ["gat"])
def test_bfloat16_is_close_and_parameters_stay_float32(name: str) -> None:
    config = ModelConfig(**{**vars(CONFIGS[name]), "dtype": "bfloat16"})
    batch, model = sampled((3, 4)), build_model(config)
    parameters = jax.jit(model.init)(jax.random.key(0), batch.blocks, *inputs(batch))
    assert {leaf.dtype for leaf in jax.tree.leaves(parameters)} == {np.dtype(np.float32)}
    h = jax.jit(functools.partial(model.apply, method="layer"), static_argnums=1)(
        parameters, 0, batch.blocks[0], *inputs(batch)
    )
    assert isinstance(h, jax.Array)
    assert h.dtype == jnp.bfloat16
    result = jax.jit(model.apply)(parameters, batch.blocks, *inputs(batch))
    exact = compiled(name)(parameters, batch.blocks, *inputs(batch))[0]
    assert isinstance(result, jax.Array)
    assert result.dtype == jnp.float32
    assert 0 < float(jnp.abs(result - exact).max()) < 0.1 * float(jnp.abs(exact).max())


def test_dropout_needs_a_key_and_depends_on_nothing_else() -> None:
    batch, model = sampled((3, 4)), build_model(CONFIGS["sage mean"])

    @jax.jit
    def outputs(seed: int) -> Any:
        key = jax.random.key(seed)
        return model.apply(
            parameters_of("sage mean"), batch.blocks, inputs(batch)[0], train=True, rngs={"dropout": key}
        )

    np.testing.assert_array_equal(outputs(0), outputs(0))
    assert not np.array_equal(outputs(0), outputs(1))
    with pytest.raises(Exception, match='needs PRNG for "dropout"'):
        model.apply(parameters_of("sage mean"), batch.blocks, inputs(batch)[0], train=True)


def test_drawn_neighbours_of_gcn_add_up_to_all_on_average() -> None:
    seeds = np.array([2, 3, 11, 20])
    whole = sample_batch(GRAPH, seeds, fanouts=(None,), seed=0, epoch=0, index=0)
    of_all = jax.jit(aggregate_gcn)
    expected = np.asarray(of_all(whole.blocks[0], *inputs(whole)))[:4]
    draws = []
    for index in range(300):
        batch = sample_batch(GRAPH, seeds, fanouts=(4,), seed=1, epoch=0, index=index)
        x, degrees = (np.zeros((30, *a.shape[1:]), a.dtype) for a in inputs(batch))
        x[: len(batch.node_ids)], degrees[: len(batch.node_ids)] = inputs(batch)
        draws.append(of_all(batch.blocks[0], x, degrees))
    error = np.abs(np.mean(draws, axis=0) - expected)
    assert (error <= 5 * np.std(draws, axis=0) / np.sqrt(len(draws)) + 1e-6).all()


def test_what_is_built() -> None:
    kinds = {"sage": GraphSAGE, "gcn": GCN, "gat": GAT}
    for kind, expected in kinds.items():
        model = build_model(ModelConfig(kind=kind, num_outputs=2, num_layers=4))
        assert type(model) is expected
        assert (model.num_layers, model.needs_degrees) == (4, kind == "gcn")
        assert hash(model) == hash(build_model(ModelConfig(kind=kind, num_outputs=2, num_layers=4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "gin"}, "kind should be one of sage, gcn, gat, got 'gin'"),
        ({"aggregator": "sum"}, "aggregator should be one of mean, max, got 'sum'"),
        ({"dtype": "float16"}, "dtype should be one of float32, bfloat16, got 'float16'"),
        ({"num_layers": 0}, "num_layers should be an int of at least 1, got 0"),
        ({"num_outputs": True}, "num_outputs should be an int of at least 1, got True"),
        ({"dropout": 1.0}, "dropout should be in [0, 1), got 1.0"),
        ({"kind": "gat", "hidden": 10, "num_heads": 4}, "hidden should be a multiple of 4 heads, got 10"),
    ],
)
def test_a_bad_configuration_says_why(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ModelConfig(**{"num_outputs": 3, **options})


def test_wrong_calls_say_why() -> None:
    batch = sampled((3, 4))
    x, degrees = inputs(batch)
    model = build_model(CONFIGS["gcn"])
    with pytest.raises(ValueError, match="2 layers takes as many blocks, got 1"):
        model.apply(parameters_of("gcn"), batch.blocks[1:], x, degrees)
    with pytest.raises(ValueError, match="GCN needs the in-degrees"):
        model.apply(parameters_of("gcn"), batch.blocks, x)
