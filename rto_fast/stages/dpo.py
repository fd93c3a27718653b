"""Direct preference optimization: pi_dpo, whose log-ratio to pi_ref is RTO's token reward.

    loss = -sum_pairs log sigmoid(beta (log pi/pi_ref (chosen) - log pi/pi_ref (rejected)))

Rafailov et al. 2023, eq. 7 (arXiv:2305.18290); IPO and label smoothing by configuration.

Departures: the reference's log-probs are computed once, before training, so only one model is in memory.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rto_fast.config import DPOConfig
from rto_fast.data.encode import EncodedPair
from rto_fast.kernels.common.segments import sequence_sums
from rto_fast.kernels.preference_head import PreferenceHead, preference_head
from rto_fast.model.language import Head, LanguageModel
from rto_fast.model.logprobs import response_logprobs
from rto_fast.packing import PackedBatch, Rows, microbatches, pack
from rto_fast.rl.losses import wins
from rto_fast.training.loop import Step, TrainState
from rto_fast.training.seeds import permutation


class Batch(NamedTuple):
    packed: PackedBatch
    rows: Rows
    """2B sequences: the B chosen, then the B rejected."""
    reference: Tensor
    """(2B,) float32: log pi_ref of each answer"""


class DPO:
    """Epochs over pairs; the model given starts as pi_ref and ends as pi_dpo."""

    def __init__(
        self,
        model: LanguageModel,
        pairs: list[EncodedPair],
        config: DPOConfig,
        state: TrainState,
        *,
        seed: int,
        microbatch_rows: int,
        workspace_mb: int | None,
        device: torch.device,
    ):
        self.model = model.train()
        self.pairs = pairs
        self.config = config
        self.state = state
        self.seed = seed
        self.microbatch_rows = microbatch_rows
        self.workspace_mb = workspace_mb
        self.device = device
        self.batch_size = min(config.batch_size, len(pairs))
        self.num_steps = max(1, int(config.epochs * len(pairs) // self.batch_size))
        self._orders: dict[int, list[int]] = {}
        self.note: Callable[[str], None] = lambda text: None
        """Logs what goes on between two steps."""

    def steps(self) -> Iterator[Step[Batch]]:
        if "reference" not in self.state.tensors:
            self.state.tensors["reference"] = self._reference_logprobs()
        for step in range(self.state.step, self.num_steps):
            chosen = self._chosen(step)
            yield Step([self._batch(group) for group in self._groups(chosen)], len(chosen))

    def _chosen(self, step: int) -> list[int]:
        """The pairs of a step; each epoch has its own order."""
        epoch, place = divmod(step, len(self.pairs) // self.batch_size)
        if epoch not in self._orders:
            self._orders = {epoch: permutation(len(self.pairs), self.seed, "dpo", epoch)}
        return self._orders[epoch][place * self.batch_size : (place + 1) * self.batch_size]

    def _groups(self, items: list[int]) -> list[list[int]]:
        """Pairs stay whole: their answers meet in the loss."""
        lengths = [2 * len(p.prompt) + len(p.chosen) + len(p.rejected) - 2 for p in (self.pairs[i] for i in items)]
        return [[items[i] for i in group] for group in microbatches(lengths, self.microbatch_rows)]

    def _pack(self, items: list[int]) -> tuple[PackedBatch, Rows]:
        pairs = [self.pairs[i] for i in items]
        return pack([p.prompt for p in pairs] * 2, [p.chosen for p in pairs] + [p.rejected for p in pairs])

    def _batch(self, items: list[int]) -> Batch:
        packed, rows = self._pack(items)
        reference = self.state.tensors["reference"][:, items].reshape(-1)
        return Batch(packed.to(self.device), rows.to(self.device), reference.to(self.device))

    @torch.no_grad()
    def _reference_logprobs(self) -> Tensor:
        """(2, pairs) on the CPU, in float32 or better: log pi_ref of the chosen and the rejected answers to be seen."""
        sums = torch.zeros(2, len(self.pairs), dtype=torch.promote_types(self.model.hf.dtype, torch.float32))
        seen = sorted({i for step in range(self.num_steps) for i in self._chosen(step)})
        for group in self._groups(seen):
            self.note("reference log-probs")
            packed, rows = self._pack(group)
            packed, rows = packed.to(self.device), rows.to(self.device)
            logprobs = response_logprobs(self.model, packed, rows, self.workspace_mb)
            sums[:, group] = sequence_sums(logprobs, rows.cu_seqlens).view(2, -1).cpu()
        return sums

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        packed, rows = batch.packed, batch.rows

        def head_rows(hidden: Tensor, head: Head) -> PreferenceHead:
            return preference_head(
                hidden[rows.index],
                head.weight,
                packed.target_ids[rows.index],
                rows.cu_seqlens,
                batch.reference,
                beta=self.config.beta,
                label_smoothing=self.config.label_smoothing,
                loss=self.config.loss,
                workspace_mb=self.workspace_mb,
                **head.options(),
            )

        out = self.model(packed, head_rows)
        chosen, rejected = ((out.logprobs - batch.reference) * self.config.beta).view(2, -1).detach().sum(1)
        logp_chosen, logp_rejected = out.logprobs.view(2, -1).detach().sum(1)
        return out.loss, {
            "accuracy": wins(out.margins.detach()).sum(),
            "margin": out.margins.detach().sum(),
            "reward_chosen": chosen,
            "reward_rejected": rejected,
            "logp_chosen": logp_chosen,
            "logp_rejected": logp_rejected,
        }
