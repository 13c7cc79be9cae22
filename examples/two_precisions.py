"""`python -m examples.two_precisions ARTEFACT --low 3 --high 6`: where one artefact disagrees with itself.

The weights are loaded once, for two precisions, and each call says which of them it reads. The program prints the text with
what the lower precision would have written next wherever the two differ.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from anyprec_jax import Model, forward, load

TEXT = "The capital of France is Paris. Water boils at one hundred degrees. The sun rises in the east and sets in the west."


def likeliest(model: Model, tokens: jax.Array, *, precision: int) -> np.ndarray:
    """The likeliest token after each of a text [seq]."""
    logits = forward(model.params, tokens[None], model.config, precision=precision)
    assert isinstance(logits, jax.Array)
    return np.asarray(jnp.argmax(logits[0], axis=-1))


def main(arguments: list[str] | None = None) -> None:
    """Prints every position where the two precisions would go on differently, and how many there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artefact", type=Path)
    parser.add_argument("--low", type=int, default=3)
    parser.add_argument("--high", type=int, default=6)
    options = parser.parse_args(arguments)
    model = load(options.artefact, precisions=[options.low, options.high])  # planes are read once, up to the higher
    assert model.tokenizer is not None
    tokens = model.tokenizer.encode(TEXT, special_tokens=False)[: model.config.max_position_embeddings]
    low, high = (likeliest(model, jnp.asarray(tokens), precision=w) for w in (options.low, options.high))
    differing = np.flatnonzero(low != high)
    for position in differing:
        before = model.tokenizer.decode(tokens[: position + 1])
        ours, theirs = (model.tokenizer.decode([int(choice[position])]) for choice in (low, high))
        print(f"...{before[-40:]!r}: {options.low} bits {ours!r}, {options.high} bits {theirs!r}")
    print(f"{options.low} and {options.high} bits go on differently after {len(differing)} of {len(tokens)} tokens")


if __name__ == "__main__":
    main()
