"""One PPO iteration's answers and what the update needs of them, as an object and as tensors for a checkpoint.

R response rows, S answers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rto_fast.rollout import Completion

FINISHES = ("eos", "length")
COLUMNS = ("old_logprobs", "reference", "old_values", "advantages", "returns")


@dataclass(frozen=True, slots=True)
class Experience:
    """Columns are (R,) float32 over all response rows."""

    answers: list[Completion]
    offsets: Tensor
    """(S+1,) int32 on the CPU: rows of each answer"""
    weights: list[float]
    """Weight of each answer: 0 = masked out"""
    old_logprobs: Tensor
    reference: Tensor
    """Log-probs under pi_ref"""
    old_values: Tensor
    advantages: Tensor
    returns: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """All of it as tensors, on the devices where they are; `from_tensors` makes the same again."""
        answers = self.answers
        return {
            "offsets": self.offsets,
            "weights": torch.tensor(self.weights, dtype=torch.float64),
            "prompts": torch.tensor([t for a in answers for t in a.prompt], dtype=torch.int64),
            "prompt_lengths": torch.tensor([len(a.prompt) for a in answers], dtype=torch.int64),
            "responses": torch.tensor([t for a in answers for t in a.response], dtype=torch.int64),
            "logprobs": torch.tensor([p for a in answers for p in a.logprobs], dtype=torch.float64),
            "finishes": torch.tensor([FINISHES.index(a.finish) for a in answers], dtype=torch.uint8),
            **{name: getattr(self, name) for name in COLUMNS},
        }


def from_tensors(tensors: dict[str, Tensor], device: torch.device) -> Experience:
    """The Experience whose `tensors` these are, its columns on `device`."""
    lengths = tensors["offsets"].diff().tolist()
    prompts = tensors["prompts"].split(tensors["prompt_lengths"].tolist())
    responses, logprobs = tensors["responses"].split(lengths), tensors["logprobs"].split(lengths)
    answers = [
        Completion(prompt.tolist(), response.tolist(), sampled.tolist(), FINISHES[finish])
        for prompt, response, sampled, finish in zip(
            prompts, responses, logprobs, tensors["finishes"].tolist(), strict=True
        )
    ]
    columns = {name: tensors[name].to(device) for name in COLUMNS}
    return Experience(answers, tensors["offsets"].cpu(), tensors["weights"].tolist(), **columns)
