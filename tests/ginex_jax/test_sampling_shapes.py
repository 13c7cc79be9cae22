import itertools
import json

import grain
import numpy as np
import pytest

from ginex_jax.batch import Block
from ginex_jax.graph import CSCGraph
from ginex_jax.random_numbers import permuted
from ginex_jax.sampling.config import SamplerConfig
from ginex_jax.sampling.neighbors import sample_batch
from ginex_jax.sampling.shapes import from_state, pilot, to_state
from ginex_jax.sampling.source import BatchSource
from tests.ginex_jax import oracles_sampling as oracles
from tests.ginex_jax.test_sampling import arrays, rows_of, same

GRAPH = oracles.random_graph(3000, seed=7, longest=400)
NODES = np.arange(1, 3000, 7)  # 429
FANOUTS = [(4, 3), (3, None), (None, None), (2, 2, 2)]


def config(**changes: object) -> SamplerConfig:
    return SamplerConfig(**{"fanouts": (4, 3), "batch_size": 50, "seed": 3, **changes})


def source(fanouts: tuple[int | None, ...] = (4, 3), *, epoch: int = 0) -> BatchSource:
    settings = config(fanouts=fanouts)
    return BatchSource(GRAPH, NODES, settings, epoch, pilot(GRAPH, NODES, settings))


@pytest.mark.parametrize("fanouts", FANOUTS)
def test_shapes_ascend_and_are_at_most_four(fanouts: tuple[int | None, ...]) -> None:
    settings = config(fanouts=fanouts)
    shapes = pilot(GRAPH, NODES, settings)
    assert 1 <= len(shapes) <= 4
    assert all(b.holds(a) for a, b in itertools.pairwise(shapes))
    assert len(set(shapes)) == len(shapes)
    assert shapes == pilot(oracles.ElsewhereGraph(GRAPH), NODES, settings)


@pytest.mark.parametrize("fanouts", FANOUTS)
def test_epochs_compile_few_shapes_and_rarely_the_last(fanouts: tuple[int | None, ...]) -> None:
    settings = config(fanouts=fanouts)
    shapes = pilot(GRAPH, NODES, settings)
    batches = [batch for epoch in range(5) for batch in BatchSource(GRAPH, NODES, settings, epoch, shapes)]
    layouts = {tuple((array.shape, array.dtype.str) for array in arrays(batch)[1:]) for batch in batches}
    assert len(layouts) == len({batch.shape for batch in batches}) <= 4
    assert np.mean([batch.shape == shapes[0] for batch in batches]) > 0.8
    for batch in batches:
        assert batch.shape in shapes
        assert batch.blocks[-1].num_destinations == shapes[0].level_sizes[0]


def test_the_last_shape_holds_the_worst() -> None:
    """Seeds that the pilot did not meet, and whose neighbourhoods do not overlap."""
    num_hubs, degree = 20, 300
    degrees = np.concatenate([np.full(num_hubs, degree), np.ones(400)]).astype(np.int64)
    indptr = np.concatenate([[0], np.cumsum(degrees)])
    indices = np.random.default_rng(0).integers(0, len(degrees), indptr[-1]).astype(np.int32)
    graph = CSCGraph(indptr, indices)
    for fanouts in ((5, 5), (None,), (None, 3)):
        settings = config(fanouts=fanouts, batch_size=10)
        shapes = pilot(graph, np.arange(num_hubs, 420), settings)
        worst = sample_batch(graph, np.arange(10), fanouts=fanouts, seed=3, epoch=0, index=0)
        assert shapes[-1].holds(worst.shape)
        BatchSource(graph, np.arange(10), settings, 0, shapes)[0]


def test_a_batch_that_no_shape_holds_is_named() -> None:
    settings = config()
    shapes = pilot(GRAPH, NODES[:50], settings)[:1]
    small = shapes[0]._replace(level_sizes=(50, 60, 70))
    with pytest.raises(ValueError, match="a batch needs .* none of the shapes holds it"):
        BatchSource(GRAPH, NODES, settings, 0, [small])[0]


