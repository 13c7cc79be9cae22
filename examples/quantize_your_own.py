"""`python -m examples.quantize_your_own MODEL TEXT OUT`: your model quantized with your text, and what 3, 4 and 8 bits of it are worth.

MODEL is a Hugging Face folder or a GGUF file. The first three quarters of TEXT calibrate, the last is what the table is measured on:
KL from the unquantized model, in nats a token, is 0 where nothing was lost. OUT is the artefact, which `anyprec generate` reads.
`--quality best` takes several times as long as fast, and loses less.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from anyprec_jax import Calibration, QuantizeConfig, load, quantize_model
from anyprec_jax.evaluate import evaluate

PRECISIONS = (3, 4, 8)


def main(arguments: list[str] | None = None) -> None:
    """Writes the artefact and prints a line for each precision; exit status 2, with the reason, for a wrong file or destination."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path, help="UTF-8; some thousand words of what the model will read")
    parser.add_argument("out", type=Path, help="the artefact to write")
    parser.add_argument("--quality", choices=("fast", "best"), default="fast")
    parser.add_argument("--windows", type=int, default=8, help="calibration windows (default: 8)")
    parser.add_argument(
        "--length", type=int, default=128, help="tokens in a window, and in a scored chunk (default: 128)"
    )
    options = parser.parse_args(arguments)
    try:
        quantize_and_score(options)
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")


def quantize_and_score(options: argparse.Namespace) -> None:
    """All of it."""
    text = options.text.read_text(encoding="utf-8")
    cut = len(text) * 3 // 4
    config = QuantizeConfig(seed_precision=min(PRECISIONS), parent_precision=max(PRECISIONS))
    with TemporaryDirectory() as folder:
        (calibrating := Path(folder) / "calibration.txt").write_text(text[:cut], encoding="utf-8")
        calibration = Calibration(text=calibrating, num_sequences=options.windows, sequence_length=options.length)
        quantize_model(options.model, options.out, config, calibration=calibration, quality=options.quality)

    model, reference = load(options.out, precisions=PRECISIONS), load(options.model)
    assert model.tokenizer is not None
    tokens = np.asarray(model.tokenizer.encode(text[cut:], special_tokens=False), np.int32)
    results = evaluate(model, tokens, precisions=PRECISIONS, reference=reference, sequence_length=options.length)
    print(f"{'read at':>12} {'bits a weight':>14} {'perplexity':>11} {'KL, nats':>9}")
    for row in results:
        label, kl = (row.precision, "") if row.precision == "reference" else (f"{row.precision} bits", f"{row.kl:.4f}")
        print(f"{label:>12} {row.bits_per_weight:14.2f} {row.perplexity:11.3f} {kl:>9}")
    print(f"{len(tokens):,} tokens scored; {options.out} is the artefact")


if __name__ == "__main__":
    main()
