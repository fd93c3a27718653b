"""Settings of RTO and of its family: reward, critic, sampling, PPO."""

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from rto_fast.config.checks import Section, check
from rto_fast.config.stages import OptimConfig


@dataclass(frozen=True)
class RewardConfig(Section, prefix="rto.reward."):
    """r_t = clip(b1 log(pi_dpo/pi_ref), +-c) - b2 log(pi/pi_ref) + [last] b3 clamp(score, +-10); eq. 4.6."""

    beta_1: Annotated[float, "a finite number"] = 0.1
    """b1, weight of the DPO token reward (v1: 0.1; official: 0.05). 0 gives PPO."""
    beta_2: Annotated[float, "a finite number"] = 0.03
    """b2, weight of the KL to pi_ref (v1: 0.03; official: 0.01). b1/b2 > 1 goes beyond pi_dpo."""
    beta_3: Annotated[float, "a finite number"] = 0.0
    """b3, weight of the reward model's score at the last token (v1: 0; official: 1)."""
    clip: Annotated[float, "positive (none = no clip)"] = math.inf
    """c, bound of the scaled token reward; none = no bound (v1: none; official: 0.05)."""
    score_clip: Annotated[float, "positive"] = 10.0
    """Bound of the normalised reward-model score (official: 10)."""
    granularity: Literal["token", "sentence", "response"] = "token"
    """Where the DPO reward is paid: token = RTO, sentence = Semi-RTO, response = sparse DPO (the paper's DPPO)."""
    shaping_only: bool = False
    """Take the token rewards back at the last token, so that the return is the sentence score (RS-PPO)."""
    missing_eos_penalty: Annotated[float, "a finite number"] = 0.0
    """Taken from the last token's reward when an answer was cut off at the length limit."""
    truncated: Literal["keep", "mask"] = "keep"
    """Cut-off answers: keep = train on them, mask = leave them out of the update."""
    adaptive_kl_target: Annotated[float | None, "positive"] = None
    """KL per answer (nats) that b2 is steered to; none = fixed b2. Ziegler et al. 2019, section 2.2."""
    adaptive_kl_horizon: Annotated[int, "positive"] = 10000
    """Answers over which b2 adapts (official: 10000)."""


@dataclass(frozen=True)
class ScoreConfig(Section, prefix="rto.score."):
    """Where the sentence score comes from that beta_3 weighs: a rule, a server, or (neither given) the reward model."""

    rule: str | None = None
    """math (final number, by math-verify), regex:PATTERN, or module:function of yours, from this folder or PYTHONPATH
    (as a flag only: no recipe runs code): answers in, as many finite numbers out, e.g. def score(answers): return
    [float(a.finished) for a in answers]. An answer has .prompt and .response (texts without special tokens), .finished
    (False: cut off by the length limit), .reference (the right answer of its row, or None) and .messages (the prompt's
    turns, each with role and content; none with data.template none)."""
    server: str | None = None
    """URL of a reward server that takes {query, prompts, labels} and returns {rewards}."""
    timeout: Annotated[float, "a positive number of seconds"] = 60.0
    """Seconds that a request to the server may take, from the connection to the last byte of its reply."""
    retries: Annotated[int, "0 or more"] = 4
    """How often a failed request is sent again, at growing intervals."""
    batch: Annotated[int, "at least 1"] = 64
    """Answers per request."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(not (self.rule and self.server), "rto.score.server", "unset when rto.score.rule is given", self.server)

    @property
    def runs_code(self) -> bool:
        """Whether the rule is somebody's Python."""
        return self.rule is not None and self.rule != "math" and not self.rule.startswith("regex:")


@dataclass(frozen=True)
class SamplingConfig(Section, prefix="sampling."):
    temperature: Annotated[float, "0 or more"] = 1.0
    """0 = greedy. Anything but 1 samples from another distribution than the policy's: see rto.correction."""
    top_k: Annotated[int | None, "at least 1"] = None
    """Sample among the k likeliest tokens only."""
    top_p: Annotated[float, "in (0, 1]"] = 1.0
    """Sample among the likeliest tokens that hold this probability."""
    max_new_tokens: Annotated[int | None, "positive"] = None
    """Longest answer; none = data.max_length - data.max_prompt."""
    batch_size: Annotated[int, "at least 1"] = 256
    """Sequences decoded at once."""


