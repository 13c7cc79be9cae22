"""`ginex train` and `ginex infer`: what users type, what is left on the disk, and what they are told when it is wrong."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ginex_jax.cli import main
from ginex_jax.cli.run_options import RunOptions, merged, parse_fanouts, write_options
from ginex_jax.store.dataset import open_dataset
from tests.ginex_jax.small_datasets import write_dataset
from tests.ginex_jax.small_runs import QUICK, planted

ROOT = Path(__file__).parents[2]
SMALL = ("--fanouts", "5,5", "--batch-size", "64", "--hidden", "16", "--lr", "0.02", "--memory", "256MiB")


def ginex(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "graph"
    write_dataset(path, planted())
    return path


@pytest.fixture(scope="module")
def run(dataset: Path) -> Path:
    out = dataset.parent / "run"
    assert ginex("train", dataset, "--out", out, *SMALL, "--epochs", 8, "--eval-every", 4, "--tensorboard") == 0
    return out


def test_train_then_infer(dataset: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if record["kind"] == "evaluation"] == [16, 32]
    assert {entry.name for entry in run.iterdir()} == {
        "best",
        "checkpoints",
        "config.yaml",
        "log.jsonl",
        "tensorboard",
    }
    assert ginex("infer", run, dataset, "--split", "test", "--out", tmp_path / "p.npy", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    predictions, opened = np.load(tmp_path / "p.npy"), open_dataset(dataset)
    assert opened.labels is not None and opened.test is not None
    assert report["score"] == np.mean(predictions == opened.labels[opened.test]) > 0.85
    assert report["nodes"] == 100 and report["metric"] == "accuracy"
    # Going on from the end trains nothing, and says the same.
    assert ginex("train", dataset, "--out", run, "--resume", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["test"] == report["score"] and again["steps"] == 32 and again["pipeline"] is None
    assert [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] == records


def test_links_that_do_not_fit_the_memory(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert ginex("train", dataset, "--out", tmp_path / "run", "--task", "links", "--memory", "100KB") == 2
    assert (
        "while they are divided into training, validation and test, and --memory gives 100,000"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_tensorboard_reads_what_was_logged(run: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    [first, *_] = sorted((run / "tensorboard").iterdir())
    events = list(EventFileLoader(str(first)).Load())
    values = {(event.step, value.tag) for event in events for value in event.summary.value}
    assert {(16, "evaluation/score"), (32, "step/loss"), (32, "step/rows_per_second")} <= values


def test_folders_and_options_that_do_not_fit(
    dataset: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    other = {**planted(), "labels": np.roll(planted()["labels"], 1)}
    write_dataset(tmp_path / "other", other)
    del other["train"]
    write_dataset(tmp_path / "untrained", other)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    options = (run / "config.yaml").read_text()
    cases = [
        ((dataset, "--out", run), "has checkpoints: --resume"),
        ((dataset, "--out", run, "--resume", "--hidden", 32), "another model: hidden is 16 there and 32 now"),
        ((dataset, "--out", run, "--resume", "--fanouts", "5,6"), "another sampler: fanouts is [5, 5] there"),
        ((dataset, "--out", run, "--resume", "--lr", 0.1), "another training: learning_rate is 0.02 there and 0.1 now"),
        ((tmp_path / "other", "--out", run, "--resume"), "another dataset"),
        ((tmp_path / "untrained", "--out", tmp_path / "new"), "no training nodes"),
        ((tmp_path / "nowhere", "--out", tmp_path / "new"), "not a dataset"),
        ((dataset, "--out", tmp_path / "full"), "has other files (thesis.tex)"),
        ((dataset, "--out", tmp_path / "new", "--fanouts", "5,x"), "numbers or all"),
        ((dataset, "--out", tmp_path / "new", "--dropout", 1), "dropout should be in [0, 1)"),
        ((dataset, "--out", tmp_path / "new", "--patience", 2, "--eval-every", 0), "set eval_every"),
        ((dataset, "--out", tmp_path / "new", "--model", "mlp"), "'mlp'"),
    ]
    for arguments, message in cases:
        assert ginex("train", *arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert not (tmp_path / "new").exists() and (run / "config.yaml").read_text() == options
    document = run / "checkpoints" / "000000032" / "run.json"
    newer = document.read_text()
    document.write_text(newer.replace('"format_version": 1', '"format_version": 2'))
    assert ginex("train", dataset, "--out", run, "--resume") == 2
    assert "format version 2; this version of bandwise reads 1" in capsys.readouterr().err
    document.write_text(newer)
    assert ginex("infer", tmp_path / "full", dataset, "--out", tmp_path / "p.npy") == 2
    assert "has no checkpoint" in capsys.readouterr().err


def test_the_least_memory_that_is_named_does_and_is_enough_for_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Of a graph with one long list, which sampled batches never need whole and every evaluation does."""
    num_nodes, rng = 5000, np.random.default_rng(0)
    degrees = np.array([num_nodes - 1] + [2] * (num_nodes - 1))
    arrays = {
        "indptr": np.concatenate([[0], np.cumsum(degrees)]),
        "indices": rng.integers(0, num_nodes, degrees.sum()).astype(np.int32),
        "features": rng.standard_normal((num_nodes, 256)).astype(np.float32),
        "labels": rng.integers(0, 3, num_nodes),
        "train": np.arange(100, 200),
        "valid": np.arange(200, 230),
    }
    write_dataset(tmp_path / "hub", arrays)
    arguments = ("train", tmp_path / "hub", "--out", tmp_path / "run", "--fanouts", "2,2", "--batch-size", 50)
    arguments = (*arguments, "--hidden", 4, "--epochs", 1)
    assert ginex(*arguments, "--memory", "1MB") == 2
    least = int(capsys.readouterr().err.split("too few: ")[1].split()[0].replace(",", ""))
    assert ginex(*arguments, "--memory", least - 1) == 2 and not (tmp_path / "run").exists()
    assert f"{least:,} are the least" in capsys.readouterr().err
    assert ginex(*arguments, "--memory", least) == 0


