"""A backbone with one number per row: critics and reward models.

T rows, R of them asked for, H hidden.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rto_fast.model.adapters import Base, Network
from rto_fast.model.language import LanguageModel, hidden_states, without_dropout, zero_head
from rto_fast.packing import PackedBatch


class ScalarModel(Network):
    """A backbone with one number per row: a critic (value of the row's state) or a reward model (score of the text).

    output = (w . h_t + b - mean) / std in float32; mean and std are a reward model's calibration, 0 and 1 otherwise.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        head: nn.Linear,
        mean: float = 0.0,
        std: float = 1.0,
        base: Base | None = None,
        adapter: str | None = None,
    ):
        super().__init__()
        self.base, self.adapter = base, adapter
        self.backbone = without_dropout(backbone)
        self.head = head
        self.mean, self.std = mean, std

    def forward(self, batch: PackedBatch) -> Tensor:
        """(R,) float32 values of the response rows."""
        with self.active():
            hidden = batch.responses(hidden_states(self.backbone, batch))
        with torch.autocast(hidden.device.type, enabled=False):
            return (self.head(hidden.to(self.head.weight.dtype))[:, 0] - self.mean) / self.std

    @classmethod
    def on(cls, base: Base, adapter: str, head: nn.Linear, mean: float = 0.0, std: float = 1.0) -> "ScalarModel":
        """An adapter on a shared base, and a head of its own."""
        backbone = base.hf.base_model
        assert isinstance(backbone, PreTrainedModel)
        return cls(backbone, head.to(base.hf.device), mean, std, base, adapter)


def critic_from(model: LanguageModel, bias: bool = True) -> ScalarModel:
    """A critic with its own copy of the model's backbone and a head of zeros.

    A reward model's head has no bias: it would cancel in every pair, and drift on rounding errors alone.
    """
    base = model.hf.base_model
    assert isinstance(base, PreTrainedModel)
    backbone = type(base)(model.hf.config)
    backbone.load_state_dict(base.state_dict())
    weight = model.hf.get_output_embeddings().weight
    for parameter in backbone.parameters():
        # not backbone.to(dtype), which would round the angles of rotary embeddings with the weights
        parameter.data = parameter.data.to(weight.dtype)
    return ScalarModel(backbone, zero_head(model.hf.config.hidden_size, bias)).to(weight.device)
