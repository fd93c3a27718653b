"""Logits in float32 while decoding, from operands of half precision: as the scoring operators compute them.

Rounded to bfloat16's eight bits a logit of 20 is off by up to 1/16, and answers would be drawn from another
distribution than the one whose log-probs they are trained with.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rto_fast.rollout.cache import arithmetic_of


@contextmanager
def float32_logits(models: Sequence[PreTrainedModel]) -> Iterator[None]:
    """Within, a head whose arithmetic is in half precision, by autocast or by its weights, gives its sums in float32.

    Its weight is cast once for all steps: (V, H) in that type, off CUDA in float32. A head with an adapter is left as
    it is.
    """
    changed: list[nn.Linear] = []
    for head in {model.get_output_embeddings(): None for model in models}:
        dtype = arithmetic_of(head.weight) if isinstance(head, nn.Linear) else torch.float32
        if isinstance(head, nn.Linear) and dtype.itemsize < 4:
            vars(head)["forward"] = _summed(head, dtype)  # goes before the class's own
            changed.append(head)
    try:
        yield
    finally:
        for head in changed:
            del vars(head)["forward"]


def _summed(head: nn.Linear, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    # torch multiplies half-precision operands to float32 sums on CUDA alone; elsewhere the same numbers in float32 do
    operands = dtype if head.weight.is_cuda else torch.float32
    weight = head.weight.detach().to(dtype).to(operands).T
    bias = None if head.bias is None else head.bias.detach().to(dtype).float()

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            rows = x.reshape(-1, x.shape[-1]).to(dtype).to(operands)
            out = torch.mm(rows, weight, out_dtype=torch.float32) if x.is_cuda else rows @ weight
            return (out if bias is None else out.add_(bias)).view(*x.shape[:-1], weight.shape[1])

    return forward
