"""The settings of the language-model judge."""

import math
from dataclasses import dataclass
from typing import Literal

from rto_fast.config.checks import check


@dataclass(frozen=True)
class LLMOptions:
    """The judge of --judge llm: any endpoint that speaks OpenAI's chat completions. Its key: OPENAI_API_KEY."""

    prompt: Literal["helpful", "tldr"] = "helpful"
    """helpful: which response is more helpful (RTO, Table 6). tldr: which summary is better (From r to Q*, app. H)."""
    url: str | None = None
    """Address, e.g. http://localhost:8000/v1; none = OPENAI_BASE_URL, else OpenAI's."""
    model: str | None = None
    """Name of the judge there; none = RTO_FAST_JUDGE_MODEL. (RTO: gpt-4-0613.)"""
    temperature: float | None = 0.0
    """None leaves it to the server."""
    max_tokens: int | None = 256
    """Longest reply; None leaves it to the server. Judges that reason first need thousands."""
    concurrency: int = 8
    """Questions asked at once."""
    retries: int = 5
    """Further attempts at a question, with growing pauses, when the server is busy, broken or silent."""
    timeout: float = 60.0
    """Seconds that one attempt may take, to the last byte of the reply."""
    cache: str | None = None
    """Where replies are kept (SQLite); none = judge.sqlite in the output folder. What it knows is not asked again."""

    def __post_init__(self) -> None:
        check(self.concurrency >= 1, "llm.concurrency", "at least 1", self.concurrency)
        check(self.retries >= 0, "llm.retries", "at least 0", self.retries)
        check(0 < self.timeout < math.inf, "llm.timeout", "positive seconds", self.timeout)
        check(self.max_tokens is None or self.max_tokens >= 1, "llm.max_tokens", "at least 1, or None", self.max_tokens)
