"""Checkpoints: what is written is read, what is damaged is named, and a run that was killed ends as one that was not."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ginex_jax.checkpoint.arrays import ArrayEntry, array_entry, restore_arrays, save_arrays
from ginex_jax.checkpoint.record import RunIdentity
from ginex_jax.checkpoint.run_folder import RunFolder, latest_record, load_run, saved_steps
from ginex_jax.models.construction import build_model
from ginex_jax.models.initialization import initial_parameters
from ginex_jax.train.loop import fit
from ginex_jax.train.run_log import JsonLines
from ginex_jax.train.step import TrainState, initial_state
from tests.ginex_jax.small_runs import MODEL, QUICK, WIDTH, planted_loader, planted_nodes, planted_run, training

ROOT = Path(__file__).parents[2]
IDENTITY = RunIdentity(
    dataset="d", model=MODEL, num_features=WIDTH, sampler={"version": 1, "config": {"seed": 0}}, training={"seed": 5}
)


def state(seed: int) -> TrainState:
    return initial_state(initial_parameters(build_model(MODEL), WIDTH, jax.random.key(seed)), training())


def equal(a: Any, b: Any) -> bool:
    leaves = [jax.tree.leaves(tree) for tree in (a, b)]
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(*leaves, strict=True)
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints, of which two are kept, and two bests, of which one is."""
    path = tmp_path_factory.mktemp("saved") / "run"
    run = RunFolder(path, IDENTITY)
    with run.lock():
        assert run.restore(state(0)) is None
        run.save_best(1, state(7).params, {})
        for step in (2, 4, 6):
            run.save(step, state(step), {"step": step})
            if step == 2:
                run.save_best(3, state(8).params, {})
    return path


@pytest.fixture
def run_path(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def test_what_was_saved_comes_back(saved: Path) -> None:
    assert saved_steps(saved / "checkpoints") == [4, 6] and saved_steps(saved / "best") == [3]
    run = RunFolder(saved, IDENTITY)
    restored = run.restore(state(0))
    assert restored is not None and restored.step == 6 and restored.progress == {"step": 6}
    assert equal(restored.state, state(6))
    assert equal(run.restore_best(state(0).params), state(8).params)
    config, params = load_run(saved)
    assert config == MODEL and equal(params, state(8).params)
    record = latest_record(saved)
    assert record is not None and record.identity == IDENTITY


def test_orbax_alone_reads_the_parameters(saved: Path) -> None:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.restore(saved.absolute() / "best" / "000000003" / "arrays")
    assert equal(tree["params"], state(8).params)


def test_without_an_evaluation_the_last_parameters_are_the_model(run_path: Path) -> None:
    shutil.rmtree(run_path / "best")
    assert equal(load_run(run_path)[1], state(6).params)
    shutil.rmtree(run_path / "checkpoints")
    with pytest.raises(ValueError, match="has no checkpoint"):
        load_run(run_path)


def test_the_last_parameters_do_not_pass_for_the_best(run_path: Path) -> None:
    edited(run_path / "checkpoints" / "000000006" / "run.json", {"progress": {"best_step": 3}})
    shutil.rmtree(run_path / "best")
    for load in (lambda: load_run(run_path), lambda: RunFolder(run_path, IDENTITY).restore(state(0))):
        with pytest.raises(ValueError, match="best lacks the parameters of step 3, the best evaluation"):
            load()


def test_what_a_killed_process_left_is_cleared(run_path: Path) -> None:
    run = RunFolder(run_path, IDENTITY)
    half = run_path / "checkpoints" / ".000000008.partial"
    half.mkdir()
    (run_path / "best" / "000000003").rename(run_path / "best" / "000000007")  # the best of a step to be done again
    with run.lock():
        assert not half.exists()
        with pytest.raises(FileExistsError, match="another process is training"), RunFolder(run_path, IDENTITY).lock():
            pass
        assert run.restore(state(0)) is not None
    assert saved_steps(run_path / "best") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "e"}, "another dataset"),
        ({"num_features": 9}, "trained on 8 features, and there are 9"),
        ({"model": dataclasses.replace(MODEL, hidden=32)}, "another model: hidden is 16 there and 32 now"),
        ({"sampler": {"version": 1, "config": {"seed": 1}}}, "another sampler: seed is 0 there and 1 now"),
        ({"training": {"seed": 6}}, "another training: seed is 5 there and 6 now"),
    ],
)
def test_another_run_is_refused(saved: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunFolder(saved, dataclasses.replace(IDENTITY, **changes)).restore(state(0))


def edited(path: Path, change: dict) -> None:
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, **change}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format version 2; this version of bandwise reads 1"),
        ({"format": "x"}, "does not belong to a run"),
        ({"step": -1}, "damaged"),
        ({"step": 5}, "its run.json is of step 5"),
        ({"arrays": {}}, "lacks metrics/errors"),
        ({"arrays": {"params": 3}}, "damaged"),
        ({"identity": {}}, "damaged"),
    ],
)
def test_damaged_records_are_named(run_path: Path, change: dict, message: str) -> None:
    edited(run_path / "checkpoints" / "000000006" / "run.json", change)
    with pytest.raises(ValueError, match=message):
        RunFolder(run_path, IDENTITY).restore(state(0))


def test_a_model_that_the_arrays_do_not_fit_is_named(run_path: Path) -> None:
    file = run_path / "best" / "000000003" / "run.json"
    document = json.loads(file.read_text())
    document["identity"]["model"]["hidden"] = 1 << 20
    file.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="is damaged: params/params/layers_0"):
        load_run(run_path)


