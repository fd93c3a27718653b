"""Everything a run learns from and is measured on, as token ids: pairs, demonstrations, prompts, held-out prompts."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

from transformers import PreTrainedTokenizerBase

from rto_fast.config import DataConfig
from rto_fast.data.encode import (
    EncodedDemonstration,
    EncodedPair,
    EncodingReport,
    encode_demonstrations,
    encode_pairs,
    encode_prompts,
    split,
)
from rto_fast.data.read import read_rows
from rto_fast.data.rows import Normalised, to_demonstrations, to_pairs, to_prompts
from rto_fast.data.template import Template


@dataclass(frozen=True)
class Corpus:
    pairs: list[EncodedPair]
    demonstrations: list[EncodedDemonstration]
    prompts: list[list[int]]
    """Distinct prompts, of the pairs or of data.prompts, to roll out from."""
    held_out: list[EncodedPair]
    """Pairs that no stage trains on."""
    evaluation: list[list[int]]
    """Distinct prompts that no stage trains on."""
    eos_token_ids: tuple[int, ...]
    """What ends an answer."""
    sentence_end_ids: frozenset[int]
    """Tokens that end a sentence, for Semi-RTO."""
    references: dict[tuple[int, ...], str]
    """A prompt's known right answer, where data.prompts has a column `reference`; rules compare with it."""
    notes: list[str]
    """What was read and dropped, for people."""

    def examples(self, count: int) -> list[tuple[list[int], list[int]]]:
        """A few (prompt, response) of what is trained on."""
        both = [(p.prompt, response) for p in self.pairs[:count] for response in (p.chosen, p.rejected)]
        return both or [(d.prompt, d.response) for d in self.demonstrations[:count]]

    @property
    def largest_id(self) -> int:
        """The largest token id that a model will be given."""
        pairs = ((p.prompt, p.chosen, p.rejected) for p in (*self.pairs, *self.held_out))
        told = ((d.prompt, d.response) for d in self.demonstrations)
        return max(map(max, chain(*pairs, *told, self.prompts, self.evaluation, [self.eos_token_ids])))


def load_corpus(config: DataConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> Corpus:
    """Read, normalise, split by prompt and encode. Raises ValueError, naming the field, when nothing usable is left."""
    if not (config.path or config.prompts):
        raise ValueError("data.path: no preference pairs given; use --data.path with a file, a directory or a hub id")
    template = Template(tokenizer, config.template)
    limits = {"max_length": config.max_length, "max_prompt": config.max_prompt}
    columns = {name: actual for name, actual in config.columns.items() if name != "reference"}
    notes: list[str] = []
    pairs: list[EncodedPair] = []
    kept_out: list = []
    if config.path:
        rows = read_rows(config.path, subset=config.subset, split=config.split, limit=config.max_rows)
        source = to_pairs(rows, columns=columns)
        trained_on, kept_out = split(source.items, config.held_out, seed)
        pairs, report = encode_pairs(trained_on, template, **limits)
        notes.append(_note("pairs", source, report))
    held_out = encode_pairs(kept_out, template, **limits)[0] if kept_out else []
    prompts, references = _distinct([p.prompt for p in pairs]), {}
    if config.prompts:
        # of a hub dataset the same subset and split as of the pairs, or without pairs its own
        rows = read_rows(
            config.prompts, subset=config.subset, split=config.split, limit=config.max_rows, field="data.prompts"
        )
        asked = to_prompts(rows, columns=columns)
        # with pairs, those are what is held out
        trained_on, others = split(asked.items, 0 if config.path else config.held_out, seed)
        kept_out = kept_out or others
        encoded, report = encode_prompts(trained_on, template, **limits)
        prompts = _distinct(encoded)
        notes.append(_note("prompts", asked, report))
        references = _references(rows, asked, template, limits, config.columns.get("reference"))
    if config.demonstrations:
        told = to_demonstrations(read_rows(config.demonstrations, field="data.demonstrations"), columns=columns)
        demonstrations, report = encode_demonstrations(told.items, template, **limits)
        notes.append(_note("demonstrations", told, report))
    else:
        demonstrations = [EncodedDemonstration(p.prompt, p.chosen) for p in pairs]
    evaluation = kept_out
    if config.evaluation:
        rows = read_rows(config.evaluation, field="data.evaluation")
        asked = to_prompts(rows, columns=columns)
        evaluation = asked.items
        references |= _references(rows, asked, template, limits, config.columns.get("reference"))
    asked_of = _distinct(encode_prompts(evaluation, template, **limits)[0]) if evaluation else []
    notes.append(f"{len(prompts)} distinct prompts to roll out from, {len(asked_of)} held out for evaluation")
    eos = tuple(dict.fromkeys([template.eos_id, tokenizer.eos_token_id]))
    return Corpus(pairs, demonstrations, prompts, held_out, asked_of, eos, _sentence_ends(tokenizer), references, notes)


def _references(
    rows: list[dict], asked: Normalised, template: Template, limits: dict[str, int], column: str | None
) -> dict[tuple[int, ...], str]:
    """The first reference of every prompt that has one, by the prompt's tokens."""
    name = column or "reference"
    if not any(name in row for row in rows[:1]):
        if column is not None:
            raise ValueError(f"data.columns: 'reference' is to be {column!r}, which row 1 of the prompts does not have")
        return {}
    encoded, report = encode_prompts(asked.items, template, **limits)
    answers: dict[tuple[int, ...], str] = {}
    for prompt, kept in zip(encoded, report.kept, strict=True):
        if (answer := rows[asked.rows[kept]].get(name)) is not None:
            answers.setdefault(tuple(prompt), str(answer))
    return answers


def _distinct(prompts: list[list[int]]) -> list[list[int]]:
    return [list(p) for p in dict.fromkeys(map(tuple, prompts))]


def _note(what: str, source: Normalised, report: EncodingReport) -> str:
    dropped = {**source.dropped}
    for reason, count in report.dropped.items():
        dropped[reason] = dropped.get(reason, 0) + count
    lost = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "none"
    cut = f"; {report.truncated_prompts} prompts cut at the left" if report.truncated_prompts else ""
    return f"{what}: {len(report.kept)} used ({source.form}); dropped: {lost}{cut}"


def _sentence_ends(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens whose text ends a sentence: . ! ? or a line break."""
    texts: Callable[[int], str] = lambda i: tokenizer.decode([i]).rstrip(" ")  # noqa: E731
    return frozenset(i for i in range(len(tokenizer)) if texts(i).endswith((".", "!", "?", "\n")))
