"""Language models behind a small interface: hidden states and the head's weights, never logits.

T rows, H hidden, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple, TypedDict, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rto_fast.kernels.common.workspace import accumulator
from rto_fast.model.adapters import Base, Network
from rto_fast.packing import PackedBatch

Out = TypeVar("Out")


class HeadOptions(TypedDict):
    bias: Tensor | None
    softcap: float | None
    temperature: float


class Head(NamedTuple):
    """What turns hidden states into logits: z = softcap * tanh((h W^T + b) / softcap) / temperature."""

    weight: Tensor
    """(V, H)"""
    bias: Tensor | None = None
    softcap: float | None = None
    temperature: float = 1.0

    def to(self, dtype: torch.dtype) -> "Head":
        return self._replace(weight=self.weight.to(dtype), bias=None if self.bias is None else self.bias.to(dtype))

    def options(self) -> HeadOptions:
        """Keyword arguments of the head operators."""
        return {"bias": self.bias, "softcap": self.softcap, "temperature": self.temperature}


def hidden_states(backbone: nn.Module, batch: PackedBatch) -> Tensor:
    """(T, H) hidden states of packed rows: the output of the last norm."""
    # a mask of four axes, which attention over packed rows never reads, is passed on as it is; without one transformers
    # looks for packed sequences itself, and waits for the device to know whether there are any
    unread = torch.empty(1, 1, 0, 0, dtype=torch.bool, device=batch.input_ids.device)
    return backbone(
        input_ids=batch.input_ids[None],
        attention_mask=unread,
        position_ids=batch.position_ids[None],
        use_cache=False,
        cu_seq_lens_q=batch.cu_seqlens,
        cu_seq_lens_k=batch.cu_seqlens,
        max_length_q=batch.max_seqlen,
        max_length_k=batch.max_seqlen,
    ).last_hidden_state[0]


JITTER = ("jitter_noise", "router_jitter_noise", "input_jitter_noise")
"""What some mixtures of experts multiply their inputs with in training."""


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """A policy's log-probs must be a function of its weights, in training as in scoring."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # some families hand these to functions; OPT calls one of them dropout
        for name in ("attention_dropout", "dropout_p", "dropout", *JITTER):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def zero_head(hidden_size: int, bias: bool = True) -> nn.Linear:
    """Starts at zero: the first advantages are rewards to go, not noise."""
    head = nn.Linear(hidden_size, 1, bias=bias, dtype=torch.float32)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    return head


class LanguageModel(Network):
    """A causal language model whose head is applied by the caller, inside the module's forward.

    Running the head inside forward is what lets a sharding wrapper gather the head's weight and reduce its gradient.
    """

    def __init__(self, hf: PreTrainedModel, base: Base | None = None, adapter: str | None = None):
        super().__init__()
        self.hf = without_dropout(hf)
        self.base, self.adapter = base, adapter
        self.value_head: nn.Linear | None = None
        """Set by `add_value_head`: a critic on this model's own hidden states."""

    def forward(self, batch: PackedBatch, fn: Callable[[Tensor, Head], Out]) -> Out:
        """fn(hidden (T, H), head) on packed rows, hidden and head in the dtype of the arithmetic.

        fn runs outside autocast: it chooses its own precision (float32 from the logits on).
        """
        with self.active():
            hidden = hidden_states(self.hf.base_model, batch)
        device = hidden.device.type
        # under autocast the residual stream is float32, but the head's GEMM is not to be
        hidden = hidden.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else hidden
        with torch.autocast(device, enabled=False):
            return fn(hidden, self.head().to(hidden.dtype))

    def head(self) -> Head:
        output = self.hf.get_output_embeddings()
        config = self.hf.config
        scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        return Head(output.weight, output.bias, getattr(config, "final_logit_softcapping", None), 1.0 / scale)

    def head_gradient(self) -> Tensor | None:
        """(V, H) the gradient of the head's weight, which head operators add theirs to: in float32 whatever type they
        multiply in, and without a second tensor of its size. None where the head learns nothing."""
        weight = self.hf.get_output_embeddings().weight
        if not torch.is_grad_enabled() or not weight.requires_grad or accumulator(weight.dtype) != weight.dtype:
            return None
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        return weight.grad

    def share(self) -> Base:
        """This model's weights for other networks too; it is the base with all adapters off from now on."""
        if self.base is None:
            self.base = Base(self.hf)
        return self.base

    def add_value_head(self) -> None:
        self.value_head = zero_head(self.hf.config.hidden_size).to(self.hf.device, torch.float32)

    @property
    def vocab_size(self) -> int:
        return self.hf.get_output_embeddings().weight.shape[0]
