import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from ginex_jax.checkpoint.record import RunIdentity
from ginex_jax.checkpoint.run_folder import RunFolder, latest_record
from ginex_jax.pipeline.divided_loader import DividedLoader
from ginex_jax.sampling.samplers import WHOLE, Share
from ginex_jax.train.config import TrainConfig
from ginex_jax.train.devices import Devices, OneDevice
from ginex_jax.train.inputs import NodeArrays
from ginex_jax.train.loop import FitResult, fit
from ginex_jax.train.parallel import DataParallel
from tests.ginex_jax.parallel_process import LABELS, MODEL, loader_of, trained
from tests.ginex_jax.small_links import WIDTH
from tests.ginex_jax.small_runs import QUICK

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def single() -> dict[str, np.ndarray]:
    return {**trained("single-label", None), **trained("links", None)}


def run_all(folder: Path, num_processes: int, devices_each: int) -> list[dict[str, np.ndarray]]:
    """What the processes wrote."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices_each}"
    environment = {**os.environ, **QUICK, "XLA_FLAGS": flags}
    coordinator = []
    if num_processes > 1:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            coordinator = [str(num_processes), f"127.0.0.1:{found.getsockname()[1]}"]
    files = [folder / f"{number}.npz" for number in range(num_processes)]
    program = [sys.executable, "-m", "tests.ginex_jax.parallel_process"]
    processes = [
        subprocess.Popen(
            [*program, file, *([str(number), *coordinator] if coordinator else [])],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, file in enumerate(files)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [dict(np.load(file)) for file in files]


def assert_same_training(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], *, with_log: bool) -> None:
    for name, array in expected.items():
        if with_log or not name.endswith("log"):
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("num_processes", "devices_each"),
    [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow), pytest.param(2, 2, marks=pytest.mark.slow)],
)
def test_devices_and_processes_train_as_one(
    tmp_path: Path, single: dict[str, np.ndarray], num_processes: int, devices_each: int
) -> None:
    for number, found in enumerate(run_all(tmp_path, num_processes, devices_each)):
        assert found["shares"].tolist() == [num_processes * devices_each, devices_each]
        assert_same_training(found, single, with_log=number == 0)
        assert len(found["links log"]) == (0 if number else len(single["links log"]))


def test_one_share_trains_as_one_device(single: dict[str, np.ndarray]) -> None:
    assert_same_training(
        trained("single-label", DataParallel(jax.devices()[:1])), only(single, "single"), with_log=True
    )


def test_several_devices_go_on_where_they_were_interrupted(tmp_path: Path) -> None:
    """Bit for bit, as one device does; and a process that is not the first writes nothing."""
    devices = DataParallel(jax.devices()[:1])
    loader = DividedLoader([loader_of("single-label", WHOLE)])
    config = TrainConfig(learning_rate=0.01, epochs=2, checkpoint_every=4)
    identity = RunIdentity(
        dataset="d", model=MODEL.config, num_features=WIDTH, sampler=loader.sampler_state, training=config.decisive
    )

    def result(path: Path, stop: Callable[[], bool] | None, devices: Devices) -> FitResult:
        run = RunFolder(path, identity)
        with run.lock():
            return fit(
                MODEL,
                loader,
                NodeArrays(LABELS),
                config,
                num_features=WIDTH,
                checkpoints=run,
                stop=stop,
                devices=devices,
            )

    counts = itertools.count(1)
    interrupted = result(tmp_path / "a", lambda: next(counts) == 3, devices)
    assert interrupted.interrupted and interrupted.step == 3
    whole, resumed = result(tmp_path / "b", None, devices), result(tmp_path / "a", None, devices)
    assert resumed.step == whole.step == 10
    for ours, theirs in zip(jax.tree.leaves(resumed.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)

    class Second(DataParallel):
        is_first = False

    second = result(tmp_path / "c", None, Second(jax.devices()[:1]))
    assert second.step == 10 and latest_record(tmp_path / "c") is None


def only(results: dict[str, np.ndarray], task: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in results.items() if name.startswith(task)}


def test_shares_in_one_stream() -> None:
    loader = DividedLoader([loader_of("single-label", Share(i, 2)) for i in range(2)])
    whole = loader_of("single-label", WHOLE)
    assert (loader.num_shares, loader.steps_per_epoch) == (2, 5)
    with loader.stream(3, 6) as stream:
        batches = list(stream)
    assert [(batch.step, batch.epoch, batch.index) for batch in batches] == [(3, 0, 3), (4, 0, 4), (5, 1, 0)]
    for batch, loaded in zip(batches, whole.stream(3, 6), strict=True):
        seeds = [share.batch.node_ids[share.batch.seed_positions[share.batch.seed_mask]] for share in batch.shares]
        mask = loaded.batch.seed_mask
        assert np.concatenate(seeds).tolist() == loaded.batch.node_ids[loaded.batch.seed_positions[mask]].tolist()
        assert batch.report.rows == sum(share.report.rows for share in batch.shares)
        batch.release()
    stream = loader.stream(0, 5)
    next(stream)
    stream.close()
    assert list(stream) == []
    with pytest.raises(ValueError, match="got 3 to 2"):
        loader.stream(3, 2)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least one loader"):
        DividedLoader([])
    with pytest.raises(ValueError, match="same mini-batches"):
        DividedLoader([loader_of("single-label", Share(0, 2)), loader_of("single-label", WHOLE)])
    devices = DataParallel(jax.devices()[:1])
    assert isinstance(devices, Devices) and isinstance(OneDevice(), Devices)
    assert (devices.num_shares, devices.local_shares, devices.is_first) == (1, (0,), True)
    loader = DividedLoader([loader_of("single-label", Share(i, 2)) for i in range(2)])
    with pytest.raises(ValueError, match="a share for each of 1 devices, got 2"):
        devices.inputs(next(loader.stream(0, 1)), NodeArrays(LABELS), loader.shapes)
