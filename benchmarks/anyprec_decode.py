"""Claim: decode takes time in proportion to the bytes it reads, head included, and less than llama.cpp's.
Beside: the bytes of a step over the bandwidth measured in the same run; llama.cpp, plain float32 and bfloat16 in JAX.

    python -m benchmarks.anyprec_decode --data .cache/data [--model 135m 1b] [--repeats 3]

Prefill of 512 tokens and decode of 128, at 3 to 8 bits: SmolLM2-135M with its real weights, and a model of the shape of Llama-3.2-1B
with random planes and codebooks, each with its 8-bit head; beside the same model in plain float32 and bfloat16 arrays, and beside
llama.cpp where `make bench-peers` has built it. All alternate in one run. `read` is what a step must read (linears, head, keys and
values of 576 positions), `share` that over the time and the bandwidth measured in the same run.

The profile times one program three times: as it is, with every weight product replaced by a broadcast of its input's mean, and with
attention replaced by the identity as well. Differences are what products and attention take; the rest is norms, rotary embedding,
sampling (also timed in a call by itself, which has a cost of its own) and the executor's work.
"""

import argparse
import contextlib
import gc
import importlib.util
import inspect
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from anyprec_jax import Model, decoding
from anyprec_jax.models import decoder, init_cache, linear
from anyprec_jax.sampling import Sampling, sample
from benchmarks import decode_models
from benchmarks.bandwidth import Bandwidth
from benchmarks.decode_models import PRECISIONS, Decoder, JaxDecoder, bytes_per_token
from benchmarks.model_shapes import LLAMA_3_2_1B
from benchmarks.timing import alternate, record

