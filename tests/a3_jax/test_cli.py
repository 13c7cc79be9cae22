"""`a3 cost`, `a3 simulate` and `a3 reproduce`: their numbers, and one line for what a user can mend."""

import csv
import json
import math
import os
import shlex

import numpy as np
import pytest
import yaml

from a3_jax.cli import main
from a3_jax.cli.files import write_text
from a3_jax.cli.simulation import count_of, iterations_of
from tests.a3_jax.selector_oracles import pseudo_code


def a3(*arguments):
    return main([str(argument) for argument in arguments])


def printed(capsys, *arguments):
    assert a3(*arguments) == 0
    return capsys.readouterr().out


def reported(capsys, *arguments):
    return json.loads(printed(capsys, *arguments, "--json"))


def refused(capsys, *arguments):
    """The one line of a user's error."""
    assert a3(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


BERT = ("--n", 320, "--M", 160, "--C", 65.6, "--K", 15.7)


class TestCost:
    def test_numbers(self, capsys):
        report = reported(capsys, "cost", *BERT)
        assert (report["base"]["interval"], report["base"]["latency"]) == (329, 987)
        found = report["approximate"]
        assert found["interval"] == 164
        assert found["latency"] == pytest.approx(160 + 65.6 + 2 * 15.7 + 23)
        picojoules = 160 * (19.48 + 6.1) + 65.6 * (14.338 + 2.901) + 15.7 * (0.224 + 2.055 + 50.918 + 2.901)
        assert found["cost"]["total_energy_joules"] == pytest.approx(picojoules * 1e-12)
        assert found["bottleneck"] == "selector"

    def test_base_alone(self, capsys):
        assert "approximate" not in reported(capsys, "cost", "--n", 50)
        assert "59" in printed(capsys, "cost", "--n", 50)

    def test_static_energy(self, capsys):
        report = reported(capsys, "cost", *BERT, "--static-energy")
        leaked = [joules for name, joules in report["approximate"]["cost"]["energy_joules"].items() if "static" in name]
        assert sum(leaked) == pytest.approx(11.502e-3 * 164e-9)

    def test_table(self, capsys):
        text = printed(capsys, "cost", *BERT)
        for part in ("329", "164", "22.81 nJ", "0.876 mm2", "2.082 mm2", "sorted_memory"):
            assert part in text

    def test_estimates_are_labelled(self, capsys, tmp_path):
        (tmp_path / "h.yaml").write_text("lanes: 2\n")
        assert "estimates, not the paper's" in printed(capsys, "cost", "--hardware", tmp_path / "h.yaml", *BERT)

    def test_more_candidates_than_iterations(self, capsys):
        assert a3("cost", "--n", 20, "--M", 2.5, "--C", 5.4, "--K", 1) == 0
        assert "an iteration finds at most one" in capsys.readouterr().err

    def test_workload_file_and_flags_over_it(self, capsys, tmp_path):
        (tmp_path / "w.json").write_text(json.dumps({"n": 320, "M": [160, 40], "C": [60, 30], "K": [16, 8]}))
        report = reported(capsys, "cost", "--workload", tmp_path / "w.json")
        assert report["approximate"]["interval"] == (164 + 44) / 2
        report = reported(capsys, "cost", "--workload", tmp_path / "w.json", "--M", 100)
        assert report["approximate"]["interval"] == 104

    def test_the_printed_hardware_is_the_hardware(self, capsys, tmp_path):
        text = printed(capsys, "cost", "--print-hardware")
        (tmp_path / "h.yaml").write_text(text)
        (tmp_path / "h.json").write_text(json.dumps(yaml.safe_load(text)))
        plain = reported(capsys, "cost", *BERT)
        for name in ("h.yaml", "h.json"):
            again = reported(capsys, "cost", "--hardware", tmp_path / name, *BERT)
            assert again["approximate"] == plain["approximate"]
        assert printed(capsys, "cost", "--hardware", tmp_path / "h.json", "--print-hardware") == text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--n", -1), "n should be a finite number, at least 0, got -1"),
        (("--n", 0), "n should be finite and at least 1"),
        (("--n", "nan"), "n should be a finite number"),
        (("--n", "many"), "valid number"),
        (("--n", 320, "--M", "inf", "--C", 1, "--K", 1), "M should be a finite number"),
        (("--n", 320, "--M", 20481, "--C", 1, "--K", 1), "M should be at most n d = 20480, got 20481"),
        (("--n", 320, "--M", 1000, "--C", 321, "--K", 1), "C should be at most n"),
        (("--n", 320, "--M", 100, "--C", 50, "--K", 51), "K should be at most C"),
        (("--n", 320, "--M", 100), "C is missing"),
        (("--M", 100), "n is missing"),
        (("--hardware", "no.yaml", "--n", 3), "no.yaml: No such file"),
        (("--workload", "no.yaml"), "no.yaml: No such file"),
        (("--nonsense",), "No such option"),
    ],
)
def test_cost_refuses(capsys, arguments, complaint):
    assert complaint in refused(capsys, "cost", *arguments)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("clok_ghz: 1", "unknown key 'clok_ghz'"),
        ("clock: 1", "should end in its unit"),
        ("clock_mm2: 1", "should end in its unit"),
        ("units: 0", "units should be at least 1, got 0"),
        ("d: -4", "d should be a whole number, at least 0, got -4"),
        ("clock_ghz: .nan", "finite"),
        ("modules: {selector: {area_mm2: -1}}", "area_mm2 should be a finite number, at least 0"),
        ("modules: {selectr: {area_mm2: 1}}", "did you mean 'selector'"),
        ("- 1", "one name and value a line"),
        ("a: [", "neither YAML nor JSON"),
        ("units: 1\nunits: 2", "units is there twice"),
        ("n: &a 320\nd: *a", "an alias, such as *name, is not taken"),
        ("n: &a [*a]", "an alias"),
        ("base: &a {n: 3}\n<<: *a", "an alias"),
        (f"units: 1{'0' * 400}", "units should be below 2^31"),
        (f"clock_ghz: 1{'0' * 400}", "clock_ghz should be a finite number"),
        (f"n: 1{'0' * 5000}", "neither YAML nor JSON"),
        (f"n: {[1] * 1000}", " ..."),
    ],
)
def test_hardware_files_are_refused(capsys, tmp_path, text, complaint):
    file = tmp_path / "h.yaml"
    file.write_text(text)
    for command in (
        ("cost", "--n", 3),
        ("reproduce",),
        ("simulate", "--random", 1),
        ("sweep", "--over", "M=1", "--task", "bert"),
    ):
        line = refused(capsys, *command, "--hardware", file)
        assert complaint in line
        assert str(file) in line


