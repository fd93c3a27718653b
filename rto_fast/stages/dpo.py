"""Direct preference optimization: pi_dpo, whose log-ratio to pi_ref is RTO's token reward.

    loss = -sum_pairs log sigmoid(beta (log pi/pi_ref (chosen) - log pi/pi_ref (rejected)))

Rafailov et al. 2023, eq. 7 (arXiv:2305.18290); IPO and label smoothing by configuration.

Departures: the reference's log-probs are computed once, before training, so only one model is in memory.
"""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rto_fast.config import DPOConfig
from rto_fast.data.encode import EncodedPair
from rto_fast.kernels.common.segments import sequence_sums
from rto_fast.kernels.preference_head import PreferenceHead, preference_head
from rto_fast.model.language import Head, LanguageModel
from rto_fast.model.logprobs import response_logprobs
from rto_fast.packing import PackedBatch, Share, pack
from rto_fast.rl.losses import wins
from rto_fast.training import mesh
from rto_fast.training.epochs import Epochs
from rto_fast.training.loop import Note, Step, TrainState, silent


class Batch(NamedTuple):
    packed: PackedBatch
    """2B sequences: the B chosen, then the B rejected."""
    ref_logprobs: Tensor
    """(2B,) float32: log pi_ref of each answer"""


@dataclass
class DPO:
    """Epochs over pairs; the model given starts as pi_ref and ends as pi_dpo."""

    model: LanguageModel
    pairs: list[EncodedPair]
    config: DPOConfig
    state: TrainState
    _: KW_ONLY
    seed: int
    microbatch_rows: int
    workspace_mb: int | None
    device: torch.device

    def __post_init__(self) -> None:
        self.model.train()
        self.note: Note = silent
        self.epochs = Epochs(len(self.pairs), self.config.batch_size, self.config.epochs, self.seed, "dpo")
        self.num_steps = self.epochs.num_steps

    def steps(self) -> Iterator[Step[Batch]]:
        if "ref_logprobs" not in self.state.tensors:
            self.state.tensors["ref_logprobs"] = self._reference_logprobs()
        for step in range(self.state.step, self.num_steps):
            chosen = self.epochs.chosen(step)
            groups, idle = self._share(chosen)
            yield Step([self._batch(group) for group in groups], len(chosen), idle=idle)

    def _share(self, items: list[int], finer: bool = True) -> Share:
        """This rank's groups of items. Pairs stay whole: their answers meet in the loss."""
        lengths = [2 * len(p.prompt) + len(p.chosen) + len(p.rejected) - 2 for p in (self.pairs[i] for i in items)]
        groups, idle = mesh.shares(lengths, self.microbatch_rows, finer)[mesh.rank()]
        return Share([[items[i] for i in group] for group in groups], idle)

    def _pack(self, items: list[int]) -> PackedBatch:
        pairs = [self.pairs[i] for i in items]
        return pack([p.prompt for p in pairs] * 2, [p.chosen for p in pairs] + [p.rejected for p in pairs])

    def _batch(self, items: list[int]) -> Batch:
        ref_logprobs = self.state.tensors["ref_logprobs"][:, items].reshape(-1)
        return Batch(self._pack(items).to(self.device), ref_logprobs.to(self.device))

    @torch.no_grad()
    def _reference_logprobs(self) -> Tensor:
        """(2, pairs) on the CPU, in float32 or better: log pi_ref of the chosen and the rejected answers to be seen."""
        sums = torch.zeros(2, len(self.pairs), dtype=torch.promote_types(self.model.hf.dtype, torch.float32))
        seen = sorted({i for step in range(self.num_steps) for i in self.epochs.chosen(step)})
        groups, idle = self._share(seen, finer=False)
        for group in groups[: len(groups) - idle]:
            self.note("reference log-probs")
            packed = self._pack(group).to(self.device)
            logprobs = response_logprobs(self.model, packed, self.workspace_mb)
            sums[:, group] = sequence_sums(logprobs, packed.response_cu_seqlens).view(2, -1).cpu()
        return mesh.total(sums.to(self.device)).cpu()  # each is some rank's, and 0 on the others

    def losses(self, batch: Batch, total: float) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        packed, ref_logprobs = batch.packed, batch.ref_logprobs

        def head_rows(hidden: Tensor, head: Head) -> PreferenceHead:
            return preference_head(
                packed.responses(hidden),
                head.weight,
                packed.responses(packed.target_ids),
                packed.response_cu_seqlens,
                ref_logprobs,
                beta=self.config.beta,
                label_smoothing=self.config.label_smoothing,
                loss=self.config.loss,
                workspace_mb=self.workspace_mb,
                weight_grad=self.model.head_gradient(),
                **head.options(),
            )

        out = self.model(packed, head_rows)
        chosen, rejected = ((out.logprobs - ref_logprobs) * self.config.beta).view(2, -1).detach().sum(1)
        logp_chosen, logp_rejected = out.logprobs.view(2, -1).detach().sum(1)
        stats = {
            "accuracy": wins(out.margins.detach()).sum(),
            "margin": out.margins.detach().sum(),
            "reward_chosen": chosen,
            "reward_rejected": rejected,
            "logp_chosen": logp_chosen,
            "logp_rejected": logp_rejected,
        }
        yield out.loss / total, stats
