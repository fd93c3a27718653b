"""The command as a user runs it, on a tiny model and a handful of pairs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rto_fast.pipeline import run as pipeline
from rto_fast.train import main
from tests.tiny_run import SETTINGS, WORDS, write_model, write_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    write_model(folder / "model")
    write_pairs(folder / "pairs.jsonl")
    (folder / "tiny.toml").write_text(SETTINGS)
    return folder


def command(folder: Path, *more: str, output: str = "run") -> list[str]:
    return [
        *("--recipe", str(folder / "tiny.toml"), "--model.path", str(folder / "model")),
        *("--data.path", str(folder / "pairs.jsonl"), "--output", str(folder / output), "--device", "cpu"),
        *more,
    ]


@pytest.fixture(scope="module")
def run(folder) -> Path:
    assert main(command(folder)) == 0
    return folder / "run"


def test_a_run_leaves_models_that_transformers_loads(run):
    for stage in ("sft", "dpo", "rto"):
        model = AutoModelForCausalLM.from_pretrained(run / stage)
        tokenizer = AutoTokenizer.from_pretrained(run / stage)
        prompt = tokenizer("<bos> what is the colour of the cat", return_tensors="pt").input_ids
        assert model.generate(prompt, max_new_tokens=4, do_sample=False).shape[1] > prompt.shape[1]
    assert not list(run.glob("*.partial"))


def test_a_run_writes_its_numbers(run):
    results = json.loads((run / "results.json").read_text())
    for name in ("sft", "dpo", "rto"):
        assert {"mean", "ci95"} == set(results["policies"][name]["implicit_reward"])
    assert results["policies"]["sft"]["kl"]["mean"] == 0.0
    assert 0 <= results["preference_accuracy"]["mean"] <= 1
    wins = results["win_rate"]
    assert wins["rto"]["sft"]["mean"] + wins["sft"]["rto"]["mean"] == pytest.approx(1.0)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["sft"] * 2 + ["dpo"] * 2 + ["rto"] * 8
    assert {"reward/per_answer", "kl/per_answer", "answers/length", "sampler_gap/max"} <= set(lines[4])
    assert list(run.glob("tb/rto/events*")) and (run / "samples.md").read_text().count("**rto**") == 2
    assert "[rto.reward]" in (run / "config.toml").read_text()


def test_finished_stages_are_not_run_again(run, folder, capsys, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in run.glob("*/model.safetensors")}
    shutil.rmtree(run / "rto")
    trained = []
    original = pipeline._train
    monkeypatch.setattr(pipeline, "_train", lambda c, name, *rest: (trained.append(name), original(c, name, *rest))[1])
    assert main(command(folder)) == 0
    assert trained == ["rto"]
    assert "sft: finished already" in capsys.readouterr().out
    after = {p: p.stat().st_mtime_ns for p in run.glob("*/model.safetensors")}
    assert all(after[p] == before[p] for p in before if p.parent.name != "rto")


def test_an_interrupted_run_says_how_to_go_on(folder, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    original = pipeline.build
    stop_at_dpo = lambda context, stage: interrupt() if stage == "dpo" else original(context, stage)  # noqa: E731
    monkeypatch.setattr(pipeline, "build", stop_at_dpo)
    assert main(command(folder, output="stopped")) == 130
    assert "the same command goes on from the last" in capsys.readouterr().err
    assert (folder / "stopped" / "sft" / "stage.json").is_file()
    monkeypatch.undo()
    assert main(command(folder, output="stopped")) == 0


def test_the_same_seed_makes_the_same_models(run, folder):
    assert main(command(folder, "--microbatch-rows", "4096", output="again")) == 0
    assert (folder / "again/rto/model.safetensors").read_bytes() == (run / "rto/model.safetensors").read_bytes()


def test_given_models_replace_stages(run, folder):
    given = ("--sft.model", str(run / "sft"), "--dpo.model", str(run / "dpo"))
    assert main(command(folder, *given, output="given")) == 0
    made = {p.parent.name for p in (folder / "given").glob("*/model.safetensors")}
    assert made == {"rto"}
    assert (folder / "given/rto/model.safetensors").read_bytes() == (run / "rto/model.safetensors").read_bytes()


def bad_rows(folder: Path, name: str, *rows: dict) -> tuple[str, ...]:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ("--data.path", str(file))


def bad_cases(folder: Path) -> dict[str, tuple[tuple[str, ...], str]]:
    ok = {"prompt": "what is it", "chosen": "it is grey", "rejected": "it is brown"}
    other = folder / "other"
    if not other.exists():
        write_model(other, [*WORDS[:-2], "xyz", "."])
    broken = folder / "broken"
    if not broken.exists():
        shutil.copytree(folder / "run" / "dpo", broken)
        (broken / "manifest.json").unlink()
        model = AutoModelForCausalLM.from_pretrained(broken)
        with torch.no_grad():  # finite, and beyond what its products can hold
            model.model.norm.weight.fill_(3e38)
        model.save_pretrained(broken)
    return {
        "missing column": (bad_rows(folder, "column", {"prompt": "a", "chosen": "b"}), "no column 'rejected'"),
        "empty response": (bad_rows(folder, "empty", {**ok, "chosen": " "}), "empty response"),
        "chosen equals rejected": (
            bad_rows(folder, "same", {**ok, "rejected": ok["chosen"]}),
            "chosen equals rejected",
        ),
        "prompt fills the context": (("--data.max-prompt", "24"), "data.max_length must be above max_prompt = 24"),
        "longer than the model's context": (("--data.max-length", "500"), "the model's context is 128"),
        "unknown recipe key": (("--recipe", _recipe(folder, "[rto]\nrolouts = 8")), "did you mean 'rollouts'?"),
        "another tokenizer": (("--dpo.model", str(other)), "dpo.model"),
        "folder of another run": (("--output", str(folder / "run")), "holds another run"),
        "NaN in a reward": (
            ("--sft.model", str(folder / "run/sft"), "--dpo.model", str(broken)),
            "rto.reward: a reward is not finite, from the DPO model's log-probs",
        ),
        "no such file": (("--data.path", "./nowhere.jsonl"), "no file or directory './nowhere.jsonl'"),
        "no such model": (("--model.path", "./nowhere"), "model.path"),
        "no GPU": (("--device", "cuda"), "device: 'cuda' asked for, but torch sees no CUDA GPU"),
    }


def _recipe(folder: Path, text: str) -> str:
    file = folder / "wrong.toml"
    file.write_text(text)
    return str(file)


CASES = [
    "missing column",
    "empty response",
    "chosen equals rejected",
    "prompt fills the context",
    "longer than the model's context",
    "unknown recipe key",
    "another tokenizer",
    "folder of another run",
    "NaN in a reward",
    "no such file",
    "no such model",
    "no GPU",
]


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_loses_nothing(case, run, folder, capsys):
    if case == "no GPU" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    flags, message = bad_cases(folder)[case]
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    extra = () if "--output" not in flags else ("--seed", "9")
    assert main([*command(folder, *flags, *extra, output=f"bad-{case}"[:12])]) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("rto_fast: error:")]
    assert len(lines) == 1 and message in lines[0], error
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_flag_shows_where_an_error_came_from(run, folder, capsys):
    assert main(["--traceback", *command(folder, "--seed", "9")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Traceback") and error.splitlines()[-1].startswith("rto_fast: error: output: ")
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--traceback: an error shows where" in capsys.readouterr().out
    # no setting of the run: the same folder goes on with it and without it
    assert main([*command(folder), "--traceback"]) == 0
    assert "traceback" not in (run / "config.toml").read_text()


def test_half_precision_arithmetic_trains(folder):
    assert main(command(folder, "--model.dtype", "bfloat16", "--rto.critic.kind", "shared", output="half")) == 0
    saved = AutoModelForCausalLM.from_pretrained(folder / "half" / "rto", dtype="auto")
    assert saved.dtype == torch.float32  # as the base is stored
    lines = [json.loads(line) for line in (folder / "half/metrics.jsonl").read_text().splitlines()]
    assert max(line.get("ratio_gap", 0) for line in lines if line.get("iteration")) < 0.05


def test_local_files_train_without_the_optional_packages(folder):
    """A bare checkout: no datasets, liger-kernel or flash-attn; nothing installed under our name."""
    code = (
        "import sys\n"
        "for name in ('datasets', 'liger_kernel', 'flash_attn'):\n"
        "    sys.modules[name] = None\n"
        "from rto_fast.train import main\n"
        f"sys.exit(main({command(folder, output='bare')!r}))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "bare/rto/model.safetensors").is_file()


def test_a_runs_progress_holds_no_strangers_warning(folder):
    words = command(folder, "--stages", "sft", "dpo", "rm", "rto", output="quiet")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", "rto_fast.train", *words], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0 and "step/s" in done.stderr
    assert "Warning" not in done.stderr and "deprecated" not in done.stderr, done.stderr


def test_too_few_held_out_prompts_cost_the_evaluation_not_the_run(folder, capsys):
    sweep = ("--sweep.ratios", "1", "--sweep.clips", "0.1", "--sweep.iterations", "1")
    assert main(command(folder, "--data.held-out", "1", *sweep, output="one")) == 0
    said = capsys.readouterr().out
    assert "0 held out for evaluation" in said or "1 held out for evaluation" in said
    assert "No evaluation: it needs two held-out prompts or more" in said
    assert set(json.loads((folder / "one" / "results.json").read_text())) == {"recipe", "seed", "seconds"}


def test_a_comparison_without_evaluation(folder):
    words = command(folder, "--eval.prompts", "0", "--compare.seeds", "0", "1", output="blind")
    assert main(words) == 0
    assert (folder / "blind" / "report.html").is_file()


def test_one_prompt_is_no_evaluation(folder, capsys):
    assert main(command(folder, "--eval.prompts", "1", output="never")) == 2
    assert "eval.prompts must be 0, or 2 and more, got 1" in capsys.readouterr().err
