"""One RTO iteration in the shape of its authors' code and of TRL's former PPO: padded, eager, with all logits.

The rival of bench_train_step: right-padded batches with an attention mask (transformers' sdpa), (B, L, V) logits whose
log_softmax is float32, GAE column by column, masked whitening, epochs of mini-batches. It is derived again from the
equations, and computes what `rto_fast.stages.rto` computes for token rewards without a reward model; the losses of its
steps and the weights after them are compared with the stage's before anything is timed.

B rows of a batch, S answers, L tokens of the longest, V vocabulary. Column t is the decision that makes token t + 1.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rto_fast.config import OptimConfig, RTOConfig
from rto_fast.model.language import LanguageModel
from rto_fast.model.scalar import ScalarModel
from rto_fast.rollout import Completion
from rto_fast.training.seeds import permutation


class Padded(NamedTuple):
    """B answers behind their prompts, padded on the right; a micro-batch is as wide as its own longest."""

    ids: Tensor
    """(B, L) int64; padding is 0"""
    attend: Tensor
    """(B, L) int64: 1 = a token, 0 = padding"""
    actions: Tensor
    """(B, L-1) float32: 1 = the column makes a token of the answer"""
    truncated: Tensor
    """(B,) float32: 1 = cut off at the limit"""

    def take(self, rows: list[int]) -> "Padded":
        width = int(self.attend[rows].sum(1).max())
        ids, attend = self.ids[rows, :width], self.attend[rows, :width]
        return Padded(ids, attend, self.actions[rows, : width - 1], self.truncated[rows])


class Experience(NamedTuple):
    """(S, L-1) float32 each."""

    old_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor


def pad(answers: list[Completion]) -> Padded:
    lengths = [len(a.prompt) + len(a.response) for a in answers]
    ids = torch.zeros(len(answers), max(lengths), dtype=torch.int64)
    attend, actions = torch.zeros_like(ids), torch.zeros(len(answers), max(lengths) - 1)
    for row, (answer, length) in enumerate(zip(answers, lengths, strict=True)):
        ids[row, :length] = torch.tensor(answer.prompt + answer.response)
        attend[row, :length] = 1
        actions[row, len(answer.prompt) - 1 : length - 1] = 1.0
    return Padded(ids, attend, actions, torch.tensor([float(a.finish == "length") for a in answers]))


def logprobs_of(model: LanguageModel, batch: Padded) -> Tensor:
    """(B, L-1) float32 log-probs of the next tokens."""
    logits = model.hf(input_ids=batch.ids, attention_mask=batch.attend, use_cache=False).logits[:, :-1]
    return logits.float().log_softmax(-1).gather(2, batch.ids[:, 1:, None])[..., 0]


def values_of(critic: ScalarModel, batch: Padded) -> Tensor:
    """(B, L-1) float32 values of the states."""
    hidden = critic.backbone(input_ids=batch.ids, attention_mask=batch.attend, use_cache=False).last_hidden_state
    return (critic.head(hidden[:, :-1].float())[..., 0] - critic.mean) / critic.std


def token_rewards(policy: Tensor, reference: Tensor, dpo: Tensor, batch: Padded, config: RTOConfig) -> Tensor:
    """r_t = clip(beta_1 log(dpo/ref)) - beta_2 log(pi/ref), minus the penalty on the last action of a cut answer."""
    reward, actions = config.reward, batch.actions
    dense = (reward.beta_1 * (dpo - reference) * actions).clamp(-reward.clip, reward.clip)
    last = batch.attend.sum(1, keepdim=True) - 2
    penalty = torch.zeros_like(policy).scatter(1, last, reward.missing_eos_penalty * batch.truncated[:, None])
    return dense - reward.beta_2 * (policy - reference) * actions - penalty


def gae(rewards: Tensor, values: Tensor, actions: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns; what follows an answer is worth 0, what lies before it is never looked at."""
    rewards, values = rewards * actions, values * actions
    next_advantage = next_value = torch.zeros_like(values[:, 0])
    columns = []
    for t in reversed(range(values.shape[1])):
        next_advantage = rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * next_advantage
        next_value = values[:, t]
        columns.append(next_advantage)
    advantages = torch.stack(columns[::-1], dim=1)
    return advantages, advantages + values


