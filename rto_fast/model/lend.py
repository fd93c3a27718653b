"""Networks that lie in host memory, on the device while they are asked."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def lent(networks: Iterable[nn.Module | None], device: torch.device) -> Iterator[None]:
    """The weights and buffers of frozen networks on `device` inside; those that lie there anyway stay what they are.

    Copies are made anew each time and thrown away: nothing in a frozen network changes. Tied weights stay tied. Costs
    the networks' bytes on the device inside, and their transfer there.
    """
    own = [
        (table, name, x)
        for network in networks
        if network is not None
        for module in network.modules()
        for table in (module._parameters, module._buffers)
        for name, x in table.items()
        if x is not None and x.device.type != device.type
    ]
    copies: dict[int, Tensor] = {}
    try:
        for table, name, x in own:
            if id(x) not in copies:
                there = x.detach().to(device)
                copies[id(x)] = nn.Parameter(there, requires_grad=False) if isinstance(x, nn.Parameter) else there
            table[name] = copies[id(x)]
        yield
    finally:
        for table, name, x in own:
            table[name] = x
