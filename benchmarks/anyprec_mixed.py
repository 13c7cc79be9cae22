"""Claim: rows that ask for 3, 4 and 8 bits cost at most 1.3 times as much together as all of them at 8 bits, or one of them alone.
Beside: these two, and every row by itself, over the same stack in turns.

    python -m benchmarks.anyprec_mixed [--n 4096] [--k 4096] [--repeats 7]

One pass of `matmul_mixed` over a stack larger than the caches, beside the same rows all at the highest precision, the row at the highest
precision alone, and every row by itself; in turns, medians. Writes benchmarks/results/anyprec_mixed.json.
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from anyprec_jax.array import AnyPrecArray
from anyprec_jax.layout import prepare
from anyprec_jax.ops import matmul, matmul_mixed
from benchmarks.timing import alternate, medians, record

STACK_BYTES = 1 << 29
PRECISIONS = (3, 4, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--k", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    n, k, highest = arguments.n, arguments.k, max(PRECISIONS)
    layers = max(2, STACK_BYTES // (n * k))
    rng = np.random.default_rng(0)
    planes = jnp.asarray(rng.integers(0, 2**32, (layers, highest, n, k // 32), np.uint32))
    books = {w: jnp.asarray(np.sort(rng.standard_normal((layers, n, 2**w)).astype(np.float16))) for w in PRECISIONS}
    stack = prepare(AnyPrecArray(planes, books, seed_precision=min(PRECISIONS), parent_precision=highest, k=k))
    x = jnp.asarray(rng.standard_normal((len(PRECISIONS), k)), jnp.float32)
    precisions = jnp.asarray(PRECISIONS, jnp.int32)

    def loop(product: Callable[[jax.Array], jax.Array]) -> Callable[[], object]:
        program = jax.jit(lambda: jax.lax.map(product, jnp.arange(layers)))
        return lambda: program().block_until_ready()

    calls = {
        "mixed": loop(lambda i: matmul_mixed(x, stack, precisions, layer=i)),
        f"all at {highest}": loop(lambda i: matmul(x, stack, precision=highest, layer=i)),
        f"one at {highest}": loop(lambda i: matmul(x[-1:], stack, precision=highest, layer=i)),
    }
    for row, precision in enumerate(PRECISIONS):
        calls[f"row {row} alone"] = loop(lambda i, row=row, w=precision: matmul(x[row], stack, precision=w, layer=i))
    seconds = {name: value / layers for name, value in medians(alternate(calls, repeats=arguments.repeats)).items()}
    for name, value in seconds.items():
        print(f"{name:14} {value * 1e6:8.0f} us   mixed / this {seconds['mixed'] / value:5.2f}")
    print(f"wrote {record('anyprec_mixed', vars(arguments), seconds)}")


if __name__ == "__main__":
    main()
