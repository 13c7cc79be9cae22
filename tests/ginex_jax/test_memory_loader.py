import itertools

import numpy as np
import pytest

from ginex_jax.features import ArrayFeatures
from ginex_jax.pipeline.loading import Loader
from ginex_jax.pipeline.memory_loader import MemoryLoader
from ginex_jax.sampling.config import SamplerConfig
from ginex_jax.sampling.shapes import from_state, pilot
from ginex_jax.sampling.source import BatchSource
from tests.ginex_jax import oracles_sampling as oracles
from tests.ginex_jax.test_sampling import same

GRAPH = oracles.random_graph(300, seed=7, longest=20)
FEATURES = np.random.default_rng(0).standard_normal((300, 5)).astype(np.float32)
NODES = np.arange(1, 300, 3)
CONFIG = SamplerConfig(fanouts=(4, 3), batch_size=30, seed=3)


@pytest.fixture(scope="module")
def loader() -> MemoryLoader:
    return MemoryLoader(GRAPH, ArrayFeatures(FEATURES), NODES, CONFIG, pilot(GRAPH, NODES, CONFIG))


def test_steps_are_the_batches_of_the_source_with_their_rows(loader: MemoryLoader) -> None:
    assert isinstance(loader, Loader)
    assert loader.steps_per_epoch == 4
    for loaded in loader.stream(2, 9):
        expected = BatchSource(GRAPH, NODES, CONFIG, loaded.epoch, loader.shapes)[loaded.index]
        assert same(loaded.batch, expected)
        assert loaded.step == loaded.epoch * 4 + loaded.index
        num_rows = len(expected.node_ids)
        np.testing.assert_array_equal(loaded.features[:num_rows], FEATURES[expected.node_ids])
        assert loaded.features.shape == (expected.shape.level_sizes[-1], 5)
        assert not loaded.features[num_rows:].any()
        assert (loaded.report.rows, loaded.report.misses) == (num_rows, num_rows)
        loaded.release()


def test_a_stream_begins_anywhere_and_ends_when_closed(loader: MemoryLoader) -> None:
    whole = list(loader.stream(0, 8))
    assert [loaded.step for loaded in whole] == list(range(8))
    for first, second in zip(whole[5:], loader.stream(5, 8), strict=True):
        assert same(first.batch, second.batch)
        np.testing.assert_array_equal(first.features, second.features)
    with loader.stream(0, 8) as stream:
        assert [loaded.step for loaded in itertools.islice(stream, 2)] == [0, 1]
    assert list(stream) == list(loader.stream(3, 3)) == []


def test_what_it_is_made_of(loader: MemoryLoader) -> None:
    assert from_state(loader.sampler_state) == (CONFIG, loader.shapes)
    with pytest.raises(ValueError, match="got 3 to 2"):
        loader.stream(3, 2)
    with pytest.raises(ValueError, match="one row for each of 300 nodes"):
        MemoryLoader(GRAPH, ArrayFeatures(FEATURES[:9]), NODES, CONFIG, loader.shapes)
