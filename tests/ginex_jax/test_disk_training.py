"""Training from disk is training in memory, bit for bit: every loss and every parameter, whatever the memory and the policy."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest

from ginex_jax.batch import BatchShape
from ginex_jax.graph import Graph
from ginex_jax.models.construction import build_model
from ginex_jax.pipeline.disk_loader import DiskLoader
from ginex_jax.pipeline.loading import Loader
from ginex_jax.pipeline.opening import PolicyName, open_loader
from ginex_jax.sampling.config import SamplerConfig
from ginex_jax.sampling.samplers import NodeSampler
from ginex_jax.store.dataset import Dataset, open_dataset
from ginex_jax.train.loop import FitResult, fit
from tests.ginex_jax.small_datasets import write_dataset
from tests.ginex_jax.small_runs import MODEL, TRAIN, TRAINING, WIDTH, planted, planted_loader, planted_nodes


class Records:
    """A `RunLog` in memory, without what depends on the clock and the cache."""

    def __init__(self) -> None:
        self.losses: list[tuple[int, float]] = []

    def write(self, record: dict[str, Any]) -> None:
        if record["kind"] == "step":
            self.losses.append((record["step"], record["loss"]))

    def restart(self, step: int) -> None:
        assert step == 0


def trained(loader: Loader) -> tuple[FitResult, Records]:
    records = Records()
    return fit(build_model(MODEL), loader, planted_nodes(), TRAINING, num_features=WIDTH, log=records), records


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("planted") / "graph"
    write_dataset(path, planted())
    return open_dataset(path)


@pytest.fixture(scope="module")
def in_memory() -> tuple[FitResult, Records]:
    return trained(planted_loader())


def from_disk(dataset: Dataset, policy: PolicyName, extra_bytes: int) -> DiskLoader:
    config = SamplerConfig(fanouts=(5, 5), batch_size=32, seed=1)

    def sampler_of(graph: Graph, shapes: Sequence[BatchShape] | None) -> NodeSampler:
        return NodeSampler(graph, TRAIN, config, shapes=shapes)

    with pytest.raises(ValueError, match="are the least") as caught:
        open_loader(dataset, sampler_of, memory_bytes=1)
    least = int(str(caught.value).split("too few: ")[1].split(" ")[0].replace(",", ""))
    return open_loader(dataset, sampler_of, memory_bytes=least + extra_bytes, policy=policy).loader


@pytest.mark.parametrize(
    ("policy", "extra_bytes"), [("belady", 4 << 10), ("lru", 4 << 10), ("none", 0), ("belady", 1 << 30)]
)
def test_losses_and_parameters_are_those_of_training_in_memory(
    dataset: Dataset, in_memory: tuple[FitResult, Records], policy: PolicyName, extra_bytes: int
) -> None:
    result, records = trained(from_disk(dataset, policy, extra_bytes))
    expected, expected_records = in_memory
    assert len(records.losses) > 5
    assert records.losses == expected_records.losses  # exact
    for ours, theirs in zip(jax.tree.leaves(result.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert result.pipeline is not None and result.pipeline.misses <= result.pipeline.rows
    assert (result.pipeline.misses == result.pipeline.rows) == (policy == "none")
    assert list(result.pipeline.stages) == ["sample", "plan", "read", "assemble", "transfer", "step"]
