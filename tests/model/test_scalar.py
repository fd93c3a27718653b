"""Critics and reward models: built in a type other than float32 they keep what is not a weight."""

import pytest
import torch

from rto_fast.data.tokenizer import load_tokenizer
from rto_fast.model.language import LanguageModel
from rto_fast.model.load import load_scalar_model
from rto_fast.model.scalar import ScalarModel, critic_from
from rto_fast.packing import pack_whole
from rto_fast.runs.export import as_classifier, save_stage
from rto_fast.runs.read_back import check_export
from tests.tiny import ARCHITECTURES, language_model
from tests.tiny_run import write_model

TEXTS = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15, 16]]


def bfloat16(architecture: str) -> LanguageModel:
    """As loading in bfloat16 makes it: parameters alone are in that type."""
    model = language_model(architecture)
    for parameter in model.hf.parameters():
        parameter.data = parameter.data.bfloat16()
    return model


def scorer(architecture: str) -> ScalarModel:
    model = critic_from(bfloat16(architecture), bias=False)
    torch.nn.init.normal_(model.head.weight)
    return model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_angles_of_rotary_embeddings_are_not_rounded_with_the_weights(architecture):
    wanted = dict(critic_from(language_model(architecture)).named_buffers())
    critic = scorer(architecture)
    assert {p.dtype for p in critic.backbone.parameters()} == {torch.bfloat16}
    found = dict(critic.named_buffers())
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], x) and found[name].dtype == x.dtype for name, x in wanted.items())


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2"])
def test_a_bfloat16_reward_model_is_saved_and_reloads_to_the_same_scores(architecture, tmp_path):
    model, tokenizer = scorer(architecture), load_tokenizer(write_model(tmp_path / "tokenizer"))
    hf = as_classifier(model, tokenizer)
    save_stage(tmp_path / "rm", hf, tokenizer, {"stage": "rm"})
    check_export(tmp_path / "rm", hf, tokenizer)
    saved = load_scalar_model(str(tmp_path / "rm"), dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(saved(pack_whole(TEXTS)), model.eval()(pack_whole(TEXTS)))
