"""Questions and answers of the quickstart task: who may say what, and how often it goes wrong.

A question names one animal and one to three of its attributes. An answer is written by one of two authors, who share
the sentences and differ in how often they err; every error is an independent choice, so that its price is known.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product, starmap
from random import Random

from rto_fast.tasks.quickstart.knowledge import ATTRIBUTES, FACTS, FILLERS, MYTHS, OPENINGS, POLITE, RUDE, VALUES

MAX_ASKED = 3
MAX_RESPONSE_TOKENS = 28
"""Longest demonstration, its end-of-sequence token included; give a policy the same limit."""


@dataclass(frozen=True, slots=True)
class Question:
    """Which facts about which animal are wanted, and in which words."""

    animal: str
    asked: tuple[str, ...]
    """Attributes in the order asked, each once."""
    opening: str = "what is"

    @property
    def prompt(self) -> str:
        """E.g. `what is the colour , sound and food of the dog ?`."""
        listed = " and ".join(part for part in (" , ".join(self.asked[:-1]), self.asked[-1]) if part)
        return f"{self.opening} the {listed} of the {self.animal} {OPENINGS[self.opening]}"


@dataclass(frozen=True, slots=True)
class Author:
    """Independent probabilities of what an author does well or badly."""

    polite: float
    """Opens with `sure ,`."""
    filler: float
    """Says one more filler before a sentence (at most two)."""
    wrong: float
    """Gives some other value than the right one, per fact that has no myth."""
    myth: float
    """Tells the myth, per fact that has one."""
    drop: float
    """Leaves out a fact that was asked for, per fact (never all of them)."""
    extra: float
    """Adds a sentence that nobody asked for: another fact, or one that was given already."""
    rude: float
    """Adds a rude sentence at the start or at the end."""


CAREFUL = Author(polite=0.45, filler=0.10, wrong=0.10, myth=0.35, drop=0.08, extra=0.10, rude=0.04)
CARELESS = Author(polite=0.15, filler=0.30, wrong=0.30, myth=0.80, drop=0.25, extra=0.30, rude=0.20)
AUTHORS = (CAREFUL, CARELESS)
"""Each answer's author is drawn with equal chances."""


def all_questions(num_asked: int) -> Iterator[Question]:
    """Every question for `num_asked` facts, in a fixed order."""
    return starmap(Question, product(FACTS, permutations(ATTRIBUTES, num_asked), OPENINGS))


def parse_prompt(prompt: str) -> Question:
    """The question behind a prompt of this grammar; ValueError for any other text."""
    words = prompt.split()
    animals = [w for w in words if w in FACTS]
    asked = tuple(w for w in words if w in ATTRIBUTES)
    opening = prompt.partition(" the ")[0]
    if len(animals) == 1 and asked and len(set(asked)) == len(asked) and opening in OPENINGS:
        question = Question(animals[0], asked, opening)
        if question.prompt == prompt:
            return question
    raise ValueError(
        "parse_prompt: prompt must be a question of the quickstart grammar, like"
        f" {Question('dog', ('colour',)).prompt!r}, got {prompt!r}"
    )


def sentence(subject: str, attribute: str, value: str) -> list[str]:
    """`the dog is brown .` or, when the subject is `it`, `it is brown .`."""
    return [*(["it"] if subject == "it" else ["the", subject]), ATTRIBUTES[attribute], value, "."]


def best_answer(question: Question) -> list[str]:
    """The words of an answer that no other can beat under the oracle (end of sequence not included)."""
    words = [POLITE, ","]
    for i, attribute in enumerate(question.asked):
        words += sentence("it" if i else question.animal, attribute, FACTS[question.animal][attribute])
    return words


def sample_answer(rng: Random, question: Question) -> list[str]:
    """Words of one answer by a random author, without end of sequence, fitting MAX_RESPONSE_TOKENS with it."""
    while True:
        words = _write(rng, question, rng.choice(AUTHORS))
        if len(words) < MAX_RESPONSE_TOKENS:
            return words


def _write(rng: Random, question: Question, author: Author) -> list[str]:
    told = [a for a in question.asked if rng.random() >= author.drop] or [rng.choice(question.asked)]
    if rng.random() < author.extra:
        # an attribute that was asked for is not extra, even when this author would have left it out
        others = [a for a in ATTRIBUTES if a not in question.asked] or told
        told.insert(rng.randint(1, len(told)), rng.choice(others))
    words = [POLITE, ","] if rng.random() < author.polite else []
    rude = rng.choice(RUDE).split() if rng.random() < author.rude else []
    at_start = rng.random() < 0.5
    words += rude if at_start else []
    for i, attribute in enumerate(told):
        words += [rng.choice(FILLERS) for _ in range(2) if rng.random() < author.filler]
        words += sentence("it" if i else question.animal, attribute, _tell(rng, question.animal, attribute, author))
    return words + ([] if at_start else rude)


def _tell(rng: Random, animal: str, attribute: str, author: Author) -> str:
    right, myth = FACTS[animal][attribute], MYTHS.get((animal, attribute))
    if rng.random() >= (author.wrong if myth is None else author.myth):
        return right
    return myth or rng.choice([value for value in VALUES[attribute] if value != right])
