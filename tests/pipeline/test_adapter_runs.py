"""Runs that train adapters: what each stage leaves, who loads it, and what a mistake is told."""

import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rto_fast.config import AdapterConfig
from rto_fast.model.adapter_files import lora
from rto_fast.model.language import LanguageModel
from rto_fast.model.load import load_language_model, load_scalar_model
from rto_fast.model.logprobs import last_token_scores, response_logprobs
from rto_fast.packing import pack
from rto_fast.train import main
from tests import kill_harness
from tests.stages.test_stages import CONFIG, make_rto
from tests.tiny_run import SETTINGS, write_model, write_pairs

ADAPTERS = ["--adapter.rank", "4", "--adapter.alpha", "8"]
FAMILY = ["--stages", "sft", "dpo", "rm", "rto", "--rto.critic.model", "rm", "--rto.reward.beta-3", "0.5"]
RULE = """
import pathlib
def score(answers):
    asked = pathlib.Path(__file__).with_name(f"asked.{len(list(pathlib.Path(__file__).parent.glob('asked.*')))}")
    asked.touch()
    if int(asked.suffix[1:]) % 3 == 2:
        raise KeyError("enough")
    return [0.0 for _ in answers]
"""
SEQUENCES = [([1, 5, 6, 7], [10, 11, 2]), ([1, 5, 6], [12, 2])]


