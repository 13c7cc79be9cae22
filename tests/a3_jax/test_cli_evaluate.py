"""`a3 evaluate`: a run from files to numbers, the network it keeps, and one line for what a user can mend."""

import json

import numpy as np
import pytest

from a3_jax.cli import main
from a3_jax.workloads import memory_evaluation, trained_network
from a3_jax.workloads.stories import generate_stories


def a3(*arguments):
    return main(["evaluate", "--workload", "babi", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tasks in bAbI's files."""
    folder = tmp_path_factory.mktemp("babi")
    for task in (1, 6):
        for split, count, seed in (("train", 250, 0), ("valid", 50, 1), ("test", 60, 2)):
            (folder / f"qa{task}_{split}.txt").write_text(generate_stories(task, count, seed=seed))
    return folder


@pytest.fixture(scope="module")
def network(folder):
    """Where the first test leaves it."""
    return folder / "network.npz"


def test_numbers(folder, network, capsys, monkeypatch):
    monkeypatch.setattr(memory_evaluation, "_WIDTHS", (12, 50))
    arguments = ("--data", folder, "--linear-epochs", 0, "--epochs", 3, "--parameters", network)
    assert a3(*arguments, "--M", "n/2", "--T", 5, "--json") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err.count("epoch") == 3 and "epoch 3 of 3" in err
    assert report["questions"] == {"training": 600, "test": 120}
    assert [(row["rows"], row["M_over_n"], row["T"]) for row in report["settings"]] == [
        ("story", None, None),
        ("story", 0.5, 5.0),
        ("task", 0.5, 5.0),
        ("memory", 0.5, 5.0),
    ]
    # Two sentences before the first question of a story, ten before the last.
    assert report["n"]["story"]["mean"] == 6 and report["n"]["task"]["mean"] == 10
    for row in report["settings"]:
        assert 0 <= row["accuracy"] <= 1 and row["accuracy"] == pytest.approx(
            np.mean(list(row["accuracy_by_task"].values()))
        )
        assert row["K"] <= row["C"] <= row["n"]
        assert min(row["cycles"], row["joules"], row["bytes"]) > 0
    assert [row["M"] for row in report["settings"]] == [0, 3, 5, 25]

    # Again, from the network that was kept, as a table.
    monkeypatch.setattr(trained_network, "train", None)
    assert a3(*arguments, "--M", "n/2", "--T", 5) == 0
    table = capsys.readouterr().out
    assert f"{report['settings'][3]['accuracy']:.4f}" in table and "0.5 n" in table
    assert a3(*arguments, "--T", 5, "--seed", 1) == 2
    assert "another seed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--data", "nowhere"), "nowhere is no folder"),
        (("--M", "2.5"), "whole number"),
        (("--M", "0"), "whole number of at least 1"),
        (("--M", "n/0"), "a count is a number"),
        (("--M", "0n"), "M should be above 0"),
        (("--T", "101"), "T should be from 0 to 100"),
        (("--T", "nan"), "T should be from 0 to 100"),
        (("--seed", "-1"), "seed should be at least 0"),
        (("--epochs", "-1"), "epochs should be at least 0"),
        (("--workload", "chess"), "chess"),
        (("--passages", "3"), "--passages is no option of --workload babi"),
        (("--f", "4"), "--f is no option of --workload babi"),
        (("--workload", "retrieval"), "--linear-epochs is no option of --workload retrieval"),
    ],
)
def test_refused_in_one_line(arguments, complaint, capsys):
    epochs = () if "--epochs" in arguments else ("--epochs", 0)
    assert a3("--linear-epochs", 0, *epochs, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error:") and complaint in line
