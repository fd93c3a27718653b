"""The configuration of a run: nested frozen dataclasses, filled from a recipe (TOML) and flags.

Every field's docstring is its --help text. Symbols are those of the paper (arXiv:2404.18922); "v1" is Table 5 of its
first version, "official" the authors' code.
"""

import math
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Literal


def _check(ok: bool, name: str, wanted: str, got: object) -> None:
    if not ok:
        raise ValueError(f"{name} must be {wanted}, got {got!r}")


def _check_bounds(config: object, prefix: str = "") -> None:
    """No number beyond what 32 bits hold, and no infinity but for a clip (no clip): sums and counts stay finite."""
    for item in fields(config):
        value, name = getattr(config, item.name), prefix + item.name
        if is_dataclass(value):
            _check_bounds(value, name + ".")
        for x in value if isinstance(value, tuple) else (value,):
            bound = 2**63 - 1 if item.name == "seed" else 2**31 - 1
            unbounded = x == math.inf and "clip" in item.name
            if isinstance(x, int | float) and not (unbounded or abs(x) <= bound):
                raise ValueError(f"{name} must be a number of at most {bound}, got {x!r}")


@dataclass(frozen=True)
class ModelConfig:
    path: str = ""
    """Model to align: a Hugging Face folder or hub id. Its tokenizer is used throughout."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the stored weights. auto: float32 on CPU; on CUDA float32 weights with bfloat16 arithmetic (autocast)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward: slower, much less memory."""
    liger: bool = False
    """Use liger-kernel's fused norms, rotary embeddings and MLPs (CUDA only)."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models you have read."""


@dataclass(frozen=True)
class DataConfig:
    path: str = ""
    """Preference pairs: .jsonl(.gz), .json, .parquet, a directory, or a hub id; HH-RLHF strings or TRL rows."""
    subset: str | None = None
    """Subset (or data directory) of a hub dataset, e.g. helpful-base."""
    split: str = "train"
    """Split of a hub dataset."""
    demonstrations: str | None = None
    """Rows with prompt and completion for SFT; without it SFT learns from the chosen answers."""
    evaluation: str | None = None
    """Rows with a prompt for evaluation; without it held-out pairs serve."""
    columns: dict[str, str] = field(default_factory=dict)
    """Other column names, as wanted name and yours: {prompt: question}."""
    template: Literal["auto", "chat", "plain", "none"] = "auto"
    """How a conversation becomes text. auto: the tokenizer's chat template, else plain Human/Assistant turns."""
    max_prompt: int = 256
    """Longest prompt in tokens; longer ones lose their oldest tokens (counted)."""
    max_length: int = 512
    """Longest prompt + answer in tokens; longer rows are dropped (counted)."""
    held_out: int = 256
    """Pairs kept from training for evaluation, split by prompt."""
    max_rows: int | None = None
    """Read at most so many rows."""

    def __post_init__(self) -> None:
        _check(self.max_prompt >= 1, "data.max_prompt", "at least 1", self.max_prompt)
        _check(
            self.max_length > self.max_prompt,
            "data.max_length",
            f"above max_prompt = {self.max_prompt}",
            self.max_length,
        )
        _check(self.held_out >= 0, "data.held_out", "0 or more", self.held_out)
        _check(self.max_rows is None or self.max_rows > 0, "data.max_rows", "positive", self.max_rows)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with a warm-up and a decay."""

    lr: float = 1e-5
    """Learning rate at the peak."""
    warmup: float = 0.03
    """Share of the steps over which the rate rises from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Decay after the warm-up."""
    min_lr: float = 0.1
    """Rate at the end of the decay, as a share of lr."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's averaging of gradient and squared gradient."""
    eps: float = 1e-8
    """Adam's epsilon."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices (never of norms and biases)."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 = never."""

    def __post_init__(self) -> None:
        _check(self.lr > 0 and math.isfinite(self.lr), "optim.lr", "a positive number", self.lr)
        _check(0 <= self.warmup < 1, "optim.warmup", "in [0, 1)", self.warmup)
        _check(0 <= self.min_lr <= 1, "optim.min_lr", "in [0, 1]", self.min_lr)
        _check(all(0 <= b < 1 for b in self.betas), "optim.betas", "two numbers in [0, 1)", self.betas)
        _check(0 < self.eps <= 1, "optim.eps", "in (0, 1]", self.eps)
        _check(0 <= self.weight_decay <= 100, "optim.weight_decay", "in [0, 100]", self.weight_decay)
        _check(self.max_grad_norm >= 0, "optim.max_grad_norm", "0 or more", self.max_grad_norm)


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning; its result is the reference pi_ref."""

    model: str | None = None
    """A model that is fine-tuned already: used as pi_ref, and the stage is skipped."""
    epochs: float = 1.0
    """Passes over the demonstrations."""
    batch_size: int = 32
    """Demonstrations per optimizer step (v1: 32)."""
    average: Literal["token", "sequence"] = "token"
    """What counts alike in a batch: every token or every answer."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-5))
    """v1: 1e-5."""

    def __post_init__(self) -> None:
        _check(self.epochs > 0, "sft.epochs", "positive", self.epochs)
        _check(self.batch_size >= 1, "sft.batch_size", "at least 1", self.batch_size)