PREFILL, DECODE, ROOM = 512, 128, 1024
DENSE_DECODE = 16  # tokens: XLA's bfloat16 product takes a second for each on CPU, and the time of one does not change
CONTEXT = PREFILL + DECODE // 2  # positions in the cache, on average
PROFILED_PRECISION = 4
LARGER_THAN_CACHES = 256 << 20  # bytes: what cannot be read faster than memory allows
PROFILE_STEPS = 16
CACHE = Path(".cache/bench")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the demo's data packages")
    parser.add_argument("--model", nargs="+", choices=("135m", "1b"), default=("135m", "1b"))
    parser.add_argument("--precision", nargs="+", type=int, choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-dense", action="store_true", help="leave plain arrays out (5 GB for 1b)")
    parser.add_argument("--no-peers", action="store_true", help="leave llama.cpp out")
    parser.add_argument("--only-profile", action="store_true")
    arguments = parser.parse_args()

    bandwidth = Bandwidth().measure()
    print(f"bandwidth {bandwidth / 1e9:.1f} GB/s")
    results: dict[str, Any] = {"bandwidth_bytes_per_s": bandwidth}
    for name in arguments.model:
        model = decode_models.random_model(LLAMA_3_2_1B) if name == "1b" else None
        reference = None
        if model is None:
            model, reference = decode_models.smollm2(arguments.data, CACHE)
        results[name] = {"profile": profile(name, model)}
        if not arguments.only_profile:
            results[name]["times"] = compare(name, model, reference, bandwidth, arguments)
        del model, reference
        gc.collect()
    settings = {key: value for key, value in vars(arguments).items() if not isinstance(value, Path)}
    if not arguments.only_profile:
        print(f"wrote {record('anyprec_decode', settings, results)}")


def compare(
    name: str, model: Model, reference: Model | None, bandwidth: float, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Times everything in turns and prints a line each."""
    subjects: dict[str, tuple[Decoder, dict[str, int]]] = {
        f"{w} bits": (JaxDecoder(model, w, room=ROOM), bytes_per_token(model, w, context=CONTEXT))
        for w in arguments.precision
    }
    if not arguments.no_dense:
        for dtype in (jnp.float32, jnp.bfloat16):
            dense = decode_models.cast(reference, dtype) if reference else dense_model(model, dtype)
            size = bytes_per_token(dense, None, context=CONTEXT)
            subjects[f"JAX {jnp.dtype(dtype).name}"] = (JaxDecoder(dense, None, room=ROOM), size)
    if not arguments.no_peers:
        subjects |= peers(name, arguments.data)
    seconds = time_all({name: subject for name, (subject, _) in subjects.items()}, model, arguments.repeats)
    print(
        f"{name}: prefill {PREFILL} and decode {DECODE} tokens (plain arrays {DENSE_DECODE}), medians of {arguments.repeats}"
    )
    print(f"{'':16} {'read MB':>8} {'prefill/s':>9} {'decode/s':>8} {'ms/token':>8} {'GB/s':>6} {'share':>6}")
    rows: dict[str, Any] = {}
    for subject, (_, size) in subjects.items():
        prefill, decode = (statistics.median(seconds[f"{subject}: {phase}"]) for phase in ("prefill", "decode"))
        per_token = decode / decoded_tokens(subject)
        speed = size["total"] / per_token
        if speed > bandwidth and size["total"] > LARGER_THAN_CACHES:
            print(f"warning: {subject} reads faster than memory: either the bandwidth or this time is wrong")
        print(
            f"{subject:16} {size['total'] / 1e6:8.1f} {PREFILL / prefill:9.1f} {1 / per_token:8.1f} "
            f"{1e3 * per_token:8.2f} {speed / 1e9:6.1f} {speed / bandwidth:6.2f}",
            flush=True,
        )
        rows[subject] = {"bytes": size, "prefill_s": seconds[f"{subject}: prefill"]}
        rows[subject] |= {"decode_s": seconds[f"{subject}: decode"], "decoded_tokens": decoded_tokens(subject)}
        rows[subject] |= {"share_of_bandwidth": speed / bandwidth}
    return rows


def decoded_tokens(subject: str) -> int:
    return DENSE_DECODE if subject.startswith("JAX") else DECODE


def time_all(subjects: Mapping[str, Decoder], model: Model, repeats: int) -> dict[str, list[float]]:
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, PREFILL)
    calls: dict[str, Callable[[], object]] = {}
    for name, subject in subjects.items():
        calls[f"{name}: prefill"] = lambda subject=subject: subject.prefill(tokens)
        calls[f"{name}: decode"] = lambda name=name, subject=subject: subject.decode(decoded_tokens(name))
    return alternate(calls, repeats=repeats)


def dense_model(model: Model, dtype: Any) -> Model:
    return decode_models.random_dense_model(model.config, dtype)


def peers(name: str, data: Path) -> dict[str, tuple[Decoder, dict[str, int]]]:
    """llama.cpp in every type of file, or a line that says why not."""
    if importlib.util.find_spec("benchmarks.llamacpp_decode") is None:
        print("without llama.cpp: its harness is not part of this checkout")
        return {}
    library, models, files = (
        importlib.import_module(f"benchmarks.llamacpp_{module}") for module in ("library", "decode", "files")
    )
    if (reason := library.why_unavailable()) is not None:
        print(f"without llama.cpp: {reason}")
        return {}
    paths = {kind: models.model_file(name, kind, data=data) for kind in files.FILE_TYPES}
    return {
        f"llama.cpp {kind}": (models.LlamaCppModel(path), files.bytes_per_token(path)) for kind, path in paths.items()
    }


def profile(name: str, model: Model) -> dict[str, float]:
    """Milliseconds of one decode step with `CONTEXT` positions in the cache, and of its parts."""
    with_all = step_seconds(model)
    with stubs(products=True):
        outside = step_seconds(model)
    with stubs(products=True, attention=True):
        rest = step_seconds(model)
    logits = jnp.asarray(np.random.default_rng(0).standard_normal(model.config.vocab_size), jnp.float32)
    draw = jax.jit(sample)
    drawing = best(lambda: draw(logits, jax.random.key(0), Sampling()).block_until_ready())
    parts = {
        "step": with_all,
        "products": with_all - outside,
        "attention": outside - rest,
        "norms, rotary, sampling, executor": rest,
        "(sampling in a call by itself)": drawing,
    }
    print(f"{name}: one decode step at {PROFILED_PRECISION} bits, {CONTEXT} positions in the cache")
    for part, seconds in parts.items():
        print(f"  {part:34} {seconds * 1e3:8.2f} ms {seconds / with_all:6.1%}", flush=True)
    return {part: seconds * 1e3 for part, seconds in parts.items()}


@contextlib.contextmanager
def stubs(*, products: bool = False, attention: bool = False) -> Iterator[None]:
    """Products that only broadcast the mean of their input, attention that returns its query.

    Traces are forgotten at both ends: one made in here would later be found by a call with the same shapes and precision, and a
    model without products be timed for one with them.
    """

    def product(x: jax.Array, array: Any, **_: Any) -> jax.Array:
        # All of x counts, and what is made of it stays: else XLA leaves out most of the norms before and the gate after.
        column = jnp.mean(x, axis=-1, keepdims=True)
        return jax.lax.optimization_barrier(jnp.broadcast_to(column, (*x.shape[:-1], array.n)))

    jax.clear_caches()
    try:
        with contextlib.ExitStack() as replaced:
            if products:
                replaced.enter_context(mock.patch.object(linear, "matmul", product))
                replaced.enter_context(mock.patch.object(decoder, "matmul_affine", product))
            if attention:
                replaced.enter_context(mock.patch.object(decoder, "cached_attention", lambda query, *_: query))
            yield
    finally:
        jax.clear_caches()


def step_seconds(model: Model) -> float:
    """Of one step of a block of PROFILE_STEPS, compiled anew."""
    jax.clear_caches()
    statics = ("config", "precision")
    program = jax.jit(inspect.unwrap(decoding.decode), static_argnames=statics, donate_argnames=("cache",))
    cache = init_cache(model.config, batch=1, length=ROOM)

    def block() -> None:
        nonlocal cache
        start = cache._replace(lengths=jnp.full(1, CONTEXT - PROFILE_STEPS // 2, jnp.int32))
        arguments = (jnp.int32(1), jnp.int32(PROFILE_STEPS), jnp.zeros(0, jnp.int32), start)
        settings = {"key": jax.random.key(0), "sampling": Sampling(), "config": model.config}
        tokens, _, cache = program(model.params, *arguments, **settings, precision=PROFILED_PRECISION)
        tokens.block_until_ready()

    return best(block) / PROFILE_STEPS


def best(call: Callable[[], object], *, calls: int = 5) -> float:
    """Seconds of the fastest of a few calls, after one that compiles: what disturbs a step only ever adds to it."""
    call()
    return min(_timed(call) for _ in range(calls))


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
