"""Claim: where this package's bits stand among other ways to quantize the same weights, those that are ahead included.
Beside: rounding to the nearest, k-means, GPTQ, llama.cpp's mixtures with and without an importance matrix, the authors' algorithm.

    python -m benchmarks.anyprec_peers --data .cache/data [--model smollm2|glassllm|gemma3] [--wikitext FILE]

The same model, one sample of calibration windows, the same texts to score; embedding, head and norms stay float, whatever the method.
Nested, one set of codes for 3 to 8 bits: the authors' algorithm, "fast" and "best". One set of codes for each precision: the
optimal k-means of every row, GPTQ and rounding to the nearest on a uniform grid a row, and llama.cpp's mixtures with and without
an importance matrix (`make bench-peers` builds it), quantized from float weights by its own choice of types and read back by `load`.
Its importance matrix is the mean square of the inputs over the same windows, token by token: nothing is tokenized again.

Bits read are those of the linears' weights at one setting, codebooks, scales and grids included; resident is what must be in memory to
read at that setting. A nested method keeps all its precisions for that, and the others have one. Quantizing is measured in CPU seconds,
all threads added up, without calibration and, but for programs of a shape, without compiling.
KL, perplexity and top-1 are `anyprec_jax.evaluate`'s, from the model before quantization.

Writes results/anyprec_peers.json, an entry for every model, and docs/figures/anyprec_peers.svg.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

from anyprec_jax import Model, load
from anyprec_jax.array import nbytes
from anyprec_jax.calibration import mixed_windows, read_text
from anyprec_jax.evaluate import Result, evaluate_models, read_bits_per_weight
from anyprec_jax.models import LINEARS
from anyprec_jax.sensitivity import Sensitivity
from benchmarks import uniform_rows
from benchmarks.llamacpp_build import PeerError
from benchmarks.llamacpp_files import matrix_names, matrix_types, quantize_file
from benchmarks.llamacpp_library import load as load_llamacpp
from benchmarks.peers_figure import FIGURE, draw
from benchmarks.quality_methods import CONFIG, Linear, Method, alone, authors, best, fast, quantized
from benchmarks.quality_models import MODELS, Subject
from benchmarks.quality_moments import READS_WITH, input_moments, kept, measured_by_loss
from benchmarks.quality_texts import calibration_texts, evaluation_texts, tokenized
from benchmarks.timing import RESULTS, environment, record

FILE_TYPES = ("Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K")
SAMPLE = 0  # of the calibration windows
_OF_VERSION = ("setting", "bits_read", "bits_resident", "quantize_cpu_s", "types")  # what the record has of one


class Version(NamedTuple):
    """A quantized model, and what it is read at."""

    setting: str  # "4" bits, or "Q4_K_M"
    model: Model
    precision: int | None  # of `evaluate`; None for plain arrays
    bits_read: float
    bits_resident: float
    quantize_cpu_s: float  # seconds on all threads; of all precisions together, where they are made together
    types: dict[str, float] | None = None  # llama.cpp's, share of weights


class Measured(NamedTuple):
    """What is known about a model before it is quantized."""

    subject: Subject
    by_loss: Mapping[str, Sensitivity]  # Fisher information and guided moments
    inputs: Sensitivity  # plain moments
    scratch: Path


Versions: TypeAlias = Callable[[Measured], Iterator[Version]]
Quantizer: TypeAlias = Callable[[np.ndarray, int], np.ndarray]  # (weights [n, k], bits) -> the same, float32


def nested(method: Method) -> Versions:
    """All precisions from one set of codes."""

    def versions(measured: Measured) -> Iterator[Version]:
        compile_first(method)
        started = time.process_time()
        model = quantized(measured.subject.model, method, measured.by_loss, sample=SAMPLE)
        seconds = time.process_time() - started
        for precision in CONFIG.precisions:
            yield _of_codes(model, precision, seconds)

    return versions


def one_by_one(measured: Measured) -> Iterator[Version]:
    """The optimal clustering of every precision by itself."""
    compile_first(alone(CONFIG.seed_precision))
    for precision in CONFIG.precisions:
        started = time.process_time()
        model = quantized(measured.subject.model, alone(precision), measured.by_loss, sample=SAMPLE)
        yield _of_codes(model, precision, time.process_time() - started)


def compile_first(method: Method) -> None:
    """What numba compiles at the first call, on a small matrix."""
    rng = np.random.default_rng(0)
    weights, moment = rng.standard_normal((8, 64)).astype(np.float32), np.eye(64, dtype=np.float32)
    weights.setflags(write=False)  # as what comes from JAX: another type to numba
    method(Linear(weights, np.ones_like(weights), moment, SAMPLE))


def by_rounding(measured: Measured) -> Iterator[Version]:
    """The nearest point of a grid that spans the row."""

    def quantizer(moment: np.ndarray) -> Quantizer:
        del moment
        return lambda weights, bits: uniform_rows.rounded(weights, uniform_rows.spanning_grids(weights, bits))

    return _on_grids(measured, quantizer)


def by_gptq(measured: Measured) -> Iterator[Version]:
    """GPTQ on a searched grid."""

    def quantizer(moment: np.ndarray) -> Quantizer:
        feedback = uniform_rows.feedback(moment)
        return lambda weights, bits: uniform_rows.gptq(weights, uniform_rows.searched_grids(weights, bits), feedback)

    return _on_grids(measured, quantizer)


def llamacpp(*, with_importance: bool) -> Versions:
    """llama.cpp's mixtures of types."""

    def versions(measured: Measured) -> Iterator[Version]:
        subject, names = measured.subject, matrix_names(measured.subject.model.config)
        importance = {
            tensor: np.diag(measured.inputs[READS_WITH[linear]][layer]) for (linear, layer), tensor in names.items()
        }
        target = measured.scratch / "llamacpp.gguf"
        for file_type in FILE_TYPES:
            started = time.process_time()
            quantize_file(
                subject.file,
                target,
                file_type,
                importance=importance if with_importance else None,
                keep_embedding=True,
            )
            seconds = time.process_time() - started
            theirs, types = load(target).params["layers"], matrix_types(target, names.values())
            bits = types.bits_per_weight
            model = _with_linears(subject.model, {name: theirs[name] for name in LINEARS})
            target.unlink()
            yield Version(file_type, model, None, bits, bits, seconds, types.shares)

    return versions


