"""The any-precision product at decode: time of each implementation, beside what reading the bytes must take.

    python -m benchmarks.anyprec_matmul [--rows 1] [--repeats 7] [--all]

The matrices of one shape form a stack larger than the caches, and one call multiplies by each in turn, as a decoder
does. Implementations alternate; medians are printed, with the bound (bytes read at that precision over the bandwidth
measured in the same run) and bound / time. Writes benchmarks/results/anyprec_matmul.json.
"""

import argparse
import concurrent.futures
import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from anyprec_jax.array import AnyPrecArray, nbytes
from anyprec_jax.ops import Implementation, arg_specs, cpu, matmul
from benchmarks.timing import alternate, medians, record

STACK_BYTES = 256 << 20  # well above any last-level cache here
MAX_LAYERS = 30  # of SmolLM2-135M
PRECISIONS = (3, 4, 5, 6, 7, 8)
IMPLEMENTATIONS: tuple[Implementation, ...] = ("xla", "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1, help="rows of x")
    parser.add_argument("--repeats", type=int, default=7, help="calls of each implementation")
    parser.add_argument("--all", action="store_true", help="the 1B and 7B models' shapes too, not only 4096 x 4096")
    arguments = parser.parse_args()

    if (reason := cpu.why_unavailable()) is not None:
        raise SystemExit(f"error: nothing to compare: {reason}")
    larger = (*arg_specs.LLAMA_3_2_1B, *arg_specs.LLAMA_2_7B) if arguments.all else arg_specs.LLAMA_2_7B[:1]
    bandwidth = read_bandwidth()
    print(f"{os.cpu_count()} threads, {bandwidth / 1e9:.1f} GB/s, {arguments.rows} row(s) of x")
    print(f"{'shape':24} {'bits':>4} {'xla ms':>9} {'cpu ms':>9} {'xla/cpu':>8} {'bound ms':>9} {'bound/cpu':>9}")
    records = []
    for shape in (*arg_specs.SMOLLM2_135M, *larger):
        stack = random_stack(shape)
        for precision in PRECISIONS:
            seconds = measure(stack, precision, rows=arguments.rows, repeats=arguments.repeats)
            bound = nbytes(stack, precision=precision) / stack.shape[0] / bandwidth
            print(
                f"{shape.name:24} {precision:4} {seconds['xla'] * 1e3:9.3f} {seconds['cpu'] * 1e3:9.3f} "
                f"{seconds['xla'] / seconds['cpu']:8.1f} {bound * 1e3:9.3f} {bound / seconds['cpu']:9.2f}",
                flush=True,
            )
            records.append({**shape._asdict(), "precision": precision, "seconds": seconds, "bound_seconds": bound})
    results = {"bandwidth_bytes_per_s": bandwidth, "products": records}
    print(f"wrote {record('anyprec_matmul', vars(arguments), results)}")


def random_stack(shape: arg_specs.MatrixShape) -> AnyPrecArray:
    """Matrices 3..8 bits, as many as a model has or as make the stack larger than the caches."""
    words = -(-shape.k // 32)
    layers = min(MAX_LAYERS, max(2, STACK_BYTES // (8 * shape.n * words * 4)))
    rng = np.random.default_rng(0)
    planes = jnp.asarray(rng.integers(0, 2**32, (layers, 8, shape.n, words), dtype=np.uint32))
    codebooks = {
        w: jnp.asarray(np.sort(rng.standard_normal((layers, shape.n, 2**w), dtype=np.float32)), jnp.float16)
        for w in PRECISIONS
    }
    return AnyPrecArray(planes, codebooks, seed_precision=3, parent_precision=8, k=shape.k)


def measure(stack: AnyPrecArray, precision: int, *, rows: int, repeats: int) -> dict[str, float]:
    """Median seconds per product of each implementation, called in turns."""
    layers, _, k = stack.shape
    x = jnp.asarray(np.random.default_rng(1).standard_normal((rows, k)), jnp.float32)

    def program(implementation: Implementation) -> Callable[[], jax.Array]:
        @jax.jit
        def loop(x: jax.Array, stack: AnyPrecArray) -> jax.Array:
            def step(total, layer):
                return total + matmul(x, stack, precision=precision, layer=layer, implementation=implementation), None

            return jax.lax.scan(step, jnp.zeros((rows, stack.n)), jnp.arange(layers))[0]

        return lambda: loop(x, stack).block_until_ready()

    seconds = alternate(
        {implementation: program(implementation) for implementation in IMPLEMENTATIONS}, repeats=repeats
    )
    return {implementation: median / layers for implementation, median in medians(seconds).items()}


def read_bandwidth() -> float:
    """Bytes per second that all threads together read from memory: the best of a few passes over 1 GiB."""
    threads = os.cpu_count() or 1
    parts = np.array_split(np.ones(1 << 27, np.uint64), 64)
    best = 0.0
    with concurrent.futures.ThreadPoolExecutor(threads) as executor:
        for _ in range(5):
            start = time.perf_counter()
            list(executor.map(np.bitwise_or.reduce, parts))
            best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - start))
    return best


if __name__ == "__main__":
    main()
