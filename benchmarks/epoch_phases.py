"""What benchmarks/ginex_epoch.py runs in processes of their own."""

import ctypes
import functools
import itertools
import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ginex_gather import C_SOURCE
from benchmarks.mapped_features import MappedFeatures, compiled_library, evict
from benchmarks.phases import say
from ginex_jax.belady.policies import LruPolicy, NoCache, StaticPolicy
from ginex_jax.belady.rolling import RollingPlanner
from ginex_jax.belady.steps import CachePolicy
from ginex_jax.features import FeatureStore
from ginex_jax.graph import Graph
from ginex_jax.pipeline.disk_loader import DiskLoader
from ginex_jax.pipeline.loading import LoadedBatch
from ginex_jax.pipeline.trial import Trial, run_trial
from ginex_jax.sampling.config import SamplerConfig
from ginex_jax.sampling.samplers import NodeSampler
from ginex_jax.sampling.shapes import from_state
from ginex_jax.store.dataset import Dataset, open_dataset
from ginex_jax.store.direct_features import DirectFeatures
from ginex_jax.store.shards import ShardedArray, open_sharded
from ginex_jax.store.uses import most_used

HIDDEN = 256
_LARGEST_RING = 4  # typical batches on their way
_POOL_GROUP = 1 << 18  # rows that the pool reads in one go, as many as the pipeline does
_SECONDS_BETWEEN_LINES = 10.0


def prepare(dataset: str, scratch: str, fanouts: list[int], batch_size: int, shares: list[float]) -> dict[str, Any]:
    """The shapes of the batches, and the most used nodes for each cache, the most used being the out-degree."""
    opened = open_dataset(dataset)
    uses = opened.graph.count_uses()
    for share in shares:
        np.save(hot_file(scratch, share), most_used(uses, rows_of(opened, share)))
    del uses
    say("prepare: uses are counted")
    sampler = NodeSampler(opened.load_graph(), training_nodes(opened), _config(fanouts, batch_size))
    (Path(scratch) / "sampler.json").write_text(json.dumps(sampler.state), encoding="utf-8")
    return {
        "nodes": opened.num_nodes,
        "edges": opened.num_edges,
        "level_sizes": [shape.level_sizes for shape in sampler.shapes],
        "steps_per_epoch": sampler.steps_per_epoch,
    }


def plan(
    dataset: str, scratch: str, share: float, warm_up: int, batches: int, window: int, commit: int
) -> dict[str, Any]:
    """What Ginex is going to read: the ids of the counted batches' misses, written for the pool."""
    opened = open_dataset(dataset)
    sampler = _sampler(opened, scratch)
    policy = make_policy("ginex", opened, scratch, share, window, commit)
    misses, counts, start = [], [], time.perf_counter()
    sampling = 0.0
    trace = []
    for index in range(warm_up + batches + window):
        before = time.perf_counter()
        trace.append(sampler.sampled(*divmod(index, sampler.steps_per_epoch)).node_ids.astype(np.int32))
        sampling += time.perf_counter() - before
    accesses = sum(map(len, trace))
    start = time.perf_counter()
    for index, step in enumerate(itertools.islice(policy.steps(trace), warm_up + batches)):
        if index >= warm_up:
            misses.append(trace[index][step.hit_slots < 0].astype(np.int64))
            counts.append(len(misses[-1]))
    planning = time.perf_counter() - start
    np.save(misses_file(scratch, share), np.concatenate(misses))
    return {
        "misses_of": counts,
        "misses": sum(counts),
        "sampling_nodes_per_s": accesses / sampling,
        "planning_accesses_per_s": accesses / planning,
    }


def direct(
    dataset: str,
    scratch: str,
    name: str,
    share: float,
    warm_up: int,
    batches: int,
    window: int,
    commit: int,
    model: bool,
) -> dict[str, Any]:
    """The pipeline with direct I/O and the policy `name`."""
    opened = open_dataset(dataset)
    features = DirectFeatures(opened.path / "features")
    maker = functools.partial(make_policy, name, opened, scratch, share, window, commit)
    loader = _loader(opened, scratch, features, maker)
    found = run_trial(loader, warm_up=warm_up, batches=batches, step=_step(opened, loader, model), progress=_told(name))
    return {**_timed(found), "note": features.note, "loader_bytes": loader.nbytes}


