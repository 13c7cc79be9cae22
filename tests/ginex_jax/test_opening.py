"""Opening a loader: the right bits for any budget, within the budget, and a clear word below the least."""

import functools
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from ginex_jax.batch import BatchShape
from ginex_jax.graph import Graph
from ginex_jax.ingest.rmat_dataset import RmatOptions, generate_rmat
from ginex_jax.pipeline.memory_loader import MemoryLoader
from ginex_jax.pipeline.opening import PolicyName, open_loader
from ginex_jax.sampling.config import SamplerConfig
from ginex_jax.sampling.samplers import NodeSampler
from ginex_jax.store.dataset import Dataset, open_dataset

CONFIG = SamplerConfig(fanouts=(5, 5), batch_size=64, seed=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("opening") / "rmat"
    generate_rmat(
        out,
        RmatOptions(scale=12, edge_factor=8, feature_dim=128, classes=4, seed=0),
        progress=lambda phase, done, total: None,
    )
    return open_dataset(out)


@functools.cache
def least(dataset: Dataset) -> int:
    with pytest.raises(ValueError, match="are the least") as caught:
        open_loader(dataset, node_sampler(nodes(dataset)), memory_bytes=1)
    return int(str(caught.value).split("too few: ")[1].split(" ")[0].replace(",", ""))


def node_sampler(seeds: np.ndarray) -> Callable[[Graph, Sequence[BatchShape] | None], NodeSampler]:
    return lambda graph, shapes: NodeSampler(graph, seeds, CONFIG, shapes=shapes)


def nodes(dataset: Dataset) -> np.ndarray:
    assert dataset.train is not None
    return dataset.train[:1000]


@pytest.mark.parametrize("policy", ["belady", "lru", "static", "none"])
@pytest.mark.parametrize("extra_bytes", [0, 1 << 20, 1 << 30])
def test_the_same_bits_for_any_budget_and_policy(dataset: Dataset, policy: PolicyName, extra_bytes: int) -> None:
    budget = least(dataset) + extra_bytes
    opened = open_loader(dataset, node_sampler(nodes(dataset)), memory_bytes=budget, policy=policy)
    assert opened.split.total <= budget
    assert dataset.features is not None
    twin = MemoryLoader(dataset.load_graph(), dataset.features, nodes(dataset), CONFIG, opened.loader.shapes)
    with opened.loader.stream(0, 20) as stream, twin.stream(0, 20) as expected:
        for ours, theirs in zip(stream, expected, strict=True):
            np.testing.assert_array_equal(ours.batch.node_ids, theirs.batch.node_ids)
            np.testing.assert_array_equal(ours.features, theirs.features)
            ours.release()
    split = opened.split
    allowed = split.cache + split.ring + split.policy + split.waiting
    assert opened.loader.nbytes <= allowed


def test_the_shapes_of_a_run_that_goes_on_are_kept(dataset: Dataset) -> None:
    first = open_loader(dataset, node_sampler(nodes(dataset)), memory_bytes=1 << 30).loader
    again = open_loader(dataset, node_sampler(nodes(dataset)), memory_bytes=1 << 30, shapes=first.shapes).loader
    assert again.sampler_state == first.sampler_state


def test_a_dataset_without_features_is_refused(tmp_path: Path) -> None:
    generate_rmat(
        tmp_path / "bare", RmatOptions(scale=8, edge_factor=4, seed=0), progress=lambda phase, done, total: None
    )
    with pytest.raises(ValueError, match="has no features"):
        open_loader(open_dataset(tmp_path / "bare"), node_sampler(np.arange(4)), memory_bytes=1 << 30)


def test_peak_memory_stays_within_the_budget(tmp_path: Path) -> None:
    out = tmp_path / "rmat"
    generate_rmat(
        out, RmatOptions(scale=18, edge_factor=8, feature_dim=256, seed=0), progress=lambda phase, done, total: None
    )  # 268 MB of features
    script = textwrap.dedent(f"""
        import numpy as np
        from pathlib import Path
        from ginex_jax.pipeline.opening import open_loader
        from ginex_jax.sampling.config import SamplerConfig
        from ginex_jax.sampling.samplers import NodeSampler
        from ginex_jax.store.dataset import open_dataset

        def status(name):
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) * 1024

        def run(path, memory_bytes, steps):
            dataset = open_dataset(path)
            config = SamplerConfig(fanouts=(10, 10), batch_size=256)
            sampler_of = lambda graph, shapes: NodeSampler(graph, np.arange(2**16), config, shapes=shapes)
            opened = open_loader(dataset, sampler_of, memory_bytes=memory_bytes, steps=steps)
            with opened.loader.stream(0, steps) as stream:
                for loaded in stream:
                    loaded.release()
            return opened.split

        budget = 256 << 20
        before = status("VmRSS")
        split = run({str(out)!r}, budget, 60)
        print(before, status("VmHWM"), split.total, split.cache)
    """)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    before, peak, total, cache = map(int, result.stdout.split())
    assert total <= 256 << 20
    assert cache > 30 << 20  # there is a cache worth the name, and more features than memory
    assert peak <= (256 << 20) + 600_000_000
    assert peak - before <= (256 << 20) + (150 << 20)  # compiled kernels and libraries that load on the way
