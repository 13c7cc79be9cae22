"""Claim: quantizing rows from 3 to 8 bits keeps pace with the authors' library at a smaller error, and takes minutes for 1 B parameters.
Beside: flash1dkmeans (seed and two-way splits), same rows, same cores.

Rows quantized per second, ours and the authors' algorithm in turns on the same rows.

    python -m benchmarks.anyprec_quantize [--widths 4096 576] [--weights 1048576] [--repeats 5] [--json]

Both seed at 3 bits and upscale to 8, pack bitplanes and round codebooks, on all cores. Weights are distributed like a language
model's (Student's t with 5 degrees of freedom), as float32 and rounded to float16, where many are equal; sensitivities are heavy-tailed.
Prints medians, their ratio (above 1: we are faster), the minutes that 1 B parameters of such rows would take, and what the time buys:
the weighted squared error over that of the authors' algorithm. Writes results/anyprec_quantize.json.
"""

import argparse
import json
import statistics
from typing import Any

import numpy as np

from anyprec_jax import AnyPrecArray, QuantizeConfig, dequantize, quantize
from benchmarks.timing import alternate, record
from benchmarks.upstream import quantize_upstream

CONFIG = QuantizeConfig(seed_precision=3, parent_precision=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[4096, 576], help="k of the rows")
    parser.add_argument("--weights", type=int, default=1 << 20, help="in each matrix")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the results as JSON and no table")
    arguments = parser.parse_args()

    results = []
    if not arguments.json:
        print(
            f"{'k':>6} {'weights':>8} {'rows/s':>8} {'upstream':>8} {'ratio':>6} {'min/1B':>7} {'error at 3 / 8 bits':>20}"
        )
    for k in arguments.widths:
        for dtype in ("float32", "float16"):
            result = compare(max(1, arguments.weights // k), k, dtype, repeats=arguments.repeats)
            results.append(result)
            if not arguments.json:
                print(
                    f"{k:6} {dtype:>8} {result['rows_per_s']:8.0f} {result['upstream_rows_per_s']:8.0f} {result['ratio']:6.2f} "
                    f"{result['minutes_per_billion']:7.1f} {result['error_3']:13.3f} / {result['error_8']:.3f}",
                    flush=True,
                )
    path = record("anyprec_quantize", vars(arguments), results)
    print(json.dumps(results, indent=1) if arguments.json else f"wrote {path}")


def compare(n: int, k: int, dtype: str, *, repeats: int) -> dict[str, Any]:
    """Times both on one matrix [n, k] and compares their errors."""
    weights, sensitivity = model_like(n, k, dtype)
    seconds = alternate(
        {
            "ours": lambda: quantize(weights, sensitivity, CONFIG),
            "upstream": lambda: quantize_upstream(weights, sensitivity, CONFIG),
        },
        repeats=repeats,
    )
    ours, upstream = (n / statistics.median(seconds[name]) for name in ("ours", "upstream"))
    found, (theirs, failed_rows) = (
        quantize(weights, sensitivity, CONFIG),
        quantize_upstream(weights, sensitivity, CONFIG),
    )

    def relative_error(precision: int) -> float:
        return error(found, weights, sensitivity, precision) / error(theirs, weights, sensitivity, precision)

    return {
        "n": n,
        "k": k,
        "dtype": dtype,
        "rows_per_s": ours,
        "upstream_rows_per_s": upstream,
        "ratio": ours / upstream,
        "minutes_per_billion": 1e9 / k / ours / 60,
        "error_3": relative_error(3),
        "error_8": relative_error(8),
        "upstream_failed_rows": len(failed_rows),
        "seconds": seconds,
    }


def model_like(n: int, k: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    weights = (0.02 * rng.standard_t(5, (n, k))).astype(dtype).astype(np.float32)
    sensitivity = 1e-7 * np.exp(2 * rng.standard_normal((n, k)))
    return weights, sensitivity.astype(np.float32)


def error(array: AnyPrecArray, weights: np.ndarray, sensitivity: np.ndarray, precision: int) -> float:
    """Weighted squared error, summed over the rows."""
    difference = np.asarray(dequantize(array, precision=precision), np.float64) - weights
    return float(np.sum(sensitivity * difference**2))


if __name__ == "__main__":
    main()