METHODS: Mapping[str, Versions] = {
    "authors": nested(authors),
    "fast": nested(fast),
    "best": nested(best),
    "k-means, each alone": one_by_one,
    "GPTQ": by_gptq,
    "round to nearest": by_rounding,
    "llama.cpp": llamacpp(with_importance=False),
    "llama.cpp, imatrix": llamacpp(with_importance=True),
}


def main() -> None:
    """Measures, prints the table, adds to the record, draws the figure of all that the record holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data packages")
    parser.add_argument("--model", choices=MODELS, default="smollm2")
    parser.add_argument(
        "--scratch", type=Path, default=Path(".cache/quality"), help="float files and what was measured"
    )
    parser.add_argument("--wikitext", type=Path, help="a WikiText-2 text file: the out-of-domain column")
    parser.add_argument("--num-sequences", type=int, default=100)
    parser.add_argument("--sequence-length", type=int, default=256, help="the model's context at most")
    parser.add_argument("--tokens", type=int, default=2048, help="of each text to score")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    try:
        load_llamacpp()
        subject = MODELS[arguments.model](arguments.data, arguments.scratch)
    except PeerError as error:
        raise SystemExit(f"error: {error}") from None
    arguments.sequence_length = min(arguments.sequence_length, subject.model.config.max_position_embeddings)
    rows = measure(subject, arguments)
    print_table(rows)
    results = former_results() | {arguments.model: {**environment(), "arguments": _said(arguments), "rows": rows}}
    record("anyprec_peers", {}, results)
    draw(results, FIGURE)


def measure(subject: Subject, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for every method and setting."""
    model, length = subject.model, arguments.sequence_length
    texts = {
        name: tokenized(model, read_text(file))[: arguments.tokens]
        for name, file in evaluation_texts(arguments.data, arguments.wikitext).items()
    }
    windows = mixed_windows(
        [tokenized(model, text) for text in calibration_texts(arguments.data).values()],
        num_sequences=arguments.num_sequences,
        sequence_length=length,
        seed=SAMPLE,
    )
    measured = Measured(subject, *_sensitivities(subject, windows, arguments), arguments.scratch)
    progress = Progress(arguments.scratch / f"{arguments.model}-rows.json", [environment()["commit"], _said(arguments)])
    for name in arguments.methods:
        if name not in progress.rows:
            progress.keep(name, score(name, list(METHODS[name](measured)), model, texts, length))
            print_table(progress.rows[name])
    return [row for name in arguments.methods for row in progress.rows[name]]


def score(
    method: str, versions: Sequence[Version], reference: Model, texts: Mapping[str, np.ndarray], length: int
) -> list[dict[str, Any]]:
    """One row for every version."""
    readings = [(version.model, version.precision) for version in versions]
    scores = {
        text: evaluate_models(readings, tokens, reference=reference, sequence_length=length)
        for text, tokens in texts.items()
    }
    return [
        {
            "method": method,
            **{name: getattr(version, name) for name in _OF_VERSION},
            "texts": {text: _described(each[index], each[0]) for text, each in scores.items()},
        }
        for index, version in enumerate(versions, start=1)
    ]


def _described(result: Result, reference: Result) -> dict[str, float | None]:
    return {
        "kl": result.kl,
        "perplexity": result.perplexity,
        "top1": result.top1,
        "reference_perplexity": reference.perplexity,
    }


