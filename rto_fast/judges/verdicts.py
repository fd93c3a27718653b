"""The process that judges texts for rules.py: one JSON line in, one JSON line out.

It is run as a script in a process of its own, because what it does cannot be bounded from within: math-verify times
itself by signals, which reach the main thread alone and never interrupt one huge power of integers, and a regular
expression may backtrack for years. Whoever asks ends it when it takes too long (child.py).
"""

import json
import re
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

INNER_LIMIT_S = 3
"""math-verify's own time-out of each step; what it can interrupt costs no new process."""
MEMORY_BYTES = 8 << 30
CALCULATION = re.compile(r"<<[^<>\n]*>>")
MARKED = re.compile(r"####[ \t]*([^\n]*)(\n|\Z)")

Judge = Callable[[dict[str, Any]], bool | None]


def regex_judge(pattern: str) -> Judge:
    compiled = re.compile(pattern)
    return lambda item: compiled.search(item["response"]) is not None


def math_judge() -> Judge:
    """True where the final number is the right one; None where the right one cannot be read."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    forms = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]

    def read(text: str) -> list[Any]:
        return parse(text, forms, parsing_timeout=INNER_LIMIT_S)

    @lru_cache(maxsize=4096)
    def gold_of(reference: str) -> list[Any]:
        return read(final_part(reference, finished=True))

    def judge(item: dict[str, Any]) -> bool | None:
        gold = gold_of(item["reference"])
        if not gold:
            return None
        part = final_part(item["response"], finished=item["finished"])
        return bool(part) and bool(verify(gold, read(part), timeout_seconds=INNER_LIMIT_S))

    return judge


def final_part(text: str, *, finished: bool) -> str:
    r"""The part of a solution that holds its final number; empty where there is none.

    Behind the last "####" where there is one (GSM8K), else the whole text, of which math-verify takes \boxed{...}, "the
    answer is ..." or the last number. An answer that was cut off ends in no final number, unless it is marked by a
    whole line "#### 42" or a closed \boxed{42}. GSM8K's <<16-3=13>> is a note to a calculator, not part of the text.
    """
    text = CALCULATION.sub("", text)
    if marks := MARKED.findall(text):
        part, end = marks[-1]
        return part.strip() if finished or end else ""
    boxed = text.rfind("\\boxed")
    closed = boxed >= 0 and "}" in text[boxed:] and text.count("{", boxed) <= text.count("}", boxed)
    return text if finished or closed else ""


def _bound(kind: str, amount: int) -> None:
    """Most that this process may use of a resource."""
    if sys.platform == "linux":
        import resource

        limit = getattr(resource, kind)
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (amount if hard == resource.RLIM_INFINITY else min(amount, hard), hard))


def main(kind: str, limit_s: str, *options: str) -> None:
    _bound("RLIMIT_AS", MEMORY_BYTES)
    answers = sys.stdout
    try:
        judge = math_judge() if kind == "math" else regex_judge(*options)
    except ImportError as error:
        print(json.dumps({"error": str(error)}), file=answers, flush=True)
        return
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        # it ends by itself should it be orphaned in the middle of an answer
        _bound("RLIMIT_CPU", int(time.process_time() + float(limit_s)) + 2)
        print(json.dumps(judge(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
