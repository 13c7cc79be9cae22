"""Claim: none of the forms of A3's selection beats exact attention in XLA: they say what the accelerator selects, and what that costs here.
Beside: exact attention on the same queries, batched and one at a time; its bound from a large product and a large sum of the same run.

A3's selection beside exact attention: every form of the search and the attention over what it selects, in turns, at d = 64.

    python -m benchmarks.a3_attention [--rows 320 2048 8192 32768] [--queries 64] [--repeats 3] [--json]

Keys, queries and values are normal; the keys are one sorted matrix for all queries, sorted beforehand, as the accelerator has them; seconds
of sorting stand in the record. 4,096 queries at 320 rows, `--queries` at more, a chunk at a time; and 16 queries one after another in one
compiled loop, so that a call from Python, which takes longer than exact attention over few rows, does not count.
    exact     softmax(K q) V, of all queries as two matrix products, of one query as two products of matrix and vector
    a form    `greedy_scores` of that form alone
    attention `approx_attention` with the sequential form: search, scores of all rows, softmax over the candidates
The ratio is time over that of exact attention: above 1 is slower. The bound of exact attention is the time in which its
multiplications, or one query's bytes, pass at what a large matrix product and a large sum reach here; keys that stay in a cache beat the
latter. The forms say what an accelerator would select; they are functional models, and expected to lose. Writes results/a3_attention.json.
"""

import argparse
import functools
import json
import resource
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from a3_jax import Implementation, approx_attention, bytes_touched, exact_attention, greedy_scores, sort_keys
from benchmarks.timing import alternate, medians, record

