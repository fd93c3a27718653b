"""What a model and its data are like, cheaply: no weight is read and no row beyond those that matter."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rto_fast import tasks
from rto_fast.config import Config
from rto_fast.config.neutral import LOOK, Shape
from rto_fast.data.read import read_rows
from rto_fast.files.foreign import opening
from rto_fast.model.adapter_files import whole_of
from rto_fast.model.load import check_folder
from rto_fast.pipeline.memory import activation_numbers, cache_numbers
from rto_fast.training.stall import StallGuard


def check_given(config: Config) -> None:
    """Raises ValueError where a run has no model, or nothing to learn from."""
    if not config.model.path:
        raise ValueError("model.path: no model given; use --model.path with a Hugging Face folder or a hub id")
    if not (config.data.path or config.data.prompts):
        raise ValueError("data.path: no preference pairs given; use --data.path with a file, a directory or a hub id")


def look(config: Config) -> tuple[Shape, int]:
    """The shape of model.path and the number of rows of the pairs (else of the prompts), counted up to LOOK."""
    check_given(config)
    shape = model_shape(config.model.path, config.model.trust_remote_code)
    data = config.data
    if data.path in tasks.names():  # not written yet
        return shape, LOOK
    path, field = data.path or data.prompts, "data.path" if data.path else "data.prompts"
    assert path  # check_given
    limit = min(LOOK, data.max_rows or LOOK)
    with StallGuard(config.guards.stall_minutes, "counting the rows"):
        return shape, len(read_rows(path, subset=data.subset, split=data.split, limit=limit, field=field))


def model_shape(path: str, trust_remote_code: bool = False) -> Shape:
    """From config.json alone, through a model without weights; raises ValueError as loading it would."""
    check_folder(path, "model.path", trust_remote_code)
    path = whole_of(path, "model.path")
    with opening("model.path", path, "causal language model"), torch.device("meta"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    text = config.get_text_config()
    limits = (getattr(text, name, None) for name in ("max_position_embeddings", "sliding_window"))
    context = min((limit for limit in limits if limit), default=None)
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        context=context,
        activations=4 * activation_numbers(text),
        cache=4 * cache_numbers(text),
    )
