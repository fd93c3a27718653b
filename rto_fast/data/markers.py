"""Texts that come with a chat template's marks in them already, and what is said about them."""

from rto_fast.data.encode import EncodingReport
from rto_fast.data.template import Template


def marked(field: str, report: EncodingReport, template: Template, *, refuse: bool = True) -> str:
    """What to say loudly of a source whose texts hold chat marks or special tokens, "" where none does.

    field  what the source is called

    Raises ValueError when more than half of the prompts are templated already, and would be once more (with `refuse`).
    """
    rows, templated = len(report.kept), sum(report.marks.values())
    if templated:
        said = (
            f"{field}: {templated} of {rows} prompts hold {next(iter(report.marks))!r} already, and template "
            f"{template.style!r} is put around them once more; give messages or bare questions, or take the texts as "
            "they stand with --data.template none --data.parse-special True, for data that you trust"
        )
        if refuse and templated > rows / 2:
            raise ValueError(said)
        return said
    if report.literal_specials and not template.parse_special:
        return (
            f"{field}: {report.literal_specials} of {rows} rows spell out special tokens, which are read as text; "
            "--data.parse-special True reads them as tokens, for data that you trust"
        )
    return ""