DIM = 64
MOST_QUERIES = 4096
ALONE = 16  # queries one after another
SHARES = (2, 8)  # M = n / share
CHUNK_PRODUCTS = 2**24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[320, 2048, 8192, 32768])
    parser.add_argument("--queries", type=int, default=64, help="at more than 320 rows (default 64)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print the results as JSON and no table")
    arguments = parser.parse_args()

    peaks = machine_peaks()
    results = {"peaks": peaks, "rows": {}}
    for rows in arguments.rows:
        queries = MOST_QUERIES if rows <= 320 else arguments.queries
        results["rows"][str(rows)] = compare(rows, queries, arguments.repeats, peaks)
        results["peak_rss_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if not arguments.json:
            print_rows(rows, results["rows"][str(rows)])
    record("a3_attention", vars(arguments), results)
    print(json.dumps(results) if arguments.json else f"peak RSS {results['peak_rss_bytes'] / 2**30:.2f} GiB")


def compare(rows: int, queries: int, repeats: int, peaks: dict[str, float]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    key, value = (jnp.asarray(rng.normal(size=(rows, DIM)), jnp.float32) for _ in range(2))
    query = jnp.asarray(rng.normal(size=(queries, DIM)), jnp.float32)
    sort = jax.jit(sort_keys)
    seconds_of_sort = medians(alternate({"sort": lambda: jax.block_until_ready(sort(key))}, repeats=repeats))["sort"]
    found: dict[str, Any] = {"queries": queries, "sort_s": seconds_of_sort}
    chunk = max(1, min(queries, CHUNK_PRODUCTS // (2 * DIM * rows)))
    for share in SHARES:
        for name, batch, size in (("batched", query, chunk), ("one at a time", query[:ALONE], 1)):
            times = medians(alternate(calls(batch, key, value, sort(key), rows // share, size), repeats=repeats))
            bound = exact_bound(rows, size if size == 1 else len(batch), peaks)
            found[f"{name}, M = n/{share}"] = {
                "chunk": size,
                "exact_bound_s_per_query": bound,
                "forms": {
                    form: {"s_per_query": time / len(batch), "over_exact": time / times["exact"]}
                    for form, time in times.items()
                },
            }
        found[f"selected, M = n/{share}"] = selected(query[:16], key, value, sort(key), rows // share)
    return found


def calls(
    query: jax.Array, key: jax.Array, value: jax.Array, keys: Any, num_iterations: int, chunk: int
) -> dict[str, Callable[[], object]]:
    """Each maps all queries, a chunk at a time; chunks of 1 in one loop."""

    def search(form: Implementation, query: jax.Array, key: jax.Array, value: jax.Array, keys: Any) -> jax.Array:
        return greedy_scores(query, keys, num_iterations=num_iterations, implementation=form)

    def exact(query: jax.Array, key: jax.Array, value: jax.Array, keys: Any) -> jax.Array:
        return exact_attention(query, key, value)

    def attention(query: jax.Array, key: jax.Array, value: jax.Array, keys: Any) -> jax.Array:
        return approx_attention(
            query, key, value, keys, num_iterations=num_iterations, threshold_percent=5.0, implementation="sequential"
        )[0]

    singles = {
        "exact": exact,
        **{form: functools.partial(search, form) for form in get_args(Implementation)},
        "attention": attention,
    }

    def call(name: str, single: Callable[..., jax.Array]) -> Callable[[], object]:
        if chunk == 1:
            loop = jax.jit(lambda query, *rest: jax.lax.map(lambda one: single(one, *rest), query))
            return lambda: jax.block_until_ready(loop(query, key, value, keys))
        batched = jax.jit(jax.vmap(single, (0, None, None, None)))
        # Exact attention holds no products of queries with all of the keys' entries: it takes all queries at the same time.
        size = len(query) if name == "exact" else chunk
        parts = [query[start : start + size] for start in range(0, len(query), size)]
        return lambda: jax.block_until_ready([batched(part, key, value, keys) for part in parts])

    return {name: call(name, single) for name, single in singles.items()}


def selected(query: jax.Array, key: jax.Array, value: jax.Array, keys: Any, num_iterations: int) -> dict[str, float]:
    """Means over a few queries: rows that are candidates, rows kept at T = 5 %, and bytes read over those of exact attention."""
    attend = functools.partial(
        approx_attention, num_iterations=num_iterations, threshold_percent=5.0, implementation="sequential"
    )
    _, info = jax.jit(jax.vmap(attend, (0, None, None, None)))(query, key, value, keys)
    sizes = {"key_dim": DIM, "value_dim": DIM, "element_bytes": 4}
    iterations, candidates, kept = (np.asarray(count, np.float64) for count in (info.M, info.C, info.K))
    exact = bytes_touched(0, len(key), len(key), **sizes)
    return {
        "C": float(candidates.mean()),
        "K": float(kept.mean()),
        "bytes_over_exact": float(np.mean(bytes_touched(iterations, candidates, kept, **sizes)) / exact),
    }


def machine_peaks() -> dict[str, float]:
    """Multiplications with additions a second of a large matrix product, and bytes a second of a large sum."""
    size, elements = 1024, 2**25
    matrix, vector = jnp.ones((size, size)), jnp.ones(elements)
    product, total = jax.jit(jnp.matmul), jax.jit(jnp.sum)
    times = medians(
        alternate(
            {
                "product": lambda: jax.block_until_ready(product(matrix, matrix)),
                "sum": lambda: jax.block_until_ready(total(vector)),
            },
            repeats=5,
        )
    )
    return {"mac_per_s": size**3 / times["product"], "bytes_per_s": 4 * elements / times["sum"]}


def exact_bound(rows: int, queries: int, peaks: dict[str, float]) -> float:
    """Seconds a query for its two products, and for reading keys and values once for so many queries."""
    return max(2 * rows * DIM / peaks["mac_per_s"], 2 * rows * DIM * 4 / queries / peaks["bytes_per_s"])


def print_rows(rows: int, found: dict[str, Any]) -> None:
    print(f"n = {rows}: {found['queries']} queries, keys sorted in {1e3 * found['sort_s']:.1f} ms")
    for setting, row in found.items():
        if not isinstance(row, dict):
            continue
        if "forms" not in row:
            print(f"  {setting}: C {row['C']:.1f}, K {row['K']:.1f}, bytes over exact {row['bytes_over_exact']:.2f}")
            continue
        print(
            f"  {setting}, chunks of {row['chunk']}: exact's bound {1e6 * row['exact_bound_s_per_query']:.2f} us a query"
        )
        for form, one in row["forms"].items():
            print(f"    {form:11} {1e6 * one['s_per_query']:10.2f} us a query {one['over_exact']:9.1f} x exact")


if __name__ == "__main__":
    main()
