"""`a3 sweep`: every point is what `a3 cost` says of it, the front is what nothing beats, and files are there whole or not at all."""

import csv
import itertools
import json

import numpy as np
import pytest

from a3_jax.cli.files import partial_file
from a3_jax.cli.grid import parse_axes, points_of
from a3_jax.cli.pareto import pareto_front
from tests.a3_jax.selector_oracles import pseudo_code
from tests.a3_jax.test_cli import a3, printed, refused, reported


def values(*texts):
    return [axis.values for axis in parse_axes(texts)]


def test_axes():
    assert values("M=20:80:20", "T=5,10") == [("20", "40", "60", "80"), ("5", "10")]
    assert values("units=1:3") == [("1", "2", "3")]
    assert values("clock_mhz=500", "T=1:2:0.25") == [("500",), ("1", "1.25", "1.5", "1.75", "2")]
    assert values("M=n/2, n/8,10:25:10") == [("n/2", "n/8", "10", "20")]
    assert values("T=0.1:0.3:0.1") == [("0.1", "0.2", "0.3")]
    assert list(points_of(parse_axes(["M=1,2", "sort=host,chip"]))) == [
        {"M": m, "sort": sort} for m, sort in itertools.product(("1", "2"), ("host", "chip"))
    ]


def test_front_is_what_nothing_beats():
    rng = np.random.default_rng(0)
    for coordinates in (1, 2, 3):
        points = rng.integers(0, 5, (40, coordinates)).tolist()
        expected = [
            not any(all(a <= b for a, b in zip(other, point, strict=True)) and other != point for other in points)
            for point in points
        ]
        assert pareto_front(points).tolist() == expected


def test_points_are_those_of_cost(capsys):
    report = reported(
        capsys, "sweep", "--n", 100, "--C", 20, "--over", "K=5,10", "--over", "M=n/2,80", "--over", "units=1,3"
    )
    assert [[point[name] for name in ("K", "M", "units")] for point in report["points"]] == [
        [k, m, units] for k in (5, 10) for m in (50, 80) for units in (1, 3)
    ]
    for point in report["points"]:
        counts = [part for name in ("n", "M", "C", "K") for part in (f"--{name}", point[name])]
        cost = reported(capsys, "cost", *counts)
        assert point["interval_cycles"] == pytest.approx(cost["approximate"]["interval"] / point["units"])
        assert point["energy_joules"] == cost["approximate"]["cost"]["total_energy_joules"]
        assert point["area_m2"] == pytest.approx(point["units"] * 2.082e-6)
        assert point["energy_efficiency_vs_base"] == cost["vs_base"]["energy_efficiency_vs_base"]
        assert point["source"] == "given"


def test_a_workload_of_a_file_stays_what_it_is(capsys, tmp_path):
    (tmp_path / "w.yaml").write_text("{n: [100, 200], M: [50, 20], C: [30, 10], K: [8, 4]}")
    flags = ("sweep", "--workload", tmp_path / "w.yaml", "--over", "units=1,2")
    plain = reported(capsys, "cost", "--workload", tmp_path / "w.yaml")
    assert [point["interval_cycles"] for point in reported(capsys, *flags)["points"]] == [
        plain["approximate"]["interval"] / units for units in (1, 2)
    ]
    assert [(p["n"], p["M"]) for p in reported(capsys, *flags, "--M", 60)["points"]] == [(150, 60)] * 2
    found = reported(capsys, *flags, "--over", "C=9")["points"]
    assert [(p["M"], p["C"], p["K"]) for p in found] == [(35, 9, 6)] * 2


def test_counts_of_the_paper(capsys):
    """Figures 11 and 12 where they have points, straight lines between and below; losses of quality added."""
    over = ("--over", "M=n/2,n/4,120,20", "--over", "T=5,10")
    points = reported(capsys, "sweep", "--task", "bert", *over)["points"]
    found = {(point["M"], point["T"]): point for point in points}
    assert found[160, 5]["C"] == pytest.approx(0.205 * 320)
    assert found[160, 5]["K"] == pytest.approx(0.066 * 320)
    assert found[120, 10]["C"] == pytest.approx((0.205 + 0.149) / 2 * 320)
    assert found[20, 10]["C"] == pytest.approx(0.093 / 2 * 320)
    assert found[20, 5]["K"] == found[20, 5]["C"]  # never above
    assert found[160, 10]["quality"] == pytest.approx(0.889 + 0.867 - 0.888)
    assert found[20, 10]["quality"] is None
    assert "straight line" in found[20, 10]["source"]
    # BERT's queries share the sort, as in the reproduction.
    assert found[160, 5]["interval_cycles"] == pytest.approx(164 + 44 / 0.76 - 44)


def test_counts_of_given_arrays(capsys, tmp_path):
    rng = np.random.default_rng(2)
    key, queries = rng.normal(size=(16, 4)).astype(np.float32), 2 * rng.normal(size=(5, 4)).astype(np.float32)
    np.save(tmp_path / "k.npy", key)
    np.save(tmp_path / "q.npy", queries)
    arrays = ("--key", tmp_path / "k.npy", "--query", tmp_path / "q.npy")
    report = reported(capsys, "sweep", *arrays, "--over", "M=2,8", "--over", "T=1,100", "--pareto")
    assert report["objectives"] == ["throughput", "energy", "area", "mass"]
    for point in report["points"]:
        scores = [pseudo_code(query, key, int(point["M"]))[1] for query in queries]
        assert point["C"] == np.mean([max(1, sum(score > 0 for score in row)) for row in scores])
        assert point["source"] == "measured"
        if point["T"] == 100:
            assert point["K"] == 1  # only the largest
    kept = {(point["M"], point["T"]): point["softmax_mass_kept"] for point in report["points"]}
    assert kept[8, 1] > kept[8, 100]


