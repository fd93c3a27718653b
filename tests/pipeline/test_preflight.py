"""What is checked before the first step: each check passes on a sound run and names the fix on a broken one."""

import sys
import time

import pytest
import torch
from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer

from rto_fast.files.text import in_words
from rto_fast.model.exact import check_ratio
from rto_fast.pipeline import ladder, prepare
from rto_fast.pipeline.preflight import check_eos, check_round_trip, check_trial_export
from rto_fast.train import main, parse
from rto_fast.training.resources import available_memory, free_disk
from tests.judges.faulty import serving, status, text
from tests.kill_harness import arguments, setting
from tests.tiny import language_model, sequences

EXAMPLES = list(zip(*sequences([(3, 4), (2, 9), (5, 2)]), strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preflight")
    setting(folder)
    return folder


def test_preflight_alone_checks_everything_and_changes_nothing(folder, capsys):
    started = time.perf_counter()
    assert main([*arguments(folder, "run"), "--preflight-only"]) == 0
    assert time.perf_counter() - started < 10
    said = capsys.readouterr().out
    for name in (
        "tokenizer ",
        "packed = alone",
        "first ratio = 1, first KL = 0",
        "export reloads",
        "answers end in EOS",
        "tokenizer reads back",
        "memory",
        "disk",
    ):
        assert f"\n  {name}" in said
    assert "pairs: 20 used" in said and "dropped: none" in said
    assert not (folder / "run").exists()


def fails(folder, capsys, *flags: str) -> str:
    """The one line of a run that must stop before its first step and before it makes its folder."""
    assert main(arguments(folder, "never", *flags)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and not (folder / "never").exists()
    return error


def test_a_score_that_cannot_be_had_stops_the_run_at_once(folder, capsys):
    stages = ("--stages", "sft", "ppo")
    assert "rm.model: " in fails(folder, capsys, *stages, "--rm.model", "./nowhere")
    plain = ("--rm.model", str(folder / "model"))
    assert "holds no score.weight or value_head.weight" in fails(folder, capsys, *stages, *plain)
    assert "rto.score.rule" in fails(folder, capsys, *stages, "--rto.score.rule", "nowhere:score")
    assert "rto.score.server" in fails(folder, capsys, *stages, "--rto.score.server", "gopher://x")


def url_of(server) -> str:
    return server.url.replace("http://", "http://me:hunter2@") + "?token=hunter3#hunter4"


def test_a_reward_server_is_asked_before_the_first_step(folder, capsys):
    flags = ("--stages", "sft", "ppo", "--preflight-only")
    with serving() as server:
        assert main(arguments(folder, "asked", *flags, "--rto.score.server", url_of(server))) == 0
    said = capsys.readouterr()
    # the chosen answer of a pair, of which the server gives the length
    (_, headers, asked), *others = server.requests
    assert not others and asked["query"][0].startswith("what is the colour of") and "grey ." in asked["query"][0]
    shown = server.url.replace("http://", "http://***@") + "?***"
    wanted = f"  {shown} gave {len(asked['query'][0])} for an example  (a finite number)\n"
    assert wanted in said.out and "hunter" not in said.out + said.err and headers["Authorization"].startswith("Basic")


@pytest.mark.parametrize(
    "act, message",
    [
        (None, "gave no scores in 1 attempt (connection refused)"),
        (lambda handler, asked: time.sleep(2), "gave no scores in 1 attempt (no whole answer within 0.5 s)"),
        (status(503, b"GET /x?token=hunter3 of me:hunter2"), "gave no scores in 1 attempt (status 503: GET /x?***"),
        (text("<html>It works! hunter2</html>"), "answered no JSON"),
        (text('{"rewards": ["hunter2"]}'), "every score must be a finite number, got '***' for answer 1 of 1"),
        (text('{"hunter2": [1]}'), "got an object with the keys '***'"),
        (text('{"rewards": [1], "hunter2": 1, "hunter2": 2}'), "key '***' appears twice in one object"),
        (lambda handler, asked: handler.wfile.write(b"hunter2\r\n"), "gave no scores in 1 attempt (***)"),
    ],
)
def test_a_reward_server_that_cannot_be_asked_stops_the_run_at_once(folder, capsys, act, message):
    with serving(*[act] * (act is not None)) as server:
        url = url_of(server)
        if act is None:
            server.shutdown()
            server.server_close()
        started = time.perf_counter()
        error = fails(folder, capsys, "--stages", "sft", "ppo", "--rto.score.server", url, "--rto.score.timeout", "0.5")
        assert time.perf_counter() - started < 10
    assert error.startswith("rto_fast: error: rto.score.server: http://") and message in error
    assert "hunter" not in error and len(server.requests) <= 1


def test_a_rule_is_tried_before_the_first_step(folder, capsys, monkeypatch, tmp_path):
    (tmp_path / "tried_rules.py").write_text(
        "seen = []\n"
        "def length(answers):\n    seen.extend(answers)\n    return [len(a.response) for a in answers]\n"
        "def wrong(answers):\n    return [{}[a.response] for a in answers]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    flags = ("--stages", "sft", "ppo", "--rto.score.rule")
    assert main(arguments(folder, "tried", *flags, "tried_rules:length", "--preflight-only")) == 0
    (answer,) = sys.modules["tried_rules"].seen
    assert answer.prompt.startswith("what is the colour") and answer.response.startswith("it is") and answer.finished
    gave = f"tried_rules:length gave {len(answer.response)} for an example  (a finite number)"
    assert gave in capsys.readouterr().out
    error = fails(folder, capsys, *flags, "tried_rules:wrong")
    assert "rto.score.rule tried_rules:wrong: raised KeyError: 'it is" in error and "for answer 1 of 1" in error


@pytest.mark.parametrize(
    "flags, fix",
    [
        (("rto",), "add it with --stages sft dpo rto, or give --dpo.model PATH"),
        (
            ("sft", "rs_ppo", "--rto.score.rule", "math"),
            "add it with --stages sft dpo rs_ppo, or give --dpo.model PATH",
        ),
        (("rto", "--sft.model", "MODEL"), "add it with --stages dpo rto, or give --dpo.model PATH"),
        (
            ("dpo", "grpo", "rto", "--rto.critic.model", "rm", "--rto.score.rule", "math"),
            "rto needs the model of the stage rm, which is not among the stages and not finished in",
        ),
        (
            ("rto", "--rto.critic.model", "rm"),
            "add it with --stages sft dpo rm rto, or give --dpo.model PATH and --rm.model PATH",
        ),
    ],
)
def test_a_stage_without_what_it_starts_from_stops_before_models_are_loaded(flags, fix, folder, capsys, monkeypatch):
    monkeypatch.setattr(prepare, "load_tokenizer", lambda *_, **__: pytest.fail("a model is opened"))
    words = [str(folder / "model") if word == "MODEL" else word for word in flags]
    assert fix in fails(folder, capsys, "--stages", *words)


def test_a_finished_or_a_given_model_is_enough(folder):
    config = parse(arguments(folder, "never", "--stages", "rto"))
    (folder / "there" / "dpo").mkdir(parents=True)
    (folder / "there" / "dpo" / "stage.json").write_text("{}")
    prepare.check_stages(config, folder / "there")
    prepare.check_stages(parse(arguments(folder, "never", "--stages", "rto", "--dpo.model", "x")), folder)
    prepare.check_stages(parse(arguments(folder, "never", "--stages", "grpo", "--rto.score.rule", "math")), folder)


def test_too_little_disk_or_memory_stops_the_run_at_once(folder, capsys, monkeypatch):
    monkeypatch.setattr(ladder, "free_disk", lambda folder: 10_000)
    assert "its disk has 9.77 KiB free; name another with --output" in fails(folder, capsys)
    monkeypatch.undo()
    monkeypatch.setattr(ladder, "available_memory", lambda device: 10_000)
    assert "weights, gradients and moments of rto need" in fails(folder, capsys)


def test_a_training_forward_that_differs_is_seen():
    model = language_model("llama")
    assert check_ratio(model, EXAMPLES, torch.float32, 16) < 1e-5
    noise = torch.nn.Dropout(0.5)
    model.hf.model.norm.register_forward_hook(lambda module, inputs, output: noise.train(module.training)(output))
    with pytest.raises(ValueError, match="log-probs of a training forward differ from scored ones by .* nat"):
        check_ratio(model, EXAMPLES, torch.float32, 16)
    assert all(p.grad is None for p in model.parameters())


def test_answers_without_eos_are_seen():
    assert check_eos([[5, 6, 2], [7, 2]], (2,)) == 2
    with pytest.raises(ValueError, match=r"answer 2 ends in token 7, not in EOS \[2\]"):
        check_eos([[5, 6, 2], [6, 7]], (2,))


def test_a_tokenizer_that_does_not_read_back_is_seen(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    ids = tokenizer("it is so grey .")["input_ids"]
    assert check_round_trip(tokenizer, ids) == len("it is so grey .")
    broken = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    broken.normalizer = normalizers.Replace("grey", "brown")
    tokenizer._tokenizer = broken
    with pytest.raises(ValueError, match="does not read back what it writes: 'grey.' became 'brown.'"):
        check_round_trip(tokenizer, ids)


def test_an_export_that_reloads_to_other_weights_is_seen(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = language_model("llama")
    with pytest.raises(ValueError, match="reloads to other logits"):
        check_trial_export(model, tokenizer, lambda path: language_model("llama", 1))


def test_room_is_measured(tmp_path):
    assert 2**20 < available_memory(torch.device("cpu")) < 2**50
    assert free_disk(tmp_path / "not" / "yet") == pytest.approx(free_disk(tmp_path), rel=0.5)
    assert [in_words(n) for n in (5, 2048, 3 * 2**30)] == ["5 B", "2 KiB", "3 GiB"]
