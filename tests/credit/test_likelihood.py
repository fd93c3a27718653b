"""Eq. 16 holds exactly on all answers of a small model, and the command measures it while DPO trains."""

import json
import re
from itertools import product

import pytest
import torch

from rto_fast.credit.chart import panels
from rto_fast.credit.follow import Point
from rto_fast.credit.kl import kl_per_answer
from rto_fast.credit.likelihood import main
from rto_fast.data.encode import EncodedDemonstration
from rto_fast.evaluate.policies import answer_logprobs
from tests.credit.runs import write_run
from tests.tiny import language_model


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("likelihood") / "run", num_pairs=96)


def test_equation_16_over_every_answer():
    """All 5^3 answers of three tokens: the expectations are sums, and both sides agree to rounding."""
    reference, model = (language_model("llama", seed=seed, vocab_size=5) for seed in (0, 1))
    answers = [EncodedDemonstration([1, 2], list(y)) for y in product(range(5), repeat=3)]
    ours, theirs = (torch.tensor([x.sum() for x in answer_logprobs(m, answers, 512, 1)]) for m in (model, reference))
    weights = theirs.exp()
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)
    left = (weights * (ours - theirs)).sum().item()
    right = -(weights * torch.tensor(kl_per_answer(reference, model, answers, 512))).sum().item()
    assert left < -0.05 and left == pytest.approx(right, rel=1e-4)
    assert (kl_per_answer(reference, reference, answers, 512) == 0).all()


def test_kl_is_that_of_the_models_own_logits():
    reference, model = (language_model("gpt2", seed=seed) for seed in (0, 1))
    answers = [EncodedDemonstration([3, 4, 5], [6, 7]), EncodedDemonstration([8], [9, 10, 11, 12])]
    for answer, got in zip(answers, kl_per_answer(reference, model, answers, 64), strict=True):
        tokens, start = torch.tensor([answer.prompt + answer.response]), len(answer.prompt) - 1
        with torch.no_grad():
            p, q = (m.hf(tokens).logits[0, start:-1].double().log_softmax(-1) for m in (reference, model))
        assert got == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-4)


def test_the_command_follows_every_start(small_run, tmp_path, capsys):
    arguments = ["--run", str(small_run), "--steps", "3", "--points", "2", "--answers", "16", "--device", "cpu"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    figures = json.loads((tmp_path / "likelihood.json").read_text())
    assert list(figures["curves"]) == ["chosen", "demonstrations", "none"]
    for curve in figures["curves"].values():
        first, *_, last = curve["points"]
        assert [p["step"] for p in curve["points"]] == [0, 2, 3]
        assert first["chosen"] == first["own"] == first["minus_beta_kl"] == 0 and first["accuracy"] == 0.5
        assert last["minus_beta_kl"] < 0 and abs(last["gap"]) <= 3 * last["gap_ci95"]
        assert last["gap"] == pytest.approx(last["own"] - last["minus_beta_kl"], abs=1e-9)
    assert out.count("eq. 16:") == 3 and "no SFT: log pi_ref of chosen" in out
    html = (tmp_path / "likelihood.html").read_text()
    assert html.count('<svg viewBox="0 0 340') == 3 and not re.search(r"https?:|<script|nan", html)
    # SFT on the chosen answers makes them likelier than the run's reference has them
    chosen, told = (figures["curves"][k]["logprobs"]["chosen"] for k in ("chosen", "demonstrations"))
    assert chosen > told


def test_the_same_seed_gives_the_same_curve(small_run, tmp_path):
    arguments = ["--run", str(small_run), "--steps", "2", "--points", "1", "--answers", "8", "--device", "cpu"]
    for name in ("a", "b"):
        assert main([*arguments, "--starts", "none", "--output", str(tmp_path / name)]) == 0
    assert (tmp_path / "a/likelihood.json").read_text() == (tmp_path / "b/likelihood.json").read_text()


@pytest.mark.parametrize(
    "arguments, wanted",
    [
        (["--run", "nowhere"], "run: no config.toml"),
        (["--run", "RUN", "--steps", "0"], "steps: must be at least 1"),
        (["--run", "RUN", "--answers", "1"], "answers: must be at least 2"),
        (["--run", "RUN", "--starts", "nothing"], "starts: must be of chosen, demonstrations, none"),
    ],
)
def test_mistakes_are_one_line(small_run, capsys, arguments, wanted):
    assert main([a.replace("RUN", str(small_run)) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rto_fast: error: ") and wanted in error and error.count("\n") == 1


@pytest.mark.parametrize("size", [0.0, 1e-7, 0.3, 40.0])
def test_charts_of_any_size_have_finite_places(size):
    points = [Point(i, size * i, 0.1 * size, -size, 0.0, *[-size / 2, 0.0] * 3, accuracy=0.5) for i in range(3)]
    places = re.findall(r'd="([^"]+)"', panels({"<b>": points}, 0.1))
    assert places and "<figcaption><b><b>" not in panels({"<b>": points}, 0.1)
    for x in (float(x) for d in places for x in re.findall(r"-?\d+\.?\d*", d)):
        assert -1 <= x <= 341
