"""The memory network against its equations, written out in NumPy (Sukhbaatar et al. 2015, sections 2 to 4)."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a3_jax.attention.exact import exact_attention
from a3_jax.workloads.memory_network import (
    MemoryBatch,
    MemoryNetwork,
    linear_weights,
    look,
    position_encoding,
    softmax_weights,
)

HOPS, MEMORY, DIM, WORDS = 3, 6, 8, 12
NETWORK = MemoryNetwork(WORDS, MEMORY, DIM, HOPS)
apply = jax.jit(NETWORK.apply, static_argnums=2)
read = jax.jit(functools.partial(NETWORK.apply, method="read"))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    sentences = rng.integers(1, WORDS, (9, 5))
    sentences[np.arange(5) >= rng.integers(1, 6, (9, 1))] = 0
    sentences[0] = 0
    stories = rng.integers(1, 9, (4, MEMORY))
    stories[np.arange(MEMORY) >= np.array([[1], [3], [5], [6]])] = 0
    times = np.minimum(np.arange(MEMORY) + rng.integers(0, 2, (4, 1)), MEMORY - 1)
    return MemoryBatch(*(jnp.asarray(array, jnp.int32) for array in (sentences, stories, times, [1, 2, 3, 1])))


@pytest.fixture(scope="module")
def parameters():
    """Larger than those that training starts with, so that attention prefers something."""
    rng = np.random.default_rng(1)
    shapes = {"embeddings": (HOPS + 1, WORDS, DIM), "times": (HOPS + 1, MEMORY, DIM)}
    return {"params": {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}}


def encoded(matrix, sentence):
    """`m = sum_j l_j * A x_j`, word by word and component by component."""
    words = [word for word in sentence if word]
    total = np.zeros(DIM)
    for j, word in enumerate(words, 1):
        for k in range(1, DIM + 1):
            weight = (1 - j / len(words)) - (k / DIM) * (1 - 2 * j / len(words))
            total[k - 1] += weight * matrix[word, k - 1]
    return total


def answered(parameters, batch, row, *, linear):
    """Logits of one question, with the matrices by the paper's names: A and C of every hop, B, W, T_A and T_C."""
    embeddings = np.asarray(parameters["params"]["embeddings"], np.float64)
    ages = np.asarray(parameters["params"]["times"], np.float64)
    A, C = [embeddings[0], None, None], [embeddings[1], embeddings[2], embeddings[3]]
    T_A, T_C = [ages[0], None, None], [ages[1], ages[2], ages[3]]
    for hop in (1, 2):  # adjacent: A of a hop is C of the one before
        A[hop], T_A[hop] = C[hop - 1], T_C[hop - 1]
    B, W = A[0], C[-1].T  # and B is the first A, the transposed W the last C
    sentences = np.asarray(batch.sentences)
    u = encoded(B, sentences[batch.questions[row]])
    story = [(int(s), int(t)) for s, t in zip(batch.stories[row], batch.times[row], strict=True) if s]
    for hop in range(HOPS):
        m = [encoded(A[hop], sentences[s]) + T_A[hop][t] for s, t in story]
        c = [encoded(C[hop], sentences[s]) + T_C[hop][t] for s, t in story]
        scores = np.array([u @ memory for memory in m])
        p = scores if linear else np.exp(scores) / np.exp(scores).sum()
        u = u + sum(weight * output for weight, output in zip(p, c, strict=True))
    return u @ W


@pytest.mark.parametrize("linear", [False, True])
def test_logits(parameters, batch, linear):
    found = apply(parameters, batch, linear_weights if linear else softmax_weights)
    wanted = [answered(parameters, batch, row, linear=linear) for row in range(4)]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def attend_exactly(hop, query, key, value, mask):
    return jax.vmap(lambda q, k, v, m: exact_attention(q, k, v, mask=m))(query, key, value, mask), hop


def test_attention_over_put_together_memories_is_the_same(parameters, batch):
    query, said = look(read(parameters, batch), attend_exactly)
    assert said == [0, 1, 2]
    found = NETWORK.apply(parameters, query, method="answer")
    wanted = apply(parameters, batch, softmax_weights)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_gradients_are_those_of_put_together_memories(parameters, batch):
    def short_cut(parameters):
        return jnp.sum(jnp.sin(NETWORK.apply(parameters, batch, softmax_weights)))

    def plain(parameters):
        query, _ = look(NETWORK.apply(parameters, batch, method="read"), attend_exactly)
        return jnp.sum(jnp.sin(NETWORK.apply(parameters, query, method="answer")))

    scaled = jax.tree.map(lambda array: 0.3 * array, parameters)
    found, wanted = (jax.jit(jax.grad(function))(scaled) for function in (short_cut, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max()), found, wanted)


def test_values_of_a_hop_are_keys_of_the_next(parameters, batch):
    reading = read(parameters, batch)
    assert reading.num_hops == HOPS
    seen = []
    look(reading, lambda hop, query, key, value, mask: (seen.append((key, value)) or jnp.zeros_like(query), None))
    for (_, value), (key, _) in itertools.pairwise(seen):
        np.testing.assert_array_equal(value, key)


def test_what_lies_beyond_a_story_changes_nothing(parameters, batch):
    times = jnp.where(batch.stories > 0, batch.times, MEMORY - 1 - batch.times)
    found = apply(parameters, batch._replace(times=times), softmax_weights)
    np.testing.assert_array_equal(found, apply(parameters, batch, softmax_weights))


def test_position_encoding():
    """Of the first of four words the first component weighs 3/4 - 1/2 / d, and of the last one 1/d: by hand."""
    found = np.asarray(position_encoding(jnp.asarray([[3, 1, 4, 1, 0], [2, 0, 0, 0, 0]], jnp.int32), 4))
    np.testing.assert_allclose(found[0, 0], [5 / 8, 4 / 8, 3 / 8, 2 / 8])
    np.testing.assert_allclose(found[0, 1], [1 / 2] * 4)
    np.testing.assert_allclose(found[0, 3], [1 / 4, 2 / 4, 3 / 4, 1])
    np.testing.assert_allclose(found[1, 0], [1 / 4, 2 / 4, 3 / 4, 1])  # J = 1
    assert not found[0, 4].any() and not found[1, 1:].any()
