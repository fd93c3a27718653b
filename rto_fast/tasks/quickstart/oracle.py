"""The oracle of the quickstart task: a score for every token of any answer, and the return as their sum.

    at its place                     score     at its place                        score
    right fact asked for, first time +1        wrong fact                          -1
    end of sequence, nothing missing +0.5      each missing fact, at the last token -1
    `sure` as the first word         +0.25     first word of a rude sentence       -1
                                               no end of sequence, at the last token -1
    words that a sentence needs       0        a sentence begun when all was told, another
                                               animal, a fact not asked for or told before -0.5
                                               any other word (filler, fragment)   -0.25

Each score sits on the word that commits to it: on `figure`, not on `it out yourself`; on `the` or `it` that goes on
when everything was told. Positive scores can be had once per fact asked, once for the end, once for the greeting, and
nothing else is positive, so the best return is 0.25 + (facts asked) + 0.5, reached by `grammar.best_answer`. Silence
costs as much as a lie: an empty answer earns minus the facts asked.
"""

from collections.abc import Callable, Sequence

from rto_fast.tasks.quickstart.grammar import Question, parse_prompt
from rto_fast.tasks.quickstart.knowledge import ATTRIBUTES, EOS, FACTS, FILLERS, POLITE, RUDE, VALUES

RIGHT, WRONG, MISSING = 1.0, -1.0, -1.0
STOP, UNFINISHED = 0.5, -1.0
SURE, RUDENESS, IDLE, WASTE = 0.25, -1.0, -0.5, -0.25

_ATTRIBUTE_OF = {verb: attribute for attribute, verb in ATTRIBUTES.items()}
_RUDE_REST = {first: rest for first, *rest in map(str.split, RUDE)}
_BETWEEN = frozenset({",", ".", *FILLERS})


def token_scores(prompt: str, response: Sequence[str]) -> list[float]:
    """Score of every token of a response.

    prompt: a question of the grammar (ValueError otherwise). response: at least one token, any tokens whatever; its
    last one is `<eos>` if the answer was ended, else it was cut off. Returns one float per token; their sum is the
    oracle return. ValueError when the response is empty or goes on after `<eos>`.
    """
    if not response:
        raise ValueError(f"token_scores: response must hold at least one token, got none; an empty answer is [{EOS!r}]")
    if EOS in response[:-1]:
        raise ValueError(
            f"token_scores: response must end at its first {EOS}, got {len(response) - 1 - list(response).index(EOS)}"
            " tokens after it; cut the response there"
        )
    reader = _Reader(parse_prompt(prompt))
    scores = [reader.read(word) for word in response]
    if response[-1] != EOS:
        scores[-1] += UNFINISHED + MISSING * len(reader.missing)
    return scores


def oracle_return(prompt: str, response: Sequence[str]) -> float:
    """Sum of `token_scores`."""
    return sum(token_scores(prompt, response))


def token_signs(prompt: str, response: Sequence[str]) -> list[int]:
    """+1, -1 or 0 per token: whom to credit, whom to blame, who does not matter."""
    return [(score > 0) - (score < 0) for score in token_scores(prompt, response)]


def best_return(prompt: str) -> float:
    """The largest oracle return that any answer to this prompt can have."""
    return SURE + RIGHT * len(parse_prompt(prompt).asked) + STOP


class _Reader:
    """Reads an answer word by word; `next` judges the word that comes next."""

    def __init__(self, question: Question):
        self.question = question
        self.missing = set(question.asked)
        self.next: Callable[[str], float] = self._first
        self.animal = question.animal  # whom the current sentence is about
        self.attribute = ""
        self.idle = False  # the current sentence can earn nothing: it was paid for when it went astray
        self.rest: tuple[str, ...] = ()  # what has to follow before the next sentence

    def read(self, word: str) -> float:
        if word != EOS:
            return self.next(word)
        if self.missing:
            return MISSING * len(self.missing)
        return STOP if self.next == self._start else WASTE

    def _astray(self) -> float:
        if self.idle:
            return 0.0
        self.idle = True
        return IDLE

    def _then(self, score: float, *rest: str) -> float:
        self.next, self.rest = self._follow if rest else self._start, rest
        return score

    def _waste(self) -> float:
        return self._then(WASTE, ".")  # a fragment, up to the next full stop

    def _follow(self, word: str) -> float:
        return self._then(0.0, *self.rest[1:]) if word == self.rest[0] else self._waste()

    def _first(self, word: str) -> float:
        return self._then(SURE, ",") if word == POLITE else self._start(word)

    def _start(self, word: str) -> float:
        self.animal, self.idle = self.question.animal, False
        if word in _RUDE_REST:
            return self._then(RUDENESS, *_RUDE_REST[word])
        if word in ("the", "it"):
            self.next = self._animal if word == "the" else self._verb
            return 0.0 if self.missing else self._astray()
        # a filler between sentences leaves the next one whole, any other word begins a fragment
        return self._then(WASTE) if word in _BETWEEN else self._waste()

    def _animal(self, word: str) -> float:
        if word not in FACTS:
            return self._waste()
        self.next, self.animal = self._verb, word
        return 0.0 if word == self.question.animal else self._astray()

    def _verb(self, word: str) -> float:
        if word not in _ATTRIBUTE_OF:
            return self._waste()
        self.next, self.attribute = self._value, _ATTRIBUTE_OF[word]
        return 0.0 if self.attribute in self.missing else self._astray()

    def _value(self, word: str) -> float:
        if word not in VALUES[self.attribute]:
            return self._waste()
        if not self.idle:
            self.missing.discard(self.attribute)
        right = 0.0 if self.idle else RIGHT
        return self._then(right if word == FACTS[self.animal][self.attribute] else WRONG, ".")