@dataclass(frozen=True)
class DPOConfig:
    """Direct preference optimization; its result pi_dpo gives the token rewards."""

    model: str | None = None
    """A model trained by DPO from pi_ref already: used as pi_dpo, and the stage is skipped."""
    beta: float = 0.1
    """KL weight of the DPO loss (v1: 0.1)."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """sigmoid: Rafailov et al. 2023, eq. 7. ipo: Azar et al. 2023, eq. 17."""
    label_smoothing: float = 0.0
    """Assumed share of wrong labels (conservative DPO)."""
    epochs: float = 1.0
    """Passes over the pairs."""
    batch_size: int = 32
    """Pairs per optimizer step (v1: 32)."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=5e-6))
    """v1: 5e-6."""

    def __post_init__(self) -> None:
        _check(self.beta > 0, "dpo.beta", "positive", self.beta)
        _check(0 <= self.label_smoothing < 0.5, "dpo.label_smoothing", "in [0, 0.5)", self.label_smoothing)
        _check(self.epochs > 0, "dpo.epochs", "positive", self.epochs)
        _check(self.batch_size >= 1, "dpo.batch_size", "at least 1", self.batch_size)


@dataclass(frozen=True)
class RewardConfig:
    """r_t = clip(b1 log(pi_dpo/pi_ref), +-c) - b2 log(pi/pi_ref) + [last] b3 clamp(score, +-10); eq. 4.6."""

    beta_1: float = 0.1
    """b1, weight of the DPO token reward (v1: 0.1; official: 0.05). 0 gives PPO."""
    beta_2: float = 0.03
    """b2, weight of the KL to pi_ref (v1: 0.03; official: 0.01). b1/b2 > 1 goes beyond pi_dpo."""
    beta_3: float = 0.0
    """b3, weight of the reward model's score at the last token (v1: none; official: 1)."""
    clip: float = math.inf
    """c, bound of the scaled token reward (v1: none; official: 0.05)."""
    score_clip: float = 10.0
    """Bound of the normalised reward-model score (official: 10)."""
    granularity: Literal["token", "sentence", "response"] = "token"
    """Where the DPO reward is paid: token = RTO, sentence = Semi-RTO, response = sparse DPO (the paper's DPPO)."""
    shaping_only: bool = False
    """Take the token rewards back at the last token, so that the return is the sentence score (RS-PPO)."""
    missing_eos_penalty: float = 0.0
    """Taken from the last token's reward when an answer was cut off at the length limit."""
    truncated: Literal["keep", "mask"] = "keep"
    """Cut-off answers: keep = train on them, mask = leave them out of the update."""
    adaptive_kl_target: float | None = None
    """KL per answer (nats) that b2 is steered to; none = fixed b2. Ziegler et al. 2019, section 2.2."""
    adaptive_kl_horizon: int = 10000
    """Answers over which b2 adapts (official: 10000)."""

    def __post_init__(self) -> None:
        for name in ("beta_1", "beta_2", "beta_3", "missing_eos_penalty"):
            _check(math.isfinite(getattr(self, name)), f"rto.reward.{name}", "a finite number", getattr(self, name))
        _check(self.clip > 0, "rto.reward.clip", "positive (inf = no clip)", self.clip)
        _check(self.score_clip > 0, "rto.reward.score_clip", "positive", self.score_clip)
        target = self.adaptive_kl_target
        _check(target is None or target > 0, "rto.reward.adaptive_kl_target", "positive", target)
        _check(self.adaptive_kl_horizon > 0, "rto.reward.adaptive_kl_horizon", "positive", self.adaptive_kl_horizon)


