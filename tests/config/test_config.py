import inspect
import math

import pytest

from rto_fast.config import Config, RTOConfig
from rto_fast.config.recipe import RECIPES, build, load_recipe, plain
from rto_fast.kernels.common import workspace
from rto_fast.runs.folder import claim
from rto_fast.train import main, parse


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda p: p.stem)
def test_recipes_load_and_survive_being_written(path):
    config = load_recipe(path.stem)
    assert build(Config, plain(config), "again") == config


def test_presets_have_the_papers_numbers():
    v1, icml = load_recipe("rto_v1_hh"), load_recipe("rto_icml")
    assert (v1.rto.reward.beta_1, v1.rto.reward.beta_2, v1.rto.reward.beta_3) == (0.1, 0.03, 0.0)
    assert (v1.rto.rollouts, v1.rto.minibatch, v1.rto.ppo_epochs, v1.rto.optim.lr) == (256, 16, 2, 5e-6)
    assert v1.rto.reward.clip == math.inf
    reward = icml.rto.reward
    assert (reward.beta_1, reward.beta_2, reward.beta_3, reward.clip) == (0.05, 0.01, 1.0, 0.05)
    assert (icml.rto.rollouts, icml.rto.minibatch, icml.rto.ppo_epochs) == (1024, 128, 1)


def test_no_flag_at_all_is_the_quickstart():
    assert parse([]) == load_recipe("quickstart")


@pytest.mark.parametrize("args", [["--recipe=hh_small"], ["--seed", "3", "--recipe", "hh_small"]])
def test_the_recipe_may_stand_anywhere(args):
    assert parse(args).data.max_length == load_recipe("hh_small").data.max_length


def test_flags_override_the_recipe():
    config = parse(
        ["--recipe", "rto_v1_hh", "--model.path", "m", "--rto.reward.beta-2", "0.05", "--sft.optim.lr", "1e-3"]
    )
    assert (config.model.path, config.rto.reward.beta_2, config.sft.optim.lr) == ("m", 0.05, 1e-3)
    assert config.rto.reward.beta_1 == 0.1 and config.data.subset == "helpful-base"


@pytest.mark.parametrize(
    "text, message",
    [
        ("[rto.reward]\nbeta1 = 1", "unknown key 'rto.reward.beta1' (did you mean 'beta_1'?)"),
        ("sed = 1", "unknown key 'sed' (did you mean 'seed'?)"),
        ("[dpo]\nloss = 'sigmoyd'", "dpo.loss must be one of sigmoid, ipo, got 'sigmoyd' (did you mean 'sigmoid'?)"),
        ("stages = ['sft', 'dop']", "stages must be one of sft, dpo, rm, rto"),
        ("seed = 'x'", "seed must be a whole number, got 'x'"),
        ("seed = true", "seed must be a whole number, got True"),
        ("sft = 1", "sft must be a table, got 1"),
        ("[rto]\nlam = 1.5", "rto.lam must be in [0, 1], got 1.5"),
        ("[rto.reward]\nbeta_3 = 1.0", "rto.score: rto with beta_3 = 1 weighs a sentence score; add the stage rm"),
        ("[data]\nmax_prompt = 900", "data.max_length must be above max_prompt = 900, got 512"),
        ("stages = ['rto', 'sft']", "stages must be in the order sft, dpo and rm, rto and its family"),
        ("seed = ", "not valid TOML"),
    ],
)
def test_a_wrong_recipe_is_one_line_that_names_the_key(text, message, tmp_path, capsys):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    assert main(["--recipe", str(file)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_an_unknown_recipe_names_the_nearest(capsys):
    assert main(["--recipe", "quickstrat"]) == 2
    assert "no 'quickstrat' (did you mean 'quickstart'?)" in capsys.readouterr().err


def test_partial_tables_keep_the_fields_own_defaults():
    built = build(RTOConfig, {"optim": {"weight_decay": 0.1}}, "test")
    assert built.optim.lr == RTOConfig().optim.lr and built.optim.schedule == "constant"


def test_a_folder_belongs_to_one_configuration(tmp_path):
    first = build(Config, {"output": str(tmp_path / "run"), "seed": 1}, "test")
    folder = claim(first)
    assert claim(build(Config, {**plain(first), "log_every": 5, "device": "cpu"}, "test")) == folder
    with pytest.raises(ValueError, match=r"holds another run \(seed was 1, now 2\); name another with --output"):
        claim(build(Config, {**plain(first), "seed": 2}, "test"))


@pytest.mark.parametrize("field", ["sft.optim.lr", "dpo.beta", "rto.reward.beta_1", "rto.clip", "eval.top_p"])
def test_what_is_computed_is_not_free_to_change(field, tmp_path):
    first = build(Config, {"output": str(tmp_path / "run")}, "test")
    claim(first)
    changed = plain(first)
    *tables, name = field.split(".")
    table = changed
    for key in tables:
        table = table[key]
    table[name] = table[name] / 2
    with pytest.raises(ValueError, match=rf"holds another run \({field} was "):
        claim(build(Config, changed, "test"))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is no run of rto_fast"):
        claim(build(Config, {"output": str(tmp_path)}, "test"))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "flag, value",
    [
        ("rto.reward.clip", math.inf),
        ("rto.critic.clip", math.inf),
        ("rto.iterations", None),
        ("guards.kl", None),
        ("workspace-mb", None),
        ("output", None),
        ("rto.critic.model", None),
        ("data.max-rows", None),
        ("data.template", "none"),
    ],
)
@pytest.mark.parametrize("spelling", ["none", "None"])
def test_none_means_none_where_help_says_so(flag, value, spelling):
    if flag == "data.template" and spelling == "None":
        pytest.skip("a choice, spelled as it is listed")
    for words in ([f"--{flag}", spelling], [f"--{flag}={spelling}"]):
        found = parse(["--recipe", "hh_small", *words])
        for name in flag.replace("-", "_").split("."):
            found = getattr(found, name)
        assert found == value


def test_none_in_a_list_and_beside_other_words():
    config = parse(["--sweep.clips", "none", "0.1", "--sweep.ratios", "1", "--dpo.model", "none", "--seed", "3"])
    assert (config.sweep.clips, config.dpo.model, config.seed) == ((math.inf, 0.1), None, 3)


def test_none_in_a_recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('extends = "hh_small"\n[rto]\niterations = "none"\n[rto.reward]\nclip = "none"\n')
    config = load_recipe(str(path))
    assert config.rto.iterations is None and config.rto.reward.clip == math.inf


def test_none_for_a_number_that_must_be_is_an_error():
    with pytest.raises(ValueError, match="sft.optim.lr"):
        parse(["--sft.optim.lr", "none"])


def test_a_byte_order_mark_is_no_statement(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_bytes(b"\xef\xbb\xbfseed = 7\n")
    assert load_recipe(str(file)).seed == 7


def test_help_names_the_workspace_that_the_operators_take():
    from rto_fast.evaluate.options import Options

    taken = f"none = {workspace.CPU_WORKSPACE_MB} on CPU, {workspace.CUDA_WORKSPACE_MB} on CUDA"
    for settings in (Config, Options):
        assert taken in " ".join(inspect.getsource(settings).split())
