"""Accuracy and cost of the same queries, by hand."""

import numpy as np
import pytest

from a3_jax.cost.hardware import Hardware
from a3_jax.workloads.memory_evaluation import Outcome, Setting
from a3_jax.workloads.memory_report import paper_settings, report_rows


def outcome(setting, n, M, C, K, right):
    """Two tasks of one question each, and two hops."""
    counts = (np.array(part, np.int32) for part in (M, C, K))
    tasks, top = np.array([1, 2], np.int32), np.array([[1, 0.5], [1, 0.5]])
    return Outcome(setting, tasks, np.array(right), np.array(n, np.int32), *counts, top)


EXACT = outcome(Setting(None, None), [4, 10], [[0, 0]] * 2, [[4, 10]] * 2, [[4, 10]] * 2, [True, True])
APPROXIMATE = outcome(Setting(0.5, 5.0), [4, 10], [[2, 5]] * 2, [[2, 4], [1, 3]], [[1, 2], [1, 1]], [True, False])


def test_numbers():
    exact, found = report_rows([EXACT, APPROXIMATE], Hardware(), dim=64)
    assert (exact["accuracy"], exact["loss"]) == (1.0, 0.0)
    assert (found["accuracy"], found["loss"]) == (0.5, 0.5)
    assert (found["rows"], found["M_over_n"], found["T"]) == ("story", 0.5, 5.0)
    assert [found[name] for name in ("n", "M", "C", "K")] == [7.0, 3.5, 2.5, 1.25]
    assert found["candidate_fraction"] == 10 / 28 and found["kept_fraction"] == 5 / 28
    assert found["mean_candidate_fraction"] == pytest.approx((2 / 4 + 4 / 10 + 1 / 4 + 3 / 10) / 4)
    assert found["mean_kept_fraction"] == pytest.approx((1 / 4 + 2 / 10 + 1 / 4 + 1 / 10) / 4)
    assert found["top_2_kept"] == 0.75
    assert found["accuracy_by_task"] == {1: 1.0, 2: 0.0}


def test_cost_is_that_of_the_same_counts():
    """n + 9 and 3 n + 27 cycles, a word of a byte, a sorted entry of two (Table I), and dynamic power for as many cycles as rows."""
    exact, found = report_rows([EXACT, APPROXIMATE], Hardware(), dim=64)
    assert exact["cycles"] == found["base"]["cycles"] == 7 + 9
    assert exact["latency_cycles"] == 3 * 7 + 27
    assert exact["bytes"] == found["base"]["bytes"] == 2 * 64 * 7
    base = 7 * (14.338 + 0.224 + 50.918 + 2.901 + 2.901)
    assert exact["joules"] == pytest.approx(base * 1e-12)
    approximate = 3.5 * (19.48 + 6.100) + 2.5 * (14.338 + 2.901) + 1.25 * (0.224 + 2.055 + 50.918 + 2.901)
    assert found["joules"] == pytest.approx(approximate * 1e-12)
    assert found["bytes"] == 3.5 * 2 * 2 + 64 * (2.5 + 1.25)
    # The slowest stage: the output module, K + 9.
    assert found["cycles"] == 1.25 + 9


def test_the_first_one_is_exact():
    with pytest.raises(ValueError, match="both selections off"):
        report_rows([APPROXIMATE, EXACT], Hardware(), dim=64)


def test_settings_of_the_figures():
    settings = paper_settings()
    assert settings[0][:2] == (None, None)
    assert len(settings) == len(set(settings)) == 1 + 3 * (5 + 5 + 2)
    for rows in ("story", "task", "memory"):
        own = [setting for setting in settings[1:] if setting.rows == rows]
        assert [setting.iterations for setting in own[:5]] == [1.0, 0.75, 0.5, 0.25, 0.125]
        assert [setting.threshold_percent for setting in own[5:10]] == [1.0, 2.5, 5.0, 10.0, 20.0]
        assert own[10:] == [Setting(0.5, 5.0, rows), Setting(0.125, 10.0, rows)]
