"""Made-up stories: every answer follows from the sentences."""

import pytest

from a3_jax.workloads.babi import parse_stories
from a3_jax.workloads.stories import GENERATED_TASKS, generate_stories, generated_questions


def answer(question):
    """Reads the story again, from its words alone."""
    place, held = {}, {}
    for person, verb, *_, thing in question.story:
        if verb == "took":
            held.setdefault(person, []).append(thing)
        elif verb == "dropped":
            held[person].remove(thing)
        else:
            place[person] = thing
    if question.task == 1:
        return place[question.words[-1]]
    if question.task == 6:
        return "yes" if place[question.words[1]] == question.words[-1] else "no"
    return ",".join(held.get(question.words[2], [])) or "nothing"


@pytest.mark.parametrize("task", GENERATED_TASKS)
def test_answers_follow_from_the_story(task):
    questions = parse_stories(generate_stories(task, 500, seed=1), task)
    assert len(questions) == 500
    assert [question.answer for question in questions] == [answer(question) for question in questions]
    assert len({question.answer for question in questions}) > 1


def test_supporting_lines_are_those_of_the_answer():
    lines = generate_stories(1, 50, seed=2).splitlines()
    for number, line in enumerate(lines):
        identity, _, rest = line.partition(" ")
        if "\t" in rest:
            _, found, supporting = rest.split("\t")
            assert lines[number - int(identity) + int(supporting)].endswith(f"the {found}.")


def test_the_same_seed_tells_the_same():
    assert generate_stories(8, 30, seed=4) == generate_stories(8, 30, seed=4)
    assert generate_stories(8, 30, seed=4) != generate_stories(8, 30, seed=5)


def test_training_and_test():
    found = generated_questions(training=20, test=10, seed=0)
    assert (len(found.training), len(found.test)) == (60, 30)
    assert found.training[:10] != found.test[:10]


def test_an_unknown_task():
    with pytest.raises(ValueError, match="wanted one of 1, 6, 8, got 2"):
        generate_stories(2, 5, seed=0)
