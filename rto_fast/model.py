"""Models behind a small interface: hidden states and the head's weights, never logits.

T rows, H hidden, V vocabulary.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from rto_fast import attention
from rto_fast.digests import check_stage
from rto_fast.families import check_family, check_no_adapter
from rto_fast.foreign import check_finite, check_loaded, check_model_folder, opening, read_object
from rto_fast.types import PackedBatch

Out = TypeVar("Out")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Head(NamedTuple):
    """What turns hidden states into logits: z = softcap * tanh((h W^T + b) / softcap) / temperature."""

    weight: Tensor
    """(V, H)"""
    bias: Tensor | None = None
    softcap: float | None = None
    temperature: float = 1.0

    def to(self, dtype: torch.dtype) -> "Head":
        return self._replace(weight=self.weight.to(dtype), bias=None if self.bias is None else self.bias.to(dtype))

    def options(self) -> dict[str, object]:
        """Keyword arguments of the head operators."""
        return {"bias": self.bias, "softcap": self.softcap, "temperature": self.temperature}


def _hidden_states(backbone: nn.Module, batch: PackedBatch) -> Tensor:
    """(T, H) hidden states of packed rows: the output of the last norm."""
    return backbone(
        input_ids=batch.input_ids[None],
        position_ids=batch.position_ids[None],
        use_cache=False,
        cu_seq_lens_q=batch.cu_seqlens,
        cu_seq_lens_k=batch.cu_seqlens,
        max_length_q=batch.max_seqlen,
        max_length_k=batch.max_seqlen,
    ).last_hidden_state[0]


def _without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """A policy's log-probs must be a function of its weights, in training as in scoring."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # some families hand these to functions; OPT calls one of them dropout
        for name in ("attention_dropout", "dropout_p", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


class LanguageModel(nn.Module):
    """A causal language model whose head is applied by the caller, inside the module's forward.

    Running the head inside forward is what lets a sharding wrapper gather the head's weight and reduce its gradient.
    """

    def __init__(self, hf: PreTrainedModel):
        super().__init__()
        self.hf = _without_dropout(hf)
        self.value_head: nn.Linear | None = None
        """Set by `add_value_head`: a critic on this model's own hidden states."""

    def forward(self, batch: PackedBatch, fn: Callable[[Tensor, Head], Out]) -> Out:
        """fn(hidden (T, H), head) on packed rows, hidden and head in the dtype of the arithmetic.

        fn runs outside autocast: it chooses its own precision (float32 from the logits on).
        """
        hidden = _hidden_states(self.hf.base_model, batch)
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

    def add_value_head(self) -> None:
        self.value_head = _value_head(self.hf.config.hidden_size).to(self.hf.device, torch.float32)

    @property
    def vocab_size(self) -> int:
        return self.hf.get_output_embeddings().weight.shape[0]


class ScalarModel(nn.Module):
    """A backbone with one number per row: a critic (value of the row's state) or a reward model (score of the text).

    output = (w . h_t + b - mean) / std in float32; mean and std are a reward model's calibration, 0 and 1 otherwise.
    """

    def __init__(self, backbone: PreTrainedModel, head: nn.Linear, mean: float = 0.0, std: float = 1.0):
        super().__init__()
        self.backbone = _without_dropout(backbone)
        self.head = head
        self.mean, self.std = mean, std

    def forward(self, batch: PackedBatch, index: Tensor) -> Tensor:
        """(R,) float32 values of the rows `index` (R,)."""
        hidden = _hidden_states(self.backbone, batch)[index]
        with torch.autocast(hidden.device.type, enabled=False):
            return (self.head(hidden.to(self.head.weight.dtype))[:, 0] - self.mean) / self.std


def _value_head(hidden_size: int, bias: bool = True) -> nn.Linear:
    """Starts at zero: the first advantages are rewards to go, not noise."""
    head = nn.Linear(hidden_size, 1, bias=bias, dtype=torch.float32)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    return head


def check_folder(path: str, field: str, trust_remote_code: bool, scalar: bool = False) -> None:
    """Raises ValueError, naming `field`, for what is no model that can be trained here; a hub id's weights apart."""
    folder = Path(path).expanduser()
    check_stage(folder, field)
    check_no_adapter(path, field)
    if (folder / "config.json").exists():
        check_model_folder(folder, field, trust_remote_code)
    elif path.startswith((".", "/", "~")) or path.count("/") > 1 or folder.exists():
        raise ValueError(
            f"{field}: no config.json in {path!r}; give a Hugging Face model folder or a hub id such as gpt2"
        )
    check_family(path, field, trust_remote_code=trust_remote_code, scalar=scalar)


def _loading(path: str, dtype: torch.dtype, trust_remote_code: bool) -> dict[str, object]:
    return {
        "pretrained_model_name_or_path": path,
        "dtype": dtype,
        "attn_implementation": attention.register(),
        "trust_remote_code": trust_remote_code,
        "use_safetensors": True,
        # reported by check_loaded, which names the first of them
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
    }


def load_language_model(
    path: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    field: str = "model.path",
    trust_remote_code: bool = False,
    liger: bool = False,
) -> LanguageModel:
    """Load a Hugging Face causal language model (a folder or a hub id; safetensors only).

    `liger` replaces norms, rotary embeddings and MLPs by liger-kernel's. Raises ValueError naming `field` when the
    folder holds no model, and for liger away from CUDA.
    """
    check_folder(path, field, trust_remote_code)
    with opening(field, path, "causal language model"):
        hf, info = AutoModelForCausalLM.from_pretrained(**_loading(path, dtype, trust_remote_code))
    check_loaded(info, field, path)
    check_finite(hf.to(device), field, path)
    if liger:
        if torch.device(device).type != "cuda":
            raise ValueError(f"model.liger: liger-kernel runs on CUDA only, got {device}; use --model.liger False")
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        # the losses stay ours: liger's would compute logits
        _apply_liger_kernel_to_instance(model=hf, cross_entropy=False, fused_linear_cross_entropy=False)
    return LanguageModel(hf)


def stored_dtype(path: str, trust_remote_code: bool = False) -> torch.dtype | None:
    """The type of a folder's or hub id's weights, as its configuration says it; None where that says nothing usable."""
    dtype = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code).dtype
    return dtype if dtype in DTYPES.values() else None