def whiten(advantages: Tensor, actions: Tensor) -> Tensor:
    mean = (advantages * actions).sum() / actions.sum()
    variance = ((advantages - mean).square() * actions).sum() / actions.sum()
    return (advantages - mean) * variance.clamp(min=1e-8).rsqrt()


class PaddedRTO:
    """The models of an RTO stage, trained by padded batches of at most `microbatch` answers."""

    def __init__(
        self,
        policy: LanguageModel,
        reference: LanguageModel,
        dpo: LanguageModel,
        critic: ScalarModel,
        config: RTOConfig,
        optim: OptimConfig,
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        microbatch: int,
    ):
        reward = config.reward
        if reward.granularity != "token" or reward.beta_3 or reward.truncated == "mask" or config.entropy_coef:
            raise ValueError("PaddedRTO: computes token rewards alone, every answer counted, without entropy bonus")
        for model in (policy.hf, reference.hf, dpo.hf, critic.backbone):
            model.set_attn_implementation("sdpa")
        self.policy, self.reference, self.dpo, self.critic = policy, reference, dpo, critic
        self.config, self.optim, self.optimizer = config, optim, optimizer
        self.seed, self.microbatch = seed, microbatch

    def iteration(self, answers: list[Completion], iteration: int = 0) -> list[float]:
        """Score the answers, then update; the loss of every optimizer step."""
        batch, losses = pad(answers), []
        experience = self._score(batch)
        for epoch in range(self.config.ppo_epochs):
            order = permutation(len(answers), self.seed, "rto", iteration, epoch)
            for start in range(0, len(order), self.config.minibatch):
                losses.append(self._update(batch, experience, order[start : start + self.config.minibatch]))
        return losses

    @torch.no_grad()
    def _score(self, batch: Padded) -> Experience:
        policy, reference, dpo, values = (torch.zeros_like(batch.actions) for _ in range(4))
        for some in chunks(list(range(len(batch.ids))), self.microbatch):
            part = batch.take(some)
            width = part.actions.shape[1]
            for out, model in ((policy, self.policy), (reference, self.reference), (dpo, self.dpo)):
                out[some, :width] = logprobs_of(model, part)
            values[some, :width] = values_of(self.critic, part)
        rewards = token_rewards(policy, reference, dpo, batch, self.config)
        advantages, returns = gae(rewards, values, batch.actions, self.config.gamma, self.config.lam)
        return Experience(policy, values, whiten(advantages, batch.actions), returns)

    def _update(self, batch: Padded, experience: Experience, chosen: list[int]) -> float:
        """One optimizer step on the chosen answers; its loss."""
        config, loss = self.config, 0.0
        total = float(batch.actions[chosen].sum()) if config.average == "token" else len(chosen)
        for some in chunks(chosen, self.microbatch):
            part = batch.take(some)
            old = Experience(*(x[some, : part.actions.shape[1]] for x in experience))
            each = self._policy_loss(part, old) + config.critic.coef * self._value_loss(part, old)
            counted = part.actions if config.average == "token" else part.actions / part.actions.sum(1, keepdim=True)
            partial = (each * counted).sum() / total
            partial.backward()
            loss += float(partial.detach())
        for network in (self.policy, self.critic):
            torch.nn.utils.clip_grad_norm_(network.parameters(), self.optim.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def _policy_loss(self, batch: Padded, old: Experience) -> Tensor:
        """(B, L-1): PPO's clipped surrogate."""
        # padding's log-probs are noise, and its old ones may be far from them: no ratio of theirs may overflow
        ratio = ((logprobs_of(self.policy, batch) - old.old_logprobs) * batch.actions).exp()
        clipped = ratio.clamp(1 - self.config.clip, 1 + self.config.clip)
        return -torch.min(ratio * old.advantages, clipped * old.advantages)

    def _value_loss(self, batch: Padded, old: Experience) -> Tensor:
        """(B, L-1): the clipped squared error."""
        values, clip = values_of(self.critic, batch), self.config.critic.clip
        near = old.old_values + (values - old.old_values).clamp(-clip, clip)
        return 0.5 * torch.max((values - old.returns).square(), (near - old.returns).square())


def chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
