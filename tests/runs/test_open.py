"""One reader of a run's folder: what training, evaluation, credit and decoding know of a run is the same."""

import ast
import json
from pathlib import Path

import pytest
import tomli_w
import torch

from rto_fast.config import (
    Config,
    CriticConfig,
    DataConfig,
    DPOConfig,
    ModelConfig,
    RewardConfig,
    RMConfig,
    RTOConfig,
    ScoreConfig,
    SFTConfig,
)
from rto_fast.config.recipe import plain
from rto_fast.credit.__main__ import main as credit
from rto_fast.credit.options import Watch
from rto_fast.credit.source import open_source as open_credited
from rto_fast.data.corpus import load_corpus
from rto_fast.data.tokenizer import load_tokenizer
from rto_fast.decode.options import Options as DecodeOptions
from rto_fast.decode.source import open_source
from rto_fast.evaluate.__main__ import main as evaluate
from rto_fast.evaluate.measure import read_prompts
from rto_fast.evaluate.options import Options
from rto_fast.evaluate.subject import subject
from rto_fast.model.language import LanguageModel
from tests.evaluate.runs import write_reward_model
from tests.tiny_run import write_model, write_pairs

ROOT = Path(__file__).parents[2]
OTHER_ROOMS = [path for path in sorted(ROOT.glob("rto_fast/**/*.py")) if path.parent.name not in ("runs", "config")]
WHOLE = ("sft", "dpo", "rto")


def write_run(folder: Path, config: Config, *made: str) -> Path:
    """config.toml and the models of some stages."""
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text(tomli_w.dumps(plain(config)))
    for stage in made:
        write_model(folder / stage)
        (folder / stage / "stage.json").write_text("{}")
    return folder


def data_of(folder: Path, **changes) -> DataConfig:
    given = {"path": str(write_pairs(folder / "pairs.jsonl")), "template": "none", "max_prompt": 10, "max_length": 24}
    return DataConfig(**given | {"held_out": 6} | changes)


