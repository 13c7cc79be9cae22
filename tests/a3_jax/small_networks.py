"""A memory network with random weights, and made-up questions for it."""

import jax.numpy as jnp
import numpy as np

from a3_jax.workloads.babi import EncodedQuestions, encode, parse_stories, vocabulary_of
from a3_jax.workloads.memory_network import MemoryNetwork
from a3_jax.workloads.memory_training import Parameters
from a3_jax.workloads.stories import GENERATED_TASKS, generate_stories

HOPS, DIM = 2, 8


def some_questions() -> EncodedQuestions:
    """Some of each task, in another order than by length."""
    texts = [
        question for task in GENERATED_TASKS for question in parse_stories(generate_stories(task, 15, seed=7), task)
    ]
    return encode(texts, vocabulary_of(texts))


def random_network(questions: EncodedQuestions) -> tuple[MemoryNetwork, Parameters]:
    """Scores of a few units, so that a softmax is neither flat nor a single one."""
    network = MemoryNetwork(int(questions.sentences.max()) + 30, 50, DIM, HOPS)
    rng = np.random.default_rng(1)
    shapes = {"embeddings": (HOPS + 1, network.num_words, DIM), "times": (HOPS + 1, 50, DIM)}
    return network, {
        "params": {name: jnp.asarray(0.7 * rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    }
