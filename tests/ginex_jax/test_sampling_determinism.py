import concurrent.futures
import functools
import hashlib
import multiprocessing

import numpy as np
import pytest

from ginex_jax.batch import MiniBatch
from ginex_jax.sampling.config import SamplerConfig
from ginex_jax.sampling.shapes import pilot
from ginex_jax.sampling.source import BatchSource
from tests.ginex_jax import oracles_sampling as oracles
from tests.ginex_jax.test_sampling import arrays

NUM_BATCHES = 12


def digest(batch: MiniBatch) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays(batch))).hexdigest()


@functools.cache
def source(weighted: bool = False, elsewhere: bool = False) -> BatchSource:
    graph = oracles.random_graph(500, seed=3)
    config = SamplerConfig(fanouts=(4, 3, None), batch_size=16, seed=9, weighted=weighted)
    nodes = np.arange(0, 2 * (NUM_BATCHES * 16 - 5), 2)
    shapes = pilot(graph, nodes, config)
    return BatchSource(oracles.ElsewhereGraph(graph) if elsewhere else graph, nodes, config, 4, shapes)


def digest_of(index: int) -> str:
    return digest(source()[index])


@functools.cache
def expected() -> list[str]:
    return [digest_of(index) for index in range(NUM_BATCHES)]


def test_all_batches_differ() -> None:
    assert len(source()) == NUM_BATCHES
    assert len(set(expected())) == NUM_BATCHES


@pytest.mark.parametrize("num_threads", [1, 2, 8])
def test_any_number_of_threads_and_any_order(num_threads: int) -> None:
    order = np.random.default_rng(num_threads).permutation(np.repeat(np.arange(NUM_BATCHES), 3)).tolist()
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        assert list(pool.map(digest_of, order)) == [expected()[index] for index in order]


def test_processes() -> None:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        assert list(pool.map(digest_of, range(NUM_BATCHES))) == expected()


@pytest.mark.parametrize("weighted", [False, True])
def test_graphs_elsewhere_give_the_same_batches(weighted: bool) -> None:
    ours, elsewhere = source(weighted), source(weighted, elsewhere=True)
    assert [digest(batch) for batch in ours] == [digest(batch) for batch in elsewhere]