class TestReproduce:
    def test_rows(self, capsys):
        rows = json.loads(printed(capsys, "reproduce", "--json"))
        (energy,) = [
            row
            for row in rows
            if (row["workload"], row["config"], row["metric"], row["kind"])
            == ("bert", "aggressive", "energy_efficiency_vs_base", "calibrated")
        ]
        assert energy["paper"] == 11.65
        assert abs(energy["error"]) < 0.02

    def test_the_command_of_a_row_gives_its_number(self, capsys):
        rows = json.loads(printed(capsys, "reproduce", "--json"))
        checked = 0
        for row in rows:
            if row["metric"].endswith("_vs_base"):
                report = reported(capsys, *shlex.split(row["inputs"]["command"])[1:])
                assert report["vs_base"][row["metric"]] == row["ours"]
                checked += 1
        assert checked == 22

    def test_cost_without_a_number_of_queries_says_both(self, capsys):
        """The paper's BERT counts a sort for every n queries; its memory networks sort ahead of time."""
        [row] = [
            row
            for row in json.loads(printed(capsys, "reproduce", "--json"))
            if (row["workload"], row["config"], row["metric"]) == ("bert", "conservative", "throughput_vs_base")
        ]
        report = reported(capsys, "cost", "--n", 320, "--M", 160, "--C", 65.6, "--K", 15.7, "--json")
        assert report["vs_base_with_sorting"]["throughput_vs_base"] == pytest.approx(row["ours"], rel=1e-3)
        assert report["vs_base"]["throughput_vs_base"] == pytest.approx(329 / 164)
        assert "with a sort of the key for every n queries 1.849" in printed(
            capsys, "cost", "--n", 320, "--M", 160, "--C", 65.6, "--K", 15.7
        )

    def test_an_edited_file_moves_it(self, capsys, tmp_path):
        file, plain = tmp_path / "h.yaml", json.loads(printed(capsys, "reproduce", "--json"))
        document = yaml.safe_load(printed(capsys, "cost", "--print-hardware"))
        document["modules"]["output"]["dynamic_power_mw"] *= 2
        document["queue_depth"] = 8
        file.write_text(yaml.safe_dump(document))
        moved = json.loads(printed(capsys, "reproduce", "--hardware", file, "--json"))
        for before, after in zip(plain, moved, strict=True):
            place = (before["workload"], before["config"], before["metric"])
            still = before["metric"] in ("cycles", "area") or before["inputs"].get("of") == "static power"
            # There C + 7 cycles of the dot product are more than M + 8 of the selector.
            still = still or place == ("memn2n", "aggressive", "throughput_vs_base")
            assert (before["ours"] == after["ours"]) == still
            commands = [row["inputs"].pop("command", "") for row in (before, after)]
            assert before["inputs"] == after["inputs"]
            if after["metric"].endswith("_vs_base"):
                assert commands[1] == f"{commands[0]} --hardware {shlex.quote(str(file))}"
                report = reported(capsys, *shlex.split(commands[1])[1:])
                assert report["vs_base"][after["metric"]] == after["ours"]

    def test_table_and_gap(self, capsys):
        text = printed(capsys, "reproduce")
        assert "unexplained" in text
        assert "11.65" in text
        assert "kv_memn2n" in text

    def test_plots(self, capsys, tmp_path):
        pytest.importorskip("matplotlib")
        assert a3("reproduce", "--plots", tmp_path / "new" / "plots") == 0
        names = sorted(path.name for path in (tmp_path / "new" / "plots").iterdir())
        stems = ("energy_efficiency_vs_base", "energy_share", "latency_vs_base", "throughput_vs_base")
        assert names == [f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg")]

    def test_without_matplotlib(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert "pip install 'bandwise[plot]'" in refused(capsys, "reproduce", "--plots", tmp_path / "plots")
        assert not (tmp_path / "plots").exists()


class TestSimulate:
    @pytest.fixture
    def arrays(self, tmp_path):
        rng = np.random.default_rng(0)
        key, queries = rng.normal(size=(24, 5)), rng.normal(size=(7, 5)) * 3
        np.save(tmp_path / "k.npy", key.astype(np.float32))
        np.save(tmp_path / "q.npy", queries.astype(np.float32))
        return ("--key", tmp_path / "k.npy", "--query", tmp_path / "q.npy"), queries, key

    def test_real_queries(self, capsys, tmp_path, arrays):
        flags, queries, key = arrays
        queries, key = queries.astype(np.float32), key.astype(np.float32)
        files = ("--csv", tmp_path / "q.csv", "--pops", tmp_path / "p.csv")
        report = reported(capsys, "simulate", *flags, "--M", "n/2", "--T", 5, *files)
        with (tmp_path / "q.csv").open() as file:
            lines = list(csv.DictReader(file))
        expected_pops = []
        for query, line in zip(queries, lines, strict=True):
            pops, scores = pseudo_code(query, key, 12)
            exact = key @ query
            candidates = [row for row, score in enumerate(scores) if score > 0] or [pops[0][0][0]]
            best = max(exact[candidates])
            kept = [row for row in candidates if exact[row] >= best - math.log(20)]
            assert [float(line[name]) for name in ("n", "M", "C", "K")] == [24, 12, len(candidates), len(kept)]
            weights = np.exp(exact - exact.max())
            assert float(line["softmax_mass_kept"]) == pytest.approx(weights[kept].sum() / weights.sum(), rel=1e-5)
            expected_pops += [
                (side, row, column)
                for pair in pops
                for side, pop in zip(("max", "min"), pair, strict=True)
                if pop
                for row, column, _ in [pop]
            ]
        with (tmp_path / "p.csv").open() as file:
            popped = [(line["side"], int(line["row"]), int(line["column"])) for line in csv.DictReader(file)]
        assert popped == expected_pops
        assert report["mean"]["K"] == np.mean([float(line["K"]) for line in lines])
        assert report["run"]["total_cycles"] == max(float(line["output_finish"]) for line in lines)
        assert report["selector"]["stall_cycles"] == {"max": 0, "min": 0, "of_a_query_at_most": 0}
        assert report["selector"]["borrowed_cycles"] == 7 * 4

    def test_shallow_queues_stall(self, capsys, tmp_path, arrays):
        (tmp_path / "h.yaml").write_text("queue_depth: 1\n")
        report = reported(capsys, "simulate", *arrays[0], "--hardware", tmp_path / "h.yaml")
        # With one place a column is empty after each pop, for three cycles more than the next iteration's own.
        assert sum(report["selector"]["stall_cycles"][side] for side in ("max", "min")) == 7 * 11 * 3
        assert report["mean"]["M"] == 12 + 33

    def test_own_multipliers_fill_a_column_a_cycle(self, capsys, arrays):
        report = reported(capsys, "simulate", *arrays[0], "--fill", "own")
        assert report["selector"]["fill_cycles"] == 7 * 4 * 5
        assert report["selector"]["borrowed_cycles"] == 0
        assert report["mean"]["M"] == 12 + 4 * 5 - 4  # a cycle a round is in the pipeline's constant
        assert report["run"]["stage_cycles"]["selector"]["busy"] == 7 * (4 * 5 + 12)

    def test_fixed_point(self, capsys, tmp_path):
        """Scores of f fraction bits a side are 4^f times too large as integers."""
        rng = np.random.default_rng(1)
        key, queries = (rng.integers(-255, 256, shape) for shape in ((24, 5), (3, 5)))
        np.save(tmp_path / "k.npy", key)
        np.save(tmp_path / "q.npy", queries)
        np.save(tmp_path / "fk.npy", key / 16)
        np.save(tmp_path / "fq.npy", queries / 16)
        integers = reported(capsys, "simulate", "--key", tmp_path / "k.npy", "--query", tmp_path / "q.npy", "--T", 0.01)
        floats = reported(capsys, "simulate", "--key", tmp_path / "fk.npy", "--query", tmp_path / "fq.npy", "--T", 0.01)
        assert integers["mean"] == floats["mean"]

    def test_known_counts_that_are_alike_equal_the_closed_form(self, capsys, tmp_path):
        np.save(tmp_path / "c.npy", np.tile([160, 60, 16], (50, 1)))
        report = reported(capsys, "simulate", "--counts", tmp_path / "c.npy", "--n", 320)
        assert report["run"]["total_cycles"] == (160 + 60 + 2 * 16 + 23) + 49 * 164
        assert report["utilisation"]["selector"] == 50 * 164 / report["run"]["total_cycles"]
        base = reported(capsys, "simulate", "--counts", tmp_path / "c.npy", "--n", 320, "--pipeline", "base")
        assert base["run"]["total_cycles"] == 987 + 49 * 329

    def test_random_and_table(self, capsys):
        text = printed(capsys, "simulate", "--random", 20, "--n", 32, "--M", 8)
        assert "20 queries, mean n = 32, M = 8" in text
        assert "160 iterations" in text
        first = reported(capsys, "simulate", "--random", 5, "--n", 32, "--seed", 3)
        assert first == reported(capsys, "simulate", "--random", 5, "--n", 32, "--seed", 3)
        assert first != reported(capsys, "simulate", "--random", 5, "--n", 32, "--seed", 4)

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ((), "give one of"),
            (("--random", 3, "--workload", "w.yaml"), "give one of"),
            (("--random", 0), "--random should be at least 1, got 0"),
            (("--random", 1, "--n", 8, "--M", 513), "M should be at least 1 and at most n d = 512"),
            (("--random", 1, "--M", 2.5), "M should be a whole number"),
            (("--random", 1, "--M", "half"), "a count is a number, or a fraction such as n/2"),
            (("--random", 1, "--T", 0), "T should be above 0 and at most 100 per cent, got 0"),
            (("--random", 1, "--T", "nan"), "T should be above 0"),
            (("--random", 1, "--seed", -1), "--seed should be at least 0"),
            (("--random", 1, "--csv", "no/such/folder.csv"), "there is no folder"),
            (("--key", "k.npy"), "--key and --query, both or neither"),
            (("--key", "no.npy", "--query", "no.npy"), "no.npy: No such file"),
        ],
    )
    def test_refuses(self, capsys, arguments, complaint):
        assert complaint in refused(capsys, "simulate", *arguments)

    @pytest.mark.parametrize(
        ("key", "queries", "more", "complaint"),
        [
            (np.full((4, 3), np.nan), np.ones((2, 3)), (), "NaN or infinity in it, the first at [0, 0]"),
            (np.ones((4, 3)), np.ones((2, 2)), (), "should be alike"),
            (np.ones((4, 3)), np.ones(3), (), "should have 2 axes"),
            (np.ones((0, 3)), np.ones((2, 3)), (), "no empty one"),
            (np.array([["a"]]), np.ones((2, 3)), (), "numbers"),
            (np.ones((4, 65)), np.ones((2, 65)), (), "65 columns and the hardware d = 64"),
            (np.ones((4, 3), int), np.ones((2, 3), int), ("--scale", 2), "--scale is for floats"),
            (np.ones((4, 3)), np.ones((2, 3)), ("--scale", 0), "--scale should be above 0"),
            (np.full((4, 3), 2**20), np.full((2, 3), 2**20), (), "32 bits"),
            (np.ones((4, 3)), np.ones((2, 3)), ("--n", 9), "--n is for random keys"),
        ],
    )
    def test_refuses_arrays(self, capsys, tmp_path, key, queries, more, complaint):
        np.save(tmp_path / "k.npy", key)
        np.save(tmp_path / "q.npy", queries)
        line = refused(capsys, "simulate", "--key", tmp_path / "k.npy", "--query", tmp_path / "q.npy", *more)
        assert complaint in line

    def test_refuses_counts(self, capsys, tmp_path):
        np.save(tmp_path / "c.npy", np.ones((2, 2)))
        assert "a row M, C, K for every query" in refused(capsys, "simulate", "--counts", tmp_path / "c.npy")
        np.save(tmp_path / "c.npy", [[20481, 11, 1]])
        assert "M should be at most n d = 20480" in refused(capsys, "simulate", "--counts", tmp_path / "c.npy")
        (tmp_path / "c.npy").write_bytes(b"nothing")
        assert "is no .npy file" in refused(capsys, "simulate", "--counts", tmp_path / "c.npy")