def test_an_epoch_visits_every_node_once() -> None:
    batches = list(source(epoch=2))
    assert len(source()) == len(batches) == 9
    seeds = np.concatenate([batch.node_ids[batch.seed_positions[batch.seed_mask]] for batch in batches])
    np.testing.assert_array_equal(seeds, NODES[permuted(3, 2, len(NODES), np.arange(len(NODES)))])
    assert not np.array_equal(seeds[:50], source(epoch=1)[0].node_ids[:50])


def test_the_last_batch_is_padded_with_masked_seeds() -> None:
    last = source()[8]
    assert last.seed_mask.tolist() == [True] * 29 + [False] * 21
    assert not last.seed_positions[29:].any()
    assert last.shape.batch_size == 50


def test_a_batch_of_the_source_is_sample_batchs() -> None:
    settings, epoch, index = config(weighted=True), 4, 5
    batch = BatchSource(GRAPH, NODES, settings, epoch, pilot(GRAPH, NODES, settings))[index]
    seeds = NODES[permuted(3, epoch, len(NODES), np.arange(250, 300))]
    alone = sample_batch(GRAPH, seeds, fanouts=(4, 3), seed=3, epoch=epoch, index=index, weighted=True)
    np.testing.assert_array_equal(batch.node_ids, alone.node_ids)
    for ours, theirs in zip(batch.blocks, alone.blocks, strict=True):
        assert rows_of(ours, theirs.num_destinations) == rows_of(theirs, theirs.num_destinations)


def test_indices_are_those_of_a_sequence() -> None:
    batches = source()
    assert same(batches[-1], batches[8])
    assert same(batches[np.int64(2)], batches[2])
    for index in (9, -10):
        with pytest.raises(IndexError, match=f"batch {index} of 9"):
            batches[index]


def test_grain_reads_it() -> None:
    batches = source()
    mapped = grain.MapDataset.source(batches).map(lambda batch: batch.node_ids)
    assert len(mapped) == 9
    for i, node_ids in enumerate(mapped.to_iter_dataset(grain.ReadOptions(num_threads=2))):
        np.testing.assert_array_equal(node_ids, batches[i].node_ids)
    shuffled = grain.MapDataset.source(batches).shuffle(seed=1)
    assert {batch.node_ids.tobytes() for batch in shuffled} == {batch.node_ids.tobytes() for batch in batches}
    loader = grain.DataLoader(
        data_source=batches, sampler=grain.samplers.SequentialSampler(num_records=9), worker_count=0
    )
    assert all(isinstance(batch.blocks[0], Block) for batch in loader)


def test_the_state_survives_json() -> None:
    settings = config(fanouts=(3, None), seed=2**64 - 1, weighted=True)
    shapes = pilot(GRAPH, NODES, settings)
    assert from_state(json.loads(json.dumps(to_state(settings, shapes)))) == (settings, shapes)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda state: state.update(version=2), "version 1, got 2"),
        (lambda state: state.pop("version"), "version 1, got None"),
        (lambda state: state.pop("shapes"), "damaged: KeyError"),
        (lambda state: state["config"].update(colour=1), "damaged: TypeError"),
        (lambda state: state["config"].update(batch_size=0), "batch_size should be"),
    ],
)
def test_a_state_that_is_none_is_refused(change: object, complaint: str) -> None:
    state = to_state(config(), pilot(GRAPH, NODES, config()))
    change(state)
    with pytest.raises(ValueError, match=complaint):
        from_state(state)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"fanouts": ()}, "at least one fanout"),
        ({"fanouts": (0,)}, "a fanout should be"),
        ({"fanouts": (True,)}, "a fanout should be"),
        ({"batch_size": 0}, "batch_size should be"),
        ({"seed": 2**64}, "seed should be"),
    ],
)
def test_bad_configs_are_named(changes: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        config(**changes)


def test_a_source_needs_nodes_and_shapes_that_fit() -> None:
    shapes = pilot(GRAPH, NODES, config())
    with pytest.raises(ValueError, match="at least one seed node"):
        BatchSource(GRAPH, NODES[:0], config(), 0, shapes)
    with pytest.raises(ValueError, match="at least one seed node"):
        pilot(GRAPH, NODES[:0], config())
    with pytest.raises(ValueError, match="for batches of 40 seeds"):
        BatchSource(GRAPH, NODES, config(batch_size=40), 0, shapes)
    with pytest.raises(ValueError, match="epoch should be"):
        BatchSource(GRAPH, NODES, config(), -1, shapes)
