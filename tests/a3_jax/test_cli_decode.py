"""`a3 evaluate --workload decode` on files of random numbers."""

import json
from pathlib import Path

import numpy as np
import pytest

from a3_jax.cli import main
from a3_jax.workloads.decode_attention import StepSetting, attend_steps
from a3_jax.workloads.decode_files import read_steps
from a3_jax.workloads.decode_inputs import StepInputs
from a3_jax.workloads.encoder_attention import Setting

COMMAND = ["evaluate", "--workload", "decode"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written as a user would, who has no function of this package."""
    folder, rng = tmp_path_factory.mktemp("steps"), np.random.default_rng(0)
    for name in ("a", "b"):
        np.savez(
            folder / f"{name}.npz",
            queries=rng.normal(size=(2, 4, 3, 6)),
            keys=rng.normal(size=(2, 2, 12, 6)),
            values=rng.normal(size=(2, 2, 12, 6)),
        )
    return folder


def test_json_has_what_is_lost_and_what_it_costs(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "--data", str(data), "--M", "n/2", "--T", "20", "--sinks", "2", "--top", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [text["file"] for text in report["texts"]] == ["a.npz", "b.npz"]
    assert report["texts"][0] | {"file": ""} == {
        "file": "",
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "rows": 12,
        "steps": 3,
        "head_dim": 6,
    }
    exact, half = report["settings"]
    assert half["name"] == "M = 0.5 n, T = 20 %, first 2 rows exact"
    setting = StepSetting(selection=Setting(name="", iterations=0.5, threshold_percent=20), sinks=2)
    layers: list[StepInputs] = [layer for name in "ab" for layer in read_steps(data / f"{name}.npz")]
    results = [attend_steps(layer, setting, top=3) for layer in layers]
    for name in ("recall", "mass", "mass_beyond_first", "error"):
        assert half[name] == pytest.approx(np.mean([getattr(result, name) for result in results]))
    for name in ("M", "C", "K"):
        assert half["mean"][name] == pytest.approx(np.mean([getattr(result, name) for result in results]))
    assert exact["mass"] == pytest.approx(1)
    assert "kl" not in exact  # which takes a model
    for row in report["settings"]:
        assert min(row["cycles_per_query"], row["joules_per_query"], row["bytes_per_query"]) > 0


def test_the_table_has_a_line_a_setting(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "--data", str(data / "a.npz")]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = ["exact", "conservative", "conservative, first row exact", "aggressive", "aggressive, first row exact"]
    assert lines[0] == "a.npz: the last 3 of 12 positions, 2 layers, 4 heads of 6, 2 of keys"
    header = next(number for number, line in enumerate(lines) if line.startswith("setting "))
    for line, name in zip(lines[header + 1 :], names, strict=False):
        assert line.startswith(f"{name}  ")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "needs --data, an .npz file"),
        (["--data", "/nowhere"], "/nowhere does not exist"),
        (["--data", __file__], "it is no .npz file"),
        (["--sinks", "-1"], "sinks should be at least 0, got -1"),
        (["--window", "-1"], "window should be at least 0, got -1"),
        (["--window", "10"], "fewer than the 10 rows that the first step sees"),
        (["--top", "0"], "--top should be at least 1, got 0"),
        (["--T", "0"], "T: wanted"),
        (["--M", "0.5"], "M should be a whole number"),
        (["--seed", "1"], "--seed is no option of --workload decode"),
        (["--passages", "3"], "--passages is no option of --workload decode"),
        (["--epochs", "3"], "--epochs is no option of --workload decode"),
    ],
)
def test_what_a_user_can_mend(
    data: Path, options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data", str(data)] if options and "--data" not in options else []
    assert main([*COMMAND, *given, *options]) == 2
    printed = capsys.readouterr()
    assert complaint in printed.err
    assert not printed.out


def test_heads_of_different_widths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, dim in (("a", 6), ("b", 5)):
        arrays = {"queries": (1, 4, 3, dim), "keys": (1, 2, 12, dim), "values": (1, 2, 12, dim)}
        np.savez(tmp_path / f"{name}.npz", **{key: np.ones(shape, np.float32) for key, shape in arrays.items()})
    assert main([*COMMAND, "--data", str(tmp_path)]) == 2
    assert "b.npz: its heads are not as wide as those of a.npz" in capsys.readouterr().err


@pytest.mark.parametrize("workload", ["babi", "retrieval"])
def test_options_of_decode_alone(workload: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--workload", workload, "--sinks", "1"]) == 2
    assert f"--sinks is no option of --workload {workload}" in capsys.readouterr().err
