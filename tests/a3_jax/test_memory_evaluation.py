"""A3 inside the memory network: against the paper's pseudo-code question by question, and against exact attention with it off."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a3_jax.workloads import memory_evaluation
from a3_jax.workloads.memory_evaluation import Setting, evaluate, iterations_for, memory_sizes, row_counts
from a3_jax.workloads.memory_network import MemoryBatch, softmax_weights
from a3_jax.workloads.stories import GENERATED_TASKS
from tests.a3_jax.selection_oracles import greedy_oracle
from tests.a3_jax.small_networks import DIM, HOPS, random_network, some_questions


@pytest.fixture(scope="module")
def questions():
    return some_questions()


@pytest.fixture(scope="module")
def network(questions):
    return random_network(questions)[0]


@pytest.fixture(scope="module")
def parameters(questions):
    return random_network(questions)[1]


SETTINGS = [
    Setting(None, None),
    Setting(None, 20.0),
    Setting(0.5, None, "story"),
    Setting(0.5, 10.0, "memory"),
    Setting(0.25, 5.0, "task"),
    Setting(4, None, "story"),
]


@pytest.fixture(scope="module")
def outcomes(questions, network, parameters):
    """Sixteen questions at a time: three chunks, the last of which is filled up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_evaluation, "_CHUNK", 16)
        patch.setattr(memory_evaluation, "_WIDTHS", (12, 50))
        return evaluate(questions, network, parameters, SETTINGS, sizes=memory_sizes(questions))


def test_with_both_off_it_is_exact_attention(questions, network, parameters, outcomes):
    times = jnp.broadcast_to(jnp.arange(50, dtype=jnp.int32), questions.stories.shape)
    batch = MemoryBatch(questions.sentences, questions.stories, times, questions.questions)
    words = np.argmax(jax.jit(network.apply, static_argnums=2)(parameters, batch, softmax_weights), axis=1)
    exact = outcomes[0]
    np.testing.assert_array_equal(exact.right, words == questions.answers)
    assert not exact.M.any()
    for counts in (exact.C, exact.K):
        np.testing.assert_array_equal(counts, np.tile(questions.story_sizes, (HOPS, 1)))
    assert (exact.top_kept == 1).all()


def selected(query, key, iterations, percent):
    """By the pseudo-code of figure 7, and section IV-D."""
    candidates = np.ones(len(key), bool)
    if iterations is not None:
        greedy, first = greedy_oracle(query, key, iterations)
        candidates = greedy > 0 if (greedy > 0).any() else np.arange(len(key)) == first
    scores = key.astype(np.float64) @ query.astype(np.float64)
    if percent is None:
        return candidates, candidates, scores
    return candidates, candidates & (scores[candidates].max() - scores <= np.log(100 / percent)), scores


@pytest.fixture(scope="module")
def reading(questions, network, parameters):
    times = jnp.broadcast_to(jnp.arange(50, dtype=jnp.int32), questions.stories.shape)
    batch = MemoryBatch(questions.sentences, questions.stories, times, questions.questions)
    return jax.tree.map(np.asarray, jax.jit(functools.partial(network.apply, method="read"))(parameters, batch))


@pytest.mark.parametrize("place", range(len(SETTINGS)))
def test_every_question_by_the_pseudo_code(questions, parameters, reading, outcomes, place):
    outcome = outcomes[place]
    answers = np.asarray(parameters["params"]["embeddings"])[-1]
    sizes = {task: max(questions.story_sizes[questions.tasks == task]) for task in GENERATED_TASKS}
    setting = SETTINGS[place]
    for row in range(len(questions.answers)):
        real = int(questions.story_sizes[row])
        n = {"story": real, "task": sizes[int(questions.tasks[row])], "memory": 50}[setting.rows]
        assert outcome.n[row] == n
        wanted = setting.iterations
        iterations = wanted if wanted is None or isinstance(wanted, int) else max(1, int(np.ceil(wanted * n)))
        query = reading.query[row]
        for hop in range(HOPS):
            key, value = (reading.memories[row, :real, hop + side] for side in (0, 1))
            candidates, kept, scores = selected(query, key, iterations, setting.threshold_percent)
            counts = (0 if iterations is None else min(iterations, real * DIM), candidates.sum(), kept.sum())
            assert tuple(part[hop, row] for part in (outcome.M, outcome.C, outcome.K)) == counts
            top = np.argsort(-scores)[:2]
            assert outcome.top_kept[hop, row] == pytest.approx(kept[top].mean())
            weights = np.where(kept, np.exp(scores - scores.max()), 0)
            query = (query + weights / weights.sum() @ value).astype(np.float32)
        assert outcome.right[row] == (np.argmax(answers @ query) == questions.answers[row])


def test_accuracy_is_the_mean_of_tasks(questions, outcomes):
    exact = outcomes[0]._replace(right=questions.tasks != 6, tasks=np.where(questions.tasks == 8, 6, questions.tasks))
    assert exact.accuracy_by_task == {1: 1.0, 6: 0.5}
    assert exact.accuracy == 0.75


def test_iterations():
    n = np.array([1, 2, 3, 8, 20, 50, 100], np.int32)
    assert iterations_for(0.5, n).tolist() == [1, 1, 2, 4, 10, 25, 50]
    assert iterations_for(1 / 8, n).tolist() == [1, 1, 1, 1, 3, 7, 13]
    assert iterations_for(0.07, n)[-1] == 7
    assert iterations_for(3, n).tolist() == [3] * 7


def test_what_n_is(questions):
    shorter = questions._replace(stories=questions.stories.copy())
    shorter.stories[questions.tasks == 1, 4:] = 0
    sizes = memory_sizes(shorter)
    assert sizes == {1: 4, 6: 10, 8: 10}
    # A story that is longer than any of training takes what it takes.
    found = row_counts(questions, "task", sizes)
    np.testing.assert_array_equal(
        found[questions.tasks == 1], np.maximum(4, questions.story_sizes[questions.tasks == 1])
    )
    assert set(found[questions.tasks == 6]) == {10}


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        (Setting(0, None), "M should be above 0"),
        (Setting(float("nan"), None), "M should be above 0"),
        (Setting(None, 101.0), "T should be from 0 to 100"),
        (Setting(None, float("nan")), "T should be from 0 to 100"),
        (Setting(1, None, "sentence"), "rows: wanted one of story, task, memory"),
    ],
)
def test_refused(questions, network, parameters, setting, complaint):
    with pytest.raises(ValueError, match=complaint):
        evaluate(questions, network, parameters, [setting], sizes={})
