"""The command line of `python -m rto_fast.evaluate`."""

import math
from dataclasses import dataclass, field
from typing import Literal

import tyro

from rto_fast.judges.llm.options import LLMOptions


@dataclass(frozen=True)
class Options:
    """Measure any set of policies on the same held-out prompts: who wins, by how much, at equal length, how far from
    the reference, how varied.

    python -m rto_fast.evaluate --run runs/quickstart

    python -m rto_fast.evaluate sft=runs/a/sft rto=runs/a/rto --reference runs/a/sft --prompts test.jsonl
    --judge reward-model --reward-model runs/a/rm
    """

    policies: tyro.conf.Positional[tuple[str, ...]] = ()
    """NAME=PATH of each policy: a Hugging Face folder or hub id. They share one tokenizer."""
    run: str | None = None
    """A run's folder: all its finished policies, its held-out prompts, its sft as reference and its dpo as reward."""
    judge: Literal["auto", "oracle", "reward-model", "implicit", "llm"] = "auto"
    """oracle: the quickstart's closed form. reward-model: --reward-model. implicit: beta log pi_dpo/pi_ref, as in the
    paper's appendix D.3. llm: a language model asked which answer is better. auto: the first of these that is there."""
    reference: str | None = None
    """pi_ref of the KL and of the implicit reward."""
    dpo: str | None = None
    """pi_dpo of the implicit reward."""
    beta: float | None = None
    """DPO's beta; none = the run's, else 0.1."""
    reward_model: str | None = None
    """A model with a scalar head; it may have a tokenizer of its own."""
    prompts: str | None = None
    """Rows with a prompt: .jsonl(.gz), .json, .parquet, a directory, a hub id. With --run: instead of its own."""
    subset: str | None = None
    """Subset of a hub data set."""
    split: str = "test"
    """Split of a hub data set or directory."""
    columns: dict[str, str] = field(default_factory=dict)
    """Other column names, as wanted name and yours."""
    template: Literal["auto", "chat", "plain", "none"] | None = None
    """How a conversation becomes text; none = the run's, else auto."""
    num_prompts: int | None = None
    """How many prompts; none = the paper's 400 (llm: 100), or as many as there are."""
    max_prompt: int | None = None
    """Longest prompt in tokens; longer ones lose their oldest. None = the run's, else 256."""
    max_new_tokens: int | None = None
    """Longest answer; none = the run's, else 256."""
    temperature: float = 0.9
    """Sampling temperature (paper: 0.9); 0 = greedy."""
    top_p: float = 0.99
    """Nucleus (paper: 0.99)."""
    seed: int = 0
    """Of the answers, and of the order in which the llm reads them."""
    output: str | None = None
    """For results.json, answers.jsonl, samples.md; none = evaluation/<judge> in the run's folder, or in runs/."""
    samples: int = 8
    """Prompts shown in samples.md."""
    batch_size: int = 64
    """Answers sampled at once."""
    microbatch_rows: int = 16384
    """Tokens scored at once."""
    workspace_mb: int | None = None
    """Memory of the vocabulary-sized operators; none = 64 on CPU, 2048 on CUDA."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """Of the arithmetic; none = the run's, else auto: float32, on CUDA bfloat16."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model. Only for models you have read."""
    llm: LLMOptions = field(default_factory=LLMOptions)

    def __post_init__(self) -> None:
        for name in ("num_prompts", "max_prompt", "max_new_tokens", "batch_size", "microbatch_rows", "workspace_mb"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: must be at least 1, got {value}")
        if self.samples < 0:
            raise ValueError(f"samples: must be 0 or more, got {self.samples}")
        if self.beta is not None and not (self.beta > 0 and math.isfinite(self.beta)):
            raise ValueError(f"beta: must be positive, got {self.beta}")
        if not self.policies and not self.run:
            raise ValueError("policies: give NAME=PATH of at least one, or --run with a run's folder")


def named(policies: tuple[str, ...]) -> dict[str, str]:
    """NAME=PATH arguments as a dict. ValueError for one without a name or a path, and for a name given twice."""
    out: dict[str, str] = {}
    for text in policies:
        name, _, path = text.partition("=")
        if not name.strip() or not path.strip():
            raise ValueError(f"policies: wanted NAME=PATH, got {text!r}")
        if name in out:
            raise ValueError(f"policies: {name!r} is given twice; name each policy differently")
        out[name] = path
    return out
