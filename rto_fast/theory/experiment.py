"""The RL stage on a token tree whose best policy is known: how much of J* does each member of the family miss?

8 tokens, depth 5, two fixed random Llamas as pi_ref and pi_dpo, the policy starting as pi_ref. All members are paid the
same return, beta_1 log pi_dpo/pi_ref of the whole answer:

    rto         every token its own share                       sparse_dpo  all of it at the last token
    semi_rto    at the ends of sentences (tokens 1 and 2)       ppo         all of it, as a sentence score
    rs_ppo      the score, and token rewards that cancel        grpo        the score compared within groups of 8

The first five have one best policy and approach it. grpo has another: its loss charges every token its own k3, whose
gradient is that of KL(pi_ref || pi) and knows nothing of the KL of later tokens, where the return's KL is
KL(pi || pi_ref) of the whole answer. Its beta_2 is divided by the deviation of the return under pi*, since its rewards
are: the rest of its regret is that difference, and the noise of a deviation taken from 8 answers.

With --rank policy and critic are adapters. They leave norms and head alone, and the last norm fixes the length of what
the head reads, so that the head's own length bounds all log-ratios. With heads as the trees have them 2 % of J* are
then out of reach, with adapters of full rank (--rank 64) as with full training whose head and norms are frozen (2.3 %,
seed 0); with heads of twice the length (--head 2) they are not.
"""

import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import tyro
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from rto_fast.config import (
    CorrectionConfig,
    CriticConfig,
    OptimConfig,
    RewardConfig,
    RTOConfig,
    SamplingConfig,
    member,
)
from rto_fast.model import attention
from rto_fast.model.adapter_files import lora
from rto_fast.model.language import LanguageModel, zero_head
from rto_fast.model.scalar import ScalarModel, critic_from
from rto_fast.rl.collect import Collector
from rto_fast.rl.score import Models
from rto_fast.rollout import Completion
from rto_fast.stages.rto import RTO
from rto_fast.theory import token_tree
from rto_fast.training import loop
from rto_fast.training.seeds import derive

START = 0
"""The prompt: one token, the root of the tree."""
SENTENCE_ENDS = frozenset({1, 2})
"""The tokens that end a sentence, for semi_rto."""
Member = Literal["rto", "sparse_dpo", "semi_rto", "ppo", "rs_ppo", "grpo"]


@dataclass(frozen=True)
class Experiment:
    """Train the RTO family on a token tree with the trainer's own stage and print the exact regrets as JSON."""

    members: tuple[Member, ...] = ("rto", "sparse_dpo")
    """Which of rto, sparse_dpo, semi_rto, ppo, rs_ppo, grpo."""
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
    rank: int | None = None
    """Policy and critic are adapters of this rank on pi_ref, with alpha twice the rank; none = all weights learn."""
    head: float = 1.0
    """Both fixed models' heads are so many times as long."""
    temperature: float = 1.0
    """Of the sampler: anything but 1 makes it another distribution than the policy's."""
    correction: Literal["off", "tis", "mask"] = "off"
    """What makes up for that: rto.correction.kind."""


def tree_model(vocab: int, seed: int, head: float = 1.0) -> LanguageModel:
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
        model = LanguageModel(AutoModelForCausalLM.from_config(config, attn_implementation=attention.register()))
    with torch.no_grad():
        model.head().weight.mul_(head)
    return model


@torch.no_grad()
def exact(model: LanguageModel, vocab: int, depth: int) -> list[Tensor]:
    """The model's conditionals on every prefix, in float64."""

    def next_logprobs(given: Tensor) -> Tensor:
        tokens = torch.nn.functional.pad(given, (1, 0), value=START)
        with model.active():
            return model.hf(tokens, use_cache=False).logits[:, -1].double().log_softmax(1)

    return token_tree.conditional_logprobs(next_logprobs, vocab, depth)


