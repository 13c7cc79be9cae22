import warnings

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import pytest

from ginex_jax.batch import BatchShape, Block, DegreeBlock, DegreeRows, MiniBatch, grown, padded
from ginex_jax.graph import CSCGraph
from ginex_jax.sampling.aggregation import aggregate_mean, aggregate_sum
from ginex_jax.sampling.degree_blocks import count_rows, degree_block
from ginex_jax.sampling.neighbors import sample_batch
from tests.ginex_jax import oracles_sampling as oracles
from tests.ginex_jax.test_sampling import rows_of, same

GRAPH = oracles.random_graph(200, seed=5, longest=90)
FANOUTS = [(3, 2), (None, 3), (2, None)]


def sampled(fanouts: tuple[int | None, ...], graph: CSCGraph = GRAPH) -> MiniBatch:
    return sample_batch(graph, np.array([11, 4, 11, 100, 62]), fanouts=fanouts, seed=0, epoch=0, index=0)


def larger(shape: BatchShape, more: int = 7) -> BatchShape:
    rows = tuple(
        rows and DegreeRows(*(tuple(size + more + i for i, size in enumerate(sizes)) for sizes in rows))
        for rows in shape.degree_rows
    )
    levels = tuple(size + more * (i + 1) for i, size in enumerate(shape.level_sizes))
    return BatchShape(shape.batch_size + more, levels, rows)


