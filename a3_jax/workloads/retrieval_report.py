"""Accuracy and cost of one retrieval, from the counts of its own queries."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from a3_jax.cost.closed_form import Performance, performance
from a3_jax.cost.hardware import Hardware, Pipeline
from a3_jax.cost.pipeline import run_cost, simulate
from a3_jax.cost.workload import Workload
from a3_jax.metrics import bytes_touched
from a3_jax.workloads.encoder_attention import Setting
from a3_jax.workloads.host_search import Share
from a3_jax.workloads.retrieval import QueryCounts, Retrieval

FRACTIONS = ("n", "3n/4", "n/2", "n/4", "n/8")
THRESHOLDS = (1, 2.5, 5, 10, 20)
FRACTION_BITS = tuple(range(2, 9))
_SIMULATED = 20_000  # queries, a passage's: the simulation takes some microseconds for each
_SHARES = {"n": 1.0, "3n/4": 0.75, "n/2": 0.5, "n/4": 0.25, "n/8": 0.125}

EXACT = Setting(name="exact")
CONSERVATIVE = Setting(name="conservative", iterations=0.5, threshold_percent=5)
AGGRESSIVE = Setting(name="aggressive", iterations=0.125, threshold_percent=10)


class RunCost(NamedTuple):
    """What a run's queries cost the accelerator.

    Attributes:
      performance: of the mean query, by formula.
      simulated_cycles: mean cycles a query of the first queries of the run, stage by stage, a sort's share besides.
      closed_form_cycles: of the same queries, by formula.
      bytes, exact_bytes: mean bytes a query reads, and would read of all rows.
    """

    performance: Performance
    simulated_cycles: float
    closed_form_cycles: float
    bytes: float
    exact_bytes: float


def named_setting(iterations: Share | None, threshold_percent: int | float | None) -> Setting:
    """The selection of an M and a T, called by what they are."""
    m = "" if iterations is None else f"M = {iterations:g}{' n' if isinstance(iterations, float) else ''}"
    t = "" if threshold_percent is None else f"T = {threshold_percent:g} %"
    name = ", ".join(part for part in (m, t) if part) or EXACT.name
    return Setting(name=name, iterations=iterations, threshold_percent=threshold_percent)


def sweep_settings() -> Iterator[Setting]:
    """The selections of the paper's figures 11 and 12, search alone and post-scoring alone."""
    for name in FRACTIONS:
        yield Setting(name=f"M = {name}", iterations=_SHARES[name])
    for threshold in THRESHOLDS:
        yield Setting(name=f"T = {threshold:g} %", threshold_percent=threshold)


def quantised_settings(base: Setting, *, num_rows: int, head_dim: int) -> Iterator[Setting]:
    """For f = 2 to 8 a setting with its inputs quantised, and where int32 holds it, in fixed point: with early and late division."""
    for bits in FRACTION_BITS:
        of_bits = dataclasses.replace(base, fraction_bits=bits)
        name = f"{base.name}, f = {bits}"
        yield dataclasses.replace(of_bits, name=f"{name}, input-quantised float", arithmetic="input-quantised float")
        for division in ("early", "late"):
            fixed = dataclasses.replace(
                of_bits, name=f"{name}, fixed point, {division} division", arithmetic="fixed point", division=division
            )
            if _int32_holds(fixed, num_rows, head_dim):
                yield fixed


def hardware_for(setting: Setting, hardware: Hardware) -> Hardware:
    """With words of the setting's bits; as it is for floats, whose M, C and K then stand for words of any size."""
    if setting.arithmetic == "float":
        return hardware
    return dataclasses.replace(hardware, integer_bits=setting.integer_bits, fraction_bits=setting.fraction_bits)


