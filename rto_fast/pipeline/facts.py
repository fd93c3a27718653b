"""What a model and its data are like, cheaply: no weight is read and no row beyond those that matter."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from rto_fast import tasks
from rto_fast.config import Config, member
from rto_fast.config.neutral import LOOK, Shape
from rto_fast.data.read import read_rows
from rto_fast.files.foreign import opening
from rto_fast.model.adapter_files import is_adapter, whole_of
from rto_fast.model.load import check_folder
from rto_fast.pipeline.estimate import Models
from rto_fast.pipeline.footprint import Arithmetic, Sizes, graph
from rto_fast.pipeline.sizes import sizes_of
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
    return shape_of(model_sizes(path, "model.path", trust_remote_code))


def shape_of(sizes: Sizes) -> Shape:
    """What settings are chosen by, in float32."""
    how = Arithmetic()
    return Shape(
        parameters=sizes.parameters,
        context=sizes.context,
        activations=graph(sizes, how, 1, checkpointing=False, rank=None, full=True),
        cache=sizes.layers * 2 * sizes.kv * how.weights,
    )


def model_sizes(path: str, field: str, trust_remote_code: bool = False, scalar: bool = False) -> Sizes:
    """From config.json alone, the only file that there has to be; ValueError for what cannot be trained here.

    scalar  a reward model's: its own head, a number for each token, does not count
    """
    check_folder(path, field, trust_remote_code, scalar=scalar, weights=False)
    path = whole_of(path, field)
    with opening(field, path, "reward model" if scalar else "causal language model"), torch.device("meta"), _silent():
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return sizes_of(model)


def models_of(config: Config) -> Models:
    """The sizes of every network that the settings name, from their configurations alone."""
    trusted, rl = config.model.trust_remote_code, [member(config.rto, stage) for stage in config.members]
    policy = model_sizes(config.sft.model or config.model.path, "model.path", trusted)
    critics = {member.critic.model for member in rl if member.critic.model}
    critic = score = None
    given = config.rm.model
    if given and (any(x.reward.beta_3 for x in rl) or "rm" in critics):
        score = model_sizes(given, "rm.model", trusted, scalar=True)
    for path in critics:
        critic = score if path == "rm" else model_sizes(path, "rto.critic.model", trusted, scalar=True)
    shared = not config.dpo.model or is_adapter(config.dpo.model)
    return Models(policy, critic, score, dpo_is_adapter=shared)


def arithmetic_on_cuda(config: Config) -> Arithmetic:
    """What numbers take on a GPU with these settings, whether this machine has one or not."""
    return Arithmetic(half=config.model.dtype != "float32", cpu=False)


@contextmanager
def _silent() -> Iterator[None]:
    """A model that nobody sees is made without remarks."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