@dataclass(frozen=True)
class SamplingConfig:
    temperature: float = 1.0
    """0 = greedy. Anything but 1 samples from another distribution than the one PPO corrects for."""
    top_k: int | None = None
    """Sample among the k likeliest tokens only."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that hold this probability."""
    max_new_tokens: int | None = None
    """Longest answer; none = data.max_length - data.max_prompt."""
    batch_size: int = 256
    """Sequences decoded at once."""

    def __post_init__(self) -> None:
        _check(self.temperature >= 0, "sampling.temperature", "0 or more", self.temperature)
        _check(0 < self.top_p <= 1, "sampling.top_p", "in (0, 1]", self.top_p)
        _check(self.top_k is None or self.top_k >= 1, "sampling.top_k", "at least 1", self.top_k)
        _check(
            self.max_new_tokens is None or self.max_new_tokens >= 1,
            "sampling.max_new_tokens",
            "positive",
            self.max_new_tokens,
        )
        _check(self.batch_size >= 1, "sampling.batch_size", "at least 1", self.batch_size)


@dataclass(frozen=True)
class CriticConfig:
    kind: Literal["separate", "shared"] = "separate"
    """separate: a backbone of its own. shared: a value head on the policy's hidden states."""
    model: str | None = None
    """Reward model that a separate critic starts from, head included; none = pi_ref's backbone and a head of zeros."""
    lr: float = 1e-5
    """Learning rate of the critic (official: 9e-6)."""
    clip: float = 0.2
    """Range in which a value may move from its old one (official: 0.2); inf = anywhere."""
    coef: float = 1.0
    """Weight of the value loss; matters for a shared trunk only."""
    warmup_iterations: int = 0
    """Iterations at the start that train the critic alone."""

    def __post_init__(self) -> None:
        _check(self.lr > 0, "rto.critic.lr", "positive", self.lr)
        _check(self.clip > 0, "rto.critic.clip", "positive (inf = no clip)", self.clip)
        _check(self.coef >= 0, "rto.critic.coef", "0 or more", self.coef)
        _check(self.warmup_iterations >= 0, "rto.critic.warmup_iterations", "0 or more", self.warmup_iterations)
        _check(
            self.kind == "separate" or self.model is None, "rto.critic.model", "unset for a shared critic", self.model
        )