def critic_from(model: LanguageModel, bias: bool = True) -> ScalarModel:
    """A critic with its own copy of the model's backbone and a head of zeros.

    A reward model's head has no bias: it would cancel in every pair, and drift on rounding errors alone.
    """
    backbone = type(model.hf.base_model)(model.hf.config)
    backbone.load_state_dict(model.hf.base_model.state_dict())
    weight = model.hf.get_output_embeddings().weight
    critic = ScalarModel(backbone.to(weight.dtype), _value_head(model.hf.config.hidden_size, bias))
    return critic.to(weight.device)


def load_scalar_model(
    path: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    field: str = "rm.model",
    trust_remote_code: bool = False,
) -> ScalarModel:
    """Load a reward model, as a scorer or as a critic's start: a backbone and a head `score` or `value_head` (1, H).

    `mean` and `std` in its config.json calibrate the output; they default to 0 and 1.
    """
    check_folder(path, field, trust_remote_code, scalar=True)
    said = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it reports the head, which is read apart, as left over
    with opening(field, path, "reward model"):
        weights = _read_head(path, field)
        backbone, info = AutoModel.from_pretrained(**_loading(path, dtype, trust_remote_code))
    transformers_logging.set_verbosity(said)
    check_loaded(info, field, path)
    head = _value_head(weights["weight"].shape[1])
    with torch.no_grad():
        head.weight.copy_(weights["weight"])
        if "bias" in weights:
            head.bias.copy_(weights["bias"])
    mean, std = (float(getattr(backbone.config, name, default)) for name, default in (("mean", 0.0), ("std", 1.0)))
    model = ScalarModel(backbone, head, mean, std).to(device)
    check_finite(model, field, path)
    return model


def check_scalar_folder(path: str, field: str, trust_remote_code: bool = False) -> None:
    """Raises ValueError, naming `field`, where `load_scalar_model` would find no reward model; reads only its head."""
    check_folder(path, field, trust_remote_code, scalar=True)
    with opening(field, path, "reward model"):
        _read_head(path, field)


def _read_head(path: str, field: str) -> dict[str, Tensor]:
    from safetensors import safe_open
    from transformers.utils import cached_file

    index = Path(path).expanduser() / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        names = sorted(set(read_object(index, field)["weight_map"].values()))
    found: dict[str, Tensor] = {}
    for name in names:
        with safe_open(cached_file(path, name), framework="pt") as file:
            for key in file.keys():
                module, _, kind = key.rpartition(".")
                if module.split(".")[-1] in ("score", "value_head") and kind in ("weight", "bias"):
                    found[kind] = file.get_tensor(key).float()
    if "weight" not in found or found["weight"].ndim != 2 or found["weight"].shape[0] != 1:
        raise ValueError(
            f"{field}: {path!r} holds no score.weight or value_head.weight of shape (1, hidden); give a reward model"
        )
    return found
