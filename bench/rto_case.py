"""One RTO iteration as both rivals are given it: the same models, answers, settings and order of the mini-batches."""

import copy

import torch

from bench.padded_rto import PaddedRTO
from rto_fast.config import OptimConfig, RTOConfig
from rto_fast.model.language import LanguageModel
from rto_fast.model.scalar import critic_from
from rto_fast.rl.collect import Collector
from rto_fast.rl.score import Models
from rto_fast.rollout import Completion
from rto_fast.stages.rto import RTO
from rto_fast.training import loop

SEED = 0


class Case:
    """A stage of ours and its padded twin; each has models and an optimizer of its own, equal at the start."""

    def __init__(
        self,
        policy: LanguageModel,
        prompts: list[list[int]],
        config: RTOConfig,
        optim: OptimConfig,
        *,
        eos_token_ids: tuple[int, ...],
        max_new_tokens: int,
        microbatch: int,
        microbatch_rows: int = 8192,
    ):
        """The reference is `policy`; the policy and the DPO model are moved a little from it, each another way.

        `microbatch` answers are one padded batch of the twin, `microbatch_rows` rows one packed batch of ours.
        """
        models = policy, moved(policy, 1), moved(policy, 2), critic_from(policy)
        torch.nn.init.normal_(models[3].head.weight, std=0.02, generator=torch.Generator().manual_seed(3))
        self.optim = optim
        reference, trained, dpo, critic = models
        self.state = self._state(trained, critic, config)
        collector = Collector(
            models=Models(trained, reference, dpo, critic),
            prompts=prompts,
            config=config,
            eos_token_ids=eos_token_ids,
            max_new_tokens=max_new_tokens,
            seed=SEED,
            microbatch_rows=microbatch_rows,
            workspace_mb=None,
            device=torch.device("cpu"),
        )
        self.stage = RTO(collector, self.state)
        reference, trained, dpo, critic = copy.deepcopy(models)
        self.padded = PaddedRTO(
            trained,
            reference,
            dpo,
            critic,
            config,
            optim,
            self._state(trained, critic, config).optimizer,
            seed=SEED,
            microbatch=microbatch,
        )

    def _state(self, policy: LanguageModel, critic: torch.nn.Module, config: RTOConfig) -> loop.TrainState:
        return loop.make_state(self.optim, {"policy": policy, "critic": critic}, critic=config.critic.lr)

    def ours(self, answers: list[Completion] | None = None) -> list[float]:
        """One iteration of the stage in the product's loop; without answers it rolls out. Losses of its steps."""
        if answers is not None:
            self.stage.collector.answer = lambda iteration, note: answers
        losses: list[float] = []
        self.state.progress["iteration"] = 0  # else the stage goes on from its end, with nothing left to do
        loop.train(self.stage, self.state, lambda step, metrics: losses.append(metrics["loss"]))
        assert losses, "no step was made"
        return losses

    def gaps(self, answers: list[Completion]) -> tuple[float, float]:
        """Both do one iteration: largest difference of a step's loss, and of a weight, as a share of the way it went.

        The way is the learning rate times the steps: AdamW moves a weight by about the learning rate, whatever its
        gradient's size, so the share says how alike the gradients were.
        """
        ours, theirs = self.ours(answers), self.padded.iteration(answers)
        if len(ours) != len(theirs):
            raise ValueError(f"Case: {len(ours)} steps of ours, {len(theirs)} of the padded twin")
        loss = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        pairs = ((self.stage.policy, self.padded.policy, self.optim.lr),)
        pairs += ((self.stage.critic, self.padded.critic, self.stage.config.critic.lr),)
        weight = max(
            float((a - b).detach().abs().max()) / (lr * len(ours))
            for mine, other, lr in pairs
            for a, b in zip(mine.parameters(), other.parameters(), strict=True)
        )
        return loss, weight


def moved(model: LanguageModel, seed: int, size: float = 0.02) -> LanguageModel:
    """A copy whose weights are off by noise of this share of their spread."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in other.parameters():
            p += size * (p.std() if p.numel() > 1 else 1.0) * torch.randn(p.shape, generator=generator)
    return other


def ragged_answers(
    lengths: list[int], vocab: int, *, prompt_share: float = 0.25, truncated: float = 0.1, seed: int = 0
) -> list[Completion]:
    """Random tokens of the given total lengths, a share of each being the prompt; some cut off at the limit."""
    generator = torch.Generator().manual_seed(seed)
    answers = []
    for length in lengths:
        tokens = torch.randint(3, vocab, (length,), generator=generator).tolist()
        first = max(1, int(prompt_share * length))
        finish = "length" if float(torch.rand((), generator=generator)) < truncated else "eos"
        answers.append(Completion(tokens[:first], tokens[first:], [0.0] * (length - first), finish))
    return answers
