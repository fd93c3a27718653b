"""Several models as one distribution over the next token: a product of powers of theirs.

B rows being decoded, V vocabulary.
"""

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rto_fast.config.checks import check


@dataclass(frozen=True)
class Mixture:
    """pi(a|s) ~ prod_i pi_i(a|s)^weights_i. `rollout` and `beam_search` take it where they take a model.

    The models run side by side, each with its own cache, so a step costs all their steps. They must share one
    vocabulary, token for token, and one device. Make one with `realign`.
    """

    models: tuple[PreTrainedModel, ...]
    weights: tuple[float, ...]
    """Any sign, none of them zero"""

    def __post_init__(self) -> None:
        if len(self.models) != len(self.weights) or not self.models:
            got = f"{len(self.weights)} for {len(self.models)} models"
            raise ValueError(f"Mixture: weights must be one per model, got {got}")
        if not all(isfinite(w) and w for w in self.weights):
            raise ValueError(
                f"Mixture: weights must be finite and not 0, got {self.weights}; leave a model out instead"
            )
        sizes = [model.get_output_embeddings().weight.shape[0] for model in self.models]
        if len(set(sizes)) > 1:
            raise ValueError(
                f"Mixture: the models must have one vocabulary, got {' and '.join(map(str, sizes))} tokens; use models "
                "that were trained from the same base model"
            )
        devices = {str(model.get_input_embeddings().weight.device) for model in self.models}
        if len(devices) > 1:
            raise ValueError(f"Mixture: the models must be on one device, got {' and '.join(sorted(devices))}")

    def mix(self, logits: list[Tensor]) -> Tensor:
        """One (B, V) tensor per model -> (B, V) float32 logits of the mixture; they need not be normalised.

        A token that any of the models rules out (-inf) stays ruled out. One model of weight 1 passes unchanged.
        """
        if self.weights == (1.0,):
            return logits[0]
        total = logits[0].float() * self.weights[0]
        ruled_out = logits[0].isneginf()
        for z, weight in zip(logits[1:], self.weights[1:], strict=True):
            # normalisers are constants of a row, which the softmax over the mixture takes away
            total.add_(z.float(), alpha=weight)
            ruled_out |= z.isneginf()
        return total.masked_fill_(ruled_out, -torch.inf)


def realign(base: PreTrainedModel, proxy: PreTrainedModel, reference: PreTrainedModel, strength: float) -> Mixture:
    """Realignment at decoding time: pi(a|s) ~ pi_base(a|s) (pi_proxy(a|s) / pi_ref(a|s))^strength.

    "From r to Q*" eq. 14; by eq. 15 it follows the proxy's implicit advantage, pi_base exp(strength (Q* - V*)) where
    the proxy was trained by DPO with beta = 1. The proxy and its reference may be smaller than the base.

    A model that is named twice runs once, and one whose powers cancel does not run: strength 0 is `base` itself, bit
    for bit, and so is base = reference with strength 1 the proxy. Raises ValueError: strength not finite, vocabularies
    of different sizes, models on different devices.
    """
    check(isfinite(strength), "realign: strength", "finite", strength)
    weights: dict[PreTrainedModel, float] = {}
    for model, weight in ((base, 1.0), (proxy, float(strength)), (reference, -float(strength))):
        weights[model] = weights.get(model, 0.0) + weight
    # checked with the models whose powers cancel, so that strength 0 does not hide a mistake
    Mixture(tuple(weights), (1.0,) * len(weights))
    kept = {model: weight for model, weight in weights.items() if weight}
    return Mixture(tuple(kept), tuple(kept.values()))