@dataclass(frozen=True)
class RTOConfig:
    """PPO on token rewards (the paper's algorithm 2)."""

    reward: RewardConfig = field(default_factory=RewardConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reward_model: str | None = None
    """Reward model whose score beta_3 weighs; it must share the policy's tokenizer."""
    iterations: int | None = None
    """Rollout-and-update rounds; none = `epochs` passes over the prompts."""
    epochs: float = 1.0
    """Passes over the prompts when iterations is not given (v1: 1)."""
    rollouts: int = 256
    """Answers per iteration (v1: 256; official: 1024)."""
    minibatch: int = 16
    """Answers per optimizer step (v1: 16; official: 128)."""
    ppo_epochs: int = 2
    """Passes over each iteration's answers (v1: 2; official: 1)."""
    clip: float = 0.2
    """PPO's ratio clip."""
    gamma: float = 1.0
    """Discount."""
    lam: float = 0.95
    """GAE's lambda."""
    average: Literal["token", "sequence"] = "sequence"
    """What counts alike in the loss: every token or every answer (official: sequence)."""
    entropy_coef: float = 0.0
    """Weight of an entropy bonus."""
    stop_kl: float | None = None
    """End an iteration's passes when the policy has moved this far from the sampling one (mean k3, nats per token)."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=5e-6, schedule="constant", warmup=0.0))
    """v1: 5e-6; official: 5e-7."""

    def __post_init__(self) -> None:
        for name in ("rollouts", "minibatch", "ppo_epochs"):
            _check(getattr(self, name) >= 1, f"rto.{name}", "at least 1", getattr(self, name))
        _check(self.iterations is None or self.iterations >= 1, "rto.iterations", "at least 1", self.iterations)
        _check(self.epochs > 0, "rto.epochs", "positive", self.epochs)
        _check(self.clip > 0, "rto.clip", "positive", self.clip)
        _check(0 < self.gamma <= 1, "rto.gamma", "in (0, 1]", self.gamma)
        _check(0 <= self.lam <= 1, "rto.lam", "in [0, 1]", self.lam)
        _check(self.stop_kl is None or self.stop_kl > 0, "rto.stop_kl", "positive", self.stop_kl)
        if self.reward.beta_3 and not self.reward_model:
            raise ValueError(
                f"rto.reward_model: beta_3 = {self.reward.beta_3} weighs a reward model's score; "
                "give --rto.reward-model, or set --rto.reward.beta-3 0"
            )
        if self.reward.shaping_only and not self.reward.beta_3:
            raise ValueError(
                "rto.reward.shaping_only takes the token rewards back, so it needs a sentence score: set beta_3"
            )


@dataclass(frozen=True)
class EvalConfig:
    prompts: int = 256
    """Held-out prompts that every policy answers; 0 = no evaluation."""
    temperature: float = 1.0
    """Sampling temperature of the evaluation (paper: 0.9)."""
    top_p: float = 1.0
    """Nucleus of the evaluation (paper: 0.99)."""
    samples: int = 8
    """Answers per policy written to samples.md."""

    def __post_init__(self) -> None:
        _check(self.prompts >= 0, "eval.prompts", "0 or more", self.prompts)
        _check(self.samples >= 0, "eval.samples", "0 or more", self.samples)
        _check(self.temperature >= 0, "eval.temperature", "0 or more", self.temperature)
        _check(0 < self.top_p <= 1, "eval.top_p", "in (0, 1]", self.top_p)


@dataclass(frozen=True)
class SweepConfig:
    """Short RTO runs over b1/b2 and c from the same start, to show over-optimisation. Empty = none."""

    ratios: tuple[float, ...] = ()
    """Values of b1/b2, at the recipe's b1."""
    clips: tuple[float, ...] = ()
    """Values of c."""
    iterations: int = 10
    """Iterations of each run."""

    def __post_init__(self) -> None:
        _check(all(r > 0 for r in self.ratios), "sweep.ratios", "positive", self.ratios)
        _check(all(c > 0 for c in self.clips), "sweep.clips", "positive", self.clips)
        _check(bool(self.ratios) == bool(self.clips), "sweep.clips", "given together with sweep.ratios", self.clips)
        _check(self.iterations >= 1, "sweep.iterations", "at least 1", self.iterations)


@dataclass(frozen=True)
class CheckpointConfig:
    """When a running stage is saved, so that the same command goes on from there, bit for bit."""

    every: int = 0
    """Optimizer steps between two checkpoints; 0 = by time alone."""
    minutes: float = 10.0
    """Minutes between two checkpoints; 0 = by steps alone."""
    keep: int = 2
    """How many to keep of a running stage. A finished stage keeps its model only."""

    def __post_init__(self) -> None:
        _check(self.every >= 0, "checkpoint.every", "0 or more", self.every)
        _check(0 <= self.minutes < math.inf, "checkpoint.minutes", "0 or more, and finite", self.minutes)
        _check(self.keep >= 1, "checkpoint.keep", "at least 1", self.keep)


@dataclass(frozen=True)
class Config:
    """Turn preference pairs into an aligned language model: SFT, DPO, then PPO on DPO's token rewards (RTO)."""

    recipe: str = "quickstart"
    """Settings to start from: quickstart, hh_small, rto_v1_hh, rto_icml, or a .toml file. Flags override it."""
    output: str | None = None
    """Folder of the run; none = runs/<recipe>. Finished stages found there are not run again."""
    stages: tuple[Literal["sft", "dpo", "rto"], ...] = ("sft", "dpo", "rto")
    """Stages to run, in this order."""
    seed: int = 0
    """Seeds every random stream of the run."""
    device: str = "auto"
    """auto (cuda where there is one), cpu, cuda, cuda:1, ..."""
    microbatch_rows: int = 16384
    """Tokens in one forward and backward. Lower it when memory runs out; results do not depend on it."""
    workspace_mb: int | None = None
    """Memory of the vocabulary-sized operators, instead of a tokens x vocabulary tensor; none = 64 on CPU, 1024 on
    CUDA."""
    log_every: int = 1
    """Optimizer steps between two lines of metrics.jsonl."""
    resume: bool = True
    """Go on from the checkpoint of a stage that was interrupted; False starts that stage over."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    dpo: DPOConfig = field(default_factory=DPOConfig)
    rto: RTOConfig = field(default_factory=RTOConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)

    def __post_init__(self) -> None:
        _check_bounds(self)
        _check(self.seed >= 0, "seed", "0 or more", self.seed)
        _check(len(self.stages) > 0, "stages", "at least one of sft, dpo, rto", self.stages)
        _check(self.microbatch_rows >= 1, "microbatch_rows", "positive", self.microbatch_rows)
        _check(self.workspace_mb is None or self.workspace_mb >= 1, "workspace_mb", "at least 1", self.workspace_mb)
        _check(self.log_every >= 1, "log_every", "at least 1", self.log_every)
        _check(len(set(self.stages)) == len(self.stages), "stages", "free of repeats", self.stages)
        _check(
            list(self.stages) == sorted(self.stages, key=["sft", "dpo", "rto"].index),
            "stages",
            "in the order sft dpo rto",
            self.stages,
        )

    @property
    def folder(self) -> Path:
        return Path(self.output) if self.output else Path("runs") / Path(self.recipe).stem

    @property
    def max_new_tokens(self) -> int:
        return self.rto.sampling.max_new_tokens or self.data.max_length - self.data.max_prompt
