"""Accuracy and cost of a memory network under A3, from the same run: figures 11 to 13 (HPCA 2020), with joules."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from a3_jax.cost.closed_form import Performance, performance
from a3_jax.cost.hardware import Hardware
from a3_jax.cost.published import APPROXIMATE, M_FRACTION, M_FRACTIONS, THRESHOLD_PERCENT, THRESHOLDS
from a3_jax.cost.workload import Workload
from a3_jax.metrics import Count, bytes_touched
from a3_jax.workloads.memory_evaluation import ROW_COUNTS, Outcome, Setting


def paper_settings() -> list[Setting]:
    """Those of figures 11 to 13: exact; then by every reading of n M alone, T alone, and the conservative and the aggressive pair.

    With T alone n decides nothing but what the rows kept are a fraction of.
    """
    pairs = [(float(fraction), None) for fraction in M_FRACTIONS]
    pairs += [(None, float(threshold)) for threshold in THRESHOLDS]
    pairs += [(M_FRACTION[name], float(THRESHOLD_PERCENT[name])) for name in APPROXIMATE]
    return [Setting(None, None), *(Setting(m, t, rows) for rows in ROW_COUNTS for m, t in pairs)]


def report_rows(outcomes: Sequence[Outcome], hardware: Hardware, *, dim: int) -> list[dict[str, Any]]:
    """A mapping for each setting, the first of which is exact attention; see `report_row`."""
    exact = outcomes[0]
    if exact.setting[:2] != (None, None):
        raise ValueError(f"the first setting should have both selections off, got {exact.setting}")
    return [report_row(outcome, exact, hardware, dim=dim) for outcome in outcomes]


def report_row(outcome: Outcome, exact: Outcome, hardware: Hardware, *, dim: int) -> dict[str, Any]:
    """What a setting gave and took.

    Accuracies are means over tasks; `loss` is the exact one less this one. n, M, C and K are means over queries, of which a question has
    one a hop. `candidate_fraction` and `kept_fraction` are the sum of C, of K, over the sum of n; `mean_...` are means of each query's own
    fraction, in which short stories count for more. The paper does not say which it shows.

    `cycles` from one query to the next, `latency_cycles`, `joules` and `bytes` are a query's, the latter in the hardware's words; `base`
    has those of the base pipeline on the same n rows. Keys are sorted ahead of time.
    """
    hops = outcome.M.shape[0]
    n = np.tile(outcome.n, hops)
    M, C, K = (counts.ravel() for counts in (outcome.M, outcome.C, outcome.K))
    is_exact = outcome.setting[:2] == (None, None)
    row = {
        "rows": outcome.setting.rows,
        "M_over_n": outcome.setting.iterations if isinstance(outcome.setting.iterations, float) else None,
        "T": outcome.setting.threshold_percent,
        "accuracy": outcome.accuracy,
        "loss": exact.accuracy - outcome.accuracy,
        "n": float(n.mean()),
        "M": float(M.mean()),
        "C": float(C.mean()),
        "K": float(K.mean()),
        "candidate_fraction": float(C.sum() / n.sum()),
        "kept_fraction": float(K.sum() / n.sum()),
        "mean_candidate_fraction": float((C / n).mean()),
        "mean_kept_fraction": float((K / n).mean()),
        "top_2_kept": float(outcome.top_kept.mean()),
    }
    base = performance(hardware, Workload(n=n, origin="measured"), pipeline="base")
    row["base"] = _costs(base, _mean_bytes(hardware, dim, 0, n, n))
    if is_exact:
        row |= row["base"]
    else:
        found = performance(hardware, Workload(n=n, M=M, C=C, K=K, origin="measured"), pipeline="approximate")
        row |= _costs(found, _mean_bytes(hardware, dim, M, C, K))
    return row | {"accuracy_by_task": outcome.accuracy_by_task}


def _costs(found: Performance, num_bytes: float) -> dict[str, Any]:
    return {
        "cycles": found.interval,
        "latency_cycles": found.latency,
        "joules": found.cost.total_energy,
        "bytes": num_bytes,
        "estimated": sorted(found.estimated),
    }


def _mean_bytes(hardware: Hardware, dim: int, M: Count, C: Count, K: Count) -> float:
    """In words of the hardware: a number, and the row that stands beside a sorted one."""
    word = hardware.row_bytes / hardware.d
    row_id = hardware.entry_bytes - word
    return float(np.mean(bytes_touched(M, C, K, key_dim=dim, value_dim=dim, element_bytes=word, id_bytes=row_id)))
