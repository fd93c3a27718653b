"""AdamW with its moments in host memory."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BUCKET = 2**26
"""Trained numbers whose moments are on the device at once, unless one tensor alone has more: 512 MiB in float32."""


class HostAdamW(torch.optim.AdamW):
    """torch's AdamW, bit for bit. A parameter's moments are on its device while that is updated, else on the host.

    A step is taken bucket by bucket (AdamW's update of one parameter knows no other). Costs per trained number and step
    8 bytes to the device and 8 back, in float32; on the device never more than a bucket's moments.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # nobody gives a closure
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in params]
        for p in params:
            p.grad = None
        for bucket in _buckets(params):
            hosts = [dict(self.state[params[i]]) for i in bucket]
            for i, host in zip(bucket, hosts, strict=True):
                p = params[i]
                p.grad = gradients[i]
                self.state[p].update({name: x.to(p.device, non_blocking=True, copy=True) for name, x in host.items()})
            super().step()
            for i, host in zip(bucket, hosts, strict=True):
                p, state = params[i], self.state[params[i]]
                state.update({name: _kept(x, host.get(name)) for name, x in state.items()})
                p.grad = None
        for p, gradient in zip(params, gradients, strict=True):
            p.grad = gradient

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; the moments go to the host without having been on the device."""
        super().load_state_dict({**state_dict, "state": {}})
        params = [p for group in self.param_groups for p in group["params"]]
        for number, values in state_dict["state"].items():
            self.state[params[number]] = {name: _kept(x, None) for name, x in values.items()}


def _buckets(params: list[Tensor]) -> Iterator[list[int]]:
    """Places of parameters whose moments are moved together."""
    bucket: list[int] = []
    size = 0
    for i, p in enumerate(params):
        if bucket and size + p.numel() > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(i)
        size += p.numel()
    if bucket:
        yield bucket


def _kept(x: Tensor, host: Tensor | None) -> Tensor:
    """x on the host: in the memory that it has there already, else in new, pinned where there is a GPU."""
    if host is None:
        host = torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=torch.cuda.is_available())
    return host.copy_(x)
