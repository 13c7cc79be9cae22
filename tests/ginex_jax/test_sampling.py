import numpy as np
import pytest

from ginex_jax.batch import Block, DegreeBlock, MiniBatch
from ginex_jax.graph import CSCGraph
from ginex_jax.sampling.neighbors import sample_batch
from tests.ginex_jax import oracles_sampling as oracles

GRAPH = oracles.random_graph(300, seed=0)
SEEDS = np.array([7, 3, 7, 0, 299, 12, 3])  # 0 has no neighbours
FANOUTS = [(1,), (4, 3), (10, 10, 10), (100,), (3, None), (None, 2), (None, None)]


def same(a: MiniBatch, b: MiniBatch) -> bool:
    """Bit for bit."""
    if a.level_sizes != b.level_sizes or a.shape != b.shape:
        return False
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(arrays(a), arrays(b), strict=True))


def arrays(batch: MiniBatch) -> list[np.ndarray]:
    found = [batch.node_ids, batch.seed_positions, batch.seed_mask]
    for block in batch.blocks:
        parts = [block] if isinstance(block, Block) else [*block.tables, *block.combines, (block.rows, block.degrees)]
        found += [array for part in parts for array in part if array is not None]
    return found


def rows_of(block: Block | DegreeBlock, num_rows: int) -> list[list[tuple[int, float]]]:
    """(local id, weight) of every list; of a `DegreeBlock` in the order of the list, by following its references."""
    if isinstance(block, Block):
        tables = [block]
        wanted = [[i] for i in range(num_rows)]
    else:
        tables, first = block.tables, 1 + sum(len(table.mask) for table in block.tables)
        wanted = []
        for row in block.rows[:num_rows].tolist():
            start = first
            for table in block.combines:
                if start <= row < start + len(table.mask):
                    wanted.append((table.entries[row - start][table.mask[row - start]] - 1).tolist())
                    break
                start += len(table.mask)
            else:
                wanted.append([row - 1] if row else [])
    flat = []
    for entries, mask, weights in tables:
        weights = np.ones(mask.shape) if weights is None else weights
        flat += [
            list(zip(e[m].tolist(), w[m].tolist(), strict=True)) for e, m, w in zip(entries, mask, weights, strict=True)
        ]
    return [[entry for row in rows for entry in flat[row]] for rows in wanted]


def assert_equals_oracle(batch: MiniBatch, expected: oracles.Sampled) -> None:
    assert batch.node_ids.tolist() == expected.node_ids
    assert batch.level_sizes == tuple(expected.level_sizes)
    assert batch.seed_positions.tolist() == expected.seed_positions
    assert len(batch.blocks) == len(expected.hops)
    for block, rows in zip(reversed(batch.blocks), expected.hops, strict=True):
        assert block.num_destinations == len(rows)
        assert rows_of(block, len(rows)) == rows


@pytest.mark.parametrize("fanouts", FANOUTS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["weights", "no weights", "elsewhere"])
def test_a_batch_equals_the_oracles(fanouts: tuple[int | None, ...], weighted: bool, kind: str) -> None:
    graph = GRAPH._replace(weights=None) if kind == "no weights" else GRAPH
    if weighted and not graph.is_weighted:
        with pytest.raises(ValueError, match="needs edge weights"):
            sample_batch(graph, SEEDS, fanouts=fanouts, seed=0, epoch=0, index=0, weighted=True)
        return
    where = {"fanouts": fanouts, "seed": 2**64 - 1, "epoch": 3, "index": 5, "weighted": weighted}
    batch = sample_batch(oracles.ElsewhereGraph(graph) if kind == "elsewhere" else graph, SEEDS, **where)
    assert_equals_oracle(batch, oracles.sample(graph, SEEDS.tolist(), **where))
    for block in batch.blocks:
        if isinstance(block, Block):
            assert not block.neighbors[~block.mask].any()
            assert block.weights is None or not block.weights[~block.mask].any()


@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
def test_a_batch_of_many_nodes_equals_the_oracles(index_dtype: type) -> None:
    """The hash table has to grow, and more rows are there than are drawn at once."""
    graph = oracles.random_graph(30_000, seed=1, weighted=False)
    graph = graph._replace(indices=graph.indices.astype(index_dtype))
    seeds = np.arange(100, 900)
    where = {"fanouts": (7, 6), "seed": 0, "epoch": 0, "index": 0}
    batch = sample_batch(graph, seeds, **where)
    assert len(batch.node_ids) > 2**12
    assert_equals_oracle(batch, oracles.sample(graph, seeds.tolist(), **where))


