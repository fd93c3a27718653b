"""The GPU's one command, tried on a CPU: the same code at tiny shapes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.gpu import sanitizer, small, targets
from bench.gpu.log import Log
from bench.gpu.speed import GEMMS, OURS
from bench.shapes import PYTHIA, TINY, head_inputs

ROOT = Path(__file__).parents[1]


# Triton's own interpreter needs the repairs of the tests
INTERPRETED = "import sys; from tests import interpreter; from bench.gpu.__main__ import main; sys.exit(main())"


def command(*arguments, **env):
    start = ("-c", INTERPRETED) if "TRITON_INTERPRET" in env else ("-m", "bench.gpu")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | env
    words = [sys.executable, *start, *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("env", [{}, {"TRITON_INTERPRET": "1", "RTO_FAST_BACKEND": "triton"}], ids=["torch", "triton"])
def test_a_smoke_run_checks_everything_and_claims_nothing(tmp_path, env):
    parts = () if not env else ("--only", "parity")
    done = command("--smoke", "--out", tmp_path, *parts, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    names = " ".join(check["name"] for check in found["checks"])
    for op in ("linear_logprob d weight", "ppo_head d hidden", "preference_head d weight", "rto_score", "token_reward"):
        assert op in names
    assert "decode_attention" in names and "answers, steps recorded" in names
    assert all(check["passed"] for check in found["checks"]) and found["smoke"]
    assert {row["verdict"] for row in found["tables"]["targets"]} == {"not measured"}
    if not env:
        wanted = {"scoring (2 T V H)", "ppo_head (6 T V H)", "preference_head (8 T V H)", "rto_score (6 T V H)"}
        assert wanted < set(found["tables"])
    text = (tmp_path / "RESULTS.md").read_text()
    assert "Nothing here is a measurement" in text and found["machine"]["torch"] in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_one_sentence(tmp_path):
    done = command("--out", tmp_path / "new")
    assert done.returncode == 2 and done.stderr.startswith("bench.gpu: there is no GPU here; --smoke")
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "new").exists()


def test_a_wrong_operator_fails_the_run(tmp_path, monkeypatch):
    from bench.gpu import __main__ as gpu
    from bench.gpu import parity

    right = parity.linear_logprob
    monkeypatch.setattr(parity, "linear_logprob", lambda *a, **k: right(*a, **k) + 2e-3)
    assert gpu.main(["--smoke", "--out", str(tmp_path), "--only", "parity"]) == 1
    failed = [c for c in json.loads((tmp_path / "results.json").read_text())["checks"] if not c["passed"]]
    assert failed and all("linear_logprob" in check["name"] for check in failed)


def test_a_wrong_gradient_fails_the_run(tmp_path, monkeypatch):
    from bench.gpu import parity

    right = parity.ppo_head

    def wrong(hidden, weight, *rest, **options):
        weight = weight.clone()
        if weight.requires_grad:
            weight.register_hook(lambda gradient: 1.1 * gradient)
        return right(hidden, weight, *rest, **options)

    monkeypatch.setattr(parity, "ppo_head", wrong)
    log = Log(tmp_path, 1e9, {}, smoke=True)
    parity.heads(log, TINY, 40, "cpu")
    assert [check["name"] for check in log.failed] == ["ppo_head d weight, tiny 24x300 T=40"]


def test_a_broken_section_and_a_spent_budget_lose_nothing_else(tmp_path):
    log = Log(tmp_path, 1e9, {}, smoke=False)
    log.section("broken", lambda: 1 / 0)
    log.section("good", lambda: log.check("good", True, ""))
    log.budget_s = -1.0
    log.section("late", lambda: log.check("late", True, ""))
    found = json.loads((tmp_path / "results.json").read_text())
    assert [(c["name"], c["passed"]) for c in found["checks"]] == [("broken", False), ("good", True)]
    assert "ZeroDivisionError" in found["checks"][0]["detail"] and "late: skipped" in found["notes"][0]


@pytest.mark.parametrize(("ratio", "word"), [(1.05, "met"), (1.2, "missed"), (None, "not measured")])
def test_targets_are_met_missed_or_not_measured(tmp_path, ratio, word):
    log = Log(tmp_path, 1e9, {}, smoke=False)
    if ratio is not None:
        for rival, ms in ((GEMMS, 1.0), (OURS, ratio), ("eager", 2.0)):
            log.row(targets.FORWARD, shape=targets.label(PYTHIA), rival=rival, ms_hot=ms, of_gemms_hot=ms)
    targets.judge(log)
    verdicts = {row["target"]: row["verdict"] for row in log.results["tables"]["targets"]}
    assert verdicts[f"scoring, ms / GEMM, {PYTHIA.name}"] == word
    assert verdicts[f"ppo_head, ms, {PYTHIA.name}"] == "not measured"
    fastest = verdicts[f"{targets.FORWARD}, ms / fastest peer, {PYTHIA.name}"]
    assert fastest == ("met" if ratio else "not measured")


@pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted here; on a GPU compute-sanitizer runs it")
def test_what_the_sanitizer_watches_runs(capsys):
    small.main("cpu")
    assert "all kernels ran" in capsys.readouterr().out


def test_the_sanitizer_watches_every_kernel():
    assert len(small.KERNELS) >= 4 and not small.unwatched()


@pytest.mark.parametrize(
    ("code", "text", "checks"),
    [
        (0, "all kernels ran\n========= ERROR SUMMARY: 0 errors", [True]),
        (9, "========= Invalid __global__ read\nall kernels ran\n========= ERROR SUMMARY: 3 errors", [False]),
        (9, "========= Invalid __global__ write\n========= ERROR SUMMARY: 1 error", [False]),
        (9, "========= Error: Device not supported", []),
        (1, "bash: no such tool", []),
    ],
    ids=["clean", "errors", "died of errors", "refused", "broken"],
)
def test_the_sanitizers_verdict(tmp_path, code, text, checks):
    log = Log(tmp_path, 1e9, {}, smoke=False)
    sanitizer.judge(log, "memcheck", code, text)
    assert [c["passed"] for c in log.results["checks"]] == checks
    assert bool(log.results["notes"]) != bool(checks)


def test_a_sanitizer_that_finds_something_or_hangs(tmp_path):
    log = Log(tmp_path, 1e9, {}, smoke=False)
    watches = []
    for name, command in (("fine", "echo all kernels ran"), ("hangs", "sleep 60")):
        output = tmp_path / name
        with output.open("w") as file:
            process = subprocess.Popen(["bash", "-c", command], stdout=file, start_new_session=True)
        watches.append(sanitizer.Watch(name, process, output))
    sanitizer.collect(log, watches, 1.0)
    assert [c["name"] for c in log.results["checks"]] == ["compute-sanitizer fine"] and not log.failed
    assert ["not finished in time" in note for note in log.results["notes"]] == [True]
    assert all(watch.process.poll() is not None for watch in watches)


def test_inputs_are_sure_of_every_other_target():
    hidden, weight, target = head_inputs(PYTHIA._replace(vocab=2000), 64, "cpu", torch.float32)
    probability = (hidden @ weight.T).softmax(-1).gather(1, target[:, None])[:, 0]
    assert probability[::2].median() > 0.3 > 0.05 > probability[1::2].median()