def test_every_damaged_file_is_named(run_path: Path) -> None:
    arrays = run_path / "best" / "000000003" / "arrays"
    files = [file for file in sorted(arrays.rglob("*")) if file.is_file() and file.parent.name == "d"]
    assert files
    num_seen = 0
    for file in files:
        data = file.read_bytes()
        places = range(0, len(data), max(1, len(data) // 5))
        flipped = [data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :] for place in places]
        for damaged in (*flipped, data[: len(data) // 2], b""):
            file.write_bytes(damaged)
            try:
                assert equal(load_run(run_path)[1], state(8).params)  # what nobody reads
            except ValueError as error:
                num_seen += 1
                assert str(run_path) in str(error) and "\n" not in str(error)
        file.write_bytes(data)
    assert num_seen > 3
    assert equal(load_run(run_path)[1], state(8).params)


def test_arrays_are_checked_before_they_are_read(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    save_arrays(tmp_path / "a", {"x/y": array, "n": np.int32(3)})
    entry = array_entry(array)
    assert np.array_equal(restore_arrays(tmp_path / "a", {"x/y": entry})["x/y"], array)
    wrong = [dataclasses.replace(entry, shape=(4, 3)), dataclasses.replace(entry, dtype="int32")]
    for other in (*wrong, dataclasses.replace(entry, crc32c=1)):
        with pytest.raises(ValueError, match="x/y"):
            restore_arrays(tmp_path / "a", {"x/y": other})
    with pytest.raises(ValueError, match="damaged: z"):
        restore_arrays(tmp_path / "a", {"z": ArrayEntry(shape=(), dtype="int32", crc32c=0)})
    with pytest.raises(ValueError, match="not an Orbax checkpoint"):
        restore_arrays(tmp_path, {"x/y": entry})


def test_a_run_stopped_after_any_step_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """The log too, but for its clocks."""
    model, loader, nodes, config = build_model(MODEL), planted_loader(), planted_nodes(), training(epochs=2)

    def trained(path: Path, stops: list[int]) -> Any:
        remaining, steps, result = list(stops), [], None
        while result is None or result.interrupted:
            run = planted_run(path, loader, config)
            with run.lock(), JsonLines(path / "log.jsonl") as log:
                result = fit(
                    model, loader, nodes, config, num_features=WIDTH, checkpoints=run, log=log,
                    evaluate=lambda params: float(np.abs(jax.tree.leaves(params)[0]).sum()),
                    report=lambda update: steps.append(update.step),
                    stop=lambda: bool(remaining) and steps[-1] == remaining[0] and bool(remaining.pop(0)),
                )  # fmt: skip
        assert steps == list(range(1, 15)) and not remaining
        return result

    whole, pieces = trained(tmp_path / "whole", []), trained(tmp_path / "pieces", [1, 4, 7, 13])
    assert equal(whole.params, pieces.params)
    assert (whole.best_score, whole.best_step) == (pieces.best_score, pieces.best_step)
    assert last_state(tmp_path / "whole") == last_state(tmp_path / "pieces")
    assert timeless(tmp_path / "whole") == timeless(tmp_path / "pieces")
    assert saved_steps(tmp_path / "whole" / "checkpoints") == [12, 14]


def test_a_log_is_cut_at_the_step_that_training_goes_on_from(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    lines = [json.dumps({"kind": "step", "step": step}) + "\n" for step in (1, 2, 2, 3, 4)]
    for torn in ("", '{"kind": "st', '{"step": 1}', "[1]\n", "\0\n"):
        file.write_text("".join(lines) + torn)
        with JsonLines(file) as log:
            log.restart(2)
            log.write({"kind": "step", "step": 3})
        assert file.read_text() == "".join(lines[:4])
        file.write_text("".join(lines) + torn)
        with JsonLines(file) as log:
            log.restart(9)
        assert file.read_text() == "".join(lines)


def timeless(path: Path) -> list[dict]:
    records = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "rows_per_second"} for record in records]


def last_state(path: Path) -> dict:
    """Checksums of all arrays of the last checkpoint, and of the best."""
    folders = [path / kind / f"{saved_steps(path / kind)[-1]:09d}" for kind in ("checkpoints", "best")]
    return {folder.parent.name: json.loads((folder / "run.json").read_text())["arrays"] for folder in folders}


def killed_runs(folder: Path, *, kills: int, seed: int) -> None:
    """Trains once in peace, and once killed at random moments; compares.

    All in processes of their own: this one may have compiled the same functions for other tests, with other optimizations.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **QUICK}
    command = [sys.executable, "-m", "tests.ginex_jax.training_process"]
    rng, killed = random.Random(seed), 0
    while killed < kills:
        process = subprocess.Popen(
            [*command, folder / "killed"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None
        # Most moments are those between two steps: evaluations and checkpoints are there.
        for _ in range(rng.randrange(1, 10)):
            process.stdout.readline()
        try:
            process.wait(rng.random() * 0.3)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        else:
            assert process.returncode == 0
            break  # it came to its end
        finally:
            process.stdout.close()
            process.wait()
    assert killed
    for name in ("whole", "killed"):
        subprocess.run([*command, folder / name], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
    assert last_state(folder / "whole") == last_state(folder / "killed")
    assert timeless(folder / "whole") == timeless(folder / "killed")


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    killed_runs(tmp_path, kills=1, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_a_run_killed_ten_times_ends_with_the_same_bits(tmp_path: Path, seed: int) -> None:
    killed_runs(tmp_path, kills=10, seed=seed)