class Progress:
    """Rows of the methods that are done, in a file: a run that was stopped goes on, if code and arguments are the same."""

    def __init__(self, path: Path, of: Any) -> None:
        self._path, self._of = path, json.loads(json.dumps(of))
        former: dict[str, Any] = {"of": None}
        if path.exists():
            former = json.loads(path.read_text(encoding="utf-8"))
        self.rows: dict[str, list[dict[str, Any]]] = former["rows"] if former["of"] == self._of else {}

    def keep(self, method: str, rows: list[dict[str, Any]]) -> None:
        self.rows[method] = rows
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps({"of": self._of, "rows": self.rows}), encoding="utf-8")
        partial.rename(self._path)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Markdown: a line for every method and setting."""
    texts = list(rows[0]["texts"])
    columns = [f"{figure}, {text}" for text in texts for figure in ("KL", "perplexity", "top-1")]
    print(f"| method | setting | bits read | bits resident | {' | '.join(columns)} | CPU s |")
    print("|---|---|---|---|" + "---|" * (len(columns) + 1))
    for row in rows:
        scores = [
            cell
            for score in row["texts"].values()
            for cell in (f"{score['kl']:.5f}", f"{score['perplexity']:.3f}", f"{score['top1']:.1%}")
        ]
        bits = f"{row['bits_read']:.2f} | {row['bits_resident']:.2f}"
        print(f"| {row['method']} | {row['setting']} | {bits} | {' | '.join(scores)} | {row['quantize_cpu_s']:.0f} |")


def former_results() -> dict[str, Any]:
    """The record's entries, by model."""
    former = RESULTS / "anyprec_peers.json"
    return json.loads(former.read_text(encoding="utf-8"))["results"] if former.exists() else {}


def _sensitivities(
    subject: Subject, windows: np.ndarray, arguments: argparse.Namespace
) -> tuple[dict[str, Sensitivity], Sensitivity]:
    """By the loss, and of the inputs; measured at the first run with these windows."""

    def flat() -> Sensitivity:
        by_loss = measured_by_loss(subject.model, windows)
        return {f"{kind} {linear}": values for kind, part in by_loss.items() for linear, values in part.items()}

    by_loss: dict[str, Sensitivity] = {}
    for key, values in kept(arguments.scratch, f"{arguments.model}-loss", windows, flat).items():
        kind, linear = key.split()
        by_loss.setdefault(kind, {})[linear] = values
    name = f"{arguments.model}-inputs"
    return by_loss, kept(arguments.scratch, name, windows, lambda: input_moments(subject.model, windows))


def _of_codes(model: Model, precision: int, seconds: float) -> Version:
    stacks = [model.params["layers"][name] for name in LINEARS]
    resident = 8 * sum(map(nbytes, stacks)) / sum(float(np.prod(stack.shape)) for stack in stacks)
    read = read_bits_per_weight(model.params, precision=precision)
    return Version(str(precision), model, precision, read, resident, seconds)


def _on_grids(measured: Measured, quantizer: Callable[[np.ndarray], Quantizer]) -> Iterator[Version]:
    """`quantizer` makes of a plain moment what quantizes a matrix at any precision: seconds are those of all of them."""
    model = measured.subject.model
    plain = {name: np.asarray(model.params["layers"][name], np.float32) for name in LINEARS}
    quantizer(np.eye(64, dtype=np.float32))(np.eye(64, dtype=np.float32), CONFIG.seed_precision)  # compiles
    found = {bits: {name: np.empty_like(stack) for name, stack in plain.items()} for bits in CONFIG.precisions}
    started = time.process_time()
    for name, stack in plain.items():
        for layer, weights in enumerate(stack):
            quantize = quantizer(measured.inputs[READS_WITH[name]][layer])
            for bits, layers in found.items():
                layers[name][layer] = quantize(weights, bits)
    seconds = time.process_time() - started
    for precision, layers in found.items():
        each = [(stack.size, uniform_rows.bits_per_weight(precision, stack.shape[-1])) for stack in plain.values()]
        bits = sum(size * own for size, own in each) / sum(size for size, _ in each)
        yield Version(str(precision), _with_linears(model, layers), None, bits, bits, seconds)


def _with_linears(model: Model, linears: Mapping[str, Any]) -> Model:
    layers = model.params["layers"] | {name: jnp.asarray(stack) for name, stack in linears.items()}
    return dataclasses.replace(model, params=model.params | {"layers": layers})


def _said(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, without places."""
    named = {
        name: value for name, value in vars(arguments).items() if not isinstance(value, Path) and name != "methods"
    }
    return named | {"calibration_samples": 1, "texts": 1 + (arguments.wikitext is not None)}


if __name__ == "__main__":
    main()
