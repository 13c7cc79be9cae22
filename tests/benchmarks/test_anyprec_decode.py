import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from anyprec_jax import forward
from benchmarks import anyprec_decode, decode_models
from benchmarks.model_shapes import LLAMA_3_2_1B

CONFIG = dataclasses.replace(
    LLAMA_3_2_1B,
    num_layers=2,
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_heads=2,
    num_kv_heads=1,
    head_dim=32,
)


def test_what_is_timed_after_the_profile_is_the_model_itself() -> None:
    """A trace with stubs, kept, would be found again by the precision that was profiled."""
    model = decode_models.random_model(CONFIG)
    tokens = jnp.asarray([[1, 2, 3]], jnp.int32)
    expected = np.asarray(forward(model.params, tokens, CONFIG, precision=4))
    with anyprec_decode.stubs(products=True):
        stubbed = np.asarray(forward(model.params, tokens, CONFIG, precision=4))
    assert np.abs(stubbed - expected).max() > 0.01 * np.abs(expected).max()  # they do take the products' place
    np.testing.assert_array_equal(forward(model.params, tokens, CONFIG, precision=4), expected)


def test_bytes_per_token() -> None:
    model = decode_models.random_model(CONFIG)
    size = decode_models.bytes_per_token(model, 4, context=100)
    matrices = [(64 + 32 + 32, 64), (64, 64), (256, 64), (64, 128)]  # (n, k) of the four products
    assert size["linears"] == 2 * sum(n * (4 * (k // 32) * 4 + 2 * 16) for n, k in matrices)
    assert size["head"] == 512 * (64 + 8)
    assert size["cache"] == 2 * 2 * 1 * 32 * 100 * 4
    assert size["total"] == size["linears"] + size["head"] + size["cache"]
    read = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params["embedding"]))
    assert size["head"] == read
