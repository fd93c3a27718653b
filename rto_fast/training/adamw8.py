"""AdamW with moments of 8 bits: Dettmers et al. 2022 (arXiv:2110.02861), by bitsandbytes.

Blocks of 256 numbers keep the largest of them, and of each number the nearest of 256 in a dynamic map. Tensors of fewer
than 4,096 numbers (norms, biases) keep theirs in float32.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from itertools import chain
from typing import Any

import torch
from torch import Tensor

BLOCK = 256
"""Numbers that share their largest."""
BYTES = 1 + 4 / BLOCK
"""Of a moment: 8 bits, and of its block the largest in float32."""


def check_adam8(device: torch.device) -> None:
    """Raises ValueError where moments cannot be of 8 bits."""
    if device.type != "cuda":
        raise ValueError(f"adam_bits: 8 is for a CUDA GPU, got {device}; leave it out")
    if find_spec("bitsandbytes") is None:
        raise ValueError('adam_bits: 8 needs bitsandbytes; pip install "rto_fast[quantized]"')


def make_adamw8(groups: list[dict[str, Any]], betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """bitsandbytes' AdamW8bit, with what the training loop asks of an optimizer.

    `found_inf`, a number on the device, leaves a step out where it is not 0, as in torch's fused AdamW. `state_dict`
    holds tensors alone, each as it is, so that a run goes on from it bit for bit; its maps are made, not kept.
    """
    from bitsandbytes.optim.adamw import AdamW8bit

    class AdamW8(AdamW8bit):
        found_inf: Tensor | None = None

        def step(self, closure: Any = None) -> Any:  # nobody gives a closure
            # the library waits for the device at every tensor: this look costs nothing more
            if self.found_inf is None or not bool(self.found_inf):
                super().step()

        def state_dict(self) -> dict[str, Any]:
            held = torch.optim.Optimizer.state_dict(self)  # the library's own hides tensors from FSDP
            state = {number: dict(_tensors(values)) for number, values in held["state"].items()}
            return {"state": state, "param_groups": held["param_groups"]}

        def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
            super().load_state_dict({**state_dict, "state": {}})
            params = list(chain.from_iterable(group["params"] for group in self.param_groups))
            maps = {"qmap1": self.name2qmap["dynamic"], "qmap2": self.name2qmap["udynamic"]}
            for number, values in state_dict["state"].items():
                p = params[number]
                known = {name: x.to(p.device) for name, x in maps.items() if "absmax1" in values}
                moments = {name: x.to(p.device, copy=True) for name, x in values.items() if name != "step"}
                self.state[p] = {"step": int(values["step"]), **moments, **known}

    return AdamW8(groups, betas=betas, eps=eps)


def _tensors(values: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, x in values.items():
        if not name.startswith("qmap"):
            yield name, x if isinstance(x, Tensor) else torch.tensor(float(x))
