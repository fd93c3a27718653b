"""A whole RTO iteration of the stage against bench's padded, eager one: the same losses, the same weights after it."""

from dataclasses import replace

import pytest
import torch

from bench.rto_case import Case, ragged_answers
from rto_fast.config import CriticConfig, OptimConfig, RewardConfig, RTOConfig
from tests.tiny import language_model

VOCAB = 61
LENGTHS = [31, 2, 17, 64, 9, 40, 5, 23, 12, 64, 3, 28]
# a gradient that is nearly 0 would make AdamW's step depend on its last bits: eps of its size keeps the step smooth
OPTIM = OptimConfig(lr=1e-3, schedule="constant", warmup=0.0, eps=1e-4)
TOKEN = RTOConfig(
    RewardConfig(0.1, 0.05, clip=0.02, missing_eos_penalty=0.5),
    CriticConfig(lr=1e-3, clip=0.2),
    rollouts=len(LENGTHS),
    minibatch=5,
    iterations=1,
    average="token",
)
SEQUENCE = replace(TOKEN, average="sequence", reward=RewardConfig(0.1, 0.03), clip=0.02, gamma=0.98, lam=0.9)


def case(config: RTOConfig, *, microbatch: int = 4, architecture: str = "llama") -> Case:
    limits = dict(eos_token_ids=(2,), max_new_tokens=64, microbatch=microbatch, microbatch_rows=128)
    return Case(language_model(architecture), [[1]], config, OPTIM, **limits)


@pytest.mark.parametrize("config", [TOKEN, SEQUENCE], ids=["token", "sequence"])
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_an_iteration_equals_the_padded_one(config, architecture):
    both = case(config, architecture=architecture)
    before = [p.clone() for p in both.stage.policy.parameters()]
    loss, weight = both.gaps(ragged_answers(LENGTHS, VOCAB))
    assert loss < 5e-6 and weight < 1e-3
    assert both.state.step == 2 * 3
    assert all((a - b).abs().max() > OPTIM.lr for a, b in zip(before, both.stage.policy.parameters(), strict=True))


@pytest.mark.parametrize(
    "change",
    [
        dict(lam=0.5),
        dict(gamma=0.9),
        dict(clip=0.01),
        dict(average="sequence"),
        dict(critic=CriticConfig(lr=1e-3, clip=1e-3)),
        dict(reward=replace(TOKEN.reward, beta_1=0.2)),
        dict(reward=replace(TOKEN.reward, beta_2=0.2)),
        dict(reward=replace(TOKEN.reward, clip=0.01)),
        dict(reward=replace(TOKEN.reward, missing_eos_penalty=0.4)),
    ],
    ids=lambda change: "-".join(change),
)
def test_another_setting_is_another_iteration(change):
    """What the comparison is worth: one of the two computes something else, and it shows."""
    both = case(TOKEN)
    both.padded.config = replace(TOKEN, **change)
    loss, weight = both.gaps(ragged_answers(LENGTHS, VOCAB))
    assert loss > 1e-3 and weight > 1e-1


def test_padding_is_no_part_of_the_padded_iteration():
    answers = ragged_answers(LENGTHS, VOCAB)
    alone, together = case(TOKEN, microbatch=1), case(TOKEN, microbatch=5)
    torch.testing.assert_close(
        alone.padded.iteration(answers), together.padded.iteration(answers), rtol=1e-5, atol=1e-5
    )


def test_the_padded_iteration_refuses_what_it_does_not_compute():
    with pytest.raises(ValueError, match="PaddedRTO: computes token rewards alone"):
        case(replace(TOKEN, reward=RewardConfig(granularity="response")))