def test_options_of_a_run_survive_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_options(tmp_path / "config.yaml", RunOptions(hidden=7))

    def fail(file: Path, text: str, **_: Any) -> None:
        with file.open("w") as opened:
            opened.write(text[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="No space"):
        write_options(tmp_path / "config.yaml", RunOptions(hidden=8))
    assert merged({}, tmp_path / "config.yaml").hidden == 7
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.yaml"]


def test_ctrl_c_says_how_to_go_on(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """In a process of its own, and then on in this one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **QUICK}
    out = tmp_path / "run"
    command = [sys.executable, "-c", "from ginex_jax.cli import run; run()", "train", dataset, "--out", out, *SMALL]
    process = subprocess.Popen([*command, "--epochs", "100000"], env=environment, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    while process.poll() is None and not (out / "log.jsonl").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130, error
    watchdog.cancel()
    assert error.splitlines()[-1].startswith(f"interrupted: `ginex train {dataset} --out {out} --resume` goes on from")
    assert ginex("train", dataset, "--out", out, "--resume", "--epochs", 1, "--json") == 0
    assert json.loads(capsys.readouterr().out)["steps"] >= 4


def test_ctrl_c_that_got_lost_before_the_training_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from bandwise_commands import interrupts

    monkeypatch.setattr(interrupts, "_interrupts", [2])
    with pytest.raises(KeyboardInterrupt), interrupts.deferred_interrupts():
        pytest.fail("it should not get here")


def test_flags_win_over_the_file_and_that_over_the_run(tmp_path: Path) -> None:
    own, file = tmp_path / "config.yaml", tmp_path / "a.yaml"
    write_options(own, RunOptions(hidden=1, epochs=2, lr=0.5, fanouts="3,all"))
    file.write_text("hidden: 8\nbatch-size: 9\nweight-decay: 5e-4\nfanouts: [4, all]\n")
    options = merged({"hidden": 7, "epochs": None}, file, own)
    wanted = RunOptions(hidden=7, epochs=2, lr=0.5, batch_size=9, weight_decay=5e-4, fanouts="4,all")
    assert options == wanted and merged({}, None, own).fanouts == "3,all"
    assert parse_fanouts("4, all") == (4, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hidden: 8\nhidden: 9", "hidden is there twice"),
        ("batch-size: 8\nbatch_size: 9", "batch_size is there twice"),
        ("fanouts: [[1, 2], 3]", "fanouts should be str, got"),
        ("hiden: 8", "no option 'hiden'; did you mean 'hidden'"),
        ("hidden: many", "hidden should be int, got 'many'"),
        ("lr: fast", "lr should be float, got 'fast'"),
        ("weighted: 1", "weighted should be bool, got 1"),
        ("- hidden", "one option a line"),
        ("hidden: [", "is not YAML"),
        ("hidden: !!python/object/apply:os.getcwd []", "is not YAML"),
        ("policy: fifo", "policy should be one of"),
        ("memory: lots", "a size is a number"),
    ],
)
def test_files_that_are_wrong(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        merged({}, tmp_path / "a.yaml")


def test_every_option_is_a_flag_and_a_key(tmp_path: Path) -> None:
    from ginex_jax.cli.app import app

    [command] = [command for command in app.registered_commands if command.callback.__name__ == "train"]  # pyright: ignore
    annotations: dict[str, Any] = command.callback.__annotations__  # pyright: ignore
    flags = set(annotations) - {"dataset", "out", "resume", "config", "as_json", "return"}
    write_options(tmp_path / "a.yaml", RunOptions())
    assert flags == set(yaml.safe_load((tmp_path / "a.yaml").read_text()))
