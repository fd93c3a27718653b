"""Supervised fine-tuning: the reference policy pi_ref.

    loss = -sum_t w_t log pi(y_t | s_t)         over response tokens, EOS included

Departures from the paper: none; it fine-tunes on the chosen answers, or on demonstrations where there are some.
"""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rto_fast.config import SFTConfig
from rto_fast.data.encode import EncodedDemonstration
from rto_fast.model.language import LanguageModel
from rto_fast.model.logprobs import response_logprobs
from rto_fast.packing import PackedBatch, pack
from rto_fast.rl.losses import nll_loss
from rto_fast.training import mesh
from rto_fast.training.epochs import Epochs
from rto_fast.training.loop import Note, Step, TrainState, silent


class Batch(NamedTuple):
    packed: PackedBatch


@dataclass
class SFT:
    """Epochs over demonstrations, shuffled anew each time."""

    model: LanguageModel
    demonstrations: list[EncodedDemonstration]
    config: SFTConfig
    state: TrainState
    _: KW_ONLY
    seed: int
    microbatch_rows: int
    workspace_mb: int | None
    device: torch.device

    def __post_init__(self) -> None:
        self.model.train()
        self.note: Note = silent
        config = self.config
        self.epochs = Epochs(len(self.demonstrations), config.batch_size, config.epochs, self.seed, "sft")
        self.num_steps = self.epochs.num_steps

    def steps(self) -> Iterator[Step[Batch]]:
        for step in range(self.state.step, self.num_steps):
            yield self._step([self.demonstrations[i] for i in self.epochs.chosen(step)])

    def _step(self, chosen: list[EncodedDemonstration]) -> Step[Batch]:
        lengths = [len(d.prompt) + len(d.response) - 1 for d in chosen]
        batches, share = [], mesh.share(lengths, self.microbatch_rows)
        for group in share.groups:
            prompts, responses = [chosen[i].prompt for i in group], [chosen[i].response for i in group]
            batches.append(Batch(pack(prompts, responses, self.config.average).to(self.device)))
        total = len(chosen) if self.config.average == "sequence" else sum(len(d.response) for d in chosen)
        return Step(batches, total, idle=share.idle)

    def losses(self, batch: Batch, total: float) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        packed = batch.packed
        logprobs = response_logprobs(self.model, packed, self.workspace_mb, self.model.head_gradient())
        yield nll_loss(logprobs, packed.responses(packed.weights)) / total, {}
