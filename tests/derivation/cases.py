"""Every setting of the trained stages, with a value that must change a run's numbers: {field: [(stage, given, value)]}.

`given` are the settings that must hold for it to matter.
"""

import math
from dataclasses import fields, is_dataclass, replace

from rto_fast.config import (
    CriticConfig,
    DPOConfig,
    OptimConfig,
    RewardConfig,
    RMConfig,
    RTOConfig,
    SamplingConfig,
    ScoreConfig,
    SFTConfig,
)

# eps of a gradient's size keeps AdamW's step smooth where a gradient is nearly 0
OPTIM = OptimConfig(lr=1e-2, warmup=0.3, schedule="linear", eps=1e-3, weight_decay=0.1, max_grad_norm=0.3)
BASE = dict(
    sft=SFTConfig(epochs=2.0, batch_size=8, optim=OPTIM),
    dpo=DPOConfig(epochs=2.0, batch_size=8, optim=OPTIM),
    rm=RMConfig(epochs=2.0, batch_size=8, optim=OPTIM),
    rto=RTOConfig(
        RewardConfig(0.3, 0.05, 1.0, clip=0.1, missing_eos_penalty=0.5),
        CriticConfig(lr=5e-3, clip=0.05, coef=0.7),
        SamplingConfig(max_new_tokens=5),
        ScoreConfig(rule="regex:one"),
        rollouts=8,
        minibatch=4,
        iterations=2,
        group=4,
        clip=0.05,
        entropy_coef=0.02,
        optim=OPTIM,
    ),
)

