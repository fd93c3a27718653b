"""Settings of adapters: low-rank matrices that are trained in place of whole models."""

from dataclasses import dataclass
from typing import Annotated, Literal

from rto_fast.config.checks import Section, check


@dataclass(frozen=True)
class AdapterConfig(Section, prefix="adapter."):
    """LoRA (Hu et al. 2021, arXiv:2106.09685) in PEFT's format: pi_ref, pi_dpo, policy and critic share one base."""

    rank: Annotated[int | None, "at least 1"] = None
    """r of every adapter, e.g. 16; none = all weights are trained. SFT's adapter is merged into the base; the adapters
    of dpo, rm, policy and critic lie on that one, and pi_ref is the base with all of them off."""
    alpha: Annotated[float, "a positive number"] = 32.0
    """Updates are scaled by alpha / rank."""
    targets: tuple[str, ...] = ("all-linear",)
    """Layers with an adapter, by the end of their names (q_proj v_proj ...); all-linear: all but the head, and of a
    mixture of experts the attention's."""
    full_sft: bool = False
    """SFT trains all weights, e.g. of a base that has still much to learn; the other stages train adapters on it."""
    quantize: Literal["nf4"] | None = None
    """nf4: the base's linear maps take 4 bits a number (QLoRA), on a CUDA GPU and with bitsandbytes. pi_ref is the
    quantised model then. SFT's adapter is merged into the model as it was, which is quantised again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        named = len(self.targets) > 0 and all(self.targets)
        alone = "all-linear" not in self.targets or len(self.targets) == 1
        check(named and alone, "adapter.targets", "all-linear, or names of layers", self.targets)
        with_adapters = self.quantize is None or self.rank is not None
        check(with_adapters, "adapter.quantize", "given together with adapter.rank, e.g. 16", self.quantize)
