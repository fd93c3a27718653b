"""A Bradley-Terry reward model on packed pairs: one score per answer, at its last token.

    loss = -sum_pairs log sigmoid(score(chosen) - score(rejected))          eq. 2.2 of arXiv:2404.18922

It starts from pi_ref's backbone and a head of zeros. When it is trained, the mean and the standard deviation of its
scores of the pairs it has seen are written into its config, and scores are calibrated by them: (score - mean) / std.

Departures from the paper: none.
"""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rto_fast.config import RMConfig
from rto_fast.data.encode import EncodedPair
from rto_fast.model.logprobs import last_token_scores
from rto_fast.model.scalar import ScalarModel
from rto_fast.packing import PackedBatch, pack_whole
from rto_fast.rl.losses import wins
from rto_fast.training import mesh
from rto_fast.training.epochs import Epochs
from rto_fast.training.loop import Note, Step, TrainState, silent


class Batch(NamedTuple):
    packed: PackedBatch
    """2B sequences, their last tokens the response rows: the B chosen, then the B rejected."""


@dataclass
class RewardModel:
    """Epochs over pairs, shuffled anew each time."""

    model: ScalarModel
    pairs: list[EncodedPair]
    config: RMConfig
    state: TrainState
    _: KW_ONLY
    seed: int
    microbatch_rows: int
    device: torch.device

    def __post_init__(self) -> None:
        self.model.train()
        self.note: Note = silent
        self.epochs = Epochs(len(self.pairs), self.config.batch_size, self.config.epochs, self.seed, "rm")
        self.num_steps = self.epochs.num_steps

    def steps(self) -> Iterator[Step[Batch]]:
        for step in range(self.state.step, self.num_steps):
            chosen = [self.pairs[i] for i in self.epochs.chosen(step)]
            lengths = [2 * len(p.prompt) + len(p.chosen) + len(p.rejected) for p in chosen]
            groups, idle = mesh.share(lengths, self.microbatch_rows)
            yield Step([self._batch([chosen[i] for i in group]) for group in groups], len(chosen), idle=idle)

    def _batch(self, pairs: list[EncodedPair]) -> Batch:
        chosen, rejected = ([p.prompt + p.chosen for p in pairs], [p.prompt + p.rejected for p in pairs])
        return Batch(pack_whole(chosen + rejected).to(self.device))

    def losses(self, batch: Batch, total: float) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        chosen, rejected = self.model(batch.packed).view(2, -1)
        margin = chosen - rejected
        stats = {
            "accuracy": wins(margin.detach()).sum(),
            "margin": margin.detach().sum(),
            "score_chosen": chosen.detach().sum(),
            "score_rejected": rejected.detach().sum(),
        }
        yield -F.logsigmoid(margin).sum() / total, stats

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
