"""The flags of `python -m rto_fast.credit` and `python -m rto_fast.credit.likelihood`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Watch:
    """Show which tokens a DPO model credits and blames: beta log(pi_dpo/pi_ref) of every token of any pair.

    Give a run (--run runs/quickstart), or two models and a file (--dpo, --reference, --pairs). What DPO does to the
    likelihood of chosen and rejected answers: python -m rto_fast.credit.likelihood.
    """

    run: str | None = None
    """Folder of a finished run: its sft, dpo, data and beta."""
    dpo: str | None = None
    """DPO model: a Hugging Face folder or hub id."""
    reference: str | None = None
    """The model that DPO started from; it has the same tokenizer."""
    pairs: str | None = None
    """Preference pairs in any form that training reads. With columns chosen and corrupted (the chosen answer with some
    words replaced) the tokens that differ are known to be wrong. none = the run's pairs, those held out if any."""
    rows: tuple[int, ...] = (1, 2, 3)
    """Which pairs to show, by number from 1."""
    corrupted: int | None = None
    """Measure on so many corrupted answers. The quickstart makes its own (200) by swapping facts of right answers; for
    other texts give --pairs with a column corrupted (all rows). 0 = do not."""
    examples: int = 2
    """How many corrupted answers to show."""
    answers: int = 1000
    """Sampled answers on which the quickstart's oracle judges the token rewards; 0 = do not."""
    beta: float | None = None
    """Scale of the rewards. none = the run's dpo.beta, else 0.1."""
    template: Literal["auto", "chat", "plain", "none"] = "auto"
    """How a conversation becomes text, without a run."""
    seed: int | None = None
    """Chooses the corrupted answers. none = the run's seed, whose held-out questions they then ask."""
    device: str = "auto"
    """auto (cuda where there is one), cpu, cuda, cuda:1, ..."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model. Only for models you have read."""
    output: str | None = None
    """Folder for heatmaps.json, credit.html and credit.json. none = the run's folder, else ./credit."""

    def check(self) -> None:
        """ValueError, naming the flag, for what does not go together."""
        if self.run and (self.dpo or self.reference):
            raise ValueError("run: already names its models; give either --run, or --dpo and --reference")
        if not self.run and not (self.dpo and self.reference and self.pairs):
            raise ValueError(
                "run: nothing to look at; give --run with a run's folder, or --dpo, --reference and --pairs"
            )
        for name in ("corrupted", "answers", "examples"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name}: must be 0 or more, got {getattr(self, name)}")
        if self.answers == 1:
            raise ValueError("answers: an interval needs at least 2, got 1")
        if not all(n >= 1 for n in self.rows):
            raise ValueError(f"rows: pairs are numbered from 1, got {min(self.rows)}")


@dataclass(frozen=True)
class Follow:
    """Follow implicit rewards and likelihoods of chosen and rejected answers while DPO trains, with and without SFT
    first, against -beta KL (eq. 16 of "From r to Q*").

    A minute on one idle core for the quickstart, several on a busy one. Nothing of the run is changed.
    """

    run: str
    """Folder of a finished run: its model, data, sft and dpo settings."""
    steps: int = 60
    """Optimizer steps of DPO from each start."""
    answers: int = 256
    """Pairs, and answers sampled from pi_ref, to measure on."""
    points: int = 6
    """How often to measure on the way."""
    starts: tuple[str, ...] = ("chosen", "demonstrations", "none")
    """SFT before DPO: on the chosen answers, on the run's demonstrations, or none."""
    seed: int | None = None
    """none = the run's."""
    device: str = "auto"
    """auto (cuda where there is one), cpu, cuda, cuda:1, ..."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model. Only for models you have read."""
    output: str | None = None
    """Folder for likelihood.html and likelihood.json. none = the run's folder."""
