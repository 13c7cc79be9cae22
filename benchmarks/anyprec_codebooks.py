"""Claim: compact codebooks take a tenth of the bytes of float16 ones, and up to 6 bits KL rises by less than a tenth.
Beside: float16 codebooks of the same artefact, on the same texts.

An artefact of SmolLM2-135M with float16 codebooks (made first where there is none) gets compact ones; both are evaluated at every
precision on the same texts: the address of 2016, and WikiText-2 where a file of it is given. Prints KL to the unquantized model, its
ratio, and resident bits per weight of every shape of rows; writes results/anyprec_codebooks.json, one entry for every `--name`.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from anyprec_jax import Calibration, Model, QuantizeConfig, compact, load
from anyprec_jax.array import Matrix, bits_per_weight, nbytes
from anyprec_jax.calibration import read_text
from anyprec_jax.evaluate import evaluate
from anyprec_jax.model_quantization import Quality, quantize_model
from anyprec_jax.models.fusion import linears
from benchmarks.quality_texts import calibration_texts, evaluation_texts
from benchmarks.timing import RESULTS, record
from examples.demo.anyprec import MODEL


def main() -> None:
    """Measures, prints the tables, adds to the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the demo's data packages")
    parser.add_argument("--artefact", type=Path, required=True, help="with float16 codebooks; made if it is not there")
    parser.add_argument("--quality", choices=("fast", "best"), default="best", help="of one that is made")
    parser.add_argument("--name", default="best", help="of the entry in the record")
    parser.add_argument("--wikitext", type=Path, help="a WikiText-2 text file: the out-of-domain column")
    parser.add_argument("--tokens", type=int, default=2048, help="of each text to score")
    arguments = parser.parse_args()

    if not arguments.artefact.exists():
        quantize_first(arguments.data, arguments.artefact, arguments.quality)
    plain, model = load(arguments.data / MODEL), load(arguments.artefact)
    started = time.perf_counter()
    models = {"float16": model, "compact": with_compact_codebooks(model)}
    result: dict[str, Any] = {
        "compact_s": time.perf_counter() - started,
        "tokens": arguments.tokens,
        "resident_bits": {kind: resident_bits(each) for kind, each in models.items()},
        "texts": {},
    }
    assert plain.tokenizer is not None
    for text, file in evaluation_texts(arguments.data, arguments.wikitext).items():
        tokens = np.asarray(plain.tokenizer.encode(read_text(file), special_tokens=False), np.int32)
        rows = {kind: evaluate(each, tokens[: arguments.tokens], reference=plain)[1:] for kind, each in models.items()}
        result["texts"][text] = {kind: [row._asdict() for row in each] for kind, each in rows.items()}
        print_table(result["texts"][text], text)
    print(json.dumps(result["resident_bits"]), f"{result['compact_s']:.0f} s to make compact codebooks")
    former = RESULTS / "anyprec_codebooks.json"
    results = json.loads(former.read_text(encoding="utf-8"))["results"] if former.exists() else {}
    record("anyprec_codebooks", {"tokens": arguments.tokens}, results | {arguments.name: result})


def quantize_first(data: Path, artefact: Path, quality: Quality) -> None:
    """With the calibration texts of `make bench-quality`, as files beside the artefact."""
    texts = []
    for number, text in enumerate(calibration_texts(data).values()):
        texts.append(artefact.with_name(f"{artefact.name}-text-{number}.txt"))
        texts[-1].write_text(text, encoding="utf-8")
    calibration = Calibration(text=tuple(texts))
    quantize_model(
        data / MODEL, artefact, QuantizeConfig(), calibration=calibration, quality=quality, head_precision=None
    )


def with_compact_codebooks(model: Model) -> Model:
    """The model with every any-precision matrix's codebooks compact."""
    layers = dict(model.params["layers"])
    layers |= {name: compact(weight) for name, weight in linears(layers).items() if isinstance(weight, Matrix)}
    return dataclasses.replace(model, params=model.params | {"layers": jax.block_until_ready(layers)})


def resident_bits(model: Model) -> dict[str, float]:
    """Bits per weight: by the width of rows, and of all."""
    matrices = [weight for weight in linears(model.params["layers"]).values() if isinstance(weight, Matrix)]
    by_width = {str(matrix.k): bits_per_weight(matrix) for matrix in matrices}
    weights = sum(float(np.prod(matrix.shape)) for matrix in matrices)
    return by_width | {"all": 8 * sum(map(nbytes, matrices)) / weights}


def print_table(rows: dict[str, list[dict[str, Any]]], text: str) -> None:
    """KL with either kind at every precision, the ratio, and perplexity."""
    print(f"\n{text}: KL in nats per token, float16 and compact, ratio; perplexity")
    for exact, small in zip(rows["float16"], rows["compact"], strict=True):
        print(
            f"{exact['precision']:>2} bits  {exact['kl']:.6f} {small['kl']:.6f} {small['kl'] / exact['kl']:6.3f}"
            f"  {exact['perplexity']:8.3f} {small['perplexity']:8.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