def test_counts_as_the_paper_writes_them():
    assert [count_of(text, 320) for text in ("160", "n", "n/2", "3n/4", " n/8 ", "2.5")] == [
        160,
        320,
        160,
        240,
        40,
        2.5,
    ]
    assert iterations_of("n/8", 20, 64) == 3
    for text in ("", "n/0", "n/2/2", "x", "-1", "2/n", "nan", "inf"):
        with pytest.raises(ValueError, match="a count"):
            count_of(text, 320)


def test_ctrl_c(capsys, monkeypatch):
    def interrupted(hardware):
        raise KeyboardInterrupt

    monkeypatch.setattr("a3_jax.cli.reproduction.reproduced", interrupted)
    assert a3("reproduce") == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_few_lines_cannot_be_a_billion_values(capsys, tmp_path):
    levels = "".join(f"\n  - &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]" for i in range(12))
    (tmp_path / "w.yaml").write_text(f"n:\n  - &a0 [1]{levels}\n")
    assert "an alias" in refused(capsys, "cost", "--workload", tmp_path / "w.yaml")
    assert "too large" in refused(capsys, "cost", "--n", 3, "--hardware", "/dev/zero")


def npy(header):
    return b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header.encode() + b"\n" + bytes(64)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 is how an archive begins",
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999, 8), }"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1000000), }"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (100, 8), }"),
        npy("{'descr': '<f4', 'fortran_order': [[[, 'shape': (3, 8), }"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (3, 8), }"),
    ],
)
def test_broken_arrays(capsys, tmp_path, content):
    (tmp_path / "k.npy").write_bytes(content)
    line = refused(capsys, "simulate", "--key", tmp_path / "k.npy", "--query", tmp_path / "k.npy")
    assert "k.npy is no .npy file of numbers" in line