def test_front_and_files(capsys, tmp_path):
    over = ("--task", "kv_memn2n", "--over", "M=n/8,n/4,n/2", "--over", "T=5,20", "--pareto")
    report = reported(capsys, "sweep", *over, "--out", tmp_path / "all.csv")
    assert report["objectives"] == ["throughput", "energy", "area", "quality"]
    points = report["points"]
    merits = [(-p["throughput"], p["energy_joules"], p["area_m2"], -p["quality"]) for p in points]
    assert [p["pareto"] for p in points] == pareto_front(merits).tolist()
    # More of T costs less and, on WikiMovies, is better: nothing of T = 5 is left.
    assert [p["pareto"] for p in points if p["T"] == 5] == [False] * 3
    assert [p["pareto"] for p in points if p["T"] == 20] == [True] * 3
    with (tmp_path / "all.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["energy_joules"]) for line in lines] == [p["energy_joules"] for p in points]
    assert a3("sweep", *over, "--out", tmp_path / "all.json", "--objective", "energy") == 0
    assert "2 of 6 points" in capsys.readouterr().out
    only = json.loads((tmp_path / "all.json").read_text())
    # At M = n / 8 there are fewer candidates than either T would keep, so that both points are one.
    assert [(p["M"], p["pareto"]) for p in only["points"]] == [
        (m, m == 186 / 8) for m in (23.25, 46.5, 93) for _ in (5, 20)
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.csv", "all.json"]


def test_hardware_is_swept_in_any_unit(capsys):
    points = reported(capsys, "sweep", "--C", 9, "--K", 3, "--over", "clock_mhz=500,1000", "--over", "sort=host,chip")[
        "points"
    ]
    assert [point["throughput"] for point in points] == [5e8 / 164, 5e8 / 164, 1e9 / 164, 1e9 / 164]
    assert all("area" in point["estimated"] for point in points[1::2])
    assert not points[2]["estimated"]


def test_plots(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    lines, cloud = tmp_path / "lines.png", tmp_path / "cloud.svg"
    over = ("--task", "bert", "--over", "T=1:20:1", "--over", "M=n/8,n/2", "--pareto")
    printed(capsys, "sweep", *over, "--plot", lines)
    assert lines.read_bytes().startswith(b"\x89PNG")
    printed(
        capsys, "sweep", "--C", 9, "--K", 3, "--over", "buffering=double,single", "--over", "units=1:3", "--plot", cloud
    )
    assert cloud.read_bytes().startswith(b"<?xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == [cloud.name, lines.name]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--over", "M=20"), "give one of --task, --key with --query, or C and K"),
        (("--over", "M=20", "--task", "bert", "--C", 3), "give one of"),
        (("--over", "M=20", "--C", 3), "K is missing"),
        (("--over", "M"), "--over should be like"),
        (("--over", "M=", "--task", "bert"), "--over should be like"),
        (("--over", "M=1,,2", "--task", "bert"), "nothing between two commas"),
        (("--over", "M=5:1", "--task", "bert"), "goes up"),
        (("--over", "M=1:5:0", "--task", "bert"), "goes up"),
        (("--over", "M=1:2:3:4", "--task", "bert"), "a range is first:last:step"),
        (("--over", "M=1:1e9", "--task", "bert"), "100,000 is the most"),
        (("--over", "M=1:400", "--over", "T=1:20:0.01", "--task", "bert"), "100,000 is the most"),
        (("--over", "M=nan", "--task", "bert"), "--over M: a count should be"),
        (("--over", "M=-3", "--task", "bert"), "--over M: a count should be"),
        (("--over", "M=1", "--over", "M=2", "--task", "bert"), "--over M is there twice"),
        (("--over", "sizes=3", "--task", "bert"), "unknown name 'sizes'"),
        (("--over", "units=0", "--task", "bert"), "units should be at least 1, got 0"),
        (("--over", "units=1.5", "--task", "bert"), "whole number"),
        (("--over", "clock=1", "--task", "bert"), "should end in its unit"),
        (("--over", "T=50", "--task", "bert"), "T from 1 to 20 per cent, got 50"),
        (("--over", "M=321", "--task", "bert"), "M up to n = 320, got 321"),
        (("--over", "C=3", "--task", "bert"), "give one of"),
        (("--over", "M=20481", "--C", 3, "--K", 2), "M should be at most n d = 20480"),
        (("--over", "C=5", "--K", 6), "K should be at most C"),
        (("--over", "M=20", "--task", "gpt"), "'gpt'"),
        (("--over", "M=20", "--task", "bert", "--objective", "speed", "--pareto"), "an objective is one of"),
        (("--over", "M=20", "--task", "bert", "--objective", "mass", "--pareto"), "--key and --query"),
        (("--over", "M=20", "--task", "bert", "--out", "x.txt"), "a .csv or .json file"),
        (("--over", "M=20", "--task", "bert", "--out", "no/x.csv"), "there is no folder"),
        (("--over", "M=20", "--key", "k.npy"), "both or neither"),
        ((), "Missing option '--over'"),
    ],
)
def test_refuses(capsys, tmp_path, monkeypatch, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    assert complaint in refused(capsys, "sweep", *arguments)
    assert not list(tmp_path.iterdir())


def test_plots_are_refused_before_the_work(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    assert ".png or .svg" in refused(capsys, "sweep", "--over", "M=20", "--task", "bert", "--plot", tmp_path / "x.gif")


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    file = tmp_path / "result.csv"
    file.write_text("old")
    with pytest.raises(OSError, match="full"), partial_file(file) as partial:
        partial.write_text("half")
        raise OSError("the disk is full")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["result.csv"]
