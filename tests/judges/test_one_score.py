"""The same answer gets the same score where it is paid for and where it is measured, whatever the tokenizers."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rto_fast.config import Config, DataConfig, RMConfig
from rto_fast.data.corpus import load_corpus
from rto_fast.data.encode import encode_prompts
from rto_fast.data.parse import Message
from rto_fast.data.read import read_rows
from rto_fast.data.rows import Prompt, to_prompts
from rto_fast.data.template import Template
from rto_fast.evaluate.measure import Prompts, _judge
from rto_fast.evaluate.policies import Evaluation
from rto_fast.judges.choose import reward_model
from rto_fast.judges.reward_model import reward_judge
from rto_fast.judges.serve import Serve, make_server, read_answers
from rto_fast.model.load import load_scalar_model
from rto_fast.model.logprobs import last_token_scores
from rto_fast.rollout import Completion
from rto_fast.runs.open import run_of
from tests.data.tokenizers import CHATML, LLAMA2, LLAMA3, byte_level, sentencepiece_style
from tests.judges.test_reward_model import scalar, write_reward_model

QUESTIONS = [
    "why is it so?",
    "\n\nHuman: hello\n\nAssistant: hi\n\nHuman: and?\n\nAssistant:",
    "\n\nHuman: a\n\nHuman: b\n\nAssistant:",
]
ANSWERS = ["the other", "well, the cat \n", "so it"]
CHAT = {"template": CHATML, "eos": "<|eot|>"}
POLICIES = {
    "plain": (byte_level(), "auto"),
    "chat": (byte_level(**CHAT), "auto"),
    "llama": (sentencepiece_style(), "plain"),
    "text": (byte_level(), "none"),
}
REWARDS = {
    "the same as plain": byte_level(),
    "another": sentencepiece_style(),
    "with a chat template": byte_level(**CHAT),
    "with one that refuses two turns of a user": sentencepiece_style(template=LLAMA2),
}


def answers_to(rows: list[Prompt], template: Template) -> list[Completion]:
    """One that the policy ended, one with whitespace at its end, and one that was cut off."""
    prompts = encode_prompts(rows, template, max_length=512)[0]
    out = []
    for i, (row, prompt, text) in enumerate(zip(rows, prompts, ANSWERS, strict=True)):
        ids = template.response(text, row.prompt)
        out.append(Completion(prompt, ids[:-1] if i == 2 else ids, [], "length" if i == 2 else "eos"))
    return out


def in_training(model: str, tokenizer, data: DataConfig, answers: list[Completion]) -> list[float]:
    corpus = load_corpus(data, tokenizer, 0)
    config = Config(data=data, microbatch_rows=512, rm=RMConfig(model=model))
    run = run_of(config, Path(data.path).parent, "cpu")
    context = SimpleNamespace(
        config=run.config,
        device=run.device,
        resting=run.resting,
        stage_path=run.stage_path,
        load_scalar=run.load_scalar,
        tokenizer=tokenizer,
        trusted=run.trusted,
        corpus=corpus,
    )
    return reward_model(context)(answers)


def in_evaluation(model: str, tokenizer, data: DataConfig, answers: list[Completion]) -> list[float]:
    rows = to_prompts(read_rows(data.evaluation)).items
    prompts = Prompts([a.prompt for a in answers], [row.prompt for row in rows], (tokenizer.eos_token_id,))
    options = SimpleNamespace(microbatch_rows=512)
    about = SimpleNamespace(
        judge="reward-model", reward_model=model, run=run_of(Config(data=data), Path(data.path).parent, "cpu")
    )
    unjudged = Evaluation(answers, kl=np.zeros(len(answers)), implicit=None, oracle=None)
    return _judge(options, about, tokenizer, prompts)(unjudged).score.tolist()


def from_a_server(model: str, tokenizer, answers: list[Completion]) -> list[float]:
    asked = {"query": [], "prompts": [], "finished": [a.finish == "eos" for a in answers]}
    for a in answers:
        prompt, response = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (a.prompt, a.response))
        asked["query"].append(prompt + response)
        asked["prompts"].append(prompt)
    server = make_server(Serve(model=model, port=0, device="cpu", max_rows=512))
    server.server_close()
    return server.scorer(read_answers(asked, 9))


@pytest.mark.parametrize("context", [512, 44])
@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_training_evaluation_and_server_agree(policy, reward, context, tmp_path):
    tokenizer, template = POLICIES[policy]
    files = {"pairs": [], "evaluation": []}
    for question in QUESTIONS:
        files["pairs"].append({"prompt": f"{question[:9]} again?", "chosen": "the", "rejected": "so"})
        files["evaluation"].append({"prompt": question})
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(
        path=str(tmp_path / "pairs.jsonl"),
        evaluation=str(tmp_path / "evaluation.jsonl"),
        template=template,
        held_out=0,
        max_length=512,
        max_prompt=256,
    )
    answers = answers_to(to_prompts(read_rows(data.evaluation)).items, Template(tokenizer, template))
    own = REWARDS[reward]
    model = scalar("llama", len(own), max_position_embeddings=context)
    model = write_reward_model(tmp_path / "rm", model, own)
    paid, measured = (door(model, tokenizer, data, answers) for door in (in_training, in_evaluation))
    assert paid == measured and len(set(paid)) == 3
    if policy in ("plain", "llama"):  # a server is given texts alone, so turns have to be plain to be seen
        assert from_a_server(model, tokenizer, answers) == paid


def test_a_reward_model_reads_turns_in_its_own_template(tmp_path):
    """Also one that shares the policy's words, and where the policy's template shows no turns."""
    own, rows = byte_level(template=CHATML), [Prompt((Message("system", "be brief"), Message("user", "why?")))]
    path = write_reward_model(tmp_path, scalar("llama", len(own), max_position_embeddings=512), own)
    model, wanted = load_scalar_model(path), Template(own, "chat")
    ids = wanted.prompt(rows[0].prompt) + wanted.response("the other", rows[0].prompt)
    expected = last_token_scores(model, [ids], 512).tolist()
    for policy in (byte_level(), byte_level(template=LLAMA3)):
        writes = Template(policy)
        (prompt,) = encode_prompts(rows, writes, max_length=512)[0]
        answer = Completion(prompt, writes.response("the other", rows[0].prompt), [], "eos")
        conversations = {tuple(prompt): rows[0].prompt}
        judge = reward_judge(model, own, policy, conversations, max_rows=512, field="rm.model")
        assert judge([answer]) == expected


def test_a_corpus_knows_the_turns_of_its_prompts(tmp_path):
    pairs = [{"prompt": q, "chosen": "the", "rejected": "so"} for q in (*QUESTIONS, *"abc")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (tmp_path / "more.jsonl").write_text(json.dumps({"prompt": "and this?"}) + "\n")
    settings = {"path": str(tmp_path / "pairs.jsonl"), "held_out": 2}
    corpus = load_corpus(DataConfig(**settings, prompts=str(tmp_path / "more.jsonl")), byte_level(), 0)
    asked = [*corpus.prompts, *corpus.evaluation, *(p.prompt for p in (*corpus.pairs, *corpus.held_out))]
    assert len(corpus.held_out) == 2 and set(corpus.conversations) == set(map(tuple, asked))
    writes = Template(byte_level())
    assert all(writes.prompt(messages) == list(ids) for ids, messages in corpus.conversations.items())
    assert not load_corpus(DataConfig(**settings, template="none"), byte_level(), 0).conversations
