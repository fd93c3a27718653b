"""Law: what is held out is in nothing that is trained on, nothing else is lost, and the notes count it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import pytest

from rto_fast.config import DataConfig
from rto_fast.data import corpus
from rto_fast.data.parse import Message
from rto_fast.data.rows import to_pairs, to_prompts
from rto_fast.data.template import Template
from tests.data.tokenizers import byte_level

SEEDS = 2000
TOKENIZER = byte_level()
TEMPLATES = {style: Template(TOKENIZER, style) for style in ("plain", "none")}
WORDS = ["a", "be", "sea"]


@dataclass
class Trial:
    """Random rows under random limits. `files` is what the paths of `config` would hold."""

    seed: int
    files: dict[str, list[dict]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.style = self.random.choice(["plain", "none"])
        self.max_prompt = self.random.choice([3, 8, 30, 64])
        given = self.random.choice(["pairs", "prompts", "both"])
        names = ["demonstrations"] * self.random.randrange(2) + ["evaluation"] * self.random.randrange(2)
        names += ["path"] * (given != "prompts") + ["prompts"] * (given != "pairs")
        for name in names:
            rows = [self.row(name, i) for i in range(self.random.randint(2, 14))]
            self.files[f"{name}.jsonl"] = rows
        paths = {name: f"{name}.jsonl" for name in names}
        self.config = DataConfig(
            **{"path": "", **paths},
            template=self.style,
            max_prompt=self.max_prompt,
            max_length=300,
            held_out=self.random.choice([0, 1, 1, 3]),
        )

    def row(self, name: str, number: int) -> dict:
        """A prompt of few words, so that sources share prompts: equal, by whitespace, or by their ends alone."""
        text = " ".join(self.random.choices(WORDS, k=self.random.randint(1, 4)))
        text = self.random.choice([text, text, text.replace(" ", "  "), f"{text} ", f"{text}\n"])
        asked = self.random.choice([text, [{"role": "user", "content": text}]])
        answers = {"path": ("chosen", "rejected"), "demonstrations": ("completion",)}.get(name, ())
        return {"prompt": asked} | {answer: f"{name} {number} {answer}" for answer in answers}

    def same(self, one: tuple[Message, ...], other: tuple[Message, ...]) -> bool:
        """By the definition: words, or the token ids that are left of the prompt."""
        return self.words(one) == self.words(other) or self.ids(one) == self.ids(other)

    def words(self, prompt: tuple[Message, ...]) -> list:
        return [(m.role, m.content.split()) for m in prompt]

    def ids(self, prompt: tuple[Message, ...]) -> list[int]:
        ids = TEMPLATES[self.style].prompt(prompt)
        return ids if len(ids) <= self.max_prompt else [ids[0], *ids[len(ids) - self.max_prompt + 1 :]]

    def parsed(self, name: str) -> list:
        rows = self.files.get(f"{name}.jsonl", [])
        return (to_pairs if name == "path" else to_prompts)(rows).items if rows else []

    def out(self) -> list:
        """What is held out, by another path than the product's: split, then the evaluation's own."""
        source = self.parsed("path") or self.parsed("prompts")
        kept = corpus.split(source, self.config.held_out, self.seed)[1]
        return [*kept, *self.parsed("evaluation")]


def prompts_of(items: Sequence) -> set[tuple[int, ...]]:
    return {tuple(getattr(item, "prompt", item)) for item in items}


@pytest.fixture(autouse=True)
def rows_in_memory(monkeypatch):
    files: dict[str, list[dict]] = {}
    monkeypatch.setattr(corpus, "read_rows", lambda path, **_: files[path])
    monkeypatch.setattr(corpus, "Template", lambda tokenizer, style, *_: TEMPLATES[style])
    monkeypatch.setattr(corpus, "_sentence_ends", lambda tokenizer: frozenset())
    return files


def test_what_is_held_out_is_in_no_source_and_nothing_else_is_lost(rows_in_memory):
    tried = leaks = emptied = 0
    for seed in range(SEEDS):
        trial = Trial(seed)
        rows_in_memory.clear()
        rows_in_memory.update(trial.files)
        try:
            out = trial.out()
        except ValueError:  # too few prompts to hold any out
            continue
        tried += 1
        rest = {
            name: [row for row in trial.parsed(name) if not any(trial.same(row.prompt, o.prompt) for o in out)]
            for name in ("path", "prompts", "demonstrations")
        }
        gone = {name: len(trial.parsed(name)) - len(rows) for name, rows in rest.items()}
        try:
            found = corpus.load_corpus(trial.config, TOKENIZER, seed)
        except ValueError as error:
            name = next(name for name in rest if str(error).startswith(f"data.{name}: none of the"))
            assert not rest[name] and "prompt is held out for evaluation; give rows with other prompts" in str(error)
            emptied += 1
            continue
        out_ids = prompts_of(found.evaluation) | prompts_of(found.held_out)
        for trained in (found.pairs, found.prompts, found.demonstrations):
            assert prompts_of(trained).isdisjoint(out_ids), seed
        wanted = [trial.ids(row.prompt) for row in rest["path"]]
        assert [p.prompt for p in found.pairs] == wanted, seed
        told = [trial.ids(row.prompt) for row in rest["demonstrations"]]
        assert [d.prompt for d in found.demonstrations] == (told if trial.parsed("demonstrations") else wanted), seed
        asked = [trial.ids(row.prompt) for row in rest["prompts"]] if trial.parsed("prompts") else wanted
        assert found.prompts == [list(p) for p in dict.fromkeys(map(tuple, asked))], seed
        # what `split` itself took from a source is not in its rows any more
        split_off = "path" if trial.parsed("path") else "prompts"
        gone[split_off] -= len(out) - len(trial.parsed("evaluation"))
        for name, count in gone.items():
            note = next((n for n in found.notes if n.startswith(("pairs" if name == "path" else name) + ":")), "")
            assert (f"; removed: {count} whose prompt is held out for evaluation" in note) == (count > 0), (seed, note)
            leaks += count > 0
    assert tried > 1500 and leaks > 500 and emptied > 50, (tried, leaks, emptied)
