"""python -m rto_fast.plan: a configuration in, what it needs and where it fits out; nothing else is read."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from transformers import GPTNeoXConfig, LlamaConfig

from rto_fast.config.neutral import with_values
from rto_fast.pipeline.cards import CARDS, RESERVED
from rto_fast.pipeline.estimate import disk
from rto_fast.pipeline.facts import arithmetic_on_cuda, models_of
from rto_fast.pipeline.fit import largest
from rto_fast.plan import MORE, main
from rto_fast.train import parse
from tests.tiny import config as tiny

LLAMA = dict(num_key_value_heads=8, num_attention_heads=32, vocab_size=128256, max_position_embeddings=8192)
ICML = dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32)
SMALL = dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, tie_word_embeddings=True)
PYTHIA = dict(hidden_size=2560, intermediate_size=10240, num_hidden_layers=32, num_attention_heads=32, vocab_size=50304)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folders of a config.json alone."""
    folder = tmp_path_factory.mktemp("plan")
    made = {
        "pythia": GPTNeoXConfig(**PYTHIA, architectures=["GPTNeoXForCausalLM"]),
        "llama": LlamaConfig(**LLAMA, **ICML, architectures=["LlamaForCausalLM"]),
        "score": LlamaConfig(**LLAMA, **SMALL, architectures=["LlamaForSequenceClassification"]),
        "tiny": tiny("llama"),
    }
    for name, config in made.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(config.to_json_string(use_diff=False))
    return folder


def flags(folder: Path, recipe: str) -> list[str]:
    """A recipe's own models, as they lie in `folder`."""
    llama, score = str(folder / "llama"), str(folder / "score")
    if "v1" in recipe:
        return ["--recipe", recipe, "--model.path", str(folder / "pythia")]
    words = ["--recipe", recipe, "--model.path", llama, "--sft.model", llama, "--rm.model", score]
    return words if recipe != "rto_icml" else [*words, "--dpo.model", llama, "--rto.critic.model", score]


def plan(capsys, *words: str) -> dict:
    assert main([*words, "--json"]) == 0
    said = capsys.readouterr()
    return json.loads(said.out)  # and nothing beside it


@pytest.mark.parametrize(
    "recipe, fits, too_small",
    [
        ("rto_v1_hh", None, "h200"),
        ("rto_v1_hh_80g", "l40s-48g", "rtx-4090"),
        ("rto_v1_hh_24g", "rtx-3090", None),
        ("rto_icml", None, "b200"),
        ("rto_icml_80g", "a100-80g", "rtx-4090"),
    ],
)
def test_a_recipe_fits_the_card_that_it_names(recipe, fits, too_small, folder, capsys):
    cards = plan(capsys, *flags(folder, recipe))["cards"]
    assert list(cards) == list(CARDS)
    if fits:
        assert cards[fits] == {"fits": True, "settings": {}}
    if too_small:
        assert cards[too_small]["settings"] or not cards[too_small]["fits"]


def test_what_the_comments_of_the_recipes_say(folder, capsys):
    v1 = plan(capsys, *flags(folder, "rto_v1_hh"))
    assert f"{v1['stages']['rto']['peak'] / 1e9:.0f} GB as it stands" in recipe_text("rto_v1_hh")
    settings = v1["cards"]["h200"]["settings"]
    assert settings == {"microbatch_rows": 8192}
    lowered = ["--microbatch-rows", "8192"]
    peak = plan(capsys, *flags(folder, "rto_v1_hh"), *lowered)["stages"]["rto"]["peak"]
    assert f"{peak / 1e9:.0f} GB (one H200) with {' '.join(lowered)}" in recipe_text("rto_v1_hh")
    icml = plan(capsys, *flags(folder, "rto_icml"))
    assert f"needs {icml['stages']['rto']['peak'] / 1e9:.0f} GB as it stands" in recipe_text("rto_icml")


def test_a_base_of_4_bits_is_the_last_thing_that_is_tried(folder, capsys):
    words = flags(folder, "rto_icml")
    cards = plan(capsys, *words, "--gpu", "rtx-4090", "h100-80g")["cards"]
    assert cards["rtx-4090"]["settings"]["adapter.quantize"] == "nf4"
    assert cards["h100-80g"]["fits"] and "adapter.quantize" not in cards["h100-80g"]["settings"]
    asked = ["--adapter.rank", "16", "--rto.critic.model", "none"]
    whole = plan(capsys, *words, *asked)["stages"]["rto"]["weights"]
    packed = plan(capsys, *words, *asked, "--adapter.quantize", "nf4")["stages"]["rto"]["weights"]
    maps = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    # of the base, and of pi_dpo, which is given whole
    assert whole - packed == pytest.approx(2 * (2 - 0.5 - 1 / 64 - 4 / 64 / 256) * maps, abs=2)


def recipe_text(name: str) -> str:
    return (Path(__file__).parents[2] / "rto_fast" / "recipes" / f"{name}.toml").read_text().replace("\n# ", " ")