def run_costs(counts: QueryCounts, setting: Setting, hardware: Hardware, *, head_dim: int) -> RunCost:
    """Of heads narrower than the hardware, whose other columns are zeros: neither M, C nor K counts them.

    Bytes are those of `bytes_touched`: bfloat16 and four bytes a row id for floats, else i + f + 1 bits and nine bits a row id.
    """
    pipeline: Pipeline = "base" if setting.is_base else "approximate"
    made = hardware_for(setting, hardware)
    sample = QueryCounts(*(array[:_SIMULATED] for array in counts[:4]), keys=1)
    # As many queries share a key in the sample as in all.
    shared = None if setting.iterations is None else len(counts.n) / counts.keys
    few = _workload(sample, pipeline, shared)
    trace = simulate(made, few, pipeline=pipeline)
    words = {"element_bytes": 2, "id_bytes": 4}
    if setting.arithmetic != "float":
        words = {"element_bytes": (1 + setting.integer_bits + setting.fraction_bits) / 8, "id_bytes": 9 / 8}
    sizes = {"key_dim": head_dim, "value_dim": head_dim, **words}
    mean = {name: float(getattr(counts, name).mean()) for name in ("n", "M", "C", "K")}
    return RunCost(
        performance=performance(made, _workload(counts, pipeline, shared), pipeline=pipeline),
        simulated_cycles=float(run_cost(made, few, trace, pipeline=pipeline).per_query.cycles),
        closed_form_cycles=performance(made, few, pipeline=pipeline).interval,
        bytes=float(bytes_touched(mean["M"], mean["C"], mean["K"], **sizes)),
        exact_bytes=float(bytes_touched(0, mean["n"], mean["n"], **sizes)),
    )


def report_of(setting: Setting, run: Retrieval, cost: RunCost, *, exact: Retrieval) -> dict[str, Any]:
    """For JSON: accuracy, what differs from the exact run, counts, and what a query and a passage's or sentence's text cost."""
    found, before = run.ranks == 1, exact.ranks == 1
    queries, texts = len(run.counts.n), len(run.passages) + len(run.sentences)
    one = cost.performance.cost
    per_text = queries / texts
    return {
        "setting": dataclasses.asdict(setting),
        "recall_at_1": run.recall(1),
        "recall_at_10": run.recall(10),
        "mrr": run.mean_reciprocal_rank,
        "first_gained": int((found & ~before).sum()),
        "first_lost": int((before & ~found).sum()),
        "cosine_with_exact": float(np.mean(np.sum(run.passages * exact.passages, axis=1))),
        "queries": queries,
        "mean": {name: float(getattr(run.counts, name).mean()) for name in ("n", "M", "C", "K")},
        "pipeline": cost.performance.pipeline,
        "cycles_per_query": cost.performance.interval,
        "simulated_cycles_per_query": cost.simulated_cycles,
        "closed_form_cycles_of_simulated": cost.closed_form_cycles,
        "joules_per_query": one.total_energy,
        "bytes_per_query": cost.bytes,
        "bytes_over_exact": cost.bytes / cost.exact_bytes,
        "cycles_per_text": cost.performance.interval * per_text,
        "joules_per_text": one.total_energy * per_text,
        "bytes_per_text": cost.bytes * per_text,
        "estimated": sorted(cost.performance.estimated),
    }


def standard_error(recall: float, sentences: int) -> float:
    """Of a recall, as if sentences were drawn independently."""
    return float(np.sqrt(recall * (1 - recall) / sentences))


def text_rows(reports: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A header and a line a setting, numbers as people read them."""
    header = ("setting", "recall@1", "@10", "MRR", "cosine", "C/n", "K/n", "cycles", "nJ", "bytes", "of exact")
    rows: list[tuple[str, ...]] = [header]
    for report in reports:
        mean = report["mean"]
        rows.append(
            (
                report["setting"]["name"],
                f"{report['recall_at_1']:.3f}",
                f"{report['recall_at_10']:.3f}",
                f"{report['mrr']:.3f}",
                f"{report['cosine_with_exact']:.4f}",
                f"{mean['C'] / mean['n']:.3f}",
                f"{mean['K'] / mean['n']:.3f}",
                f"{report['cycles_per_query']:.1f}",
                f"{1e9 * report['joules_per_query']:.2f}",
                f"{report['bytes_per_query']:,.0f}",
                f"{report['bytes_over_exact']:.3f}",
            )
        )
    return rows


def _workload(counts: QueryCounts, pipeline: Pipeline, queries_per_key: float | None) -> Workload:
    if pipeline == "base":
        return Workload(n=counts.n, origin="measured")
    return Workload(n=counts.n, M=counts.M, C=counts.C, K=counts.K, queries_per_key=queries_per_key, origin="measured")


def _int32_holds(setting: Setting, num_rows: int, head_dim: int) -> bool:
    try:
        setting.format_for(num_rows=num_rows, head_dim=head_dim)
    except ValueError:
        return False
    return True