SUPERVISED = {
    "sft.epochs": [("sft", {}, 1.0)],
    "sft.batch_size": [("sft", {}, 5)],
    "sft.average": [("sft", {}, "sequence")],
    "dpo.beta": [("dpo", {}, 0.3), ("dpo", {"dpo.loss": "ipo"}, 0.3)],
    "dpo.loss": [("dpo", {}, "ipo")],
    "dpo.label_smoothing": [("dpo", {}, 0.2)],
    "dpo.epochs": [("dpo", {}, 1.0)],
    "dpo.batch_size": [("dpo", {}, 5)],
    "rm.epochs": [("rm", {}, 1.0)],
    "rm.batch_size": [("rm", {}, 5)],
}
SERVER = {"rto.score.rule": None, "rto.score.server": "http://one"}
PASSES = {"rto.iterations": None}
GROUP = {"rto.critic.kind": "group"}
TIS, MASK = ({"rto.correction.kind": kind} for kind in ("tis", "mask"))
ADAPTIVE = {"rto.reward.adaptive_kl_target": 0.01, "rto.reward.adaptive_kl_horizon": 10}
FAMILY = {
    # a model that is given takes the place of the stage's: FOLDER/NAME beside the run
    "sft.model": [("rto", {}, "sft2"), ("dpo", {}, "sft2"), ("rm", {}, "sft2")],
    "dpo.model": [("rto", {}, "dpo2")],
    "rm.model": [("rto", {"rto.score.rule": None, "rm.model": "FOLDER/run/rm"}, "rm2")],
    "rto.reward.beta_1": [("rto", {}, 0.2), ("rto", {}, 0.0), ("rto", GROUP, 0.0)],
    "rto.reward.beta_2": [("rto", {}, 0.2), ("rto", {}, 0.0), ("grpo", {}, 0.2)],
    "rto.reward.beta_3": [("rto", {}, 0.5), ("rto", {}, 0.0), ("grpo", {}, -1.0)],
    "rto.reward.clip": [("rto", {}, math.inf), ("rto", {}, 0.005)],
    "rto.reward.score_clip": [("rto", {}, 5.0), ("grpo", {}, 5.0)],
    "rto.reward.granularity": [
        *(("rto", {}, value) for value in ("sentence", "response")),
        *(("rto", GROUP, value) for value in ("sentence", "response")),
        ("rto", {"rto.reward.granularity": "sentence"}, "response"),
    ],
    "rto.reward.shaping_only": [("rto", {}, True), ("rto", {"rto.reward.granularity": "sentence"}, True)],
    "rto.reward.missing_eos_penalty": [("rto", {}, 1.0), ("grpo", {}, 2.0)],
    "rto.reward.truncated": [("rto", {}, "mask"), ("rto", {"rto.average": "token"}, "mask"), ("grpo", {}, "mask")],
    "rto.reward.adaptive_kl_target": [("rto", ADAPTIVE, None), ("rto", ADAPTIVE, 0.5), ("grpo", ADAPTIVE, 50.0)],
    "rto.reward.adaptive_kl_horizon": [("rto", ADAPTIVE, 20), ("grpo", ADAPTIVE, 20)],
    "rto.critic.kind": [("rto", {}, "shared"), ("rto", {}, "group")],
    "rto.critic.model": [("rto", {}, "rm"), ("ppo", {}, "FOLDER/rm2")],
    "rto.critic.lr": [("rto", {}, 1e-3)],
    "rto.critic.clip": [("rto", {}, 1e-3), ("rto", {}, math.inf)],
    "rto.critic.coef": [("rto", {}, 0.1), ("rto", {"rto.critic.kind": "shared"}, 0.1)],
    "rto.critic.warmup_iterations": [("rto", {}, 1), ("rto", {"rto.critic.kind": "shared"}, 1), ("rto", {}, 2)],
    "rto.sampling.temperature": [("rto", {}, 0.7)],
    "rto.sampling.top_k": [("rto", {}, 5)],
    "rto.sampling.top_p": [("rto", {}, 0.9)],
    "rto.sampling.max_new_tokens": [("rto", {}, 3), ("rto", {}, None)],
    "rto.sampling.batch_size": [("rto", {}, 3)],
    # what the samplers here say of their tokens is far from the policy's
    "rto.correction.kind": [("rto", {}, "tis"), ("rto", {}, "mask"), ("grpo", {}, "tis")],
    "rto.correction.cap": [("rto", TIS, 1.0)],
    "rto.correction.low": [("rto", MASK, 0.9)],
    "rto.correction.high": [("rto", MASK, 1.1)],
    "rto.score.rule": [("rto", {}, "regex:another"), ("grpo", {}, "regex:another")],
    "rto.score.server": [("rto", SERVER, "http://another")],
    "rto.score.timeout": [("rto", SERVER, 5.0)],
    "rto.score.retries": [("rto", SERVER, 1)],
    "rto.score.batch": [("rto", SERVER, 2)],
    "rto.score_weight": [(stage, {"rto.reward.beta_3": 0.0}, 0.5) for stage in ("ppo", "rs_ppo", "grpo")],
    "rto.group": [("rto", GROUP, 2), ("grpo", {}, 2)],
    "rto.iterations": [("rto", {}, 1), ("rto", {}, None)],
    "rto.epochs": [("rto", PASSES, 2.5)],
    "rto.rollouts": [("rto", {}, 12)],
    "rto.minibatch": [("rto", {}, 3)],
    "rto.ppo_epochs": [("rto", {}, 3)],
    "rto.clip": [("rto", {}, 0.01), ("grpo", {}, 0.01)],
    "rto.gamma": [("rto", {}, 0.9)],
    "rto.lam": [("rto", {}, 0.5)],
    "rto.average": [("rto", {}, "token"), ("grpo", {}, "token")],
    "rto.entropy_coef": [("rto", {}, 0.0), ("grpo", {}, 0.1)],
    "rto.stop_kl": [("rto", {}, 1e-7), ("rto", {"rto.average": "token"}, 1e-7)],
}
OTHER_OPTIM = {
    "lr": [5e-3],
    "warmup": [0.8],
    "schedule": ["constant", "cosine"],
    "min_lr": [0.8],
    "betas": [(0.7, 0.8)],
    "eps": [1e-2],
    "weight_decay": [0.0],
    "max_grad_norm": [0.0],
}
OPTIMISER = {
    f"{stage}.optim.{name}": [(stage, {}, value) for value in values]
    for stage in BASE
    for name, values in OTHER_OPTIM.items()
}
CASES = {**SUPERVISED, **FAMILY, **OPTIMISER}


def put(config, settings: dict[str, object]):
    """The configuration with other values of some fields, named from it on: {"rto.reward.beta_1": 0.2}."""
    heads: dict[str, dict[str, object]] = {}
    for path, value in settings.items():
        head, _, rest = path.partition(".")
        heads.setdefault(head, {})[rest] = value
    new = {head: rest[""] if "" in rest else put(getattr(config, head), rest) for head, rest in heads.items()}
    return replace(config, **new)


def every_field(config: object, prefix: str) -> list[str]:
    """The names of a configuration's settings, those of its parts included."""
    found = []
    for item in fields(config):
        value, name = getattr(config, item.name), f"{prefix}.{item.name}"
        found += every_field(value, name) if is_dataclass(value) else [name]
    return found
