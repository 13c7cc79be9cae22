"""Claim: over 8k keys and more, of single queries, A3's selection in C++ is faster than exact attention that reads at memory speed; where a
group of queries shares the keys, less so or not.
Beside: exact attention in the same C++, the time of its bytes at the bandwidth measured in the same run; sorting, appending and windows
counted.

A3 in C++ beside exact attention in C++, one query at a time over a long context: where it begins to win.

    python -m benchmarks.a3_native [--rows 8192 32768 131072] [--dims 64 128] [--threads 1 2] [--repeats 5] [--json]

A call is one decode step of so many heads that their keys and values are at least 128 MiB in float32, beyond any cache; the queries of
every call are new. Per query:
    exact     `native_exact_attention`: keys and values read once; queries of a group read them together
    n/8 ..    `native_attention`, M = n/8 .., T = 5 %: search, candidates' dot products, softmax over the kept rows
The keys are normal ("normal"), or somewhat like those of trained models ("skewed"): a spectrum that falls as 1 / i, channels with large
means, queries near one of the keys. C and K are means of what was selected, mass the softmax weight of the kept rows, from the two sums of
exponentials. The bound is the time in which exact attention's bytes are read at what memory gives the same threads.

    sort      `native_sort_keys` of one head; XLA's `sort_keys` beside it up to 32,768 rows
    append    `native_append_keys`: 512 new rows into the sorted ones, once in 512 steps, which read half of such a window exactly
    pays      steps from the sort of the whole context until more time was saved than it took, appending and windows counted

Writes results/a3_native.json.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from a3_jax import (
    merge_work,
    native_append_keys,
    native_attention,
    native_exact_attention,
    native_sort_keys,
    sort_keys,
    why_native_unavailable,
)
from benchmarks.bandwidth import Bandwidth
from benchmarks.timing import alternate, medians, record

BYTES = 128 << 20  # of keys and values in float32
SHARES = (8, 16, 32, 64)  # M = n / share
THRESHOLD_PERCENT = 5.0
WINDOW = 512
RUN_LENGTH = 128
MOST_XLA_ROWS = 32768  # of which a sort takes seconds
KINDS = ("normal", "skewed")
VARIANTS = (("float32", 1), ("float32", 4), ("bfloat16", 1))  # type of keys and values; queries of a group
QUERY_SETS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[8192, 32768, 131072])
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the results as JSON and no table")
    parser.add_argument("--in-process", action="store_true", help="measure with the threads that there are; no record")
    arguments = parser.parse_args()
    reason = why_native_unavailable()
    if reason is not None:
        sys.exit(f"error: {reason}")
    if arguments.in_process:
        print(json.dumps(measure_all(arguments)))
        return
    results = {}
    for threads in arguments.threads:
        results[f"{threads} threads"] = found = with_threads(threads, arguments)
        if not arguments.json:
            print_results(threads, found)
    record("a3_native", vars(arguments), results)
    if arguments.json:
        print(json.dumps(results))


def with_threads(threads: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """In a process that may use so many processors: XLA makes as many threads when it starts."""
    allowed = os.sched_getaffinity(0)
    if len(allowed) < threads:
        sys.exit(f"error: {threads} threads need as many processors, and there are {len(allowed)}: choose --threads")
    command = [sys.executable, "-m", "benchmarks.a3_native", "--in-process", "--repeats", str(arguments.repeats)]
    command += ["--rows", *map(str, arguments.rows), "--dims", *map(str, arguments.dims)]
    os.sched_setaffinity(0, sorted(allowed)[:threads])
    try:
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    finally:
        os.sched_setaffinity(0, allowed)


def measure_all(arguments: argparse.Namespace) -> dict[str, Any]:
    bytes_per_s = Bandwidth().measure()
    cases = {
        f"n {rows}, d {dim}, {kind}": measure(rows, dim, kind, arguments.repeats, bytes_per_s)
        for rows, dim, kind in itertools.product(arguments.rows, arguments.dims, KINDS)
    }
    return {"bytes_per_s": bytes_per_s, "cases": cases}


def measure(rows: int, dim: int, kind: str, repeats: int, bytes_per_s: float) -> dict[str, Any]:
    heads = max(2, BYTES // (2 * 4 * rows * dim))
    rng = np.random.default_rng(0)
    key = make_keys(rng, heads, rows, dim, kind)
    value = rng.standard_normal((heads, rows, dim), np.float32)
    found: dict[str, Any] = {"heads": heads}
    for dtype, group in VARIANTS:
        keys, values = jnp.asarray(key, dtype), jnp.asarray(value, dtype)
        queries = [jnp.asarray(make_queries(rng, key, group, kind)) for _ in range(QUERY_SETS)]
        found[f"{dtype}, group {group}"] = compare(queries, keys, values, repeats, bytes_per_s, with_sort=group == 1)
    return found


def make_keys(rng: np.random.Generator, heads: int, rows: int, dim: int, kind: str) -> np.ndarray:
    key = rng.standard_normal((heads, rows, dim), np.float32)
    if kind == "normal":
        return key
    # Directions that matter less and less, half of them along channels and half not, and four channels whose mean is far from 0.
    spread = np.arange(1, dim + 1, dtype=np.float32) ** -0.5
    rotation = np.linalg.qr(np.eye(dim) + 0.2 * rng.standard_normal((dim, dim)))[0].astype(np.float32)
    mean = np.zeros(dim, np.float32)
    mean[rng.choice(dim, 4, replace=False)] = (4, -4, 3, -3)
    for head in range(heads):
        key[head] = (key[head] * spread * np.sqrt(dim / np.sum(spread**2))) @ rotation + mean
    return key


def make_queries(rng: np.random.Generator, key: np.ndarray, group: int, kind: str) -> np.ndarray:
    """[heads, group, d]. Scaled so that the scores of normal keys have a variance of 1, and skewed ones some rows that matter."""
    heads, rows, dim = key.shape
    query = rng.standard_normal((heads, group, dim), np.float32)
    if kind == "normal":
        return query / np.float32(np.sqrt(dim))
    near = key[np.arange(heads)[:, None], rng.integers(rows, size=(heads, group))]
    return (near + query) / np.float32(np.sqrt(dim))


def compare(
    queries: list[jax.Array], key: jax.Array, value: jax.Array, repeats: int, bytes_per_s: float, *, with_sort: bool
) -> dict[str, Any]:
    heads, rows, dim = key.shape
    group = queries[0].shape[1]
    sort = jax.jit(jax.vmap(native_sort_keys))
    keys = jax.block_until_ready(sort(key))
    calls = {"exact": jax.jit(per_query(lambda query, key, value, _: native_exact_attention(query, key, value), group))}
    for share in SHARES:
        calls[f"n/{share}"] = jax.jit(
            per_query(
                lambda query, key, value, keys, share=share: native_attention(
                    query, key, value, keys, num_iterations=rows // share, threshold_percent=THRESHOLD_PERCENT
                ),
                group,
            )
        )
    turns = itertools.cycle(queries)
    timed = {
        name: lambda call=call: jax.block_until_ready(call(next(turns), key, value, keys))
        for name, call in calls.items()
    }
    seconds = {name: time / (heads * group) for name, time in medians(alternate(timed, repeats=repeats)).items()}
    exact_s = seconds.pop("exact")
    exact_bytes = 2 * rows * dim * key.dtype.itemsize / group
    found: dict[str, Any] = {
        "exact_s": exact_s,
        "exact_bytes_per_s": exact_bytes / exact_s,
        "exact_bound_over_time": exact_bytes / bytes_per_s / exact_s,
    }
    sorting = measure_sort(key[0], value[0], repeats) if with_sort else {}
    lse = calls["exact"](queries[0], key, value, keys)[1]
    for name, time in seconds.items():
        info = calls[name](queries[0], key, value, keys)[1]
        found[name] = {
            "s": time,
            "over_exact": time / exact_s,
            "C_over_n": float(jnp.mean(info.C)) / rows,
            "K_over_n": float(jnp.mean(info.K)) / rows,
            "mass": float(jnp.mean(jnp.exp(info.lse - lse))),
            **(pays_after(exact_s, time, sorting) if with_sort else {}),
        }
    return {**found, **sorting}


def per_query(attend: Callable[..., Any], group: int) -> Callable[..., Any]:
    """Of all heads, and of the queries that share a head's keys: [heads, group, d].

    A query alone is mapped once: of bfloat16 that is not mapped under a second `jax.vmap` XLA makes a copy for every call.
    """
    if group == 1:
        return jax.vmap(lambda query, *shared: attend(query[0], *shared))
    return jax.vmap(jax.vmap(attend, (0, None, None, None)))


def measure_sort(key: jax.Array, value: jax.Array, repeats: int) -> dict[str, Any]:
    """Of one head. Appending happens once in a window's steps; the window's attention is that of half a window, called alone."""
    new, half_key, half_value = jax.block_until_ready((key[-WINDOW:], key[: WINDOW // 2], value[: WINDOW // 2]))
    sort, window = jax.jit(native_sort_keys), jax.jit(native_exact_attention)
    append = jax.jit(native_append_keys, donate_argnums=0)
    length, query = jnp.int32(len(key) - WINDOW), key[0].astype(jnp.float32)
    growing = [sort(key)]

    def append_again() -> object:
        """Always at the same place: what stands behind it means nothing."""
        growing.append(append(growing.pop(), new, length))
        return growing

    calls = {
        "sort": lambda: sort(key),
        "append": append_again,
        "window": lambda: window(query, half_key, half_value),
    }
    turns = {name: lambda call=call: jax.block_until_ready(call()) for name, call in calls.items()}
    times = medians(alternate(turns, repeats=repeats))
    rows, xla = len(key), jax.jit(sort_keys)
    xla_s = None
    if rows <= MOST_XLA_ROWS:
        xla_s = medians(alternate({"xla": lambda: jax.block_until_ready(xla(key))}, repeats=1))["xla"]
    return {
        "sort_s": times["sort"],
        "xla_sort_s": xla_s,
        "append_s": times["append"],
        "append_s_per_step": times["append"] / WINDOW,
        "window_s_per_step": times["window"],
        # Were it sorted runs: so many entries are written a row, each at what it takes here.
        "runs_s_per_step": times["append"] / rows * merge_work(rows, run_length=RUN_LENGTH) / rows,
    }


def pays_after(exact_s: float, approximate_s: float, sorting: dict[str, Any]) -> dict[str, float | None]:
    """Steps of one query a head after which sorting the context has paid; None if never."""
    growing_s = approximate_s + sorting["append_s_per_step"] + sorting["window_s_per_step"]
    saved_s = exact_s - growing_s
    return {
        "growing_s": growing_s,
        "growing_over_exact": growing_s / exact_s,
        "pays_after_steps": sorting["sort_s"] / saved_s if saved_s > 0 else None,
    }


def print_results(threads: int, results: dict[str, Any]) -> None:
    print(f"{threads} threads: memory gives {results['bytes_per_s'] / 1e9:.1f} GB/s")
    for case, variants in results["cases"].items():
        print(f"  {case}: {variants['heads']} heads")
        for variant, found in variants.items():
            if isinstance(found, dict):
                print_variant(variant, found)


def print_variant(variant: str, found: dict[str, Any]) -> None:
    print(
        f"    {variant}: exact {1e6 * found['exact_s']:.0f} us a query, {found['exact_bytes_per_s'] / 1e9:.1f} GB/s,"
        f" bound/time {found['exact_bound_over_time']:.2f}"
    )
    if "sort_s" in found:
        xla = "" if found["xla_sort_s"] is None else f" (XLA {1e3 * found['xla_sort_s']:.0f})"
        print(
            f"      sort {1e3 * found['sort_s']:.1f} ms{xla}, a step's share of appending"
            f" {1e6 * found['append_s_per_step']:.1f} us (of runs {1e6 * found['runs_s_per_step']:.1f}), window"
            f" {1e6 * found['window_s_per_step']:.1f} us"
        )
    for share in SHARES:
        one = found[f"n/{share}"]
        steps = one.get("pays_after_steps")
        pays = (
            "" if "growing_s" not in one else f", pays after {steps:.0f} steps" if steps is not None else ", never pays"
        )
        print(
            f"      M = n/{share:<3} {1e6 * one['s']:8.0f} us {one['over_exact']:6.2f} x exact, C/n {one['C_over_n']:.3f},"
            f" K/n {one['K_over_n']:.3f}, mass {one['mass']:.3f}{pays}"
        )


if __name__ == "__main__":
    main()
