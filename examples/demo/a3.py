"""A3's approximate attention on the language model that the demo has: what it selects, what that loses, and what it would cost."""

import json
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import anyprec_jax
from a3_jax.cost.published import TASKS, Config, published
from a3_jax.cost.reproduction import reproduce
from examples.demo.accelerator_cost import cost_table, reproduction_figures, reproduction_table, write_workloads
from examples.demo.anyprec import HELD_OUT, MODEL, SPEECHES
from examples.demo.approximation import Attended, attend_all
from examples.demo.attention_inputs import AttentionInputs, attention_inputs
from examples.demo.attention_map import map_figure, median_head, rows_table
from examples.demo.report import Section, TableBlock

NUM_ROWS = 320  # tokens: what the paper's hardware holds
NUM_QUERIES = 64  # of every head: the last ones, which see 257 to 320 rows


def run(data: Path, out: Path) -> Section:
    """Attends with one layer's inputs; prints the tables and returns the report's section."""
    model, text = _inputs(data)
    assert model.tokenizer is not None
    tokens = np.asarray(model.tokenizer.encode(text, special_tokens=False)[:NUM_ROWS], np.int32)
    layer = model.config.num_layers // 2
    inputs = attention_inputs(model, jnp.asarray(tokens), layer)
    words = [model.tokenizer.decode([int(token)]) for token in tokens]
    return section(inputs, words, out, name=f"layer {layer} of {model.config.num_layers} of SmolLM2-135M-Instruct")


def section(
    inputs: AttentionInputs, words: list[str], out: Path, *, name: str, num_queries: int = NUM_QUERIES
) -> Section:
    """The report's section on a layer's attention; prints its tables, and leaves workloads and figures under `out`/a3."""
    results = attend_all(inputs, num_queries)
    heads, kv_heads = len(inputs.queries), len(inputs.keys)
    workloads = write_workloads(results, num_queries * heads // kv_heads, out / "a3")
    rows = reproduce()
    _print(quality := quality_table(results))
    _print(cost := cost_table(workloads, inputs.keys.shape[2], out / "a3"))
    (out / "a3.json").write_text(json.dumps(_numbers(results), indent=1) + "\n", encoding="utf-8")
    head = median_head(results)
    return Section(
        title="Approximate attention, and an accelerator for it",
        introduction=_introduction(name, len(words), results["exact"].K.size, num_queries, heads, kv_heads, head),
        blocks=[
            map_figure(results, head, words),
            rows_table(results, head, words),
            quality,
            cost,
            reproduction_table(rows),
            *reproduction_figures(rows, out / "a3"),
        ],
    )


def quality_table(results: Mapping[str, Attended]) -> TableBlock:
    """What was selected and what that lost, over all heads and queries."""
    rows = [
        [
            name,
            *(f"{found.mean():.1f}" for found in (attended.M, attended.C, attended.K)),
            f"{attended.mass.mean():.1%}",
            f"{attended.mass.mean(1).min():.1%}",
            f"{attended.error.mean():.3f}",
        ]
        for name, attended in results.items()
    ]
    return TableBlock(
        header=("attention", "M", "C", "K", "softmax mass kept", "in the worst head", "output error"),
        rows=rows,
        look_at=(
            "Means over all heads and queries. Mass: the part of the exact weights that the kept rows have. Error: the distance to the "
            "exact output over its length; 1 is as far off as zeros are. That of base comes from its 9-bit numbers alone; that of A3, in "
            f"floats here, from its selections alone. The paper's three models were other ones, and lost {_paper_loss('conservative')} "
            f"(conservative) and {_paper_loss('aggressive')} (aggressive) points of accuracy by them."
        ),
    )


def _paper_loss(config: Config) -> str:
    losses = [published(task, "base", "quality").value - published(task, config, "quality").value for task in TASKS]
    return f"{100 * min(losses):.1f} to {100 * max(losses):.1f}"


def _introduction(name: str, n: int, num: int, num_queries: int, heads: int, kv_heads: int, head: int) -> str:
    return (
        "A3 (HPCA 2020) spares most of attention's dot products. The columns of the key are sorted beforehand; a query then walks M "
        "steps from their ends, where the largest and smallest products are, and adds them up row by row. Rows with a positive sum are "
        "candidates (C of them); of these the ones whose weight is at least T % of the largest are kept (K). "
        f"Here it attends with {name}: the text is the first {n} tokens of the address of 2016, the queries the last {num_queries} of "
        f"each of {heads} heads ({num:,} in all), which see all rows up to their own, and {heads // kv_heads} heads share a key. The maps "
        f"are of head {head}, the median one by the mass that the aggressive setting keeps."
    )


def _numbers(results: Mapping[str, Attended]) -> dict[str, dict[str, float]]:
    return {
        name: {field: float(getattr(attended, field).mean()) for field in ("M", "C", "K", "mass", "error")}
        for name, attended in results.items()
    }


def _inputs(data: Path) -> tuple[anyprec_jax.Model, str]:
    model, speech = data / MODEL, data / SPEECHES / HELD_OUT
    for wanted in (model, speech):
        if not wanted.is_file():
            raise FileNotFoundError(f"{wanted} is missing: remove {data} and run `make demo` again")
    return anyprec_jax.load(model), speech.read_text(encoding="utf-8")


def _print(block: TableBlock) -> None:
    table = Table(*block.header, box=None, pad_edge=False)
    for row in block.rows:
        table.add_row(*row)
    Console(highlight=False, width=120).print(table)
