"""Everything a run learns from and is measured on, as token ids: pairs, demonstrations, prompts, held-out prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from rto_fast.config import DataConfig
from rto_fast.data.digest import RowDigests
from rto_fast.data.dropped import dropped, loss
from rto_fast.data.encode import ENCODE, Encoded, EncodedDemonstration, EncodedPair, EncodingReport, Limits
from rto_fast.data.held_out import HeldOut, split
from rto_fast.data.markers import marked
from rto_fast.data.parse import Message
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
    conversations: dict[tuple[int, ...], tuple[Message, ...]]
    """The turns of every prompt by its tokens; none with template none, whose prompts are no conversations."""
    notes: list[str]
    """What was read and dropped, for people."""
    warnings: list[str]
    """What of that should be looked at."""
    digests: dict[str, dict[str, str]]
    """By field and file: the digest of the rows that were read."""

    def examples(self, count: int) -> list[tuple[list[int], list[int]]]:
        """A few (prompt, response) of what is trained on."""
        both = [(p.prompt, response) for p in self.pairs[:count] for response in (p.chosen, p.rejected)]
        return both or [(d.prompt, d.response) for d in self.demonstrations[:count]]

    @property
    def largest_id(self) -> int:
        """The largest token id that a model will be given."""
        pairs = ((p.prompt, p.chosen, p.rejected) for p in (*self.pairs, *self.held_out))
        shown = ((d.prompt, d.response) for d in self.demonstrations)
        return max(map(max, chain(*pairs, *shown, self.prompts, self.evaluation, [self.eos_token_ids])))


class _Source(NamedTuple):
    rows: list[dict[str, Any]]
    found: Normalised[Any]
    train: list[Any]
    """What of it is not held out."""
    digests: dict[str, str]
    """Of its rows, by file."""


def load_corpus(config: DataConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> Corpus:
    """Read, normalise, split by prompt and encode. Raises ValueError, naming the field, when nothing usable is left.

    Whatever is held out, be it split off from the pairs or the prompts or given as data.evaluation, is removed from
    every source (`data.held_out.HeldOut` says which prompts are the same); the notes count it.
    """
    template = template_of(config, tokenizer)
    limits = Limits(max_length=config.max_length, max_prompt=config.max_prompt)
    sources, kept_out = _read(config, seed, ("pairs", "prompts", "demonstrations", "evaluation"))
    evaluation = sources["evaluation"].found.items if config.evaluation else kept_out
    conversations: dict[tuple[int, ...], tuple[Message, ...]] = {}

    def known(kind: str, rows: list[Any], **options: object) -> Encoded[Any]:
        """Rows encoded, their conversations noted."""
        items, report = ENCODE[kind](rows, template, **limits, **options)
        if template.style != "none":
            for item, row in zip(items, report.kept, strict=True):
                conversations.setdefault(tuple(item if isinstance(item, list) else item.prompt), rows[row].prompt)
        return items, report

    asked = known("prompts", evaluation)[0] if evaluation else []
    kept = known("prompts", kept_out)[0] if kept_out and config.evaluation else []
    without = HeldOut([*evaluation, *kept_out], [*asked, *kept])
    notes: list[str] = []
    warnings: list[str] = []

    def encoded(what: str) -> list[Any]:
        if what not in sources:
            return []
        items, report = known(what, sources[what].train, without=without, field=_field(what))
        notes.append(_note(what, sources[what].found, report))
        lost = loss(_field(what), sources[what].found, report, limits, config.allow_dropped)
        warnings.extend(filter(None, [lost, marked(_field(what), report, template)]))
        return items

    pairs = encoded("pairs")
    held_out = known("pairs", kept_out)[0] if pairs and kept_out else []
    prompts = _distinct(encoded("prompts") or [p.prompt for p in pairs])
    demonstrations = encoded("demonstrations") or [EncodedDemonstration(p.prompt, p.chosen) for p in pairs]
    references: dict[tuple[int, ...], str] = {}
    for what in ("prompts", "evaluation"):
        if what in sources:
            references |= _references(sources[what], template, limits, config.columns.get("reference"))
    evaluation = _distinct(asked)
    notes.append(f"{len(prompts)} distinct prompts to roll out from, {len(evaluation)} held out for evaluation")
    return Corpus(
        pairs=pairs,
        demonstrations=demonstrations,
        prompts=prompts,
        held_out=held_out,
        evaluation=evaluation,
        eos_token_ids=template.eos_token_ids,
        sentence_end_ids=_sentence_ends(tokenizer),
        references=references,
        conversations=conversations,
        notes=notes,
        warnings=warnings,
        digests={_field(what): source.digests for what, source in sources.items()},
    )


def template_of(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> Template:
    """How a run writes its texts."""
    return Template(tokenizer, config.template, config.parse_special)


def held_out_rows(config: DataConfig, seed: int) -> list[Any]:
    """What a run is evaluated on, in its order, as rows with a `prompt`; repeats are possible. No other source is read.

    Those of data.evaluation, else what is held out of the pairs, or without pairs of the prompts.
    """
    what = "evaluation" if config.evaluation else "pairs" if config.path else "prompts"
    sources, kept_out = _read(config, seed, (what,))
    return sources[what].found.items if config.evaluation else kept_out


def _field(what: str) -> str:
    """The setting that names a source."""
    return "data.path" if what == "pairs" else f"data.{what}"


def _read(config: DataConfig, seed: int, wanted: Sequence[str]) -> tuple[dict[str, _Source], list[Any]]:
    """The wanted sources that are given, by name, and what is split off from the pairs, or without any the prompts."""
    # of a hub dataset prompts have the same subset and split as the pairs, or without pairs their own
    where: dict[str, Any] = {"subset": config.subset, "split": config.split, "limit": config.max_rows}
    sources: dict[str, _Source] = {}
    kept_out: list[Any] = []
    for what, path, normalise, options in (
        ("pairs", config.path, to_pairs, where),
        ("prompts", config.prompts, to_prompts, where),
        ("demonstrations", config.demonstrations, to_demonstrations, {}),
        ("evaluation", config.evaluation, to_prompts, {}),
    ):
        if not path or what not in wanted:
            continue
        digests = RowDigests()
        rows = read_rows(path, **options, field=_field(what), digests=digests)
        found = normalise(rows, columns=config.columns)
        train = [] if what == "evaluation" else found.items
        if what == "pairs" or what == "prompts" and not config.path:
            train, kept_out = split(found.items, config.held_out, seed)
        sources[what] = _Source(rows, found, train, digests.stated())
    return sources, kept_out


def _references(source: _Source, template: Template, limits: Limits, column: str | None) -> dict[tuple[int, ...], str]:
    """The first reference of every prompt that has one, by the prompt's tokens."""
    name, rows, asked = column or "reference", source.rows, source.found
    if not any(name in row for row in rows[:1]):
        if column is not None:
            raise ValueError(f"data.columns: reference={column}, but row 1 of the prompts has no column {column!r}")
        return {}
    encoded, report = ENCODE["prompts"](asked.items, template, **limits)
    answers: dict[tuple[int, ...], str] = {}
    for prompt, kept in zip(encoded, report.kept, strict=True):
        if (answer := rows[asked.rows[kept]].get(name)) is not None:
            answers.setdefault(tuple(prompt), str(answer))
    return answers


def _distinct(prompts: list[list[int]]) -> list[list[int]]:
    return [list(p) for p in dict.fromkeys(map(tuple, prompts))]


def _note(what: str, source: Normalised[Any], report: EncodingReport) -> str:
    lost = ", ".join(f"{count} {reason}" for reason, count in dropped(source, report).items()) or "none"
    removed = report.dropped.get(HeldOut.REASON, 0)
    cut = f"; {report.truncated_prompts} prompts cut at the left" if report.truncated_prompts else ""
    kept_out = f"; removed: {removed} whose {HeldOut.REASON}" if removed else ""
    return f"{what}: {len(report.kept)} used ({source.form}); dropped: {lost}{kept_out}{cut}"


def _sentence_ends(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens whose text ends a sentence: . ! ? or a line break."""
    texts = (str(tokenizer.decode([i])).rstrip(" ") for i in range(len(tokenizer)))
    return frozenset(i for i, text in enumerate(texts) if text.endswith((".", "!", "?", "\n")))
