"""A Bradley-Terry reward model on packed pairs: one score per answer, at its last token.

    loss = -sum_pairs log sigmoid(score(chosen) - score(rejected))          eq. 2.2 of arXiv:2404.18922

It starts from pi_ref's backbone and a head of zeros. When it is trained, the mean and the standard deviation of its
scores of the pairs it has seen are written into its config, and scores are calibrated by them: (score - mean) / std.

Departures from the paper: none.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rto_fast.config import RMConfig
from rto_fast.data.encode import EncodedPair
from rto_fast.model.logprobs import last_token_scores
from rto_fast.model.scalar import ScalarModel
from rto_fast.packing import PackedBatch, microbatches, pack_whole
from rto_fast.rl.losses import wins
from rto_fast.training.loop import Step, TrainState
from rto_fast.training.seeds import permutation


class Batch(NamedTuple):
    packed: PackedBatch
    last: Tensor
    """(2B,) int64: the row of each answer's last token; the B chosen, then the B rejected."""


class RewardModel:
    """Epochs over pairs, shuffled anew each time."""

    def __init__(
        self,
        model: ScalarModel,
        pairs: list[EncodedPair],
        config: RMConfig,
        state: TrainState,
        *,
        seed: int,
        microbatch_rows: int,
        device: torch.device,
    ):
        self.model = model.train()
        self.pairs = pairs
        self.config = config
        self.state = state
        self.seed = seed
        self.microbatch_rows = microbatch_rows
        self.device = device
        self.batch_size = min(config.batch_size, len(pairs))
        self.num_steps = max(1, int(config.epochs * len(pairs) // self.batch_size))
        self.note: Callable[[str], None] = lambda text: None
        """Logs what goes on between two steps."""

    def steps(self) -> Iterator[Step[Batch]]:
        per_epoch, order = len(self.pairs) // self.batch_size, None
        for step in range(self.state.step, self.num_steps):
            epoch, place = divmod(step, per_epoch)
            if place == 0 or order is None:
                order = permutation(len(self.pairs), self.seed, "rm", epoch)
            chosen = [self.pairs[i] for i in order[place * self.batch_size : (place + 1) * self.batch_size]]
            lengths = [2 * len(p.prompt) + len(p.chosen) + len(p.rejected) for p in chosen]
            groups = microbatches(lengths, self.microbatch_rows)
            yield Step([self._batch([chosen[i] for i in group]) for group in groups], len(chosen))

    def _batch(self, pairs: list[EncodedPair]) -> Batch:
        chosen, rejected = ([p.prompt + p.chosen for p in pairs], [p.prompt + p.rejected for p in pairs])
        packed, last = pack_whole(chosen + rejected)
        return Batch(packed.to(self.device), last.to(self.device))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        chosen, rejected = self.model(batch.packed, batch.last).view(2, -1)
        margin = chosen - rejected
        return -F.logsigmoid(margin).sum(), {
            "accuracy": wins(margin.detach()).sum(),
            "margin": margin.detach().sum(),
            "score_chosen": chosen.detach().sum(),
            "score_rejected": rejected.detach().sum(),
        }

    @torch.no_grad()
    def calibrate(self) -> None:
        """Set the model's mean and std to those of its scores of all the pairs, so that they become 0 and 1.

        Raises ValueError when all answers have the same score: nothing was learned.
        """
        answers = [p.prompt + response for p in self.pairs for response in (p.chosen, p.rejected)]
        scores = last_token_scores(self.model, answers, self.microbatch_rows).double()
        std = scores.std(correction=0).item()
        if not std > 0:
            raise ValueError(f"rm: all scores are {scores[0]:.3g}; nothing was learned: raise rm.optim.lr or rm.epochs")
        mean = scores.mean().item()
        self.model.mean, self.model.std = self.model.mean + self.model.std * mean, self.model.std * std