def test_parts_and_peak_are_bytes_of_every_stage(folder, capsys):
    said = plan(capsys, *flags(folder, "rto_v1_hh"), "--gpu", "h200")
    assert list(said["stages"]) == ["sft", "dpo", "rto"] and list(said["cards"]) == ["h200"]
    for need in said["stages"].values():
        assert list(need) == ["weights", "gradients", "states", "activations", "cache", "workspace", "peak", "host"]
        assert need["weights"] < need["peak"] <= sum(need.values()) - need["peak"]
    # 2.775 B parameters; the policy and, without a head, the critic in float32; pi_ref and pi_dpo in bfloat16 but for
    # embeddings, norms and biases
    n, head, maps = 2_775_208_960, 50304 * 2560, 32 * 12 * 2560**2 + 50304 * 2560
    assert said["stages"]["rto"]["weights"] == 4 * (2 * n - head) + 2 * (2 * maps + 4 * (n - maps))


@pytest.mark.parametrize("recipe", ["rto_v1_hh", "rto_icml"])
def test_what_is_changed_is_enough_and_no_more_than_needed(recipe, folder, capsys):
    words = flags(folder, recipe)
    config = parse(words)
    models, how = models_of(config), arithmetic_on_cuda(config)
    for name, card in plan(capsys, *words)["cards"].items():
        room, settings = CARDS[name].memory - RESERVED, card["settings"]
        peak = largest(with_values(config, settings), models, how)
        assert (peak <= room) == card["fits"]
        if not card["fits"]:
            assert settings == {} and recipe == "rto_icml" and CARDS[name].memory < 25e9
            continue
        # what is trained changes last, and only where nothing else helps
        for left_out in settings:
            fewer = {key: value for key, value in settings.items() if key != left_out}
            if left_out == "rto.critic.model" or (left_out == "adapter.rank" and "adapter.quantize" in settings):
                continue  # goes with what else is trained
            assert largest(with_values(config, fewer), models, how) > room


def test_neutral_settings_need_no_data(folder, capsys):
    said = plan(capsys, "--model.path", str(folder / "tiny"), "--gpu", "rtx-3090", "b200")
    assert said["cards"] == {name: {"fits": True, "settings": {}} for name in ("rtx-3090", "b200")}
    assert not (folder / "tiny" / "model.safetensors").exists()


def test_the_tables_say_the_same(folder, capsys):
    assert main([*flags(folder, "rto_v1_hh_24g"), "--gpu=rtx-4090"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["stage", "sft", "dpo", "rto"]
    assert " as it is " in next(line for line in lines if line.startswith("  rtx-4090"))
    assert lines[-1].startswith("disk: ")
    assert main([*flags(folder, "rto_v1_hh"), "--gpu", "rtx-4090"]) == 0
    assert "rtx-4090: --microbatch-rows " in capsys.readouterr().out


def test_disk_by_hand(folder):
    config = parse(flags(folder, "rto_v1_hh"))
    found = disk(config, models_of(config), arithmetic_on_cuda(config))
    n = 2_775_208_960
    # three folders of float32; two checkpoints kept and one being written, of policy and critic with two moments each
    assert found.exports == 3 * 4 * n and found.checkpoints == 3 * 12 * (2 * n - 50304 * 2560)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--gpu", "h100", "--model.path", "MODEL"], "--gpu: no card 'h100'; cards: h100-80g, "),
        (["--gpu", "--json", "--model.path", "MODEL"], "--gpu: wanted names of cards, got nothing; cards: h100-80g"),
        (["--recipe", "rto_v1_hh", "--model.path", "./nowhere"], "model.path: no config.json in './nowhere'"),
        (["--recipe", "rto_v1_hh", "--model.path", ""], "model.path: no model given; use --model.path"),
        (["--modle.path", "x"], "Unrecognized options: --modle.path"),
    ],
)
def test_a_mistake_is_one_line(words, message, folder, capsys):
    assert main([str(folder / "tiny") if word == "MODEL" else word for word in words]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda file: os.truncate(file, 1 << 40), "is larger than 256 MiB"),
        (lambda file: (file.unlink(), os.mkfifo(file)), "is a pipe, not a regular file; remove it"),
        (
            lambda file: file.write_text(re.sub(r'("num_hidden_layers": )\d+', r"\g<1>10000000", file.read_text())),
            "num_hidden_layers must be a whole number from 1 to 1000",
        ),
    ],
    ids=["endless", "pipe", "ten million layers"],
)
def test_a_strangers_configuration_is_looked_at_first(spoil, said, folder, tmp_path, capsys):
    spoilt = Path(shutil.copytree(folder / "tiny", tmp_path / "spoilt"))
    spoil(spoilt / "config.json")
    assert main(["--recipe", "rto_v1_hh", "--model.path", str(spoilt)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rto_fast: error: model.path: ") and said in error and error.count("\n") == 1


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "python -m rto_fast.plan" in said and "no weights and no data" in said
    assert all(name in " ".join(MORE) for name in CARDS)