def train(folder: Path, output: str, *more: str) -> int:
    paths = {"--recipe": "tiny.toml", "--model.path": "model", "--data.path": "pairs.jsonl", "--output": output}
    words = [word for flag, name in paths.items() for word in (flag, str(folder / name))]
    return main([*words, "--device", "cpu", *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    write_model(folder / "model")
    write_pairs(folder / "pairs.jsonl", 48)
    (folder / "tiny.toml").write_text(SETTINGS)
    learns = ["--dpo.optim.lr", "1e-2", "--rm.optim.lr", "1e-2", "--rto.optim.lr", "1e-2"]
    assert train(folder, "run", *ADAPTERS, *FAMILY, *learns, "--export.merge", "True", "--checkpoint.every", "1") == 0
    return folder


def logprobs(model) -> torch.Tensor:
    prompts, responses = zip(*SEQUENCES, strict=True)
    with torch.no_grad():
        return response_logprobs(model, pack(prompts, responses), 16)


def eager(model) -> torch.Tensor:
    rows = []
    for prompt, response in SEQUENCES:
        tokens = torch.tensor([prompt + response])
        logits = model(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        rows.append(logits.gather(1, tokens[0, len(prompt) :, None])[:, 0])
    return torch.cat(rows).detach()


def test_a_stage_leaves_its_adapter_and_sft_the_base(folder):
    run = folder / "run"
    assert (run / "sft" / "model.safetensors").is_file() and not (run / "sft" / "adapter_config.json").exists()
    for stage in ("dpo", "rm", "rto"):
        assert not (run / stage / "model.safetensors").exists()
        said = json.loads((run / stage / "adapter_config.json").read_text())
        assert (said["r"], said["lora_alpha"], said["base_model_name_or_path"]) == (4, 8, str(run / "sft"))
        assert {key.split(".")[0] for key in load_file(run / stage / "adapter_model.safetensors")} == {"base_model"}


@pytest.mark.parametrize("stage", ["dpo", "rto"])
def test_peft_transformers_and_this_project_read_the_same_model(folder, stage):
    run = folder / "run"
    ours = logprobs(load_language_model(str(run / stage)))
    assert not torch.allclose(ours, logprobs(load_language_model(str(run / "sft"))), atol=1e-3)
    for theirs in (
        AutoPeftModelForCausalLM.from_pretrained(run / stage),
        AutoModelForCausalLM.from_pretrained(run / stage),
        AutoModelForCausalLM.from_pretrained(run / f"{stage}_merged"),
    ):
        torch.testing.assert_close(eager(theirs), ours, rtol=0, atol=2e-6)


def test_a_reward_models_adapter_is_a_classifier_for_others(folder):
    path = folder / "run" / "rm"
    ours = load_scalar_model(str(path))
    facts = json.loads((path / "stage.json").read_text())
    assert (ours.mean, ours.std) == (facts["mean"], facts["std"]) and facts["std"] > 0
    theirs = AutoPeftModelForSequenceClassification.from_pretrained(path, num_labels=1)
    texts = [prompt + response for prompt, response in SEQUENCES]
    scores = torch.stack([theirs(torch.tensor([t])).logits[0, 0] for t in texts]).detach()
    got = last_token_scores(ours, texts, 64)
    torch.testing.assert_close(got, (scores - ours.mean) / ours.std, rtol=1e-4, atol=1e-5)


def test_a_finished_run_is_gone_on_with_and_looked_at(folder, capsys):
    from rto_fast.credit.__main__ import main as credit
    from rto_fast.evaluate.__main__ import main as evaluate

    run = str(folder / "run")
    rows = [{"prompt": f"what is the colour of {what}"} for what in ("cow", "a dog .", "white so cat")]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["--prompts", str(folder / "prompts.jsonl")]
    assert credit(["--run", run, "--device", "cpu"]) == 0
    assert evaluate(["--run", run, "--device", "cpu", "--output", str(folder / "judged"), *asked]) == 0
    said = capsys.readouterr().out
    rows = [line.split()[0] for line in said.splitlines() if line.split() and line.split()[0] in ("sft", "dpo", "rto")]
    assert rows[:3] == ["sft", "dpo", "rto"] and "rto_merged" not in said


def test_an_adapters_start_follows_the_runs_seed(folder):
    from rto_fast.pipeline.networks import adapted
    from tests.pipeline.test_wiring import context_of

    starts = []
    for seed in (3, 3, 4):
        context = context_of(folder, seed=seed, output=str(folder / "new"), adapter=AdapterConfig(rank=2))
        model = adapted(context, load_language_model(str(folder / "model")), "policy")
        starts.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_the_policys_adapter_answers():
    stage, _ = make_rto(CONFIG, microbatch_rows=256)
    collector = stage.collector
    policy = collector.models.policy
    base = policy.share()
    base.add("policy", lora(4, 8.0, "all-linear"), seed=1)
    with torch.no_grad():
        for parameter in base.parameters("policy").values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    on = LanguageModel(base.hf, base, "policy")
    collector.models = collector.models._replace(policy=on, reference=policy)
    answers = collector.answer(0)
    packed = pack([a.prompt for a in answers], [a.response for a in answers])
    sampled = torch.tensor([p for a in answers for p in a.logprobs])
    with torch.no_grad():
        torch.testing.assert_close(response_logprobs(on, packed, 16), sampled, rtol=0, atol=1e-4)
        assert (response_logprobs(policy, packed, 16) - sampled).abs().max() > 0.1


def test_under_bfloat16_sft_is_merged_into_the_numbers_as_they_were(folder):
    """Half a step of bfloat16 is more than it learns here, and pi_ref's weights would all move by as much."""
    words = ["--model.dtype", "bfloat16", "--stages", "sft", "--sft.optim.lr", "2e-6", "--eval.prompts", "0"]
    assert train(folder, "half", *ADAPTERS, *words) == 0
    before, after = (load_language_model(str(folder / name)).hf.state_dict() for name in ("model", "half/sft"))
    moved = {name for name, weight in before.items() if not torch.equal(after[name], weight)}
    assert moved and all("_proj" in name for name in moved)
    rounded = max((weight.bfloat16().float() - weight).abs().max() for weight in before.values())
    assert max((after[name] - before[name]).abs().max() for name in moved) < 0.1 * rounded


def test_a_policy_goes_on_from_an_adapter(folder, tmp_path):
    """--model.path may be an adapter's folder: its base with the adapter merged."""
    words = ["--recipe", str(folder / "tiny.toml"), "--data.path", str(folder / "pairs.jsonl"), "--device", "cpu"]
    words += ["--model.path", str(folder / "run" / "rto"), "--output", str(tmp_path / "run"), "--stages", "sft"]
    assert main(words) == 0
    before = logprobs(load_language_model(str(folder / "run" / "rto")))
    after = logprobs(load_language_model(str(tmp_path / "run" / "sft")))
    assert 0 < (after - before).abs().max() < 2


def test_a_checkpoint_holds_adapters_and_their_states_only(folder, tmp_path, monkeypatch):
    def size_of(output: str, *more: str) -> int:
        """Of the checkpoint beside a reward of which the third rollout cannot be scored."""
        words = ["--stages", "rto", "--sft.model", str(folder / "run" / "sft"), "--dpo.model", str(folder / "run/dpo")]
        rule = ["--rto.score.rule", "enough:score", "--rto.reward.beta-3", "1"]
        assert train(folder, str(tmp_path / output), *words, *rule, "--rto.iterations", "6", *more) == 2
        (held,) = (tmp_path / output).glob("rto.checkpoints/step-*/weights.safetensors")
        return held.stat().st_size

    (tmp_path / "enough.py").write_text(RULE)
    monkeypatch.syspath_prepend(tmp_path)
    whole, adapters = size_of("whole"), size_of("few", "--adapter.rank", "1")
    assert 0 < adapters < whole / 4


def test_killed_runs_with_adapters_end_bit_for_bit_equal(tmp_path):
    command = lambda folder, output: [*kill_harness.arguments(folder, output), *ADAPTERS]  # noqa: E731
    assert kill_harness.harness(tmp_path, 3, 1, command) == 0


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--adapter.rank", "0"], "adapter.rank must be at least 1, got 0"),
        (["--adapter.rank", "4", "--adapter.alpha", "0"], "adapter.alpha must be a positive number, got 0"),
        (["--adapter.rank", "4", "--adapter.targets", "nowhere"], "adapter.targets: "),
        (
            ["--adapter.rank", "4", "--adapter.targets", "all-linear", "q_proj"],
            "adapter.targets must be all-linear, or",
        ),
    ],
)
def test_a_mistake_is_one_sentence(folder, tmp_path, capsys, flags, said):
    assert train(folder, str(tmp_path / "run"), *flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert said in error


def test_an_adapter_for_another_base_is_one_sentence(folder, tmp_path, capsys):
    write_model(tmp_path / "other", words=[f"w{i}" for i in range(3)] + ["<unk>"])
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for file in (folder / "run" / "dpo").iterdir():
        if file.name not in ("manifest.json", "stage.json"):
            (adapter / file.name).write_bytes(file.read_bytes())
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({k: x.repeat(1, 2) for k, x in weights.items()}, adapter / "adapter_model.safetensors")
    run = ["--sft.model", str(folder / "run" / "sft"), "--dpo.model", str(adapter), "--stages", "rto"]
    assert train(folder, str(tmp_path / "run"), *ADAPTERS, *run) == 2
    assert "is one for another base" in capsys.readouterr().err


def test_a_whole_critic_beside_adapters_is_refused(folder, tmp_path, capsys):
    write = load_scalar_model(str(folder / "run" / "rm"))
    assert write.backbone is not None
    flags = [*ADAPTERS, "--stages", "rto", "--sft.model", str(folder / "run" / "sft")]
    flags += ["--dpo.model", str(folder / "run" / "dpo"), "--rto.critic.model", str(folder / "run" / "sft")]
    assert train(folder, str(tmp_path / "run"), *flags) == 2
    assert "rto.critic.model: " in capsys.readouterr().err
