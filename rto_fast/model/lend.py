"""Networks that lie in host memory, on the device while they are asked."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def lent(networks: Iterable[nn.Module | None], device: torch.device) -> Iterator[None]:
    """The weights and buffers of frozen networks on `device` inside; those that lie there anyway stay what they are.

    Copies are made anew each time and thrown away: nothing in a frozen network changes. Tied weights stay tied. Costs
    the networks' bytes on the device inside, and their transfer there.
    """
    own = list(_elsewhere(networks, device))
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


def _elsewhere(
    networks: Iterable[nn.Module | None], device: torch.device
) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """(a module's table, name in it, tensor) of every weight and buffer that does not lie on a device of that type."""
    for network in networks:
        for module in network.modules() if network is not None else ():
            tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for table in tables:
                for name, x in table.items():
                    if x is not None and x.device.type != device.type:
                        yield table, name, x