def test_more_seeds_than_the_hash_table_holds_at_first() -> None:
    graph = oracles.random_graph(20_000, seed=2)
    seeds = np.random.default_rng(0).integers(0, 20_000, 30_000)
    batch = sample_batch(graph, seeds, fanouts=(1,), seed=0, epoch=0, index=0)
    np.testing.assert_array_equal(batch.node_ids[batch.seed_positions], seeds)
    assert batch.level_sizes[0] == len(np.unique(seeds))


def test_edges_exist_and_places_are_distinct() -> None:
    """Without the oracle: neighbours are in the lists, no oftener than there, and as many as should be."""
    graph = GRAPH._replace(weights=np.arange(GRAPH.num_edges, dtype=np.float32))  # an edge's weight is its position
    batch = sample_batch(graph, SEEDS, fanouts=(5, 5, 5), seed=1, epoch=0, index=0)
    assert len(set(batch.node_ids.tolist())) == len(batch.node_ids)
    for block, size in zip(reversed(batch.blocks), batch.level_sizes, strict=False):
        for node, row in zip(batch.node_ids[:size], rows_of(block, size), strict=True):
            start, stop = graph.indptr[node], graph.indptr[node + 1]
            positions = [int(weight) for _, weight in row]
            assert len(set(positions)) == len(positions) == min(5, stop - start)
            assert all(start <= position < stop for position in positions)
            assert [batch.node_ids[i] for i, _ in row] == graph.indices[positions].tolist()


def test_levels_and_seeds() -> None:
    batch = sample_batch(GRAPH, SEEDS, fanouts=(3, 3), seed=0, epoch=0, index=0)
    assert batch.node_ids[:5].tolist() == [7, 3, 0, 299, 12]
    assert batch.seed_positions.tolist() == [0, 1, 0, 2, 3, 4, 1]
    assert batch.seed_mask.all()
    assert [block.num_destinations for block in batch.blocks] == [batch.level_sizes[1], batch.level_sizes[0]]
    assert batch.level_sizes[0] == 5
    assert batch.level_sizes[-1] == len(batch.node_ids)
    assert batch.shape.level_sizes == batch.level_sizes


def test_isolated_nodes_loops_and_repeated_edges() -> None:
    graph = CSCGraph(np.array([0, 0, 1, 5]), np.array([1, 0, 0, 0, 0], np.int32))
    alone = sample_batch(graph, np.array([0]), fanouts=(2, None), seed=0, epoch=0, index=0)
    assert alone.node_ids.tolist() == [0]
    assert not any(any(rows_of(block, 1)) for block in alone.blocks)
    loop = sample_batch(graph, np.array([1]), fanouts=(2,), seed=0, epoch=0, index=0)
    assert loop.node_ids.tolist() == [1]
    assert loop.blocks[0].mask.tolist() == [[True, False]]
    repeated = sample_batch(graph, np.array([2]), fanouts=(3,), seed=0, epoch=0, index=0)
    assert repeated.node_ids.tolist() == [2, 0]
    assert repeated.blocks[0].neighbors.tolist() == [[1, 1, 1]]


def test_the_graph_is_asked_once_a_hop() -> None:
    graph = oracles.ElsewhereGraph(GRAPH)
    sample_batch(graph, SEEDS, fanouts=(3, None, 2), seed=0, epoch=0, index=0)
    assert graph.num_calls == 3


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"fanouts": ()}, "at least one fanout"),
        ({"fanouts": (3, 0)}, "fanout should be an int of at least 1.*got 0"),
        ({"seed": -1}, r"seed should be in \[0, 2\*\*64\), got -1"),
        ({"epoch": 2**63}, r"epoch should be in \[0, 2\*\*63\)"),
        ({"index": -1}, "index should be"),
        ({"seed_nodes": np.array([1, 300])}, r"seed nodes should be in \[0, 300\), got 300 at 1"),
        ({"seed_nodes": np.empty(0, np.int64)}, "at least one seed node"),
    ],
)
def test_bad_arguments_are_named(change: dict, complaint: str) -> None:
    arguments = {"seed_nodes": SEEDS, "fanouts": (3,), "seed": 0, "epoch": 0, "index": 0, **change}
    with pytest.raises(ValueError, match=complaint):
        sample_batch(GRAPH, **arguments)
