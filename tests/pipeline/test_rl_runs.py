"""Whole runs of the family's members on a tiny model, as a user starts them."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from rto_fast.model.load import load_scalar_model
from rto_fast.packing import pack_whole
from rto_fast.report.__main__ import main as report
from rto_fast.train import main
from tests.tiny_run import SETTINGS, WORDS, write_model, write_pairs

MEMBERS = ["ppo", "sparse_dpo", "semi_rto", "rs_ppo", "grpo", "rto"]
MORE = """
[rm]
batch_size = 8
[rm.optim]
lr = 1e-2
"""


def settings(group: int = 4) -> str:
    return SETTINGS.replace("[rto]", f"[rto]\ngroup = {group}") + MORE


def start(folder, *flags: str, text: str = "") -> int:
    folder.mkdir(exist_ok=True, parents=True)
    recipe = folder / "tiny.toml"
    recipe.write_text(text or settings())
    model, pairs = folder / "model", folder / "pairs.jsonl"
    if not model.exists():
        write_model(model)
        write_pairs(pairs)
    paths = ["--model.path", str(model), "--data.path", str(pairs), "--output", str(folder / "run")]
    return main(["--recipe", str(recipe), *paths, *flags])


def metrics(folder, stage: str) -> list[dict]:
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["stage"] == stage]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    assert start(folder, "--stages", "sft", "dpo", "rm", *MEMBERS) == 0
    return folder


def test_every_member_runs_and_is_compared(family):
    results = json.loads((family / "run" / "results.json").read_text())
    assert list(results["policies"]) == ["sft", "dpo", *MEMBERS] and results["judge"] == "score"
    assert set(results["win_rate"]["rto"]) == {"sft", "dpo", *MEMBERS} - {"rto"}
    assert 0 <= results["score_accuracy"]["mean"] <= 1
    for stage in MEMBERS:
        first = metrics(family, stage)[0]
        assert first["answers/total"] == 8 and "judge/return" in first and first["memory/peak_mb"] > 0
        assert ("reward/dense_abs" in first) == (stage not in ("ppo", "grpo"))
        assert ("reward/score" in first) == (stage in ("ppo", "rs_ppo", "grpo"))
        assert {"time/rollout", "time/score"} <= set(first)
    answers = [json.loads(line) for line in (family / "run" / "answers.jsonl").read_text().splitlines()]
    assert {a["policy"] for a in answers} == set(results["policies"]) and len(answers) == 2 * len(results["policies"])


def test_a_trained_reward_model_is_a_plain_sequence_classifier(family):
    folder = family / "run" / "rm"
    assert set(load_file(folder / "model.safetensors")) >= {"score.weight"}
    hf = AutoModelForSequenceClassification.from_pretrained(folder)
    tokens = [1, *range(4, 12), 2]
    with torch.no_grad():
        raw = hf(torch.tensor([tokens])).logits[0, 0]
    ours = load_scalar_model(str(folder))
    packed = pack_whole([tokens])
    config = json.loads((folder / "config.json").read_text())
    assert config["std"] > 0
    with torch.no_grad():
        torch.testing.assert_close(ours(packed)[0], (raw - config["mean"]) / config["std"], rtol=1e-4, atol=1e-5)


def test_the_critic_may_start_from_the_runs_reward_model(tmp_path):
    assert start(tmp_path, "--stages", "sft", "rm", "ppo", "--rto.critic.model", "rm", "--eval.prompts", "0") == 0
    first = metrics(tmp_path, "ppo")[0]
    assert first["values/mean"] != 0


RULE = """
import math
def short(answers):
    assert all(isinstance(a.response, str) and a.prompt for a in answers)
    return [1.0 if len(a.response.split()) < 5 else 0.0 for a in answers]
def few(answers):
    return [1.0]
def nan(answers):
    return [math.nan] * len(answers) if len(answers) > 1 else [0.0]
