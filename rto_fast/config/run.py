"""Settings of a whole run: model, data, evaluation, checkpoints, and every stage's."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from rto_fast.config.adapter import AdapterConfig
from rto_fast.config.checks import Section, check, check_bounds
from rto_fast.config.offload import OffloadConfig
from rto_fast.config.rl import RTOConfig, member
from rto_fast.config.stages import DPOConfig, RMConfig, SFTConfig

NEUTRAL = "neutral"
"""The recipe of a run on a user's own model and data that names none; neutral.py chooses its settings."""


@dataclass(frozen=True)
class ModelConfig:
    path: str = ""
    """Model to align: a Hugging Face folder or hub id. Its tokenizer is used throughout."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the arithmetic (autocast). auto: float32 on CPU, bfloat16 on CUDA. Weights that are trained are float32
    whatever it is; frozen ones take the memory of this type. float16: to look at models, not to train."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward: slower, much less memory."""
    liger: bool | None = None
    """Use liger-kernel's fused norms, rotary embeddings and MLPs. none: on CUDA, for every family that it serves (said
    at the start)."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models you have read."""


@dataclass(frozen=True)
class DataConfig(Section, prefix="data."):
    path: str = ""
    """Preference pairs: .jsonl, .json, .csv, .tsv (also .gz), .parquet, a directory of those, or a hub id."""
    subset: str | None = None
    """Subset (or data directory) of a hub dataset, e.g. helpful-base."""
    split: str = "train"
    """Split of a hub dataset."""
    demonstrations: str | None = None
    """Rows with prompt and completion for SFT; without it SFT learns from the chosen answers."""
    prompts: str | None = None
    """Rows with a prompt to roll out from, and a column `reference` for rules; without it the pairs' prompts serve."""
    evaluation: str | None = None
    """Rows with a prompt for evaluation; without it held-out pairs serve."""
    columns: dict[str, str] = field(default_factory=dict)
    """Other names of columns, as the name wanted and yours: --data.columns prompt=question chosen=better."""
    template: Literal["auto", "chat", "plain", "none"] = "auto"
    """How a conversation becomes text. auto: the tokenizer's chat template, else plain Human/Assistant turns."""
    parse_special: bool = False
    """Special tokens that texts spell out are special tokens, not their characters. Only for data that you trust."""
    max_prompt: Annotated[int, "at least 1"] = 256
    """Longest prompt in tokens; longer ones lose their oldest tokens (counted)."""
    max_length: int = 512
    """Longest prompt + answer in tokens; longer rows are dropped (counted)."""
    held_out: Annotated[int, "0 or more"] = 256
    """Pairs kept from training for evaluation, split by prompt."""
    max_rows: Annotated[int | None, "positive"] = None
    """Read at most so many rows."""
    allow_dropped: bool = False
    """Go on where more than half of the rows are dropped. Without it that is an error, which says why they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        above = f"above max_prompt = {self.max_prompt}"
        check(self.max_length > self.max_prompt, "data.max_length", above, self.max_length)


@dataclass(frozen=True)
class EvalConfig(Section, prefix="eval."):
    prompts: int = 256
    """Held-out prompts that every policy answers; 0 = no evaluation."""
    temperature: Annotated[float, "0 or more"] = 1.0
    """Sampling temperature of the evaluation (paper: 0.9)."""
    top_p: Annotated[float, "in (0, 1]"] = 1.0
    """Nucleus of the evaluation (paper: 0.99)."""
    samples: Annotated[int, "0 or more"] = 8
    """Answers per policy written to samples.md."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.prompts >= 0 and self.prompts != 1, "eval.prompts", "0, or 2 and more", self.prompts)


