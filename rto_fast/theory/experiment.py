"""The product's RTO stage on a token tree whose best policy is known: how much of J* does it miss?

8 tokens, depth 5, two fixed random Llamas as pi_ref and pi_dpo, the policy starting as pi_ref. `rto` pays each token
its reward, `sparse_dpo` pays the same sum at the last token; both have the same best policy.
"""

import copy
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import tyro
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from rto_fast import attention, loop
from rto_fast.config import CriticConfig, OptimConfig, RewardConfig, RTOConfig
from rto_fast.model import LanguageModel, critic_from
from rto_fast.seeds import derive
from rto_fast.stages.rto import RTO
from rto_fast.theory.token_tree import conditional_logprobs, optimal_objective, regret

START = 0
"""The prompt: one token, the root of the tree."""


@dataclass(frozen=True)
class Experiment:
    """Train rto and sparse_dpo on a token tree with the trainer's own stage and print their exact regrets as JSON."""

    seed: int = 0
    """Seeds the two fixed models and every random stream."""
    iterations: int = 150
    """Iterations of 256 rollouts."""
    every: int = 25
    """Iterations between two exact regrets."""
    vocab: int = 8
    """Tokens."""
    depth: int = 5
    """Tokens in a sequence."""
    beta_1: float = 0.1
    """Weight of the DPO token reward (paper: 0.1)."""
    beta_2: float = 0.03
    """Weight of the KL (paper: 0.03)."""
    lr: float = 2e-4
    """Learning rate of the policy at the start, falling linearly to 0; the critic's is a quarter of that."""


def tree_model(vocab: int, seed: int) -> LanguageModel:
    """A random 2-layer, 64-wide Llama whose conditionals are far from uniform."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=32,
        initializer_range=0.07,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "tree"))
        return LanguageModel(AutoModelForCausalLM.from_config(config, attn_implementation=attention.register()))


def exact(model: LanguageModel, vocab: int, depth: int) -> list[Tensor]:
    """The model's conditionals on every prefix, in float64."""

    def next_logprobs(given: Tensor) -> Tensor:
        tokens = torch.cat([torch.full((len(given), 1), START), given], 1)
        return model.hf(tokens, use_cache=False).logits[:, -1].double().log_softmax(1)

    with torch.no_grad():
        return conditional_logprobs(next_logprobs, vocab, depth)


class _Watched:
    """A stage, and a function called with the number of iterations that the policy has behind it."""

    def __init__(self, stage: RTO, watch: Callable[[int], None]):
        self.num_steps, self.loss, self.note = stage.num_steps, stage.loss, stage.note
        self.stage, self.watch = stage, watch

    def steps(self) -> Iterator[loop.Step]:
        for step in self.stage.steps():
            if "iteration" in step.metrics:
                self.watch(int(step.metrics["iteration"]) - 1)
            yield step
        self.watch(self.stage.iterations)


def run(experiment: Experiment, granularity: str, note: Callable[[str], None] = lambda _: None) -> dict[str, float]:
    """{iterations: regret} of one reward placement."""
    e = experiment
    reference, dpo = tree_model(e.vocab, derive(e.seed, "ref")), tree_model(e.vocab, derive(e.seed, "dpo"))
    policy = copy.deepcopy(reference)
    critic = critic_from(reference)
    ref_rows, dpo_rows = exact(reference, e.vocab, e.depth), exact(dpo, e.vocab, e.depth)
    optim = OptimConfig(lr=e.lr, schedule="linear", warmup=0.0, min_lr=0.0)
    config = RTOConfig(
        reward=RewardConfig(e.beta_1, e.beta_2, granularity=granularity),
        critic=CriticConfig(lr=e.lr / 4),
        iterations=e.iterations,
        rollouts=256,
        minibatch=64,
        optim=optim,
    )
    groups = loop.parameter_groups("policy", policy, e.lr, 0.0)
    groups += loop.parameter_groups("critic", critic, config.critic.lr, 0.0)
    state = loop.make_state(groups, optim)
    stage = RTO(
        policy,
        reference,
        dpo,
        critic,
        [[START]],
        config,
        state,
        eos_token_ids=(),
        max_new_tokens=e.depth,
        seed=e.seed,
        microbatch_rows=4096,
        workspace_mb=16,
        device=torch.device("cpu"),
    )
    regrets: dict[str, float] = {}

    def watch(done: int) -> None:
        if done % e.every == 0 or done == e.iterations:
            rows = exact(policy, e.vocab, e.depth)
            regrets[str(done)] = float(regret(rows, ref_rows, dpo_rows, e.beta_1, e.beta_2))
            note(f"{granularity:8} {done:4} iterations: regret {regrets[str(done)]:.4f}")

    best = float(optimal_objective(ref_rows, dpo_rows, e.beta_1, e.beta_2))
    note(f"{granularity:8} J* = {best:.4f}")
    loop.train(_Watched(stage, watch), state, config.optim, lambda *_: None, log_every=10**9)
    return regrets


def main() -> None:
    experiment = tyro.cli(Experiment, prog="python -m rto_fast.theory.token_tree")
    started = time.perf_counter()
    note = lambda text: print(f"{time.perf_counter() - started:6.1f} s  {text}", file=sys.stderr)  # noqa: E731
    placements = {"rto": "token", "sparse_dpo": "response"}
    print(json.dumps({name: {"regret": run(replace(experiment), where, note)} for name, where in placements.items()}))