"""


def test_a_python_rule_pays_grpo_without_pairs_or_reward_model(tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text(RULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"what is {w}", "reference": w}) + "\n" for w in WORDS[4:]))
    flags = ["--data.prompts", str(prompts), "--data.path", "", "--rto.score.rule", "my_rules:short"]
    assert start(tmp_path, "--stages", "grpo", *flags) == 0
    assert all(0 <= line["judge/return"] <= 1 for line in metrics(tmp_path, "grpo") if "judge/return" in line)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["policies"]) == ["grpo"] and results["judge"] == "score"


@pytest.mark.parametrize(
    "rule, message",
    [
        ("bad_rules:few", "wanted 8 scores, one per answer, got 1"),
        ("bad_rules:nan", "every score must be a finite number, got nan for answer 1 of 8"),
    ],
)
def test_a_wrong_rule_is_one_line_and_the_run_goes_on_when_it_is_mended(rule, message, tmp_path, monkeypatch, capsys):
    module = tmp_path / "bad_rules.py"
    module.write_text(RULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    flags = ["--stages", "sft", "grpo", "--rto.score.rule", rule, "--eval.prompts", "0"]
    assert start(tmp_path, *flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error and error.startswith("rto_fast: error: rto.score.rule")
    assert (tmp_path / "run" / "sft" / "stage.json").is_file()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--stages", "sft", "ppo"], "rto.score: ppo with beta_3 = 1 weighs a sentence score; add the stage rm"),
        (["--stages", "sft", "grpo", "--rto.score.rule", "math", "--rto.group", "1"], "rto.group must be at least 2"),
        (["--stages", "rm", "sft"], "stages must be in the order sft, dpo and rm, rto and its family"),
        (["--stages", "sft", "dpo", "--data.path", "", "--data.prompts", "PROMPTS"], "has nothing to learn from"),
    ],
)
def test_what_does_not_fit_together_is_one_line(flags, message, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"what is {w}"}) + "\n" for w in WORDS[4:]))
    assert start(tmp_path, *[str(prompts) if f == "PROMPTS" else f for f in flags]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error


FLAKY = """
import sys
from pathlib import Path
here = Path(__file__).parent
class Mine(BaseException):
    pass
def score(answers):
    trouble = (here / "trouble").read_text()
    if len(answers) > 1:
        rollouts = 1 + int((here / "rollouts").read_text())
        (here / "rollouts").write_text(str(rollouts))
        if rollouts > 1:
            (here / "now").touch()
    if trouble and (here / "now").exists():  # not when it is tried before the first step
        exec(trouble)
    return [float(len(a.response)) for a in answers]