@pytest.mark.parametrize("path", OTHER_ROOMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_settings_on_disk_are_read_in_one_room(path):
    """Neither by that file's name nor by any reader of TOML."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant):
            assert not str(node.value).endswith("config.toml"), path
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = {name.name for name in node.names}
            assert not names & {"tomllib", "read_toml", "parse_toml"}, path
            assert path.name == "train.py" or "load_recipe" not in names, path


def test_prompts_that_are_held_out_of_data_prompts_are_found(tmp_path):
    """As of the recipe grpo_gsm8k: no pairs, prompts with a known answer, one stage."""
    rows = [{"question": f"what is {'the ' * i}cat", "answer": "#### grey"} for i in range(12)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"prompt": "question", "reference": "answer"}
    data = data_of(tmp_path, path="", prompts=str(tmp_path / "asked.jsonl"), columns=columns)
    rto = RTOConfig(score=ScoreConfig(rule="math"), reward=RewardConfig(beta_1=0.0), critic=CriticConfig(kind="group"))
    base = write_model(tmp_path / "base")
    config = Config(stages=("grpo",), data=data, rto=rto, model=ModelConfig(path=str(base)), seed=3)
    run = write_run(tmp_path / "run", config, "grpo")
    corpus = load_corpus(data, load_tokenizer(base), 3)
    assert 4 <= len(corpus.evaluation) <= 6
    judge = {"judge": "reward-model", "reward_model": str(write_reward_model(tmp_path / "rm"))}
    options = Options(run=str(run), device="cpu", **judge)
    about = subject(options)
    assert about.policies == {"grpo": str(run / "grpo")} and about.reference == str(base)
    assert read_prompts(options, about, load_tokenizer(base)).ids == corpus.evaluation
    words = ["--judge", "reward-model", "--reward-model", judge["reward_model"], "--device", "cpu"]
    assert evaluate(["--run", str(run), *words]) == 0
    source = open_source(DecodeOptions(run=str(run), dpo="grpo", device="cpu"))
    assert source.prompts == corpus.evaluation and source.seed == 3


def test_a_reward_model_that_was_given_judges(tmp_path):
    rm = write_reward_model(tmp_path / "rm")
    run = write_run(tmp_path / "run", Config(data=data_of(tmp_path), rm=RMConfig(model=str(rm))), *WHOLE)
    about = subject(Options(run=str(run), device="cpu"))
    assert (about.reward_model, about.judge) == (str(rm), "reward-model")
    # beside the stage that it replaces, and it is none of the policies
    config = Config(stages=("sft", "dpo", "rm", "rto"), data=data_of(tmp_path), rm=RMConfig(model=str(rm)))
    about = subject(Options(run=str(write_run(run, config)), device="cpu"))
    assert (about.reward_model, list(about.policies)) == (str(rm), list(WHOLE))


def matrices(model: LanguageModel) -> torch.dtype:
    return model.hf.model.layers[0].mlp.up_proj.weight.dtype


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
def test_models_are_looked_at_in_the_runs_type(dtype, tmp_path):
    config = Config(data=data_of(tmp_path), model=ModelConfig(path="x", dtype=dtype))
    run = str(write_run(tmp_path / "run", config, *WHOLE))
    wanted = {"auto": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    scorer = open_credited(Watch(run, device="cpu")).scorer
    assert matrices(scorer.dpo) == matrices(scorer.reference) == wanted
    decoded = open_source(DecodeOptions(run=run, device="cpu"))
    assert matrices(decoded.dpo) == wanted
    about = subject(Options(run=run, device="cpu"))
    assert matrices(about.run.load(about.reference)) == about.run.dtype == wanted
    assert subject(Options(run=run, device="cpu", dtype="float32")).run.dtype == torch.float32


def test_without_sft_the_base_is_pi_ref_for_everyone(tmp_path):
    base = str(write_model(tmp_path / "base"))
    config = Config(stages=("dpo", "rto"), data=data_of(tmp_path), model=ModelConfig(path=base))
    run = str(write_run(tmp_path / "run", config, "dpo", "rto"))
    assert subject(Options(run=run, device="cpu")).reference == base
    assert evaluate(["--run", run, "--device", "cpu", "--num-prompts", "4"]) == 0
    assert open_credited(Watch(run, device="cpu")).reference_path == base
    assert credit(["--run", run, "--device", "cpu"]) == 0
    assert open_source(DecodeOptions(run=run, device="cpu")).reference is not None
    # a model that is given comes first
    given = write_run(tmp_path / "run", Config(**vars(config) | {"sft": SFTConfig(model=str(tmp_path / "run/dpo"))}))
    assert open_credited(Watch(str(given), device="cpu")).reference_path == str(tmp_path / "run/dpo")


def test_credit_trains_on_no_row_that_the_run_removed(tmp_path):
    """What data.evaluation asks is removed from the pairs, by words or by ids."""
    data = data_of(tmp_path, held_out=0)
    asked = [json.loads(line)["prompt"] for line in Path(data.path).read_text().splitlines()[:3]]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps({"prompt": f" {p} "}) + "\n" for p in asked))
    data = data_of(tmp_path, held_out=0, evaluation=str(tmp_path / "eval.jsonl"))
    run = write_run(tmp_path / "run", Config(data=data), "sft", "dpo")
    source = open_credited(Watch(str(run), device="cpu"))
    known = load_corpus(data, load_tokenizer(run / "sft"), 0)
    assert 0 < len(known.pairs) < 24
    assert source.corpus.pairs == source.pairs(None) == known.pairs
    assert source.corpus.evaluation == known.evaluation


def test_the_models_own_end_ends_credits_answers_too(tmp_path):
    run = write_run(tmp_path / "run", Config(data=data_of(tmp_path)), "sft", "dpo")
    (run / "sft/generation_config.json").write_text('{"eos_token_id": [2, 9]}')
    (run / "dpo/generation_config.json").write_text('{"eos_token_id": [2, 9]}')
    for stage in ("sft", "dpo"):
        (run / stage / "manifest.json").unlink(missing_ok=True)
    assert open_credited(Watch(str(run), device="cpu")).eos_token_ids == (2, 9)
    assert open_source(DecodeOptions(run=str(run), device="cpu")).eos_token_ids == (2, 9)


def test_beta_of_the_run_is_everyones(tmp_path):
    run = str(write_run(tmp_path / "run", Config(data=data_of(tmp_path), dpo=DPOConfig(beta=0.37)), *WHOLE))
    assert subject(Options(run=run, device="cpu")).beta == 0.37
    assert open_credited(Watch(run, device="cpu")).scorer.beta == 0.37
    assert open_source(DecodeOptions(run=run, device="cpu")).beta == 0.37
