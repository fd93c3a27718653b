"""Right answers with swapped facts: the test of credit assignment where the wrong tokens are known by construction.

As in Figure 1 of Rafailov et al. 2024 (arXiv:2404.12358), where errors were put into a correct summary by hand: the
answer stays grammatical, and nothing but the swapped facts is wrong with it.
"""

from dataclasses import dataclass
from random import Random

from rto_fast.config.checks import check
from rto_fast.tasks.quickstart.grammar import best_answer
from rto_fast.tasks.quickstart.knowledge import FACTS, VALUES
from rto_fast.tasks.quickstart.task import split_questions


@dataclass(frozen=True, slots=True)
class CorruptedAnswer:
    """Two answers to one question, words joined by spaces, that differ in the swapped words alone."""

    prompt: str
    right: str
    """The best answer there is (`grammar.best_answer`)."""
    corrupted: str
    swapped: tuple[int, ...]
    """Places of the swapped words in `corrupted`, ascending."""

    @property
    def row(self) -> dict[str, str]:
        """As a row of a file: prompt, chosen, corrupted."""
        return {"prompt": self.prompt, "chosen": self.right, "corrupted": self.corrupted}


def corrupted_answers(count: int, seed: int) -> list[CorruptedAnswer]:
    """`count` questions that the task of this seed holds out, each with its best answer and a corrupted copy.

    Of the n facts told, 1 to n (equally likely) are swapped for another value of the same attribute, which is some
    other animal's. The same arguments give the same answers. ValueError when count is not 1 to the number of held-out
    questions (1002).
    """
    _, held_out = split_questions(seed)
    most = len(held_out)
    check(1 <= count <= most, "corrupted_answers: count", f"1 to {most} (held-out questions)", count)
    rng = Random(f"{seed} corrupted")
    answers = []
    for question in rng.sample(held_out, count):
        right = best_answer(question)
        facts = {FACTS[question.animal][attribute]: attribute for attribute in question.asked}
        places = [i for i, word in enumerate(right) if word in facts]
        swapped = sorted(rng.sample(places, rng.randint(1, len(places))))
        corrupted = list(right)
        for i in swapped:
            corrupted[i] = rng.choice([value for value in VALUES[facts[right[i]]] if value != right[i]])
        answers.append(CorruptedAnswer(question.prompt, " ".join(right), " ".join(corrupted), tuple(swapped)))
    return answers
