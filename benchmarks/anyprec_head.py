"""Claim: an 8-bit embedding and output head costs next to nothing.
Beside: the same model without it.

    python -m benchmarks.anyprec_head --data .cache/data

SmolLM2-135M with nothing else quantized, as it is and with affine rows, on the first 4,096 tokens of the 2016 address: perplexity, and
KL divergence in nats per token. This copy's embedding was stored in Q8_0 (blocks of 32), so it is rounded a second time.
"""

import argparse
from pathlib import Path

import numpy as np

from anyprec_jax import load
from anyprec_jax.affine import bits_per_weight, dequantize_affine
from anyprec_jax.calibration import read_text
from anyprec_jax.evaluate import evaluate
from anyprec_jax.models.model import with_affine_head
from benchmarks.timing import record
from examples.demo.anyprec import HELD_OUT, HELD_OUT_TOKENS, MODEL, SPEECHES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the demo's data packages")
    parser.add_argument("--tokens", type=int, default=HELD_OUT_TOKENS)
    arguments = parser.parse_args()

    model = load(arguments.data / MODEL)
    assert model.tokenizer is not None
    text = read_text(arguments.data / SPEECHES / HELD_OUT)
    tokens = np.asarray(model.tokenizer.encode(text, special_tokens=False), np.int32)[: arguments.tokens]
    affine = with_affine_head(model)
    head = affine.params["embedding"]
    weights = np.asarray(model.params["embedding"])
    error = float(np.linalg.norm(np.asarray(dequantize_affine(head)) - weights) / np.linalg.norm(weights))
    reference, result = evaluate(affine, tokens, precisions=[None], reference=model)
    ratio = result.perplexity / reference.perplexity
    print(f"{len(tokens):,} tokens; head and embedding of {bits_per_weight(head):.2f} bits, relative error {error:.2e}")
    print(
        f"perplexity {reference.perplexity:.4f} as it is, {result.perplexity:.4f} with affine rows ({ratio - 1:+.3%})"
    )
    print(f"KL {result.kl:.2e} nats per token")
    results = {
        "perplexity": {"as it is": reference.perplexity, "affine": result.perplexity},
        "kl": result.kl,
        "relative_error": error,
    }
    record("anyprec_head", {"tokens": len(tokens)}, results)


if __name__ == "__main__":
    main()
