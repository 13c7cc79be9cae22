"""What the paper reports (A3, HPCA 2020, arXiv 2002.10941), as data; Table I is in `modules`.

"printed" numbers are labels or text of the paper. "digitised" ones are heights of bars in its figures, read off the vector graphics to
about half a per cent, about one where the axis is logarithmic. "derived" ones follow from others of the paper, and say how.
"""

import dataclasses
from typing import Literal

Task = Literal["memn2n", "kv_memn2n", "bert"]
Config = Literal["base", "conservative", "aggressive"]
Reading = Literal["printed", "digitised", "derived"]

TASKS: tuple[Task, ...] = ("memn2n", "kv_memn2n", "bert")
APPROXIMATE: tuple[Config, ...] = ("conservative", "aggressive")

# Mean rows of the key (section VI): bAbI, WikiMovies, SQuAD. One query of BERT is one of n that share a key.
ROWS: dict[Task, int] = {"memn2n": 20, "kv_memn2n": 186, "bert": 320}
# M as a fraction of n, and T in per cent (section VI).
M_FRACTION: dict[Config, float] = {"conservative": 1 / 2, "aggressive": 1 / 8}
THRESHOLD_PERCENT: dict[Config, float] = {"conservative": 5, "aggressive": 10}


@dataclasses.dataclass(frozen=True)
class Published:
    """One number of the paper."""

    figure: str
    task: Task
    config: Config
    metric: str
    value: float
    reading: Reading


def _bars(
    figure: str, metric: str, reading: Reading, conservative: tuple[float, ...], aggressive: tuple[float, ...]
) -> list[Published]:
    """Of the three tasks, in the order of `TASKS`."""
    return [
        Published(figure, task, config, metric, value, reading)
        for config, values in zip(APPROXIMATE, (conservative, aggressive), strict=True)
        for task, value in zip(TASKS, values, strict=True)
    ]


def _base_bars(figure: str, metric: str, values: tuple[float, ...]) -> list[Published]:
    return [Published(figure, task, "base", metric, v, "digitised") for task, v in zip(TASKS, values, strict=True)]


PUBLISHED: tuple[Published, ...] = (
    *_bars("Figure 14", "throughput_vs_base", "printed", (1.39, 2.01, 1.85), (2.62, 7.03, 5.69)),
    *_bars("Figure 14", "latency_vs_base", "digitised", (1.10, 2.63, 3.35), (1.48, 7.36, 8.21)),
    *_bars("Figure 15", "energy_efficiency_vs_base", "printed", (1.4, 2.89, 3.74), (2.99, 9.86, 11.65)),
    # Ratios to an Intel Xeon Gold 6128, whose power is taken to be its 115 W of TDP.
    *_base_bars("Figure 14", "throughput_vs_cpu", (42.8, 34.0, 5.02)),
    *_bars("Figure 14", "throughput_vs_cpu", "digitised", (59.3, 68.6, 9.30), (112.0, 239.0, 28.6)),
    *_base_bars("Figure 15", "energy_efficiency_vs_cpu", (1.41e5, 5.6e4, 8.1e3)),
    # Accuracy on bAbI, mean average precision on WikiMovies, F1 on SQuAD.
    *(
        Published("Figure 11", task, "base", "quality", value, "printed")
        for task, value in zip(TASKS, (0.826, 0.620, 0.888), strict=True)
    ),
    *_bars("Figure 13", "quality", "printed", (0.816, 0.604, 0.875), (0.730, 0.545, 0.805)),
    # Of the rows with the largest scores (two in bAbI, else five) those that are kept.
    *_bars("Figure 13", "largest_rows_kept", "printed", (0.781, 0.619, 0.824), (0.623, 0.418, 0.622)),
)

# The Titan V beside the CPU, on BERT: throughput and energy efficiency, digitised (figures 14 and 15).
GPU_VS_CPU = {"throughput": 53.7, "energy_efficiency": 24.5}

# Figure 11: by M / n, the task's quality (printed) and C / n (digitised).
M_FRACTIONS = (1, 3 / 4, 1 / 2, 1 / 4, 1 / 8)
QUALITY_BY_M: dict[Task, tuple[float, ...]] = {
    "memn2n": (0.827, 0.825, 0.815, 0.780, 0.730),
    "kv_memn2n": (0.621, 0.620, 0.601, 0.567, 0.545),
    "bert": (0.890, 0.884, 0.889, 0.879, 0.824),
}
CANDIDATE_FRACTION: dict[Task, tuple[float, ...]] = {
    "memn2n": (0.610, 0.569, 0.493, 0.370, 0.271),
    "kv_memn2n": (0.487, 0.443, 0.364, 0.208, 0.112),
    "bert": (0.248, 0.228, 0.205, 0.149, 0.093),
}
# Figure 12: by T in per cent and post-scoring alone, quality (printed) and K / n (digitised).
THRESHOLDS = (1, 2.5, 5, 10, 20)
QUALITY_BY_T: dict[Task, tuple[float, ...]] = {
    "memn2n": (0.826, 0.826, 0.826, 0.825, 0.826),
    "kv_memn2n": (0.621, 0.622, 0.624, 0.626, 0.629),
    "bert": (0.889, 0.887, 0.885, 0.867, 0.841),
}
KEPT_FRACTION: dict[Task, tuple[float, ...]] = {
    "memn2n": (0.201, 0.153, 0.116, 0.081, 0.051),
    "kv_memn2n": (0.431, 0.363, 0.311, 0.258, 0.210),
    "bert": (0.133, 0.093, 0.066, 0.043, 0.024),
}
# K of the combined configurations, from the output module's bar in figure 15 (derived: energy over Table I's power). For the memory
# network on bAbI no K explains the bars.
KEPT_BY_ENERGY: dict[tuple[Task, Config], float] = {
    ("kv_memn2n", "conservative"): 18.4,
    ("kv_memn2n", "aggressive"): 6.7,
    ("bert", "conservative"): 15.7,
    ("bert", "aggressive"): 7.5,
}
# Throughput that BERT loses to sorting (section VI, printed).
PREPROCESSING_LOSS: dict[Config, float] = {"conservative": 0.07, "aggressive": 0.24}

# Table I's last line: mm^2, mW while it works, mW always (printed).
TOTAL_AREA_MM2, TOTAL_DYNAMIC_MW, TOTAL_STATIC_MW = 2.082, 98.92, 11.502


def published(task: Task, config: Config, metric: str) -> Published:
    """One of `PUBLISHED`; KeyError if the paper has no such number, or it is not among these."""
    for row in PUBLISHED:
        if (row.task, row.config, row.metric) == (task, config, metric):
            return row
    raise KeyError((task, config, metric))
