"""Without a recipe: what a user's own model and data get, and when."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, MistralConfig

from rto_fast.config import Config
from rto_fast.config.neutral import LATER, OWN, RATES, Shape, base, choose, is_own, rate
from rto_fast.config.recipe import build, load_recipe, plain, read_toml
from rto_fast.data.read import read_rows
from rto_fast.model.language import LanguageModel
from rto_fast.packing import microbatches
from rto_fast.pipeline import facts
from rto_fast.pipeline.facts import model_shape
from rto_fast.train import main, parse
from tests.tiny import ARCHITECTURES, config
from tests.tiny_run import write_model, write_pairs

SMALL = Shape(parameters=260_000, context=512, activations=4 * 17 * 64 * 5, cache=4 * 2 * 5 * 32)
LARGE = Shape(parameters=8_000_000_000, context=131072, activations=4 * 17 * 4096 * 32, cache=4 * 2 * 32 * 1024)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    write_model(folder / "mine")
    write_pairs(folder / "pairs.jsonl", 48)
    return folder


def own(folder: Path, *more: str) -> list[str]:
    return ["--model.path", str(folder / "mine"), "--data.path", str(folder / "pairs.jsonl"), *more]


def value(config: Config, name: str):
    for part in name.split("."):
        config = getattr(config, part)
    return config


def test_the_quickstart_runs_only_when_nothing_is_given():
    for args in (
        [],
        ["--seed", "1"],
        ["--stages", "sft"],
        ["--compare.seeds", "0", "1"],
        ["--data.path=quickstart"],
        ["--rm.model", "none"],
    ):
        config = parse(args)
        assert config.recipe == "quickstart" and config.sft.optim.lr == 4e-3 and not is_own(args, ["quickstart"])


@pytest.mark.parametrize("flag", OWN)
def test_whatever_is_the_users_own_is_not_trained_on_the_quickstarts_settings(flag, folder, capsys):
    assert is_own([flag, "x"], ["y"]) and is_own(["--seed", "1", f"{flag}=x"], ["y"])
    needed = ["--model.path", str(folder / "mine"), "--data.path", str(folder / "pairs.jsonl")]
    config = parse([*needed, flag, str(folder / ("pairs.jsonl" if "data" in flag else "mine"))])
    assert config.recipe == "neutral" and config.data.template == "auto" and config.data.held_out > 0
    assert config.sft.optim.lr < 4e-3


@pytest.mark.parametrize("name, recipe, size", [
    *((name, "hh_compare", 0.26e6) for name in RATES),
    *((name, "ppo_v1_hh", 2.8e9) for name in RATES),
    *((name, "rto_icml", 8e9) for name in ("rto.optim.lr", "rto.critic.lr")),
])  # fmt: skip
def test_learning_rates_are_those_of_the_recipes_at_their_sizes(name, recipe, size):
    assert rate(name, round(size)) == value(load_recipe(recipe), name)


@pytest.mark.parametrize("name", RATES)
def test_learning_rates_lie_between_their_neighbours(name):
    low, middle, high = (rate(name, size) for size in (260_000, 27_000_000, 2_800_000_000))
    assert low > middle > high
    assert middle == pytest.approx((low * high) ** 0.5, rel=0.03)  # 27 M is half way in log(size)
    assert rate(name, 1) == low and rate(name, 10**12) == rate(name, 8 * 10**9)


def test_every_open_setting_is_chosen_and_only_numbers_are_left():
    for shape in (SMALL, LARGE):
        for rows in (1, 2, 24, 1000, 5120):
            chosen, _ = choose(base(), shape, rows)
            assert {type(value(chosen, name)) for name in LATER} == {int, float}
            assert build(Config, plain(chosen), "again") == chosen
            assert 0 <= chosen.data.held_out < rows


def test_lengths_follow_the_models_context():
    small, large = choose(base(), SMALL, 5000)[0], choose(base(), LARGE, 5000)[0]
    assert (small.data.max_length, small.data.max_prompt, small.max_new_tokens) == (512, 256, 256)
    assert (large.data.max_length, large.data.max_prompt) == (1024, 512)
    unknown = choose(base(), SMALL._replace(context=None), 5000)
    assert unknown[0].data.max_length == 1024 and any("context is not named" in line for line in unknown[1])


@pytest.mark.parametrize("given, wanted", [
    ({"max_length": 100}, (100, 50)),
    ({"max_prompt": 200}, (512, 200)),
    ({"max_prompt": 300}, (512, 300)),
    ({"max_length": 40, "max_prompt": 30}, (40, 30)),
    ({"max_length": 4096}, (4096, 2048)),  # beyond the context: prepare says so
])  # fmt: skip
def test_what_is_chosen_gives_way_to_what_is_given(given, wanted):
    config = base()
    config = replace(config, data=replace(config.data, **given))
    chosen = choose(config, SMALL, 5000)[0].data
    assert (chosen.max_length, chosen.max_prompt) == wanted


def test_a_longer_prompt_gets_a_longer_context():
    config = base()
    config = replace(config, data=replace(config.data, max_prompt=1500))
    assert choose(config, LARGE, 5000)[0].data.max_length == 3000


def test_the_prompt_leaves_room_for_the_answer_that_is_asked_for():
    config = base()
    config = replace(config, rto=replace(config.rto, sampling=replace(config.rto.sampling, max_new_tokens=400)))
    chosen = choose(config, SMALL, 5000)[0]
    assert chosen.data.max_prompt + chosen.max_new_tokens == SMALL.context == chosen.data.max_length


def test_few_rows_get_small_batches_and_a_few_held_out():
    many, few = choose(base(), SMALL, 5120)[0], choose(base(), SMALL, 200)[0]
    assert (many.data.held_out, many.dpo.batch_size, many.rto.rollouts, many.rto.minibatch) == (256, 32, 256, 32)
    assert (few.data.held_out, few.dpo.batch_size, few.rto.rollouts, few.rto.minibatch) == (10, 4, 16, 2)
    config = base()
    config = replace(config, data=replace(config.data, held_out=100))
    assert choose(config, SMALL, 5120)[0].data.held_out == 100


def test_groups_and_given_minibatches_divide_the_rollouts(folder, capsys):
    config = parse(own(folder, "--rto.critic.kind", "group", "--rto.group", "25"))
    assert config.rto.rollouts == 25
    assert parse(own(folder, "--rto.minibatch", "64")).rto.rollouts == 64
    assert parse(own(folder, "--rto.rollouts", "64")).rto.minibatch == 8


def test_a_large_model_gets_budgets_that_fit():
    chosen, said = choose(base(), LARGE, 5000)
    assert chosen.microbatch_rows == 2 * chosen.data.max_length  # a pair of the longest answers, and no more
    longest = 2 * (chosen.data.max_length - 1)
    assert microbatches([longest] * 2, chosen.microbatch_rows) == [[0], [1]]
    assert chosen.rto.sampling.batch_size * chosen.data.max_length * LARGE.cache <= 4 * LARGE.parameters
    assert chosen.rto.sampling.batch_size == 64
    assert any("8 B parameters" in line for line in said)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_size_is_known_without_the_weights(architecture, tmp_path):
    hf = AutoModelForCausalLM.from_config(config(architecture))
    hf.save_pretrained(tmp_path)
    shape = model_shape(str(tmp_path))
    assert shape.parameters == sum(p.numel() for p in LanguageModel(hf).parameters())
    assert shape.context == 128
    width, layers, heads = 48, 2, {"gpt_neox": 48, "gpt2": 48, "llama_tied": 48, "qwen3": 32}.get(architecture, 24)
    assert shape.cache == 4 * 2 * layers * heads
    # in float32, and the last norm's input: of NeoX 10 H and an MLP of 96 twice; of GPT-2 9 H and one of 192 five times
    known = {"gpt_neox": 4 * (layers * (10 * width + 2 * 96) + width), "gpt2": 4 * (layers * (9 * width + 960) + width)}
    assert shape.activations == known.get(architecture, shape.activations) > 0


def test_a_sliding_window_is_no_bound_of_the_context(tmp_path):
    sizes = dict(vocab_size=61, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    config = MistralConfig(**sizes, sliding_window=40, max_position_embeddings=72)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert model_shape(str(tmp_path)).context == 72


def test_no_row_is_read_beyond_those_that_matter(folder, monkeypatch):
    limits = []
    monkeypatch.setattr(
        facts, "read_rows", lambda *a, limit, **k: limits.append(limit) or read_rows(*a, limit=limit, **k)
    )
    parse(own(folder))
    parse(own(folder, "--data.max-rows", "7"))
    assert limits == [5120, 7]


def test_a_run_says_what_was_chosen_and_why_and_goes_on(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    few = ("--rto.iterations", "1", "--eval.samples", "0", "--sft.optim.lr", "1e-3", "--device", "cpu")
    assert main(own(folder, *few)) == 0
    said = capsys.readouterr().out
    assert "chosen: dpo.optim.lr 0.0001, rto.optim.lr 0.0001, rto.critic.lr 0.001 (0.0" in said
    assert "chosen: data.max_length 128 (the model's context)" in said
    assert "chosen: data.max_prompt 64 (half of max_length)" in said
    assert "data.held_out 8, sft.batch_size 4" in said and "(48 rows)" in said
    assert "pairs: 40 used" in said and "2 held out for evaluation" in said and "Finished in" in said
    assert "sft.optim.lr" not in said and "rm.optim.lr" not in said  # given; not run
    written = read_toml(folder / "runs" / "mine" / "config.toml", "run")
    assert written["sft"]["optim"]["lr"] == 1e-3 and written["data"]["max_length"] == 128
    assert json.loads((folder / "runs" / "mine" / "results.json").read_text())["recipe"] == "neutral"
    # the same command goes on, another one does not
    assert main(own(folder, *few)) == 0
    assert "rto: finished already" in capsys.readouterr().out
    assert main(own(folder, *few, "--data.max-length", "100")) == 2
    assert "runs/mine holds another run (data.max_prompt was 64, now 50" in capsys.readouterr().err


@pytest.mark.parametrize("args, message", [
    (["--model.path", "{mine}"], "data.path: no preference pairs given"),
    (["--data.path", "{pairs}"], "model.path: no model given"),
    (["--recipe", "neutral"], "model.path: no model given"),
    (["--model.path", "./nowhere", "--data.path", "{pairs}"], "model.path: no config.json in './nowhere'"),
    (["--model.path", "{mine}", "--data.path", "./nowhere"], "data.path: there is no file or directory './nowhere'"),
    (["--model.path", "{mine}", "--data.path", "{pairs}", "--data.max-prompt", "128"], "the model's context is 128"),
    (["--model.path", "{mine}", "--data.path", "{pairs}", "--data.max-length", "1"], "must be above max_prompt"),
    (["--model.path", "{mine}", "--data.path", "{pairs}", "--rto.sampling.max-new-tokens", "128"], "context is 128"),
])  # fmt: skip
def test_what_is_missing_or_does_not_fit_is_one_line(args, message, folder, tmp_path, capsys):
    places = {"mine": folder / "mine", "pairs": folder / "pairs.jsonl"}
    assert main([*(word.format(**places) for word in args), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def helped(capsys, *args: str) -> str:
    with pytest.raises(SystemExit):
        main([*args, "--help"])
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_help_shows_what_a_users_own_model_gets(capsys):
    said = helped(capsys)
    assert "with neither, and no --recipe, the embedded quickstart runs" in said
    for words in ("by-model-size", "by-model-context", "half-of-max-length", "by-number-of-rows", "rollouts/8"):
        assert f"(default: {words})" in said
    assert "0.004" not in said and "else plain Human/Assistant turns. (default: auto)" in said
    assert "(default: 0.004)" in helped(capsys, "--recipe", "quickstart")