def mapped(
    dataset: str, scratch: str, threads: int, warm_up: int, batches: int, max_seconds: float, model: bool
) -> dict[str, Any]:
    """The pipeline with rows from a memory map and no cache but the system's, which is empty at first."""
    opened = open_dataset(dataset)
    features = MappedFeatures(_array(opened), Path(scratch) / "mapped_rows.so", num_threads=threads)
    evict(_array(opened).paths)
    resident_before = features.resident_bytes()
    loader = _loader(opened, scratch, features, NoCache)
    step, name = _step(opened, loader, model), f"mmap, {threads} threads"
    found = run_trial(
        loader, warm_up=warm_up, batches=batches, step=step, max_seconds=max_seconds, progress=_told(name)
    )
    resident = {"resident_bytes_before": resident_before, "resident_bytes_after": features.resident_bytes()}
    return {**_timed(found), **resident}


def pool(dataset: str, scratch: str, share: float, threads: int, max_rows: int, turn: int) -> dict[str, Any]:
    """The misses of the plan, read by a pool of threads in C: as they come, and sorted, group by group in turns."""
    array = _array(open_dataset(dataset))
    misses = np.load(misses_file(scratch, share))
    start = len(misses) * (turn % 4) // 4  # other rows each time
    misses = np.roll(misses, -start)[:max_rows]
    gather = compiled_library(C_SOURCE, Path(scratch) / "gather_pool.so").gather
    gather.restype = ctypes.c_long
    files = np.array([os.open(path, os.O_RDONLY | os.O_DIRECT) for path in array.paths], np.int32)
    out = DirectFeatures(array.path).empty(_POOL_GROUP)
    out[:] = 0
    seconds, rows = {"as they come": 0.0, "sorted": 0.0}, {"as they come": 0, "sorted": 0}
    for number, first in enumerate(range(0, len(misses), _POOL_GROUP)):
        ids = misses[first : first + _POOL_GROUP]
        name = ("as they come", "sorted")[number % 2]
        before = time.perf_counter()
        order = np.arange(len(ids)) if name == "as they come" else np.argsort(ids)
        taken = np.ascontiguousarray(ids[order])
        pointers = [ctypes.c_void_p(each.ctypes.data) for each in (files, taken, order)]
        sizes = [ctypes.c_int64(size) for size in (len(ids), array.shard_rows, array.stride)]
        if gather(*pointers, *sizes, ctypes.c_void_p(out.ctypes.data), threads):
            raise OSError("the pool could not read")
        seconds[name] += time.perf_counter() - before
        rows[name] += len(ids)
    rates = {name: rows[name] / seconds[name] if rows[name] else None for name in rows}
    return {"rows": sum(rows.values()), "rows_per_second": rates}