@dataclass(frozen=True)
class CorrectionConfig(Section, prefix="rto.correction."):
    """Weights of tokens by rho = pi_old / mu, where the sampler's distribution mu is not quite the policy's."""

    kind: Literal["off", "tis", "mask"] = "off"
    """tis: the advantage times min(rho, cap). mask: times rho where low <= rho <= high, else 0. off: as it is."""
    cap: Annotated[float, "positive"] = 2.0
    """C, the largest weight of tis."""
    low: Annotated[float, "0 or more"] = 0.5
    """The smallest rho that mask keeps (IcePop: 0.5)."""
    high: Annotated[float, "positive (none = no clip)"] = 5.0
    """The largest rho that mask keeps (IcePop: 5)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.low < self.high, "rto.correction.low", f"below rto.correction.high = {self.high}", self.low)


@dataclass(frozen=True)
class CriticConfig(Section, prefix="rto.critic."):
    kind: Literal["separate", "shared", "group"] = "separate"
    """separate: a backbone of its own. shared: a value head on the policy's hidden states. group: none; answers to one
    prompt are compared with one another (GRPO)."""
    model: str | None = None
    """Reward model that a separate critic starts from, head included (rm: this run's); none = pi_ref's backbone and a
    head of zeros."""
    lr: Annotated[float, "positive"] = 1e-5
    """Learning rate of the critic (official: 9e-6)."""
    clip: Annotated[float, "positive (none = no clip)"] = 0.2
    """Range in which a value may move from its old one (official: 0.2); none = anywhere."""
    coef: Annotated[float, "0 or more"] = 1.0
    """Weight of the value loss; matters for a shared trunk only."""
    warmup_iterations: Annotated[int, "0 or more"] = 0
    """Iterations at the start that train the critic alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unset = f"unset for critic.kind = {self.kind}"
        check(self.kind == "separate" or self.model is None, "rto.critic.model", unset, self.model)


@dataclass(frozen=True)
class RTOConfig(Section, prefix="rto."):
    """PPO on token rewards (the paper's algorithm 2)."""

    reward: RewardConfig = field(default_factory=RewardConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    score_weight: Annotated[float, "a finite number"] = 1.0
    """beta_3 of the stages that live by the sentence score (ppo, rs_ppo, grpo) where reward.beta_3 is 0."""
    group: int = 8
    """Answers per prompt that GRPO compares; `rollouts` counts answers."""
    iterations: Annotated[int | None, "at least 1"] = None
    """Rollout-and-update rounds; none = `epochs` passes over the prompts."""
    epochs: Annotated[float, "positive"] = 1.0
    """Passes over the prompts when iterations is not given (v1: 1)."""
    rollouts: Annotated[int, "at least 1"] = 256
    """Answers per iteration (v1: 256; official: 1024)."""
    minibatch: Annotated[int, "at least 1"] = 16
    """Answers per optimizer step (v1: 16; official: 128)."""
    ppo_epochs: Annotated[int, "at least 1"] = 2
    """Passes over each iteration's answers (v1: 2; official: 1)."""
    clip: Annotated[float, "positive"] = 0.2
    """PPO's ratio clip."""
    gamma: Annotated[float, "in (0, 1]"] = 1.0
    """Discount."""
    lam: Annotated[float, "in [0, 1]"] = 0.95
    """GAE's lambda."""
    average: Literal["token", "sequence"] = "sequence"
    """What counts alike in the loss: every token or every answer (official: sequence)."""
    entropy_coef: float = 0.0
    """Weight of an entropy bonus."""
    stop_kl: Annotated[float | None, "positive"] = None
    """End an iteration's passes when the policy has moved this far from the sampling one (mean k3, nats per token)."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=5e-6, schedule="constant", warmup=0.0))
    """v1: 5e-6; official: 5e-7."""

    def __post_init__(self) -> None:
        super().__post_init__()
        greedy = self.sampling.temperature == 0 and self.correction.kind != "off"
        check(not greedy, "rto.correction.kind", "off with rto.sampling.temperature 0", self.correction.kind)
        if self.critic.kind == "group":
            check(not self.critic.warmup_iterations, "rto.critic.warmup_iterations", "0 without a critic", 1)
            check(self.group >= 2, "rto.group", "at least 2 (one answer has none to be compared with)", self.group)
            check(self.rollouts % self.group == 0, "rto.rollouts", f"a multiple of group = {self.group}", self.rollouts)
        if self.reward.shaping_only and not self.reward.beta_3:
            raise ValueError(
                "rto.reward.shaping_only takes the token rewards back, so it needs a sentence score: set beta_3"
            )


def member(config: RTOConfig, stage: str) -> RTOConfig:
    """The settings of one of the RTO family: the reward formula of eq. 4.6 with what sets this member apart.

    rto         as configured
    sparse_dpo  (the paper's DPPO, eq. 5.1 with pi_dpo) the DPO reward summed onto the last token
    semi_rto    the DPO reward summed onto the ends of sentences
    ppo         beta_1 = 0: the sentence score at the last token (eq. 2.3)
    rs_ppo      the DPO reward moves credit but not the return, which is the sentence score (reward shaping)
    grpo        the sentence score compared within a group of answers, no critic; also on token rewards with
                --rto.critic.kind group and the stage rto
    """
    reward = config.reward
    weight = reward.beta_3 or config.score_weight
    if stage == "rto":
        return config
    if stage in ("sparse_dpo", "dppo"):
        return replace(config, reward=replace(reward, granularity="response"))
    if stage == "semi_rto":
        return replace(config, reward=replace(reward, granularity="sentence"))
    if stage == "ppo":
        return replace(config, reward=replace(reward, beta_1=0.0, beta_3=weight))
    if stage == "rs_ppo":
        return replace(config, reward=replace(reward, beta_3=weight, shaping_only=True))
    critic = replace(config.critic, kind="group", model=None)
    return replace(config, reward=replace(reward, beta_1=0.0, beta_3=weight), critic=critic)
