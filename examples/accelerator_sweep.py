"""`python -m examples.accelerator_sweep --keep 0.7`: how much of an accelerator's work a workload needs, from your own queries and keys.

`--arrays` is an .npz file with `query` [queries, d], `key` and `value` [n, d]; without it they are random, with some keys that queries are
near to. For every number of iterations M the selection runs on all queries, and C and K that come out are what the cost model is asked
about: accuracy and cost of the same run. The cheapest M that keeps the wanted part of the softmax weight is named at the end.
"""

import argparse
import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from a3_jax import approx_attention, attention_quality, sort_keys
from a3_jax.cost.closed_form import performance
from a3_jax.cost.hardware import Hardware
from a3_jax.cost.workload import Workload

THRESHOLD_PERCENT = 5.0


class Setting(NamedTuple):
    """One M, and what it gives and takes, means over queries."""

    M: int
    C: float
    K: float
    mass: float  # softmax weight of the rows kept
    cycles: float
    nanojoules: float


def random_arrays(*, queries: int, n: int, dim: int, seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Query, key and value, each query near to one of the keys."""
    keys = jax.random.split(jax.random.key(seed), 4)
    key, value = (jax.random.normal(k, (n, dim)) for k in keys[:2])
    near = key[jax.random.randint(keys[2], (queries,), 0, n)]
    return near + 0.5 * jax.random.normal(keys[3], (queries, dim)), key, value


def measure(query: jax.Array, key: jax.Array, value: jax.Array, M: int) -> Setting:
    """Runs the selection, and asks what its counts cost on the paper's hardware, made as large as these keys."""
    columns, scale = sort_keys(key), 1 / np.sqrt(query.shape[-1])

    def one(query: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        settings = {"num_iterations": M, "threshold_percent": THRESHOLD_PERCENT, "scale": scale}
        output, info = approx_attention(query, key, value, columns, **settings)
        return info.C, info.K, attention_quality(query, key, value, output, info, scale=scale).mass

    candidates, kept, mass = (np.asarray(counts) for counts in jax.jit(jax.vmap(one))(query))
    workload = Workload(n=len(key), M=M, C=candidates, K=kept, origin="measured")
    speed = performance(Hardware(n=len(key), d=query.shape[-1]), workload, pipeline="approximate")
    return Setting(
        M=M,
        C=float(candidates.mean()),
        K=float(kept.mean()),
        mass=float(mass.mean()),
        cycles=speed.interval,
        nanojoules=1e9 * speed.cost.total_energy,
    )


def main(arguments: list[str] | None = None) -> None:
    """Prints a row for every M, that of exact attention, and the cheapest that keeps enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arrays", type=Path)
    parser.add_argument("--keep", type=float, default=0.7, help="of the softmax weight, on average")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.arrays is None:
        query, key, value = random_arrays(queries=64, n=320, dim=64, seed=options.seed)
    else:
        with np.load(options.arrays, allow_pickle=False) as file:
            query, key, value = (jnp.asarray(file[name], jnp.float32) for name in ("query", "key", "value"))

    run = functools.partial(measure, query, key, value)
    settings = [run(max(1, len(key) * share // 8)) for share in (1, 2, 4, 8, 16)]
    print(f"{'M':>5} {'C':>7} {'K':>7} {'weight kept':>12} {'cycles':>8} {'nJ':>8}")
    for row in settings:
        print(f"{row.M:>5} {row.C:>7.1f} {row.K:>7.1f} {row.mass:>12.3f} {row.cycles:>8.1f} {row.nanojoules:>8.2f}")
    base = performance(Hardware(n=len(key), d=query.shape[-1]), Workload(n=len(key)), pipeline="base")
    print(f"exact: {base.interval:.0f} cycles, {1e9 * base.cost.total_energy:.2f} nJ a query")
    enough = [row for row in settings if row.mass >= options.keep]
    if not enough:
        print(f"no M of these keeps {options.keep:.0%} of the weight")
        return
    best = min(enough, key=lambda row: row.cycles)
    print(f"M = {best.M} keeps {best.mass:.1%} of the weight in {best.cycles / base.interval:.2f} of the cycles")


if __name__ == "__main__":
    main()
