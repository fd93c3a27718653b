"""Supervised fine-tuning: the reference policy pi_ref.

    loss = -sum_t w_t log pi(y_t | s_t)         over response tokens, EOS included

Departures from the paper: none; it fine-tunes on the chosen answers, or on demonstrations where there are some.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rto_fast.config import SFTConfig
from rto_fast.data.encode import EncodedDemonstration
from rto_fast.model.language import LanguageModel
from rto_fast.model.logprobs import response_logprobs
from rto_fast.packing import PackedBatch, Rows, microbatches, pack
from rto_fast.rl.losses import nll_loss
from rto_fast.training.loop import Step, TrainState
from rto_fast.training.seeds import permutation


class Batch(NamedTuple):
    packed: PackedBatch
    rows: Rows


class SFT:
    """Epochs over demonstrations, shuffled anew each time."""

    def __init__(
        self,
        model: LanguageModel,
        demonstrations: list[EncodedDemonstration],
        config: SFTConfig,
        state: TrainState,
        *,
        seed: int,
        microbatch_rows: int,
        workspace_mb: int | None,
        device: torch.device,
    ):
        self.model = model.train()
        self.demonstrations = demonstrations
        self.config = config
        self.state = state
        self.seed = seed
        self.microbatch_rows = microbatch_rows
        self.workspace_mb = workspace_mb
        self.device = device
        self.batch_size = min(config.batch_size, len(demonstrations))
        self.note: Callable[[str], None] = lambda text: None
        """Logs what goes on between two steps."""
        self.num_steps = max(1, int(config.epochs * len(demonstrations) // self.batch_size))

    def steps(self) -> Iterator[Step[Batch]]:
        per_epoch, order = len(self.demonstrations) // self.batch_size, None
        for step in range(self.state.step, self.num_steps):
            epoch, place = divmod(step, per_epoch)
            if place == 0 or order is None:
                order = permutation(len(self.demonstrations), self.seed, "sft", epoch)
            chosen = [self.demonstrations[i] for i in order[place * self.batch_size : (place + 1) * self.batch_size]]
            yield self._step(chosen)

    def _step(self, chosen: list[EncodedDemonstration]) -> Step[Batch]:
        lengths = [len(d.prompt) + len(d.response) - 1 for d in chosen]
        batches = []
        for group in microbatches(lengths, self.microbatch_rows):
            packed, rows = pack(
                [chosen[i].prompt for i in group], [chosen[i].response for i in group], self.config.average
            )
            batches.append(Batch(packed.to(self.device), rows.to(self.device)))
        total = len(chosen) if self.config.average == "sequence" else sum(len(d.response) for d in chosen)
        return Step(batches, total)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs = response_logprobs(self.model, batch.packed, batch.rows, self.workspace_mb)
        return nll_loss(logprobs, batch.packed.weights[batch.rows.index]), {}