"""


def test_a_rule_that_fails_midway_costs_no_step(tmp_path, monkeypatch, capsys):
    """In the second iteration it raises, then something else, then it exits; corrected, the run ends with the same
    bits."""
    (tmp_path / "flaky_rules.py").write_text(FLAKY)
    monkeypatch.syspath_prepend(str(tmp_path))
    flags = ["--stages", "sft", "grpo", "--rto.score.rule", "flaky_rules:score", "--eval.prompts", "0"]
    flags += ["--checkpoint.minutes", "0"]
    (tmp_path / "rollouts").write_text("0")
    for trouble, said in [
        ("{}['no such key']", "KeyError: 'no such key'"),
        ("sys.exit(5)", "SystemExit: 5"),
        ("raise Mine('own')", "Mine: own"),
        ("raise ConnectionError('gone')", "ConnectionError: gone"),
    ]:
        (tmp_path / "trouble").write_text(trouble)
        (tmp_path / "now").unlink(missing_ok=True)
        assert start(tmp_path, *flags) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"rto_fast: error: rto.score.rule flaky_rules:score: raised {said} for answer 1 of 8; " in error
        done = len(metrics(tmp_path, "grpo"))
        assert done == 4  # one iteration: two epochs of two mini-batches
    (tmp_path / "trouble").write_text("")
    assert start(tmp_path, *flags) == 0
    assert f"going on from step {done}" in capsys.readouterr().out
    assert start(tmp_path / "whole", *flags) == 0
    got, want = (load_file(f / "run" / "grpo" / "model.safetensors") for f in (tmp_path, tmp_path / "whole"))
    assert all(torch.equal(got[k], want[k]) for k in want)


def test_a_comparison_pools_its_seeds_and_ends_with_a_report(tmp_path, capsys):
    flags = ["--stages", "sft", "dpo", "rm", "ppo", "rto", "--compare.seeds", "0", "1"]
    assert start(tmp_path, *flags) == 0
    folder = tmp_path / "run"
    each = [json.loads((folder / f"seed-{seed}" / "results.json").read_text()) for seed in (0, 1)]
    pooled = json.loads((folder / "results.json").read_text())
    kl = [r["policies"]["rto"]["kl"]["mean"] for r in each]
    assert pooled["policies"]["rto"]["kl"]["mean"] == pytest.approx(sum(kl) / 2) and kl[0] != kl[1]
    assert pooled["policies"]["rto"]["answers"] == sum(r["policies"]["rto"]["answers"] for r in each)
    rates = [r["win_rate"]["rto"]["ppo"]["mean"] for r in each]
    assert pooled["win_rate"]["rto"]["ppo"]["mean"] == pytest.approx(sum(rates) / 2)
    assert {(row["policy"], row["rival"]) for row in pooled["rollouts_to_reach"]} == {("rto", "ppo"), ("ppo", "rto")}
    page = (folder / "report.html").read_text()
    assert "<html" in page and "rto" in page and "http://" not in page.replace("http://www.w3.org", "")
    said = capsys.readouterr().out
    assert "Seed 1 (2 of 2)" in said and "All 2 seeds together" in said and "ppo's final return" in said
    before = {p: p.stat().st_mtime_ns for p in folder.glob("seed-*/*/model.safetensors")}
    assert start(tmp_path, *flags, "2") == 0  # one seed more trains that one alone
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert (folder / "seed-2" / "rto" / "stage.json").is_file()


class Rewards(BaseHTTPRequestHandler):
    """A reward server: the share of "grey" in an answer, until it has answered `server.left` requests."""

    def do_POST(self):
        if self.server.left == 0:
            self.close_connection = True
            return
        self.server.left -= 1
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        scores = [q.count("grey") / (1 + len(q)) for q in asked["query"]]
        body = json.dumps({"rewards": scores}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        return


def serve(port: int, left: int) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", port), Rewards)
    server.left = left
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def test_a_reward_server_that_goes_down_costs_nothing(tmp_path, capsys):
    def run(folder, url: str) -> int:
        flags = ["--stages", "sft", "ppo", "--rto.score.server", url, "--rto.score.retries", "0", "--eval.prompts", "0"]
        return start(folder, *flags, "--checkpoint.minutes", "0")

    server = serve(0, 2)  # before the run, and in its first iteration
    port = server.server_address[1]
    secret = f"http://user-hunter:pass-hunter@127.0.0.1:{port}/get_reward?token=hunter#hunter"
    assert run(tmp_path, secret) == 2
    said = capsys.readouterr()
    assert "hunter" not in said.out + said.err
    written = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert len(written) > 5 and not any(b"hunter" in file.read_bytes() for file in written)
    error = said.err.splitlines()[-1]
    assert error.startswith("rto_fast: error: rto.score.server") and str(port) in error
    server.shutdown(), server.server_close()
    again = serve(0, -1)  # it may come back elsewhere
    url = f"http://127.0.0.1:{again.server_address[1]}/get_reward"
    assert run(tmp_path, url) == 0
    assert "ppo: going on from step 4" in capsys.readouterr().out
    assert run(tmp_path / "whole", url) == 0
    again.shutdown(), again.server_close()
    got, want = (load_file(f / "run" / "ppo" / "model.safetensors") for f in (tmp_path, tmp_path / "whole"))
    assert all(torch.equal(got[k], want[k]) for k in want)


def test_a_reward_model_may_read_other_tokens(tmp_path, family):
    """One that was trained on the same words in another order scores the same texts, through its own ids."""
    other = tmp_path / "other"
    other.mkdir()
    write_model(other / "model", [*WORDS[:4], *reversed(WORDS[4:])])
    write_pairs(other / "pairs.jsonl")
    assert start(other, "--stages", "sft", "rm", "--eval.prompts", "0") == 0
    assert start(tmp_path, "--stages", "sft", "ppo", "--rm.model", str(other / "run" / "rm")) == 0
    assert "reward/score" in metrics(tmp_path, "ppo")[0]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["judge"] == "score" and 0 <= results["score_accuracy"]["mean"] <= 1


def test_a_run_without_a_judge_says_so_and_claims_no_wins(tmp_path, capsys):
    assert start(tmp_path, "--stages", "sft") == 0
    said = capsys.readouterr().out
    assert "held-out prompts, mean +- 95 % interval\n" in said and "beats" not in said and "DPO reward" not in said
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["judge"] is None and results["win_rate"] == {"sft": {}}
    assert "implicit_reward" not in results["policies"]["sft"]
    assert "nan" not in (tmp_path / "run" / "samples.md").read_text()
    assert report([str(tmp_path / "run")]) == 0
