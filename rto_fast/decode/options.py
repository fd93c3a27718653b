"""The flags of `python -m rto_fast.decode`."""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

from rto_fast.runs.settings import check_run

Search = Literal["likelihood", "implicit_reward"]


@dataclass(frozen=True)
class Options:
    """Search, re-rank and realign with a DPO model's implicit reward, and measure what each gains over sampling.

    Three tables, written to decode.json too: beam search per number of beams, best of n, and realignment
    pi ~ pi_base (pi_dpo / pi_ref)^b ("From r to Q*", arXiv:2404.12358, sections 5.2 and 5.3). Every answer is judged by
    the oracle in a quickstart run, else by the implicit reward beta log(pi_dpo / pi_ref) itself, which shows how far
    the search gets, not whether the answers are good.
    """

    run: str | None = None
    """Folder of a finished run: its dpo and sft models, its evaluation prompts, its sampling. Flags override."""
    dpo: str | None = None
    """DPO model: a folder, a hub id or a stage of the run. It is searched, it re-ranks, it is realignment's proxy."""
    reference: str | None = None
    """Its reference pi_ref, mostly the SFT model. Also the base that realignment starts from."""
    policy: str | None = None
    """One more model, such as the run's stage rto: best of n samples from it, realignment starts from it."""
    prompts: str | None = None
    """Rows with a prompt (or preference pairs): .jsonl, .json, .parquet, a directory or a hub id."""
    num_prompts: int | None = None
    """Take the first so many prompts. Default: the run's eval.prompts, else all."""
    beams: tuple[int, ...] = (1, 2, 5, 7, 20)
    """Beam widths (the paper's, with 7 from its appendix E). None given: no beam search."""
    search: tuple[Search, ...] = ("likelihood",)
    """What beams maximise: log pi_dpo (the paper's eq. 13), or log pi_dpo - log pi_ref, which leaves what either model
    would say. Both may be named."""
    length_penalty: float = 0.0
    """Beams compete by sum / length^this. 0: eq. 13; 1: the mean per token, transformers' default."""
    best_of: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of samples that the implicit reward, and log pi_dpo, choose from. None given: no best of n."""
    strengths: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)
    """Powers b of realignment. None given: no realignment."""
    beta: float | None = None
    """DPO's beta, the scale of the implicit reward. Default: the run's, else 0.1."""
    temperature: float | None = None
    """Of sampling. Default: the run's eval.temperature, else 1."""
    top_p: float | None = None
    """Nucleus of sampling. Default: the run's eval.top_p, else 1."""
    max_new_tokens: int | None = None
    """Longest answer. Default: the run's, else 128."""
    max_prompt: int | None = None
    """A longer prompt loses tokens at its left end. Default: the run's data.max_prompt, else 256."""
    template: Literal["auto", "chat", "plain", "none"] | None = None
    """How a prompt becomes text. Default: the run's, else auto: the chat template where there is one."""
    max_batch: int = 256
    """Rows decoded at once; a prompt takes as many rows as it has beams."""
    samples: int = 3
    """Prompts whose answers are kept as text in decode.json, for every row."""
    seed: int | None = None
    """Of sampling. Default: the run's, which gives its own evaluation's answers; else 0."""
    device: str = "auto"
    """auto: CUDA where there is one."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model. Only for models you have read."""
    output: str | None = None
    """Where to write the figures. Default: decode.json in the run's folder, else here."""

    def __post_init__(self) -> None:
        if self.run is not None:
            check_run(Path(self.run).expanduser())
        elif missing := [f"--{name}" for name in ("dpo", "reference", "prompts") if getattr(self, name) is None]:
            raise ValueError(f"run: give --run with a finished run's folder, or {', '.join(missing)} as well")
        for name in ("beams", "best_of"):
            if any(n < 1 for n in getattr(self, name)):
                raise ValueError(f"{name}: must be whole numbers from 1 on, got {getattr(self, name)}")
        if not -10 <= self.length_penalty <= 10:
            raise ValueError(f"length_penalty: must be between -10 and 10, got {self.length_penalty}")
        if not all(isfinite(b) for b in self.strengths):
            raise ValueError(f"strengths: must be finite, got {self.strengths}")
        least = {"num_prompts": 2, "max_prompt": 1, "max_new_tokens": 1, "max_batch": 1, "samples": 0}
        for name, value in least.items():
            if (given := getattr(self, name)) is not None and given < value:
                raise ValueError(f"{name}: must be {value} or more, got {given}")
        if not (self.beams and self.search) and not self.best_of and not self.strengths:
            raise ValueError("beams: nothing to do; name beams, best_of or strengths")
