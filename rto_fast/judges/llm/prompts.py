"""What the judge is asked, word for word as in the papers, and how its verdict is read."""

import re
from collections.abc import Sequence

from rto_fast.data.parse import Message
from rto_fast.files.text import valid

HELPFUL = """\
For the following query to a chatbot, which response is more helpful?

Query: <the user query>

Response A: <either the test method or baseline>

Response B: <the other response>

FIRST, provide a one-sentence comparison of the two responses and explain which you feel is more helpful. SECOND, on a \
new line, state only "A" or "B" to indicate which response is more helpful. Your response should use the format:

Comparison: <one-sentence comparison and explanation>

More helpful: <"A" or "B">"""
"""Zhong et al. 2024 (RTO), Table 6; the prompt of Rafailov et al. 2023 for dialogues."""

TLDR = """\
Which of the following summaries does a better job of summarizing the most important points in the given forum post?

Post: <the user query>

Summary A: <either the test method or baseline>

Summary B: <the other response>

FIRST provide a one-sentence comparison of the two summaries, explaining which you prefer and why. SECOND, on a new \
line, state only "A" or "B" to indicate your choice. Your response should use the format:

Comparison: <one-sentence comparison and explanation>
Preferred: <"A" or "B">"""
"""Rafailov et al. 2024 (From r to Q*), appendix H: TL;DR summaries."""

PROMPTS = {"helpful": HELPFUL, "tldr": TLDR}

_PLACES = ("<the user query>", "<either the test method or baseline>", "<the other response>")
_LABELLED = re.compile(
    r"(?:more helpful|preferred)[*_\"']*[ \t]*:[^\w\n]*(?:response |summary )?([AB])[^\w\n]*$",
    re.IGNORECASE | re.MULTILINE,
)
_ALONE = re.compile(r"^[^\w\n]*(?:response |summary )?([AB])[^\w\n]*$", re.IGNORECASE | re.MULTILINE)


def ask_about(kind: str, query: str, first: str, second: str) -> str:
    """The whole prompt. The texts are pasted as they are: one that talks to the judge reaches it, as in the papers."""
    texts = dict(zip(_PLACES, (query, first, second), strict=True))
    # one pass, so that a text that spells out a place is not filled in its turn
    return re.sub("|".join(map(re.escape, _PLACES)), lambda found: valid(texts[found[0]]).strip(), PROMPTS[kind])


def query_text(messages: Sequence[Message]) -> str:
    """What the user asked: the text of a single turn, and the whole dialogue where there is more."""
    if len(messages) == 1:
        return messages[0].content
    names = {"user": "Human", "assistant": "Assistant"}
    return "\n\n".join(f"{names.get(m.role, m.role.capitalize())}: {m.content.strip()}" for m in messages)


def verdict(reply: str) -> str | None:
    """ "A" or "B", from a line 'More helpful: A' / 'Preferred: A', else from a line that holds nothing but the letter.

    None when there is no such line or two that disagree: a reply is never guessed at. What a reasoning model thought
    aloud inside <think> does not count.
    """
    said = reply.rpartition("</think>")[2].partition("<think>")[0]
    letters = {letter.upper() for letter in _LABELLED.findall(said) or _ALONE.findall(said)}
    return letters.pop() if len(letters) == 1 else None