def test_what_no_memory_holds(capsys):
    assert "too little memory" in refused(capsys, "simulate", "--random", 10**15)


def test_where_no_result_can_be_written(capsys, tmp_path):
    """A device would be replaced by an ordinary file, where that is allowed."""
    run = ("simulate", "--random", 2, "--n", 8, "--csv")
    os.mkfifo(tmp_path / "pipe.csv")
    assert "is no ordinary file" in refused(capsys, *run, tmp_path / "pipe.csv")
    assert (tmp_path / "pipe.csv").is_fifo()
    assert "cannot be two files" in refused(capsys, *run, tmp_path / "a.csv", "--pops", tmp_path / "." / "a.csv")
    with pytest.raises(FileNotFoundError) as missing:
        write_text(tmp_path / "none" / "a.csv", "")
    assert missing.value.filename == str(tmp_path / "none" / "a.csv")


def test_nothing_to_compare(capsys):
    for arguments in (("cost", "--n", 320, "--M", 0, "--C", 0, "--K", 0), ("sweep", "--task", "bert", "--over", "M=0")):
        assert "there is nothing to compare" in refused(capsys, *arguments)


def test_help_and_unknown_commands(capsys):
    assert a3("--help") == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("cost", "simulate", "sweep", "reproduce"))
    assert "No such command" in refused(capsys, "nothing")