@dataclass(frozen=True)
class SweepConfig(Section, prefix="sweep."):
    """Short RTO runs over b1/b2 and c from the same start, to show over-optimisation. Empty = none."""

    ratios: Annotated[tuple[float, ...], "positive"] = ()
    """Values of b1/b2, at the recipe's b1."""
    clips: Annotated[tuple[float, ...], "positive"] = ()
    """Values of c; none = no bound."""
    iterations: Annotated[int, "at least 1"] = 10
    """Iterations of each run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.ratios) == bool(self.clips), "sweep.clips", "given together with sweep.ratios", self.clips)


@dataclass(frozen=True)
class CompareConfig(Section, prefix="compare."):
    """The whole run once per seed, each in a folder of its own, and one report on all of them. Empty = one run."""

    seeds: Annotated[tuple[int, ...], "0 or more"] = ()
    """Seeds to run; `seed` is then not used."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(len(set(self.seeds)) == len(self.seeds), "compare.seeds", "free of repeats", self.seeds)


@dataclass(frozen=True)
class CheckpointConfig(Section, prefix="checkpoint."):
    """When a running stage is saved, so that the same command goes on from there, bit for bit."""

    every: Annotated[int, "0 or more"] = 0
    """Optimizer steps between two checkpoints; 0 = by time alone."""
    minutes: Annotated[float, "0 or more, and finite"] = 10.0
    """Minutes between two checkpoints; 0 = by steps alone."""
    keep: Annotated[int, "at least 1"] = 2
    """How many to keep of a running stage. A finished stage keeps its model only."""
    best: str | None = None
    """Metric, e.g. judge/return or accuracy, by which one checkpoint more is kept, the best: a stage that reports it
    leaves <stage>_best too. A checkpoint's value is that of the next report."""
    best_is: Literal["largest", "smallest"] = "largest"
    """Which value of that metric is the best: "smallest" for a loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.best is None or bool(self.best), "checkpoint.best", "a metric's name", self.best)


@dataclass(frozen=True)
class ExportConfig:
    """The folder that a finished stage leaves."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of its weights. auto: rto and its family as the base model is stored; sft, dpo and rm, which later stages
    compute with, as they were trained (rounding them would be noise in every token's reward). An adapter is float32."""
    merge: bool = False
    """With adapters: leave the whole model too, in <stage>_merged."""


@dataclass(frozen=True)
class GuardConfig(Section, prefix="guards."):
    """What may go wrong while a run is alone. A value that is not finite always stops it, before the step."""

    grad_norm: Annotated[float | None, "positive and finite"] = None
    """Gradient norm (of one network, before clipping) that is too large; none = any is taken."""
    grad_norm_action: Literal["warn", "skip", "stop"] = "skip"
    """Then: take the step and say so, leave the step out, or stop."""
    kl: Annotated[float | None, "positive and finite"] = None
    """KL to pi_ref per answer (nats, mean of a rollout) that is too large; none = any."""
    kl_action: Literal["warn", "skip", "stop"] = "stop"
    """Then: say so, do not learn from that rollout, or stop."""
    stall_minutes: Annotated[float, "0 or more, and finite"] = 60.0
    """End the run when nothing moves for so long: data, generation, a reward server, a GPU. 0 = wait for ever."""


@dataclass(frozen=True)
class Config(Section, prefix=""):
    """Turn preference pairs into an aligned language model: SFT, DPO, then PPO on DPO's token rewards (RTO)."""

    recipe: str = "quickstart"
    """Settings to start from: a name in the README's table, or a .toml file. Flags override it. Without it: neutral,
    defaults by the size of your model and data, where a flag names one of them; else the quickstart."""
    output: str | None = None
    """Folder of the run; none = runs/<recipe>, of neutral runs/<model>. Finished stages found there are not run
    again."""
    stages: tuple[
        Literal["sft", "dpo", "rm", "rto", "ppo", "sparse_dpo", "dppo", "semi_rto", "rs_ppo", "grpo"], ...
    ] = ("sft", "dpo", "rto")
    """Stages to run, in this order: sft, dpo, rm (a reward model), then members of the RTO family, all with the
    settings of [rto]: rto, ppo (the sentence score alone), sparse_dpo = dppo (the DPO reward at the last token),
    semi_rto (at sentence ends), rs_ppo (DPO reward as shaping only), grpo (no critic)."""
    seed: Annotated[int, "0 or more"] = 0
    """Seeds every random stream of the run."""
    device: str = "auto"
    """auto (cuda where there is one), cpu, cuda, cuda:1, ..."""
    memory: Literal["auto", "as-set"] = "auto"
    """auto: where the device has too little, lower microbatch_rows, then recompute activations, then keep in host
    memory what waits (offload), then lower rto.sampling.batch_size, no further than needed (said at the start).
    as-set: leave these settings alone."""
    microbatch_rows: Annotated[int, "positive"] = 16384
    """Tokens in one forward and backward. Lower it when memory runs out; results change in their last bits only."""
    workspace_mb: Annotated[int | None, "at least 1"] = None
    """Memory of the vocabulary-sized operators, instead of a tokens x vocabulary tensor; none = 64 on CPU, 2048 on
    CUDA."""
    adam_bits: Literal[32, 8] = 32
    """Of each of Adam's moments. 8: a quarter of their memory, by bitsandbytes' blockwise AdamW, on a CUDA GPU; the
    results are others."""
    log_every: Annotated[int, "at least 1"] = 1
    """Optimizer steps between two lines of metrics.jsonl."""
    resume: bool = True
    """Go on from the checkpoint of a stage that was interrupted; False starts that stage over."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    offload: OffloadConfig = field(default_factory=OffloadConfig)
    guards: GuardConfig = field(default_factory=GuardConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    dpo: DPOConfig = field(default_factory=DPOConfig)
    rm: RMConfig = field(default_factory=RMConfig)
    rto: RTOConfig = field(default_factory=RTOConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)

    def __post_init__(self) -> None:
        check_bounds(self)
        super().__post_init__()
        check(len(self.stages) > 0, "stages", "at least one, such as sft, dpo or rto", self.stages)
        check(len(set(self.stages)) == len(self.stages), "stages", "free of repeats", self.stages)
        # members of the family do not build on one another: any order will do
        floors = {"sft": 0, "dpo": 1, "rm": 1}
        ordered = sorted(self.stages, key=lambda stage: floors.get(stage, 2))
        check(list(self.stages) == ordered, "stages", "in the order sft, dpo and rm, rto and its family", self.stages)
        both = self.adam_bits == 8 and self.offload.optimizer
        check(not both, "offload.optimizer", "False where adam_bits is 8", self.offload.optimizer)
        source = self.rto.score.rule or self.rto.score.server or self.rm.model or "rm" in self.stages
        for stage in self.members:
            beta_3 = member(self.rto, stage).reward.beta_3
            if beta_3 and not source:
                raise ValueError(
                    f"rto.score: {stage} with beta_3 = {beta_3:g} weighs a sentence score; add the stage rm, give "
                    "--rm.model, --rto.score.rule or --rto.score.server, or set beta_3 to 0"
                )

    @property
    def members(self) -> list[str]:
        """The stages that are PPO on some reward."""
        return [stage for stage in self.stages if stage not in ("sft", "dpo", "rm")]

    def given(self, stage: str) -> str | None:
        """The model that the user gives in a stage's place."""
        return {"sft": self.sft.model, "dpo": self.dpo.model, "rm": self.rm.model}.get(stage)

    @property
    def folder(self) -> Path:
        if self.output:
            return Path(self.output)
        own = Path(os.path.abspath(os.path.expanduser(self.model.path))).name or NEUTRAL
        return Path("runs") / (own if self.recipe == NEUTRAL else Path(self.recipe).stem)

    @property
    def max_new_tokens(self) -> int:
        return self.rto.sampling.max_new_tokens or self.data.max_length - self.data.max_prompt