def lists_of(lengths: list[int], *, seed: int = 0) -> tuple[DegreeBlock, list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    neighbors = [rng.integers(0, 50, length).astype(np.int32) for length in lengths]
    weights = [rng.random(length).astype(np.float32) for length in lengths]
    return degree_block(np.array(lengths), np.concatenate(neighbors), np.concatenate(weights)), neighbors, weights


@pytest.mark.parametrize("fanouts", FANOUTS)
@pytest.mark.parametrize("weights", [True, False])
def test_padding_changes_no_list(fanouts: tuple[int | None, ...], weights: bool) -> None:
    batch = sampled(fanouts, GRAPH if weights else GRAPH._replace(weights=None))
    shape = larger(batch.shape)
    big = padded(batch, shape)
    assert big.shape == shape
    assert big.level_sizes == batch.level_sizes
    assert big.node_ids is batch.node_ids
    assert big.seed_mask.tolist() == [True] * 5 + [False] * 7
    assert big.seed_positions.tolist() == [*batch.seed_positions.tolist(), *[0] * 7]
    for hop, (small, block) in enumerate(zip(reversed(batch.blocks), reversed(big.blocks), strict=True)):
        assert block.num_destinations == shape.level_sizes[hop]
        assert getattr(block, "num_rows", None) == shape.degree_rows[hop]
        rows = rows_of(block, block.num_destinations)
        assert rows[: small.num_destinations] == rows_of(small, small.num_destinations)
        assert not any(rows[small.num_destinations :])
    assert same(padded(batch, batch.shape), batch)
    assert same(padded(padded(batch, shape), larger(shape)), padded(batch, larger(shape)))


def test_what_does_not_fit_is_refused() -> None:
    batch = sampled((None, 3))
    for i in range(len(batch.shape.sizes)):
        sizes = list(batch.shape.sizes)
        sizes[i] -= 1
        rows = DegreeRows(tuple(sizes[4:8]), tuple(sizes[8:]))
        with pytest.raises(ValueError, match="does not fit"):
            padded(batch, BatchShape(sizes[0], tuple(sizes[1:4]), (rows, None)))
    assert not batch.shape.holds(sampled((3, 3)).shape)


def test_features_are_padded_with_zeros() -> None:
    batch = padded(sampled((3, 2)), larger(sampled((3, 2)).shape))
    features = np.random.default_rng(0).random((len(batch.node_ids), 4), np.float32)
    result = batch.pad_features(features)
    assert result.shape == (batch.shape.level_sizes[-1], 4)
    np.testing.assert_array_equal(result[: len(features)], features)
    assert not result[len(features) :].any()
    with pytest.raises(ValueError, match="one row for each"):
        batch.pad_features(features[1:])


def test_grown_is_the_same_array_if_nothing_is_missing() -> None:
    array = np.ones(3)
    assert grown(array, 3) is array


@pytest.mark.parametrize(
    "lengths",
    [
        [0],
        [0, 0, 1],
        [4, 5, 16, 17, 64, 65, 256],
        [257],
        [3, 512, 0, 513, 256 * 8, 256 * 8 + 1, 7],
        [256 * 64 + 1, 300, 2],
    ],
)
def test_degree_blocks_sum_lists_of_any_length(lengths: list[int]) -> None:
    block, neighbors, weights = lists_of(lengths)
    x = np.random.default_rng(1).integers(-8, 8, (50, 3)).astype(np.float32)  # sums are exact
    expected = np.array([x[row].sum(0) for row in neighbors])
    np.testing.assert_array_equal(aggregate_sum(block, x), expected)
    np.testing.assert_array_equal(jax.jit(aggregate_sum)(block, x), expected)
    means = expected / np.maximum(1, lengths)[:, None]
    np.testing.assert_allclose(aggregate_mean(block, x), means, rtol=1e-6)
    weighted = np.array([(x[row] * w[:, None]).sum(0) for row, w in zip(neighbors, weights, strict=True)])
    scale = np.array([(abs(x[row]) * w[:, None]).sum(0) for row, w in zip(neighbors, weights, strict=True)])
    error = abs(np.asarray(aggregate_sum(block, x, weighted=True)) - weighted)
    assert (error <= np.finfo(np.float32).eps * np.sqrt(max(lengths) + 1) * scale + 1e-30).all()
    assert rows_of(block, len(lengths)) == [
        list(zip(row.tolist(), w.tolist(), strict=True)) for row, w in zip(neighbors, weights, strict=True)
    ]


def test_every_list_is_in_the_narrowest_table() -> None:
    lengths = np.array([0, 1, 4, 5, 16, 17, 64, 65, 256, 257, 2048, 2049])
    rows = count_rows(lengths)
    assert rows == DegreeRows((2, 2, 2, 2 + 2 + 8 + 9), (2, 1, 0, 0, 0, 0))
    assert lists_of(lengths.tolist())[0].num_rows == rows


def test_a_list_beyond_the_widest_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 67108864 neighbours, got 67108865"):
        count_rows(np.array([2, 2**26 + 1]))


@pytest.mark.parametrize("fanouts", FANOUTS)
def test_means_over_padded_blocks_in_jit(fanouts: tuple[int | None, ...]) -> None:
    """Two layers of plain means over the whole batch, against the lists themselves."""
    batch = padded(sampled(fanouts), larger(sampled(fanouts).shape))
    features = np.random.default_rng(0).random((len(batch.node_ids), 4)).astype(np.float32)

    @jax.jit
    def layers(blocks: tuple[Block | DegreeBlock, ...], x: jax.Array) -> jax.Array:
        for block in blocks:
            x = aggregate_mean(block, x) + x[: block.num_destinations]
        return x

    result = layers(batch.blocks, jnp.asarray(batch.pad_features(features)))
    expected = features.astype(np.float64)
    for block, size in zip(batch.blocks, reversed(batch.level_sizes[:-1]), strict=True):
        rows = rows_of(block, size)
        means = [expected[[i for i, _ in row]].mean(0) if row else np.zeros(4) for row in rows]
        expected = np.array(means) + expected[:size]
    assert result.shape == (batch.shape.level_sizes[0], 4)
    np.testing.assert_allclose(result[: batch.level_sizes[0]], expected, rtol=1e-5)


def test_a_weighted_sum_needs_weights() -> None:
    batch = sampled((3,), GRAPH._replace(weights=None))
    with pytest.raises(ValueError, match="block with weights"):
        aggregate_sum(batch.blocks[0], np.ones((len(batch.node_ids), 1), np.float32), weighted=True)


@pytest.mark.parametrize("fanouts", FANOUTS)
@pytest.mark.parametrize("pad", [False, True])
def test_graphs_tuple_holds_the_edges_of_all_hops(fanouts: tuple[int | None, ...], pad: bool) -> None:
    batch = sampled(fanouts)
    batch = padded(batch, larger(batch.shape)) if pad else batch
    graph = batch.to_graphs_tuple()
    num_nodes, num_edges = int(graph.n_node[0]), int(graph.n_edge[0])
    assert num_nodes == len(batch.node_ids)
    np.testing.assert_array_equal(graph.nodes["id"][:num_nodes], batch.node_ids)
    found = zip(graph.edges["hop"], graph.receivers, graph.senders, graph.edges["weight"], strict=True)
    expected = [
        (hop, receiver, sender, weight)
        for hop, (block, size) in enumerate(zip(reversed(batch.blocks), batch.level_sizes, strict=False))
        for receiver, row in enumerate(rows_of(block, size))
        for sender, weight in row
    ]
    assert sorted(tuple(map(float, edge)) for edge in list(found)[:num_edges]) == sorted(expected)
    assert graph.senders.dtype == graph.receivers.dtype == np.int32


@pytest.mark.parametrize("fanouts", FANOUTS)
def test_graphs_tuple_is_a_valid_padded_one(fanouts: tuple[int | None, ...]) -> None:
    batch = padded(sampled(fanouts), larger(sampled(fanouts).shape))
    features = np.random.default_rng(0).random((len(batch.node_ids), 4)).astype(np.float32)
    graph = batch.to_graphs_tuple(features)
    num_nodes, num_edges = int(graph.n_node[0]), int(graph.n_edge[0])
    assert (
        len(graph.nodes["id"]) == len(graph.nodes["features"]) == batch.shape.level_sizes[-1] + 1 == sum(graph.n_node)
    )
    assert len(graph.senders) == len(graph.receivers) == len(graph.edges["hop"]) == sum(graph.n_edge)
    assert graph.n_node[1] >= 1
    assert (graph.senders[num_edges:] == num_nodes).all()
    assert (graph.receivers[num_edges:] == num_nodes).all()
    assert jraph.get_number_of_padding_with_graphs_graphs(graph) == 1
    np.testing.assert_array_equal(jraph.get_node_padding_mask(graph), np.arange(sum(graph.n_node)) < num_nodes)
    np.testing.assert_array_equal(jraph.get_edge_padding_mask(graph), np.arange(sum(graph.n_edge)) < num_edges)
    alone = jraph.unpad_with_graphs(graph)
    assert len(alone.n_node) == 1
    np.testing.assert_array_equal(alone.nodes["features"], features)
    sums = jraph.segment_sum(graph.nodes["features"][graph.senders], graph.receivers, len(graph.nodes["features"]))
    assert not np.asarray(sums)[num_nodes:].any()


def test_graphs_tuples_of_one_shape_have_one_shape() -> None:
    """A message-passing network compiles once for two batches, and gives what it gives without padding."""
    batches = [sample_batch(GRAPH, np.arange(8), fanouts=(3, 2), seed=0, epoch=0, index=i) for i in range(2)]
    sizes = np.max([batch.shape.level_sizes for batch in batches], axis=0).tolist()
    shape = BatchShape(8, tuple(sizes), (None, None))
    traces = []

    @jax.jit
    def network(graph: jraph.GraphsTuple) -> jax.Array:
        traces.append(graph)
        passing = jraph.GraphConvolution(lambda nodes: nodes, symmetric_normalization=False)
        return passing(graph._replace(nodes=graph.nodes["features"])).nodes

    for batch in batches:
        features = np.random.default_rng(0).random((len(batch.node_ids), 4)).astype(np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of jraph's own
            result = network(padded(batch, shape).to_graphs_tuple(features))
        expected = features * 0.0
        for block, size in zip(reversed(batch.blocks), batch.level_sizes, strict=False):
            for receiver, row in enumerate(rows_of(block, size)):
                for sender, _ in row:
                    expected[receiver] += features[sender]
        np.testing.assert_allclose(result[: len(features)], expected, rtol=1e-5)
    assert len(traces) == 1
