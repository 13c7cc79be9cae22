"""A trial counts the batches it says, and they are those of the plan."""

import numpy as np
import pytest

from ginex_jax.belady.policies import LruPolicy
from ginex_jax.belady.rolling import RollingPlanner
from ginex_jax.features import ArrayFeatures
from ginex_jax.graph import CSCGraph
from ginex_jax.pipeline.disk_loader import DiskLoader
from ginex_jax.pipeline.trial import run_trial
from ginex_jax.sampling.config import SamplerConfig
from ginex_jax.sampling.samplers import NodeSampler
from tests.ginex_jax.small_datasets import small_arrays


@pytest.fixture(scope="module")
def sampler():
    arrays = small_arrays(weighted=False)
    graph = CSCGraph(arrays["indptr"], arrays["indices"])
    return NodeSampler(graph, arrays["train"], SamplerConfig(fanouts=(3, 3), batch_size=10))


def loader_of(sampler, make_policy):
    features = ArrayFeatures(small_arrays(weighted=False)["features"])
    return DiskLoader(sampler, features, make_policy=make_policy, ring_rows=5000)


POLICIES = {
    "lru": lambda: LruPolicy(capacity=100, num_nodes=500),
    "belady": lambda: RollingPlanner(capacity=100, num_nodes=500, window=4, commit=2),
}


@pytest.mark.parametrize("name", POLICIES)
def test_counts_are_those_of_the_plan(sampler, name):
    told = []
    trial = run_trial(loader_of(sampler, POLICIES[name]), warm_up=5, batches=12, progress=told.append)
    trace = [sampler.sampled(*divmod(step, 10)).node_ids for step in range(17 + 4)]
    planned = [step.num_misses for step in POLICIES[name]().steps(trace)][5:17]
    assert trial.misses_of == planned
    assert trial.misses == sum(planned)
    assert trial.rows == sum(map(len, trace[5:17]))
    assert trial.batches == len(trial.seconds_of) == 12
    assert told == list(range(1, 18))
    assert trial.hit_rate == 1 - trial.misses / trial.rows
    assert sum(trial.seconds_of) <= trial.seconds
    for stage in trial.stages.values():
        assert min(stage.busy, stage.starved, stage.blocked) >= 0
    assert trial.stages["step"].items == 12
    assert trial.to_json()["stages"]["read"].keys() == {"items", "busy", "starved", "blocked"}


def test_ends_when_time_is_over(sampler):
    trial = run_trial(loader_of(sampler, POLICIES["lru"]), warm_up=0, batches=12, max_seconds=0.0)
    assert trial.batches == 1


def test_takes_what_the_step_gives(sampler):
    seen = []

    def step(loaded):
        seen.append(loaded.step)
        loaded.release()

    run_trial(loader_of(sampler, POLICIES["lru"]), warm_up=2, batches=3, step=step)
    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("warm_up", "batches"), [(0, 0), (-1, 1)])
def test_refuses_no_batches(sampler, warm_up, batches):
    with pytest.raises(ValueError, match="at least 1 batch"):
        run_trial(loader_of(sampler, POLICIES["lru"]), warm_up=warm_up, batches=batches)


def test_rows_are_those_of_the_ids(sampler):
    loader = loader_of(sampler, POLICIES["belady"])
    features, expected = [], small_arrays(weighted=False)["features"]

    def step(loaded):
        ids = loaded.batch.node_ids
        features.append(np.array_equal(loaded.features[: len(ids)], expected[ids]))
        loaded.release()

    run_trial(loader, warm_up=3, batches=8, step=step)
    assert all(features)
    assert len(features) == 11
