"""`python -m examples.sliding_window ARTEFACT --precision 4 --window 64`: attention of one's own inside an any-precision model.

`forward` takes any function that keeps the contract of `dot_product_attention`. This one lets a position see no more than
the `window` positions up to itself, and the program prints what that costs in nats per token.
"""

import argparse
import functools
from pathlib import Path

import jax
import jax.numpy as jnp

from anyprec_jax import Model, forward, load
from anyprec_jax.models.attention import dot_product_attention

TEXT = (
    "The quick brown fox jumps over the lazy dog. The dog sleeps on. The fox comes back, and jumps over the dog again. "
    * 4
)


def sliding_window(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, *, window: int) -> jax.Array:
    """`dot_product_attention` to the last `window` of the positions that `mask`, bool [seq, kv], allows."""
    position = jnp.arange(key.shape[0])[None, :]
    visible = jnp.sum(mask, axis=1, keepdims=True)  # of each query: a causal mask allows a prefix
    return dot_product_attention(query, key, value, mask & (position >= visible - window))


def mean_nll(model: Model, tokens: jax.Array, *, precision: int, window: int | None) -> float:
    """Nats per token of a text [seq]; a window of None is the attention that the model was trained with."""
    attention = None if window is None else functools.partial(sliding_window, window=window)
    logits = forward(model.params, tokens[None], model.config, precision=precision, attention=attention)
    assert isinstance(logits, jax.Array)
    log_probabilities = jax.nn.log_softmax(logits[0, :-1])
    return -float(jnp.mean(jnp.take_along_axis(log_probabilities, tokens[1:, None], axis=1)))


def main(arguments: list[str] | None = None) -> None:
    """Prints the loss with full attention and with the window."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artefact", type=Path)
    parser.add_argument("--precision", type=int, default=4)
    parser.add_argument("--window", type=int, default=64)
    options = parser.parse_args(arguments)
    model = load(options.artefact, precisions=[options.precision])
    assert model.tokenizer is not None
    tokens = jnp.asarray(model.tokenizer.encode(TEXT, special_tokens=False)[: model.config.max_position_embeddings])
    for window in (None, options.window):
        loss = mean_nll(model, tokens, precision=options.precision, window=window)
        print(f"{'full attention' if window is None else f'window of {window}'}: {loss:.4f} nats per token")


if __name__ == "__main__":
    main()