def settings(experiment: Experiment, name: str, deviation: float) -> RTOConfig:
    """The trainer's configuration of one member, `deviation` being that of the return under pi*."""
    e = experiment
    beta_2 = e.beta_2 / deviation if name == "grpo" else e.beta_2
    config = RTOConfig(
        # no clamp: the score is the DPO model's log-ratio, beyond 10 nats on a few answers
        reward=RewardConfig(e.beta_1, beta_2, score_clip=1e6),
        critic=CriticConfig(lr=e.lr / 4),
        sampling=SamplingConfig(temperature=e.temperature),
        correction=CorrectionConfig(e.correction),
        score_weight=e.beta_1,
        iterations=e.iterations,
        rollouts=256,
        minibatch=64,
        optim=OptimConfig(lr=e.lr, schedule="linear", warmup=0.0, min_lr=0.0),
    )
    return member(config, name)


def _trained(reference: LanguageModel, rank: int | None, separate: bool) -> tuple[LanguageModel, ScalarModel | None]:
    """Policy and critic, as models of their own or as adapters on pi_ref."""
    if rank is None:
        return copy.deepcopy(reference), critic_from(reference) if separate else None
    base = reference.share()
    for seed, name in enumerate(("policy", "critic") if separate else ("policy",)):
        base.add(name, lora(rank, 2.0 * rank, "all-linear"), seed=seed)
    head = zero_head(reference.hf.config.hidden_size)
    return LanguageModel(base.hf, base, "policy"), ScalarModel.on(base, "critic", head) if separate else None


def run(experiment: Experiment, name: Member, note: Callable[[str], None] = lambda _: None) -> dict[str, float]:
    """{iterations: regret} of one member of the family."""
    e = experiment
    reference, dpo = (tree_model(e.vocab, derive(e.seed, name), e.head) for name in ("ref", "dpo"))
    ref_rows, dpo_rows = exact(reference, e.vocab, e.depth), exact(dpo, e.vocab, e.depth)
    log_ratio = token_tree.sequence_logprobs(dpo_rows) - token_tree.sequence_logprobs(ref_rows)
    best = token_tree.optimal_sequence_logprobs(ref_rows, dpo_rows, e.beta_1, e.beta_2).exp()
    mean = best @ log_ratio
    config = settings(e, name, deviation=e.beta_1 * float((best @ (log_ratio - mean).square()).sqrt()))
    policy, critic = _trained(reference, e.rank, config.critic.kind == "separate")
    state = loop.make_state(config.optim, {"policy": policy, "critic": critic}, critic=config.critic.lr)

    def scorer(answers: list[Completion]) -> list[float]:
        tokens = torch.tensor([a.response for a in answers])
        return log_ratio.view([e.vocab] * e.depth)[tokens.unbind(1)].tolist()

    collector = Collector(
        models=Models(policy, reference, dpo, critic),
        prompts=[[START]],
        config=config,
        eos_token_ids=(),
        max_new_tokens=e.depth,
        seed=e.seed,
        microbatch_rows=4096,
        workspace_mb=16,
        device=torch.device("cpu"),
        scorer=scorer,
        sentence_end_ids=SENTENCE_ENDS,
    )
    stage = RTO(collector, state)
    regrets: dict[str, float] = {}

    def watch(state: loop.TrainState) -> None:
        done, within = divmod(state.step, stage.num_steps // stage.iterations)
        if not within and (done % e.every == 0 or done == e.iterations):
            rows = exact(policy, e.vocab, e.depth)
            regrets[str(done)] = float(token_tree.regret(rows, ref_rows, dpo_rows, e.beta_1, e.beta_2))
            note(f"{name:10} {done:4} iterations: regret {regrets[str(done)]:.4f}")

    note(f"{name:10} J* = {float(token_tree.optimal_objective(ref_rows, dpo_rows, e.beta_1, e.beta_2)):.4f}")
    watch(state)
    loop.train(stage, state, lambda *_: None, log_every=10**9, after_step=watch)
    return regrets


def main() -> None:
    experiment = tyro.cli(Experiment, prog="python -m rto_fast.theory.token_tree")
    started = time.perf_counter()
    note = lambda text: print(f"{time.perf_counter() - started:6.1f} s  {text}", file=sys.stderr)  # noqa: E731
    print(json.dumps({name: {"regret": run(experiment, name, note)} for name in experiment.members}))