def pyg(
    dataset: str,
    scratch: str,
    fanouts: list[int],
    batch_size: int,
    batches: int,
    workers: int,
    python: str,
    max_seconds: float,
) -> dict[str, Any]:
    """PyG's NeighborLoader over a FeatureStore of memory maps, with the seeds of the same batches, in its own environment."""
    opened = open_dataset(dataset)
    array, sampler = _array(opened), _sampler(opened, scratch)
    drawn = (sampler.sampled(*divmod(step, sampler.steps_per_epoch)) for step in range(batches))
    seeds = [batch.node_ids[batch.seed_positions] for batch in drawn]
    np.save(Path(scratch) / "seeds.npy", np.concatenate(seeds))
    width = opened.manifest.arrays["features"].layout.shape[1]
    task = {
        "arrays": {name: _files(opened, name) for name in ("indptr", "indices")},
        "features": {
            "files": [str(path.absolute()) for path in array.paths],
            "rows_a_file": array.shard_rows,
            "shape": [opened.num_nodes, width],
            "dtype": array.dtype.name,
        },
        "seeds": str((Path(scratch) / "seeds.npy").absolute()),
        "fanouts": fanouts,
        "batch_size": batch_size,
        "workers": workers,
        "max_seconds": max_seconds,
    }
    del sampler
    evict(array.paths)
    command = [python, str(Path(__file__).with_name("pyg_features.py"))]
    done = subprocess.run(command, input=json.dumps(task), stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    maps = MappedFeatures(array, Path(scratch) / "mapped_rows.so", num_threads=1)
    return {**found, "resident_bytes_after": maps.resident_bytes()}


PHASES: dict[str, Callable[..., dict[str, Any]]] = {
    function.__name__: function for function in (prepare, plan, direct, mapped, pool, pyg)
}


def make_policy(name: str, dataset: Dataset, scratch: str, share: float, window: int, commit: int) -> CachePolicy:
    capacity, num_nodes = rows_of(dataset, share), dataset.num_nodes
    if name == "lru":
        return LruPolicy(capacity=capacity, num_nodes=num_nodes)
    if name == "static":
        return StaticPolicy(np.load(hot_file(scratch, share)), num_nodes=num_nodes)
    return RollingPlanner(capacity=capacity, num_nodes=num_nodes, window=window, commit=commit)


def rows_of(dataset: Dataset, share: float) -> int:
    return max(1, int(share * dataset.num_nodes))


def hot_file(scratch: str, share: float) -> Path:
    return Path(scratch) / f"hot-{share}.npy"


def misses_file(scratch: str, share: float) -> Path:
    return Path(scratch) / f"misses-{share}.npy"


def training_nodes(dataset: Dataset) -> np.ndarray:
    if dataset.train is None:
        raise SystemExit(f"error: {dataset.path} has no training nodes: generate it with --classes")
    return dataset.train


def _config(fanouts: Sequence[int], batch_size: int) -> SamplerConfig:
    return SamplerConfig(fanouts=tuple(fanouts), batch_size=batch_size)


def _sampler(dataset: Dataset, scratch: str) -> NodeSampler:
    """The same batches in every phase, sampled in memory."""
    state = json.loads((Path(scratch) / "sampler.json").read_text(encoding="utf-8"))
    config, shapes = from_state(state)
    graph: Graph = dataset.load_graph()
    return NodeSampler(graph, training_nodes(dataset), config, shapes=shapes)


def _loader(dataset: Dataset, scratch: str, features: FeatureStore, maker: Callable[[], CachePolicy]) -> DiskLoader:
    sampler = _sampler(dataset, scratch)
    sizes = [shape.level_sizes[-1] for shape in sampler.shapes]
    ring_rows = sizes[-1] + _LARGEST_RING * sizes[0]
    return DiskLoader(sampler, features, make_policy=maker, ring_rows=ring_rows)


def _array(dataset: Dataset) -> ShardedArray:
    return open_sharded(dataset.path / "features")


def _files(dataset: Dataset, name: str) -> list[tuple[str, int]]:
    """Every shard of a vector, and how many entries it begins with."""
    array, layout = open_sharded(dataset.path / name), dataset.manifest.arrays[name].layout
    return [
        (str(path.absolute()), min(layout.shard_rows, layout.num_rows - shard * layout.shard_rows))
        for shard, path in enumerate(array.paths)
    ]


def _step(dataset: Dataset, loader: DiskLoader, model: bool) -> Callable[[LoadedBatch], object]:
    """What is done with a batch: nothing, or a step of GraphSAGE."""
    if not model:
        return lambda loaded: loaded.release()
    from ginex_jax.models.config import ModelConfig
    from ginex_jax.models.construction import build_model
    from ginex_jax.models.initialization import initial_parameters
    from ginex_jax.train.config import TrainConfig
    from ginex_jax.train.inputs import NodeArrays, step_inputs
    from ginex_jax.train.step import compiled_step, initial_state, random_keys

    assert dataset.labels is not None
    nodes, config = NodeArrays(dataset.labels), TrainConfig()
    layers = len(loader.shapes[0].level_sizes) - 1
    network = build_model(ModelConfig(hidden=HIDDEN, num_layers=layers, num_outputs=int(dataset.labels.max()) + 1))
    first_key, key = random_keys(0)
    states = [initial_state(initial_parameters(network, loader.features.shape[1], first_key), config)]
    run = compiled_step(network, config)

    def step(loaded: LoadedBatch) -> None:
        states[0], loss = run(states[0], step_inputs(loaded, nodes), loaded.step, key)
        loss.block_until_ready()
        loaded.release()

    return step


def _timed(found: Trial) -> dict[str, Any]:
    """Its seconds by another name: `seconds` are the whole phase's."""
    return {
        "timed_seconds": found.seconds,
        **{name: value for name, value in found.to_json().items() if name != "seconds"},
    }


def _told(name: str) -> Callable[[int], None]:
    """Says now and then how many batches there have been."""
    last = [time.monotonic()]

    def progress(done: int) -> None:
        if time.monotonic() - last[0] > _SECONDS_BETWEEN_LINES:
            last[0] = time.monotonic()
            say(f"  {name}: {done} batches")

    return progress
