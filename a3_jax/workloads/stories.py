"""Small stories in the manner of bAbI, made up: what stands in for it where it is not at hand."""

import random
from collections.abc import Callable
from typing import NamedTuple

from a3_jax.workloads.babi import Questions, parse_stories

# By their number in bAbI: one supporting fact, yes or no, lists.
GENERATED_TASKS = (1, 6, 8)

_PEOPLE = ("Mary", "John", "Sandra", "Daniel")
_PLACES = ("garden", "kitchen", "hallway", "office", "bedroom", "bathroom")
_THINGS = ("apple", "football", "milk")
_MOVES = ("went to", "moved to", "journeyed to", "travelled to")
_QUESTIONS_PER_STORY = 5
_SENTENCES_PER_QUESTION = 2


class _World:
    """Who is where and has what, and the lines of the story that say so."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.place: dict[str, str] = {}
        self.held: dict[str, list[str]] = {person: [] for person in _PEOPLE}
        self.moved: dict[str, int] = {}
        self.handled: dict[str, list[int]] = {person: [] for person in _PEOPLE}

    def move(self, line: int) -> str:
        """Somebody goes to where he is not."""
        person = self.rng.choice(_PEOPLE)
        place = self.rng.choice([place for place in _PLACES if place != self.place.get(person)])
        self.place[person], self.moved[person] = place, line
        return f"{person} {self.rng.choice(_MOVES)} the {place}."

    def handle(self, line: int) -> str:
        """Somebody takes what nobody has, or drops something."""
        person = self.rng.choice(_PEOPLE)
        free = [thing for thing in _THINGS if all(thing not in things for things in self.held.values())]
        if self.held[person] and (not free or self.rng.random() < 0.5):
            thing = self.rng.choice(self.held[person])
            self.held[person].remove(thing)
            self.handled[person].append(line)
            return f"{person} dropped the {thing}."
        if not free:
            return self.move(line)
        thing = self.rng.choice(free)
        self.held[person].append(thing)
        self.handled[person].append(line)
        return f"{person} took the {thing}."


class _Asked(NamedTuple):
    question: str
    answer: str
    supporting: list[int]


def _where(world: _World) -> _Asked:
    person = world.rng.choice(sorted(world.place))
    return _Asked(f"Where is {person}?", world.place[person], [world.moved[person]])


def _whether(world: _World) -> _Asked:
    person = world.rng.choice(sorted(world.place))
    true = world.rng.random() < 0.5
    place = world.place[person] if true else world.rng.choice([p for p in _PLACES if p != world.place[person]])
    return _Asked(f"Is {person} in the {place}?", "yes" if true else "no", [world.moved[person]])


def _what(world: _World) -> _Asked:
    person = world.rng.choice([person for person in _PEOPLE if world.handled[person]] or list(_PEOPLE))
    answer = ",".join(world.held[person]) or "nothing"
    return _Asked(f"What is {person} carrying?", answer, world.handled[person])


_ASK: dict[int, tuple[Callable[[_World, int], str], Callable[[_World], _Asked]]] = {
    1: (_World.move, _where),
    6: (_World.move, _whether),
    8: (_World.handle, _what),
}


def generate_stories(task: int, num_questions: int, *, seed: int) -> str:
    """Stories of five questions, two sentences before each, in the format of bAbI's files; the same text for the same arguments.

    ValueError for a task that is not in `GENERATED_TASKS`.
    """
    if task not in _ASK:
        raise ValueError(f"task: wanted one of {', '.join(map(str, GENERATED_TASKS))}, got {task}")
    rng = random.Random(f"{task} {seed}")
    tell, ask = _ASK[task]
    lines: list[str] = []
    for number in range(num_questions):
        if number % _QUESTIONS_PER_STORY == 0:
            world, line = _World(rng), 0
        for _ in range(_SENTENCES_PER_QUESTION):
            line += 1
            lines.append(f"{line} {tell(world, line)}")
        line += 1
        asked = ask(world)
        lines.append(f"{line} {asked.question} \t{asked.answer}\t{' '.join(map(str, asked.supporting))}")
    return "\n".join(lines) + "\n"


def generated_questions(*, training: int = 1000, test: int = 200, seed: int) -> Questions:
    """So many questions of each generated task; test stories are others than those of the training."""

    def parsed(count: int, which: int) -> tuple:
        texts = {task: generate_stories(task, count, seed=2 * seed + which) for task in GENERATED_TASKS}
        return tuple(question for task, text in texts.items() for question in parse_stories(text, task))

    return Questions(parsed(training, 0), parsed(test, 1))
