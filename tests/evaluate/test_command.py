"""`python -m rto_fast.evaluate` as a user runs it, on untrained models."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rto_fast.evaluate.__main__ import main
from rto_fast.evaluate.policies import distinct
from rto_fast.evaluate.saved import Saved
from rto_fast.files.digests import MANIFEST
from tests.evaluate.runs import write_reward_model, write_run, write_stage
from tests.judges.faulty_server import drip, endless_error, serving

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    write_run(folder / "run")
    write_reward_model(folder / "rm")
    return folder


@pytest.fixture(autouse=True)
def no_judge_in_the_environment(monkeypatch):
    for name in ("OPENAI_BASE_URL", "RTO_FAST_JUDGE_MODEL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def command(runs: Path, output: str, *more: str) -> list[str]:
    return ["--run", str(runs / "run"), "--output", str(runs / output), "--device", "cpu", *more]


def results(runs: Path, output: str) -> dict:
    return json.loads((runs / output / "results.json").read_text())


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_run_is_measured_by_its_own_dpo(runs, capsys):
    assert main(command(runs, "a")) == 0
    said = capsys.readouterr().out
    assert said.startswith("Policies: sft, dpo, rto; 24 held-out prompts, at most 8 new tokens, temperature 0.9, top-p")
    assert "; judge: implicit\n" in said
    assert "Win rate of the row over the column" in said and "The same at equal length" in said
    got = results(runs, "a")
    assert list(got["policies"]) == ["sft", "dpo", "rto"] and got["judge"] == "implicit_reward"
    assert got["policies"]["sft"]["kl"] == {"mean": 0.0, "ci95": 0.0}
    # the run's beta, and at pi_dpo the reward is beta KL
    dpo = got["policies"]["dpo"]
    assert dpo["implicit_reward"]["mean"] == pytest.approx(0.2 * dpo["kl"]["mean"], rel=1e-5)
    wins = got["win_rate"]
    assert wins["rto"]["sft"]["mean"] + wins["sft"]["rto"]["mean"] == pytest.approx(1)
    assert wins["rto"]["sft"]["low"] <= wins["rto"]["sft"]["mean"] <= wins["rto"]["sft"]["high"]
    assert got["difference"]["rto"]["sft"]["mean"] == pytest.approx(-got["difference"]["sft"]["rto"]["mean"])
    assert 0 <= got["length_controlled"]["rto"]["dpo"]["mean"] <= 1
    rows = lines(runs / "a/answers.jsonl")
    assert len(rows) == 72 and [r["policy"] for r in rows[:3]] == ["sft", "dpo", "rto"]
    judged = {p: np.array([r["judged"] for r in rows if r["policy"] == p]) for p in ("sft", "dpo", "rto")}
    assert (judged["rto"] > judged["dpo"]).mean() == pytest.approx(wins["rto"]["dpo"]["mean"], abs=0.021)
    assert "**rto**" in (runs / "a/samples.md").read_text()


def test_what_was_sampled_is_not_sampled_again_until_something_changes(runs, capsys, monkeypatch):
    assert main(command(runs, "again")) == 0
    first = results(runs, "again")
    stored = []
    monkeypatch.setattr(Saved, "store", lambda self, key, evaluation: stored.append(key))
    assert main(command(runs, "again", "--judge", "reward-model", "--reward-model", str(runs / "rm"))) == 0
    assert not stored
    assert results(runs, "again")["policies"]["rto"]["kl"] == first["policies"]["rto"]["kl"]
    for change in (["--seed", "1"], ["--temperature", "1"], ["--num-prompts", "20"], ["--beta", "0.5"]):
        assert main(command(runs, "again", *change)) == 0
        assert len(stored) == 3, change
        stored.clear()
    damaged = next(file for file in (runs / "again/answers").glob("*.json") if file.name != MANIFEST)
    damaged.write_text(damaged.read_text()[:100])
    assert main(command(runs, "again")) == 0
    assert len(stored) == 1


def test_a_reward_model_with_another_tokenizer_judges(runs, capsys):
    assert main(command(runs, "rm-judge", "--judge", "reward-model", "--reward-model", str(runs / "rm"))) == 0
    got = results(runs, "rm-judge")
    assert got["judge"] == "score" and "reward model" in capsys.readouterr().out
    rows = lines(runs / "rm-judge/answers.jsonl")
    scores = [r["judged"] for r in rows if r["policy"] == "rto"]
    assert got["policies"]["rto"]["score"]["mean"] == pytest.approx(np.mean(scores))


def test_any_policies_on_any_prompts(runs, tmp_path):
    extra = write_stage(tmp_path / "other", 9)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "what is the cat"}\n{"prompt": "so the dog"}\n' * 2)
    args = [
        f"mine={extra}",
        f"base={runs / 'run/sft'}",
        "--reference",
        str(runs / "run/sft"),
        "--judge",
        "reward-model",
    ]
    args += ["--reward-model", str(runs / "rm"), "--prompts", str(tmp_path / "prompts.jsonl"), "--template", "none"]
    args += ["--max-prompt", "16", "--max-new-tokens", "6", "--output", str(tmp_path / "out"), "--temperature", "0"]
    assert main(args) == 0
    got = results(tmp_path, "out")
    assert list(got["policies"]) == ["mine", "base"] and got["policies"]["mine"]["answers"] == 2
    assert "implicit_reward" not in got["policies"]["mine"]  # there is no pi_dpo


def test_the_runs_stages_and_other_policies_together(runs, tmp_path):
    extra = write_stage(tmp_path / "other", 9)
    assert main([*command(runs, "both", f"mine={extra}"), "--num-prompts", "5"]) == 0
    assert list(results(runs, "both")["win_rate"]) == ["sft", "dpo", "rto", "mine"]


def prefers_grey(handler, prompt, number):
    time.sleep(0.02)
    a, b = (prompt.partition(f"Response {x}: ")[2].partition("\n")[0] for x in "AB")
    better = "A" if a.count("e") >= b.count("e") else "B"
    handler.say("no idea" if number % 10 == 9 else f"Comparison: one has more e.\n\nMore helpful: {better}")


def test_a_language_model_judges(runs, capsys, monkeypatch):
    pytest.importorskip("openai", reason='needs the openai package: pip install "rto_fast[judge]"')
    monkeypatch.setenv("OPENAI_API_KEY", "sk-most-secret")
    with serving(prefers_grey) as server:
        llm = ["--judge", "llm", "--llm.url", server.url, "--llm.model", "m", "--llm.retries", "0"]
        assert main(command(runs, "llm", *llm)) == 0
        asked = len(server.requests)
        said = capsys.readouterr().out
        assert "The judge answered a trial question in " in said and " s: A\n" in said
        assert f"Asking m at {server.url} about 72 pairs of answers" in said
        assert "unparseable: " in said and "left out of the win rates; the first: 'no idea'" in said
        got = results(runs, "llm")
        assert got["judge"] == "llm" and got["judgements"]["unparseable"] >= asked // 10
        counts = got["judgements"]
        assert counts["judged"] + counts["unparseable"] + counts["identical"] == counts["comparisons"] == 72
        assert server.most_open > 1
        # the second call asks nothing
        assert main(command(runs, "llm", *llm)) == 0
        assert len(server.requests) == asked
    assert results(runs, "llm")["win_rate"] == got["win_rate"]
    judged = lines(runs / "llm/judgements.jsonl")
    assert {"index", "first", "second", "verdict", "reply"} == set(judged[0])
    assert lines(runs / "llm/answers.jsonl")[0]["judged"] in (None, 0.0, 0.25, 0.5, 0.75, 1.0)
    files = [f for f in (runs / "llm").rglob("*") if f.is_file()]
    assert files and not any(b"most-secret" in f.read_bytes() for f in files)


@pytest.mark.parametrize(
    "fault, message",
    [
        (None, "does not answer: no connection (ConnectionRefusedError: "),
        (drip, "does not answer: no whole reply within 0.5 s"),
        (endless_error, "does not answer: status 500"),
        (lambda handler, prompt, number: handler.send(200, b"hunter2"), "a reply that is not JSON: '***'"),
        (lambda handler, prompt, number: handler.fail(401, "no hunter2"), "status 401, 'no ***'; check OPENAI_API_KEY"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_known_before_the_policies_answer(runs, capsys, fault, message):
    pytest.importorskip("openai", reason='needs the openai package: pip install "rto_fast[judge]"')
    with serving(fault or drip) as server:
        url = server.url.replace("http://", "http://me:hunter2@") + "?token=hunter2"
        if fault is None:
            server.shutdown()
            server.server_close()
        llm = ["--judge", "llm", "--llm.url", url, "--llm.model", "m", "--llm.timeout", "0.5"]
        assert main(command(runs, "asked-first", *llm)) == 2
        assert len(server.requests) <= 1
    said = capsys.readouterr()
    error = said.err.splitlines()[-1]
    assert error.startswith("rto_fast: error: judge: m at http://127.0.0.1:") and message in error
    assert "hunter2" not in said.out + said.err and "Asking" not in said.out
    assert not (runs / "asked-first/answers").exists()


def test_a_judge_that_breaks_down_loses_nothing(runs, capsys):
    pytest.importorskip("openai", reason='needs the openai package: pip install "rto_fast[judge]"')

    def breaks_down(handler, prompt, number):
        handler.say("More helpful: A") if number < 21 else handler.fail(500, "out of\nmemory")

    llm = ["--judge", "llm", "--llm.model", "m", "--llm.retries", "0", "--llm.concurrency", "3"]
    with serving(breaks_down) as server:
        assert main(command(runs, "broken", *llm, "--llm.url", server.url)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        error.startswith("rto_fast: error: judge: status 500, 'out of memory'; ") and "questions are answered" in error
    )
    assert not (runs / "broken/results.json").exists()
    # the server is gone altogether
    assert main(command(runs, "broken", *llm, "--llm.url", server.url)) == 2
    assert "no connection" in capsys.readouterr().err.splitlines()[-1]
    with serving(lambda handler, prompt, number: handler.say("More helpful: A")) as server:
        assert main(command(runs, "broken", *llm, "--llm.url", server.url)) == 0
        counts = results(runs, "broken")["judgements"]
        assert counts["cached"] >= 20 and len(server.requests) + counts["cached"] <= counts["judged"]
    assert counts["first_preferred"] == 1.0
    assert "this judge goes by the order of the answers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "policies: give NAME=PATH of at least one, or --run"),
        (["--run", "nowhere"], "run: no config.toml in 'nowhere'"),
        (["=x", "--reference", "r", "--judge", "oracle"], "policies: wanted NAME=PATH, got '=x'"),
        (["a=x", "a=y"], "'a' is given twice"),
        (["a=x", "--judge", "implicit"], "judge: 'implicit' needs --dpo"),
        (["a=x", "--judge", "reward-model"], "judge: 'reward-model' needs --reward-model"),
        (["a=x", "--judge", "llm"], "reference: none given"),
        (["a=x", "--judge", "llm", "--reference", "r"], "prompts: none given"),
        (["a=x", "--num-promts", "3"], "Unrecognized options: --num-promts"),
        (["a=x", "--judge", "foo"], "invalid choice 'foo'"),
        (["a=x", "--num-prompts", "0"], "num_prompts: must be at least 1, got 0"),
        (["a=x", "--llm.concurrency", "0"], "llm.concurrency must be at least 1"),
        (["a=x", "--llm.timeout", "nan"], "llm.timeout must be positive"),
        (["a=x", "--beta", "-1"], "beta: must be positive"),
    ],
)
def test_mistakes_are_one_line(args, message, capsys):
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("rto_fast: error: ") and error.count("\n") == 1
    assert message in error


def test_mistakes_in_the_models_are_one_line(runs, tmp_path, capsys):
    def fails(*more: str) -> str:
        assert main(command(runs, "wrong", *more)) == 2
        error = capsys.readouterr().err
        assert error.count("rto_fast: error: ") == 1 and error.endswith("\n") and "Traceback" not in error
        return error.splitlines()[-1]

    assert "the oracle knows the quickstart's language only" in fails("--judge", "oracle")
    assert "sft and mine do not have the same tokenizer" in fails(f"mine={runs / 'rm'}")
    assert "'sft' is a stage of" in fails(f"sft={runs / 'rm'}")
    assert "holds no score.weight" in fails("--judge", "reward-model", "--reward-model", str(runs / "run/sft"))
    assert "exceeds max_position_embeddings=128" in fails("--max-new-tokens", "150")
    assert "is a run's or a model's folder" in fails("--output", str(runs / "run"))
    assert "at least 2 distinct" in fails("--num-prompts", "1")
    assert "device: must be auto, cpu, cuda, or cuda:1 and so on, got 'moon'" in fails("--device", "moon")


def test_help_and_a_missing_library_are_one_line_each(runs):
    def python(*args: str, code: str = "") -> subprocess.CompletedProcess:
        start = ["-c", code] if code else ["-m", "rto_fast.evaluate"]
        return subprocess.run([sys.executable, *start, *args], cwd=ROOT, capture_output=True, text=True, timeout=120)

    shown = python("--help")
    assert shown.returncode == 0 and "--llm.url" in shown.stdout and "OPENAI_API_KEY" in shown.stdout
    hidden = "import sys; sys.modules['openai'] = None\nfrom rto_fast.evaluate.__main__ import main\nsys.exit(main())"
    failed = python(*command(runs, "none", "--judge", "llm"), code=hidden)
    assert failed.returncode == 2
    assert failed.stderr == (
        'rto_fast: error: judge: asking a language model needs the openai package; pip install "rto_fast[judge]"\n'
    )


def test_distinct_is_in_the_results(runs):
    assert main(command(runs, "distinct")) == 0
    key = next(file.stem for file in (runs / "distinct/answers").glob("*.json") if file.name != "manifest.json")
    evaluation = Saved(runs / "distinct/answers").load(key)
    figures = [p["distinct_2"] for p in results(runs, "distinct")["policies"].values()]
    assert distinct(evaluation.answers, 2) in figures
