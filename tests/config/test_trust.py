"""Code of others runs only where the command's own flags ask for it: never for a recipe, never for a run folder."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import dynamic_module_utils

from rto_fast.credit.__main__ import main as credit
from rto_fast.credit.likelihood import main as likelihood
from rto_fast.decode.__main__ import main as decode
from rto_fast.evaluate.__main__ import main as evaluate
from rto_fast.train import main, parse
from tests.tiny_run import SETTINGS, write_model, write_pairs

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({ran!r}).write_text("code ran")


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig


def score(answers):
    return [float(len(a.response)) for a in answers]
"""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A model with code of its own, and a rule, that leave a file `ran` when they run."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path))
    write_pairs(tmp_path / "pairs.jsonl")
    (tmp_path / "tiny.toml").write_text(SETTINGS)
    code = CODE.format(ran=str(tmp_path / "ran"))
    (tmp_path / f"rule_{tmp_path.name.replace('-', '_')}.py").write_text(code)
    give_code(write_model(tmp_path / "model"), code)
    return tmp_path


def give_code(model: Path, code: str) -> None:
    (model / "own.py").write_text(code)
    settings = json.loads((model / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    settings |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": names}
    (model / "config.json").write_text(json.dumps(settings))


def rule(place: Path) -> str:
    return f"{next(place.glob('rule_*.py')).stem}:score"


def words(place: Path, recipe: str, *more: str) -> list[str]:
    (place / "recipe.toml").write_text(recipe)
    paths = ["--recipe", str(place / "recipe.toml"), "--data.path", str(place / "pairs.jsonl")]
    return [*paths, "--output", str(place / "out"), "--device", "cpu", *more]


def refused(command, arguments: list[str], capsys) -> str:
    capsys.readouterr()
    assert command(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("rto_fast: error: ") and error.count("\n") == 1
    return error


def extending(place: Path, asks: str) -> str:
    (place / "base.toml").write_text(SETTINGS + asks)
    return f'extends = "{place / "base.toml"}"\n'


@pytest.mark.parametrize("extends", [False, True], ids=["asks", "extends one that asks"])
@pytest.mark.parametrize("more", [(), ("--preflight-only",)], ids=["run", "preflight"])
def test_a_recipe_cannot_allow_code(more, extends, place, capsys):
    model = f'\n[model]\npath = "{place / "model"}"\ntrust_remote_code = true\n'
    write_model(place / "plain")
    plain = f'\n[model]\npath = "{place / "plain"}"\n'
    score = f'{plain}[rto.score]\nrule = "{rule(place)}"\n'
    stages = ("--stages", "sft", "grpo", *more)
    for asks, flags, flag in (
        (model, more, "add --model.trust-remote-code True"),
        (score, stages, f"add --rto.score.rule {rule(place)}"),
    ):
        recipe = extending(place, asks) if extends else SETTINGS + asks
        error = refused(main, words(place, recipe, *flags), capsys)
        assert f"recipe {place / 'recipe.toml'}: " in error and flag in error
        assert not (place / "ran").exists() and not (place / "out").exists()


def test_the_flag_allows_what_a_recipe_asks_for(place):
    recipe = f'[model]\ntrust_remote_code = true\n[rto.score]\nrule = "{rule(place)}"\n'
    both = ("--model.trust-remote-code", "True", "--rto.score.rule", rule(place))
    config = parse(words(place, recipe, *both))
    assert config.model.trust_remote_code and config.rto.score.rule == rule(place)
    for given in (both[:2], both[2:]):
        with pytest.raises(ValueError, match="which no file can allow"):
            parse(words(place, recipe, *given))
    # and it may say no to it
    config = parse(words(place, recipe, "--model.trust_remote_code=False", "--rto.score.rule", "math"))
    assert not config.model.trust_remote_code and config.rto.score.rule == "math"


def test_a_rule_that_is_no_code_needs_no_flag(place):
    assert parse(["--recipe", "grpo_gsm8k"]).rto.score.rule == "math"
    assert parse(words(place, '[rto.score]\nrule = "regex:a:b"\n')).rto.score.rule == "regex:a:b"


def test_trust_counts_for_one_command_and_is_remembered(place, capsys, monkeypatch):
    asked = words(place, SETTINGS, "--model.path", str(place / "model"), "--stages", "sft", "grpo")
    allowed = ["--model.trust-remote-code", "True", "--rto.score.rule", rule(place)]
    assert main([*asked, *allowed]) == 0
    assert (place / "ran").exists() and "trust_remote_code = true" in (place / "out/config.toml").read_text()
    (place / "ran").unlink()
    made = f"was made with --model.trust-remote-code True --rto.score.rule {rule(place)}, which counts for one command"
    # nothing is weighed by a score, so that the rule alone is missing
    weight = ("--stages", "sft")
    assert made in refused(main, [*asked, *weight], capsys)
    assert not (place / "ran").exists()
    assert main([*asked, *allowed]) == 0


@pytest.mark.parametrize("command", [decode, evaluate, credit, likelihood], ids=["decode", "evaluate", "credit", "kl"])
def test_a_run_folder_cannot_allow_code(command, place, capsys, monkeypatch):
    run = place / "stranger"
    run.mkdir()
    data = f'[data]\npath = "{place / "pairs.jsonl"}"\ntemplate = "none"\nmax_prompt = 10\nmax_length = 24\n'
    settings = f'{data}held_out = 8\n[model]\npath = "{place / "model"}"\n'
    for stage in ("sft", "dpo"):
        shutil.copytree(place / "model", run / stage)
        (run / stage / "stage.json").write_text("{}")
    (run / "config.toml").write_text(settings + "trust_remote_code = true\n")
    words = ["--run", str(run), "--device", "cpu"]
    assert "then add --trust-remote-code to this command" in refused(command, words, capsys)
    # a run that hides that it was trained with code is no way round either
    (run / "config.toml").write_text(settings)
    assert "brings Python code of its own" in refused(command, words, capsys)
    assert not (place / "ran").exists()
    # what remains to be refused, if anything, is not the code
    command([*words, "--trust-remote-code", "--output", str(place / "written.json")])
    assert (place / "ran").exists() and "Python code" not in capsys.readouterr().err
