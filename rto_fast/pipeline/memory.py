"""How much memory and disk a run will take, and what to lower when it was too much."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from transformers import PretrainedConfig

from rto_fast.config import Config, member
from rto_fast.kernels.common.workspace import workspace_bytes
from rto_fast.model.language import LanguageModel

ADAM_BYTES = 8
"""Two float32 moments of each trained number."""


class Estimate(NamedTuple):
    """Bytes at the largest stage's peak."""

    models: int
    """Weights of all models, gradients and moments of the trained ones"""
    activations: int
    """Of one micro-batch, for its backward"""
    cache: int
    """Keys and values of a rollout"""
    workspace: int
    disk: int
    """Exports of all stages, and checkpoints of the largest"""

    @property
    def memory(self) -> int:
        """Activations and the rollout's cache are never needed at once."""
        return self.models + max(self.activations, self.cache) + self.workspace


def estimate(config: Config, model: LanguageModel, autocast: torch.dtype | None) -> Estimate:
    """What the run will take, from the model's shape; sharding and adapters aside.

    With gradient checkpointing the activations are those of one layer.
    """
    parameters = list(model.parameters())
    count, size = sum(p.numel() for p in parameters), parameters[0].element_size()
    trained = count * (2 * size + ADAM_BYTES)
    stages: dict[str, int] = dict.fromkeys(config.stages, trained)
    family = {stage: member(config.rto, stage) for stage in config.members}
    for stage, rl in family.items():  # beside the policy pi_ref, pi_dpo, a reward model and a critic, all of its size
        frozen = 1 + bool(rl.reward.beta_1) + bool(rl.reward.beta_3 and not (rl.score.rule or rl.score.server))
        stages[stage] += frozen * count * size + trained * (rl.critic.kind == "separate")
    shape = model.hf.config.get_text_config()
    bytes_per_number = 2 if autocast else size
    activations = activation_numbers(shape) * bytes_per_number * config.microbatch_rows
    per_layer = activations // shape.num_hidden_layers
    kept = per_layer + shape.num_hidden_layers * bytes_per_number * shape.hidden_size * config.microbatch_rows
    length = config.data.max_prompt + config.max_new_tokens
    cached = length * config.rto.sampling.batch_size if config.members else 0
    networks = 1 + any(rl.critic.kind == "separate" for rl in family.values())
    best = config.checkpoint.best is not None
    checkpoints = (config.checkpoint.keep + 1 + best) * networks * count * (size + ADAM_BYTES)
    return Estimate(
        models=max(stages.values()),
        activations=kept if config.model.gradient_checkpointing else activations,
        cache=cache_numbers(shape) * bytes_per_number * cached,
        workspace=workspace_bytes(parameters[0].device, config.workspace_mb),
        disk=len(config.stages) * (1 + best) * count * size + checkpoints,
    )


def activation_numbers(shape: PretrainedConfig) -> int:
    """Numbers that a backward needs of each row: 17 per width and layer (Korthikanti et al. 2022, section 4.1,
    arXiv:2205.05198, attention scores left out, which flash attention never stores)."""
    return 17 * shape.hidden_size * shape.num_hidden_layers


def cache_numbers(shape: PretrainedConfig) -> int:
    """Numbers that a rollout's cache holds of each token: a key and a value in every layer."""
    heads, width = shape.num_attention_heads, shape.hidden_size
    kv = (getattr(shape, "num_key_value_heads", None) or heads) * (getattr(shape, "head_dim", None) or width // heads)
    return 2 * shape.num_hidden_layers * kv


@contextmanager
def explained(doing: str, config: Config) -> Iterator[None]:
    """Turns an allocation that failed inside into a ValueError that names the budgets, the most useful first."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said = any(text in str(error) for text in ("can't allocate memory", "not enough memory"))
        if not (said or isinstance(error, MemoryError | torch.OutOfMemoryError)):
            raise
        where = "GPU" if isinstance(error, torch.OutOfMemoryError) else "host"
        if where == "GPU":
            torch.cuda.empty_cache()
        workspace = config.workspace_mb or (1024 if where == "GPU" else 64)
        raise ValueError(
            f"{doing}: out of {where} memory. Lower --microbatch-rows (now {config.microbatch_rows}; results stay the "
            f"same), then --workspace-mb (now {workspace}), for rollouts --rto.sampling.batch-size (now "
            f"{config.rto.sampling.batch_size}), or set --model.gradient-checkpointing True: the same command goes "
            "on from the last checkpoint"
        ) from error
