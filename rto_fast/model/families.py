"""Which networks can be trained on packed rows here, recognised by their configuration before any weight is read.

Packing needs attention to be the only way from one token to another, and replaceable (`attention`): causal decoders
whose layers attend fully or in a sliding window. Everything else gets a sentence that says what it is.
"""

import re

from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from rto_fast.files.foreign import opening

SERVED = "give a causal decoder such as Llama, Qwen, Mistral, Gemma, GPT-NeoX, OLMo or Phi"
ATTENTION = {"full_attention", "sliding_attention"}
"""Kinds of layers that packed training and decoding know."""


def check_family(path: str, field: str, *, trust_remote_code: bool = False, scalar: bool = False) -> None:
    """Raises ValueError, one line with `field`, for a model that cannot be trained on packed rows.

    path    a folder or a hub id; only its configuration is read
    scalar  it is to give a number per row (a reward model or a critic), so that it needs no head that writes
    """
    with opening(field, path, "configuration"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    kind = (getattr(config, "architectures", None) or [config.model_type])[0]
    if config.is_encoder_decoder:
        raise ValueError(f"{field}: {path!r} is an encoder-decoder ({kind}); {SERVED}")
    if not scalar and re.search("Classification|QuestionAnswering|MultipleChoice|Reward", kind):
        raise ValueError(
            f"{field}: {path!r} is a {kind}, which judges texts and has no head that writes them; give a causal "
            "language model here, a reward model belongs to --rm.model"
        )
    classes = (MODEL_MAPPING if scalar else MODEL_FOR_CAUSAL_LM_MAPPING).get(type(config), None)
    if network := classes[0] if isinstance(classes, tuple) else classes:
        _check_layers(config, network, f"{field}: {path!r}")
    elif not trust_remote_code:
        senses = [name for name in ("vision", "audio") if getattr(config, f"{name}_config", None) is not None]
        what = f"reads {' and '.join(senses)} beside text" if senses else "is no causal language model"
        raise ValueError(f"{field}: {path!r} ({kind}) {what}; {SERVED}")


def _check_layers(config: PretrainedConfig, network: type[PreTrainedModel], where: str) -> None:
    if strange := set(getattr(config.get_text_config(), "layer_types", None) or ()) - ATTENTION:
        raise ValueError(
            f"{where} ({network.__name__}) mixes tokens by {', '.join(sorted(strange))} too, which would leak from one "
            f"packed sequence into the next; {SERVED}"
        )
    if not network._supports_attention_backend:
        raise ValueError(
            f"{where}: {network.__name__} is not built on transformers' attention interface, so that its rows cannot "
            f"be packed; {SERVED}"
        )
