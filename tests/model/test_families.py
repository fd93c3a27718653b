"""What kind of network a folder holds is said before its weights are read, in the words of its family."""

import json

import pytest
import torch
import transformers

from rto_fast.model.exact import check_packing, check_ratio
from rto_fast.model.families import check_family
from rto_fast.model.load import check_folder, load_language_model, load_scalar_model

SMALL = dict(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)


def config(name: str, architecture: str = "", **options) -> transformers.PretrainedConfig:
    """A family's configuration, as its own model would save it."""
    made = getattr(transformers, f"{name}Config")(**options)
    made.architectures = [architecture or f"{name}ForCausalLM"]
    return made


STRANGERS = {
    "t5": (config("T5", "T5ForConditionalGeneration"), "is an encoder-decoder (T5ForConditionalGeneration)"),
    "qwen2_vl": (config("Qwen2VL", "Qwen2VLForConditionalGeneration"), "reads vision beside text"),
    "mamba": (config("Mamba", **SMALL), "MambaForCausalLM"),
    "rwkv": (config("Rwkv", vocab_size=64, hidden_size=16), "RwkvForCausalLM is not built on transformers' attention"),
    "falcon": (config("Falcon", **SMALL), "FalconForCausalLM is not built on transformers' attention interface"),
    "falcon_h1": (config("FalconH1", **SMALL), "(FalconH1ForCausalLM) mixes tokens by hybrid too"),
    "lfm2": (config("Lfm2", layer_types=["conv", "full_attention"], **SMALL), "mixes tokens by conv too"),
    "bloom": (config("Bloom", vocab_size=64, hidden_size=16), "BloomForCausalLM is not built on"),
    "classifier": (
        config("Llama", "LlamaForSequenceClassification", tie_word_embeddings=True, **SMALL),
        "is a LlamaForSequenceClassification, which judges texts",
    ),
    "vision": (config("ViT", "ViTForImageClassification"), "judges texts"),
    "clip": (config("CLIP", "CLIPModel"), "(CLIPModel) reads vision beside text"),
    "encoder": (config("ModernBert", "ModernBertModel", **SMALL), "(ModernBertModel) is no causal language model"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_strange_family_is_named(name, tmp_path):
    made, words = STRANGERS[name]
    made.save_pretrained(tmp_path)
    with pytest.raises(ValueError) as said:
        check_family(str(tmp_path), "model.path")
    text = str(said.value)
    assert text.startswith(f"model.path: '{tmp_path}'") and words in text and "\n" not in text
    assert "damaged" not in text


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3", "Gemma", "Gemma3Text", "GPTNeoX", "Phi", "Olmo2", "OPT"])
def test_a_served_family_passes(name, tmp_path):
    config(name).save_pretrained(tmp_path)
    check_family(str(tmp_path), "model.path")
    check_family(str(tmp_path), "rm.model", scalar=True)


def test_a_classifier_is_no_policy_but_a_reward_model(tmp_path):
    """Tied embeddings would lend it a head that nobody trained to write."""
    made = STRANGERS["classifier"][0]
    made.num_labels = 1
    transformers.LlamaForSequenceClassification(made).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="dpo.model.*judges texts.*--rm.model"):
        load_language_model(str(tmp_path), field="dpo.model")
    assert load_scalar_model(str(tmp_path)).head.weight.shape == (1, 16)


def test_a_reward_model_that_cannot_be_packed_is_refused(tmp_path):
    """A backbone that leaks from one text into the next would score them by their neighbours."""
    network = transformers.MambaModel(config("Mamba", "MambaModel", state_size=4, **SMALL))
    network.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="rm.model: .*linear_attention|rm.model: .*not built on"):
        load_scalar_model(str(tmp_path))


def test_an_adapter_has_a_base_that_is_a_whole_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ValueError, match="sft.model: .* names no base"):
        load_language_model(str(tmp_path), field="sft.model")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    with pytest.raises(ValueError, match="sft.model: the base of .* is an adapter too"):
        load_language_model(str(tmp_path), field="sft.model")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/no/where"}))
    with pytest.raises(ValueError, match="sft.model: no config.json in '/no/where'"):
        load_language_model(str(tmp_path), field="sft.model")


def test_opt_has_its_dropout_taken_off(tmp_path):
    """It keeps its probability in an attribute and hands it to a function; there is no module to turn off."""
    options = dict(ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=64, dropout=0.3, **SMALL)
    torch.manual_seed(0)
    transformers.OPTForCausalLM(config("OPT", **options)).save_pretrained(tmp_path)
    model = load_language_model(str(tmp_path))
    pairs = [([5, 6, 7], [8, 9]), ([11, 12], [13, 14, 15, 16])]
    assert check_ratio(model, pairs, torch.float32, 64) == 0
    assert check_packing(model, pairs, torch.float32, 64) < 1e-5


def test_a_hub_id_may_have_no_slash(monkeypatch):
    """gpt2 is one, and the sentence about a missing folder names it."""
    asked = []
    monkeypatch.setattr("rto_fast.model.load.check_family", lambda path, field, **_: asked.append(path))
    check_folder("gpt2", "model.path", False)
    assert asked == ["gpt2"]
    with pytest.raises(ValueError, match="model.path: no config.json in './gpt2'"):
        check_folder("./gpt2", "model.path", False)


def test_a_hub_that_cannot_be_reached_is_no_damage(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match="model.path: .*'no-such/model-here'.*; give a local folder, or a hub id that can"
    ):
        load_language_model("no-such/model-here")
