"""Claim: what the native product reaches of the memory bound when decoding, prepared and natural.
Beside: bytes read at each precision over the bandwidth measured in the same run; ggml's products of comparable width.

The any-precision product on CPU: time, bytes, share of the memory bandwidth, and ratio to ggml's best kernel.

    python -m benchmarks.anyprec_matmul [--rows 1] [--repeats 5] [--shape NAME ...] [--precision W ...] [--arithmetic int16]

The matrices of one shape form a stack larger than 1 GB, and one call multiplies by each in turn, as a decoder does. The prepared and the
natural layout, ggml's products of comparable width (`make bench-peers` builds them) and a pass that only reads memory alternate in one
run; medians are printed. Writes benchmarks/results/anyprec_matmul.json.
"""

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from anyprec_jax.array import AnyPrecArray, nbytes
from anyprec_jax.layout import PreparedArray, prepare
from anyprec_jax.ops import arg_specs, cpu, matmul
from benchmarks.bandwidth import Bandwidth, num_threads
from benchmarks.ggml import GgmlMatmul, bytes_per_weight
from benchmarks.llamacpp_build import PeerError
from benchmarks.timing import alternate, medians, record

STACK_BYTES = 5 << 28  # 1.3 GB
PRECISIONS = (3, 4, 5, 6, 7, 8)
SHAPES = {shape.name: shape for shape in (*arg_specs.LLAMA_2_7B, *arg_specs.LLAMA_3_2_1B, *arg_specs.SMOLLM2_135M)}
DEFAULT_SHAPES = ("llama_2_7b_attention", "llama_2_7b_gate_up", "llama_3_2_1b_gate_up", "llama_3_2_1b_down")
PEERS = {3: ("Q3_K",), 4: ("Q4_0", "Q4_K"), 5: ("Q5_K",), 6: ("Q6_K",), 8: ("Q8_0",)}  # of comparable width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1, help="rows of x")
    parser.add_argument("--repeats", type=int, default=5, help="passes of each")
    parser.add_argument("--shape", action="append", choices=SHAPES, help="repeat for several")
    parser.add_argument("--precision", action="append", type=int, choices=PRECISIONS, help="repeat for several")
    parser.add_argument("--arithmetic", choices=("exact", "int16", "int8"), default="int16")
    arguments = parser.parse_args()
    if (reason := cpu.why_unavailable()) is not None:
        raise SystemExit(f"error: nothing to measure: {reason}")
    bandwidth = Bandwidth()
    print(
        f"{num_threads()} threads, {arguments.rows} row(s) of x, {arguments.arithmetic}; microseconds, medians of passes over > 1 GB"
    )
    print(
        f"{'shape':22} {'bits':>4} {'MB':>6} {'GB/s':>6} {'prepared':>9} {'share':>6} {'natural':>9} {'share':>6}  ggml: type, time, ratio"
    )
    records = []
    for name in arguments.shape or DEFAULT_SHAPES:
        for precision in arguments.precision or PRECISIONS:
            measured = measure(SHAPES[name], precision, arguments, bandwidth)
            print(line(measured), flush=True)
            records.append(measured)
    print(f"wrote {record('anyprec_matmul', vars(arguments), records)}")


def measure(
    shape: arg_specs.MatrixShape, precision: int, arguments: argparse.Namespace, bandwidth: Bandwidth
) -> dict[str, Any]:
    """Median seconds per product, and everything needed to compare them."""
    stack = random_stack(shape, precision)
    layers = stack.shape[0]
    calls: dict[str, Callable[[], object]] = {"read": bandwidth.run}
    with ExitStack() as undo:
        for layout, array in (("prepared", prepare(stack)), ("natural", stack)):
            calls[layout] = program(array, precision, rows=arguments.rows, arithmetic=arguments.arithmetic)
        peers = {} if arguments.arithmetic == "exact" else open_peers(undo, shape, precision, arguments.rows)
        calls |= {name: peer.run for name, peer in peers.items()}
        seconds = medians(alternate(calls, repeats=arguments.repeats))
        bytes_per_s = bandwidth.bytes_per_s(seconds.pop("read"))
        per_product = {"prepared": seconds["prepared"] / layers, "natural": seconds["natural"] / layers}
        per_product |= {name: seconds[name] / peer.num_matrices for name, peer in peers.items()}
    return {
        **shape._asdict(),
        "precision": precision,
        "bandwidth_bytes_per_s": bytes_per_s,
        "bytes": nbytes(stack, precision=precision) / layers,
        "seconds": per_product,
        "peer_bytes_per_weight": {name: bytes_per_weight(name) for name in peers},
    }


def random_stack(shape: arg_specs.MatrixShape, precision: int) -> AnyPrecArray:
    """A stack larger than 1 GB that has the planes and the codebook of one precision only."""
    words = -(-shape.k // 32)
    layers = max(2, -(-STACK_BYTES // (precision * shape.n * words * 4)))
    rng = np.random.default_rng(0)
    planes = jnp.asarray(rng.integers(0, 2**32, (layers, precision, shape.n, words), dtype=np.uint32))
    codebook = np.sort(rng.standard_normal((shape.n, 2**precision), dtype=np.float32)).astype(np.float16)
    codebooks = {precision: jnp.asarray(np.stack([np.roll(codebook, layer, axis=0) for layer in range(layers)]))}
    return AnyPrecArray(planes, codebooks, seed_precision=precision, parent_precision=precision, k=shape.k)


def program(
    stack: AnyPrecArray | PreparedArray, precision: int, *, rows: int, arithmetic: cpu.Arithmetic
) -> Callable[[], jax.Array]:
    layers, n, k = stack.shape
    x = jnp.asarray(np.random.default_rng(1).standard_normal((rows, k)), jnp.float32)

    @jax.jit
    def loop(x: jax.Array, stack: AnyPrecArray | PreparedArray) -> jax.Array:
        def step(total, layer):
            return total + matmul(x, stack, precision=precision, layer=layer, arithmetic=arithmetic), None

        return jax.lax.scan(step, jnp.zeros((rows, n)), jnp.arange(layers))[0]

    return lambda: loop(x, stack).block_until_ready()


def open_peers(undo: ExitStack, shape: arg_specs.MatrixShape, precision: int, rows: int) -> dict[str, GgmlMatmul]:
    peers: dict[str, GgmlMatmul] = {}
    for weight_type in PEERS.get(precision, ()):
        try:
            peers[weight_type] = undo.enter_context(
                GgmlMatmul(weight_type, shape.n, shape.k, rows, threads=num_threads(), stack_bytes=STACK_BYTES)
            )
        except (PeerError, ValueError) as error:
            print(f"note: {weight_type} left out: {error}")
    return peers


def line(measured: dict[str, Any]) -> str:
    seconds, bound = measured["seconds"], measured["bytes"] / measured["bandwidth_bytes_per_s"]
    ours = seconds["prepared"]
    peers = ", ".join(
        f"{name} {value * 1e6:.0f} {value / ours:.2f}x"
        for name, value in seconds.items()
        if name not in ("prepared", "natural")
    )
    return (
        f"{measured['name']:22} {measured['precision']:4} {measured['bytes'] / 1e6:6.2f} "
        f"{measured['bandwidth_bytes_per_s'] / 1e9:6.1f} {ours * 1e6:9.0f} {bound / ours:6.0%} "
        f"{seconds['natural'] * 1e6:9.0f} {bound / seconds['natural']:6.0%}  {peers}"
    )


if __name__ == "__main__":
    main()
