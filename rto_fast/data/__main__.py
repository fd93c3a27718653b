"""`python -m rto_fast.data --path ... --model.path ...`: what a model would be trained on, token by token.

Prints the form of the data, a few rows with their weights (0: prompt, not trained; 1: trained), the lengths, and what
was cut and dropped. Nothing is written. A mistake is one line on stderr and exit code 2.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import tyro

from rto_fast import cli
from rto_fast.data.dropped import dropped, loss
from rto_fast.data.encode import ENCODE, EncodingReport, Limits
from rto_fast.data.markers import marked
from rto_fast.data.read import read_rows
from rto_fast.data.rows import NORMALISE, Normalised, detect_kind
from rto_fast.data.show import TokenPrinter, table
from rto_fast.data.template import Template
from rto_fast.data.tokenizer import load_tokenizer


def as_in_train(name: str) -> Any:
    """A flag that may be written as in python -m rto_fast.train, which errors and warnings name."""
    return tyro.conf.arg(aliases=(f"--data.{name}",))


@dataclass(frozen=True)
class ModelPath:
    path: str
    """Folder or hub id of the model; a folder with tokenizer files alone will do."""


@dataclass(frozen=True)
class Inspect:
    """Show what a model would be trained on, token by token, and what would be cut and dropped."""

    path: str
    """.jsonl, .json, .csv, .tsv (also .gz), .parquet, a directory of those, or a hub id such as Anthropic/hh-rlhf."""
    model: ModelPath
    subset: str | None = None
    """Folder inside the directory, or configuration (else data_dir) of the hub's data set."""
    split: str | None = None
    """Default: train."""
    kind: Literal["auto", "pairs", "demonstrations", "prompts"] = "auto"
    """How to read the rows: preference pairs (DPO), demonstrations (SFT), prompts (RTO). auto: by the columns."""
    columns: Annotated[dict[str, str], as_in_train("columns")] = field(default_factory=dict)
    """Other names of columns, as the name wanted and yours: --columns prompt=question chosen=better."""
    template: Annotated[Literal["auto", "chat", "plain", "none"], as_in_train("template")] = "auto"
    """chat: the tokenizer's own; plain: Human/Assistant; none: the bare texts; auto: chat where there is one."""
    parse_special: Annotated[bool, tyro.conf.FlagConversionOff, as_in_train("parse-special")] = False
    """Special tokens that texts spell out are special tokens, not their characters. Only for data that you trust."""
    max_prompt: Annotated[int | None, as_in_train("max-prompt")] = None
    """A longer prompt loses tokens at its left end. Default: half of max_length."""
    max_length: Annotated[int | None, as_in_train("max-length")] = None
    """A row is dropped when prompt + response are longer. Default: the model's context, else 2048."""
    rows: int = 3
    """How many rows to print."""
    limit: int | None = None
    """Read only so many rows."""
    whole: bool = False
    """Print every token of a long row instead of its two ends."""
    ids: bool = False
    """Print the id behind every token."""


def show(args: Sequence[str]) -> None:
    for line in inspect(cli.parse(Inspect, args, "python -m rto_fast.data")):
        print(line)


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 bad input."""
    return cli.run(show, args, "Nothing was changed.", viewer=True)


def inspect(options: Inspect) -> Iterator[str]:
    """The lines of the report."""
    if options.rows < 0:
        raise ValueError(f"rows: must be 0 or more, got {options.rows}")
    raw = read_rows(options.path, subset=options.subset, split=options.split, limit=options.limit)
    kind = detect_kind(raw[0], options.columns) if options.kind == "auto" else options.kind
    rows = NORMALISE[kind](raw, columns=options.columns)
    tokenizer = load_tokenizer(options.model.path)
    template = Template(tokenizer, options.template, options.parse_special)
    context = _context(options.model.path)
    max_length = (context or 2048) if options.max_length is None else options.max_length
    max_prompt = max(1, max_length // 2) if options.max_prompt is None else options.max_prompt
    limits = Limits(max_length=max_length, max_prompt=max_prompt)
    items, report = ENCODE[kind](rows.items, template, **limits)

    bos = "none" if template.bos_id is None else f"{tokenizer.bos_token} ({template.bos_id})"
    eos = f"{tokenizer.convert_ids_to_tokens(template.eos_id)} ({template.eos_id})"
    yield f"data      {options.path}: {len(raw)} rows, read as {kind}"
    yield f"form      {rows.form}"
    about = f"{len(tokenizer)} tokens, BOS {bos}, EOS {eos}, context {context or 'unknown'}"
    yield f"model     {options.model.path}: {about}"
    yield f"template  {template.style}" + (" (chosen by auto)" if options.template == "auto" else "")
    yield f"limits    max_length {max_length}, max_prompt {max_prompt}"
    if context and max_length > context:
        yield f"warning   max_length {max_length} is more than the model's context of {context} tokens"
    yield ""
    yield from _examples(options, template, items, rows, report.kept)
    yield from table(report.lengths)
    yield ""
    yield from _summary(raw, rows, report, template, items)
    if said := loss("data.path", rows, report, limits, allowed=True):
        yield f"WARNING   {said}"
    if said := marked("data.path", report, template, refuse=False):
        yield f"WARNING   {said}"


def _examples(
    options: Inspect, template: Template, items: list[Any], rows: Normalised[Any], kept: list[int]
) -> Iterator[str]:
    unicode = (getattr(sys.stdout, "encoding", None) or "ascii").lower().startswith("utf")
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    printer = TokenPrinter(
        template.tokenizer, template.eos_id, colour=colour, ids=options.ids, whole=options.whole, unicode=unicode
    )
    for item, i in zip(items[: options.rows], kept, strict=False):
        yield f"row {rows.rows[i] + 1}"
        whole = len(template.prompt(rows.items[i].prompt))
        for name, tokens in _lists(item).items():
            weight = int(name != "prompt")
            cut = f", cut at the left from {whole}" if weight == 0 and len(tokens) < whole else ""
            yield f"  {name}: {len(tokens)} tokens of weight {weight}{cut}"
            yield from printer.lines(tokens, weight, first=name == "prompt")
        yield ""


def _summary(
    raw: list[Any], rows: Normalised[Any], report: EncodingReport, template: Template, items: list[Any]
) -> Iterator[str]:
    tokenizer = template.tokenizer
    yield f"kept {len(report.kept)} of {len(raw)} rows"
    for reason, n in dropped(rows, report).most_common():
        hint = ": raise --max-length, or lower --max-prompt" if reason == "response does not fit" else ""
        yield f"  dropped {n}: {reason}{hint}"
    if report.truncated_prompts:
        yield f"  prompts cut at the left: {report.truncated_prompts}"
    if report.literal_specials:
        how = "parsed" if template.parse_special else "encoded as plain text"
        yield f"  rows that spell out a special token, {how}: {report.literal_specials}"
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown not in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        lists = [tokens for item in items for tokens in _lists(item).values()]
        if found := sum(x.count(unknown) for x in lists):
            share = 100 * found / sum(map(len, lists))
            yield f"  unknown to the tokenizer ({tokenizer.unk_token}): {share:.2g} % of the tokens"


def _lists(item: Any) -> dict[str, list[int]]:
    """An encoded row's token ids by name."""
    return {"prompt": item} if isinstance(item, list) else asdict(item)


def _context(path: str) -> int | None:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(os.path.expanduser(path), trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        # a folder with nothing but a tokenizer
        return None
    return getattr(config, "max_position_embeddings", None)


if __name__ == "__main__":
    sys.exit(main())
