"""Several networks on one frozen base: low-rank adapters, in PEFT's layers and format.

    y = W x + alpha / r * B (A x)          Hu et al. 2021, section 4.1 (arXiv:2106.09685)

A (r, in) starts at random and B (out, r) at zero, so that a new adapter changes nothing, to the last bit. A network is
the base with its adapter on; pi_ref is the base with all adapters off. Weights of the base are in memory once.

PEFT's own switch (`set_adapter`) takes the gradient from every adapter that it switches off, and with gradient
checkpointing a layer would be computed again under whichever is on by then. So the switch here touches no
requires_grad, and a recomputation switches to the adapter of its forward.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

if TYPE_CHECKING:  # a second of imports that a run without adapters does not need
    from peft import LoraConfig, LoraModel
    from peft.tuners.lora import LoraLayer


# PEFT imports it where it is installed, and it then says that a kernel of its CPU code is missing; none is used here
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


class Base:
    """A model, frozen, and the adapters on it by their names."""

    def __init__(self, hf: PreTrainedModel):
        # in training mode for good: nothing random is on, and only so its layers are checkpointed
        self.hf = hf.requires_grad_(False).train()
        self.tuner: LoraModel | None = None
        self.layers: list[LoraLayer] = []
        self.active: str | None = None
        """The adapter that is on; None: the base itself."""
        self.trained: set[str] = set()

    def add(self, name: str, config: "LoraConfig", *, seed: int = 0, trained: bool = True) -> None:
        """A new adapter, off. Raises ValueError for one that finds none of its layers.

        seed  of its random start, which is drawn on the CPU whatever the device
        """
        from peft import LoraModel
        from peft.tuners.lora import LoraLayer
        from peft.tuners.lora.layer import ParamWrapper

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if self.tuner is None:
                self.tuner = LoraModel(self.hf, config, name)
            else:
                self.tuner.peft_config[name] = config
                self.tuner.inject_adapter(self.hf, name)
        self.layers = [module for module in self.hf.modules() if isinstance(module, LoraLayer)]
        if any(isinstance(layer, ParamWrapper) for layer in self.layers):
            raise ValueError(
                f"the experts of a {type(self.hf).__name__} have no adapters here; name other layers, such as q_proj"
            )
        if trained:
            self.trained.add(name)
        for key in self.names:
            for parameter in self.parameters(key).values():
                if parameter.itemsize < 4:  # PEFT takes the type of the frozen weights; steps of 1e-6 would round away
                    parameter.data = parameter.data.float()
                parameter.requires_grad_(key in self.trained)
        self._switch(None)

    @property
    def names(self) -> list[str]:
        return [] if self.tuner is None else list(self.tuner.peft_config)

    def config(self, name: str) -> "LoraConfig":
        assert self.tuner is not None  # `name` has been added
        return cast("LoraConfig", self.tuner.peft_config[name])

    def parameters(self, name: str | None) -> dict[str, nn.Parameter]:
        """An adapter's matrices, by the names that PEFT's files give them within the model."""
        mark = f".{name}."
        return {
            key.replace(mark, "."): parameter
            for key, parameter in self.hf.named_parameters()
            if name is not None and mark in key and (".lora_A." in key or ".lora_B." in key)
        }

    @contextmanager
    def on(self, name: str | None) -> Iterator[None]:
        """The adapter is on within; None: all are off. No gradient is switched on or off."""
        before = self.active
        self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, name: str | None) -> None:
        for layer in self.layers:
            layer._disable_adapters = name is None
            layer._active_adapter = [name] if name is not None else []
        self.active = name

    def recomputed(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """torch.utils.checkpoint's context_fn: a layer's forward, and its recomputation under the same adapter."""
        return nullcontext(), self.on(self.active)

    def merged_weights(self, name: str, whole: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The weights of a whole model, W + alpha / r B A in place of W, by its own names; the base is left alone.

        whole  W, where the base holds it quantised

        Costs one copy of the matrices that have an adapter.
        """
        own = ((key.replace(".base_layer.", "."), x) for key, x in self.hf.state_dict().items() if ".lora_" not in key)
        weights = dict(own if whole is None else whole)
        names = {layer: key for key, layer in self.hf.named_modules()}
        for layer in self.layers:
            if name in layer.lora_A:
                key = names[layer]
                weight = weights[f"{key}.weight"]
                weights[f"{key}.weight"] = weight + cast(Any, layer).get_delta_weight(name).to(weight.device)
        return weights

    def merge(self, name: str) -> PreTrainedModel:
        """The base with W + alpha / r B A in place of W, and no adapters; this Base is not to be used any more."""
        assert self.tuner is not None  # `name` has been added
        merged = self.tuner.merge_and_unload(adapter_names=[name])
        assert isinstance(merged, PreTrainedModel)
        return merged.requires_grad_(True)


class Network(nn.Module):
    """A network with weights of its own, or one adapter on a base that others use too.

    On a base, `parameters` are the adapter's and what the network has beside the base, and nothing here changes the
    base's mode or what of it is trained.
    """

    base: Base | None = None
    adapter: str | None = None
    """None on a base: the base itself."""

    def active(self) -> AbstractContextManager[None]:
        """Within, the base computes as this network does."""
        return nullcontext() if self.base is None else self.base.on(self.adapter)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        found = super().named_parameters(*args, **kwargs)
        if self.base is None:
            return found
        own = {id(p) for p in self.base.parameters(self.adapter).values()}
        others = {id(p) for p in self.base.hf.parameters()} - own
        return ((name, p) for name, p in found if id(p) not in others)

    def train(self, mode: bool = True) -> Self:
        if self.base is None:
            return super().train(mode)
        self.training = mode
        return self
