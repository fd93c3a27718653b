"""Reward-model scores against transformers' own classifier, on the reward model's tokens."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rto_fast.data.parse import Message
from rto_fast.judges.reward_model import reward_judge
from rto_fast.model.load import load_scalar_model
from rto_fast.rollout import Completion
from tests.evaluate.runs import write_reward_model
from tests.tiny_run import write_model

TEXTS = ["it is grey .", "well well well brown", "so"]
CONVERSATIONS = [
    [Message("user", "what is the colour of a cat")],
    [Message("user", "what"), Message("assistant", "so"), Message("user", "is it")],
    [Message("user", "a dog")],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scorer")
    write_model(folder / "policy")
    write_reward_model(folder / "other")
    write_reward_model(folder / "same", AutoTokenizer.from_pretrained(folder / "policy"))
    return folder


def completions(tokenizer, finishes=("eos", "eos", "length")) -> list[Completion]:
    out = []
    for text, finish in zip(TEXTS, finishes, strict=True):
        ids = tokenizer(text)["input_ids"] + ([tokenizer.eos_token_id] if finish == "eos" else [])
        out.append(Completion([tokenizer.bos_token_id, 5, 6 + len(out)], ids, [0.0] * len(ids), finish))
    return out


def scores(folder, name: str, answers, conversations=CONVERSATIONS, rows: int = 64):
    policy, own = (AutoTokenizer.from_pretrained(folder / x) for x in ("policy", name))
    model = load_scalar_model(str(folder / name))
    known = dict(zip((tuple(a.prompt) for a in answers), conversations, strict=True))
    return reward_judge(model, own, policy, known, max_rows=rows, field="reward_model")(answers)


def expected(folder, name: str, sequences: list[list[int]]) -> list[float]:
    """The classifier's logit of each sequence by itself; without padding it reads the last token."""
    model = AutoModelForSequenceClassification.from_pretrained(folder / name)
    model.config.pad_token_id = None
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits.item() for ids in sequences]


def test_the_policys_own_tokens_are_scored_as_they_are(folder):
    answers = completions(AutoTokenizer.from_pretrained(folder / "policy"))
    want = expected(folder, "same", [a.prompt + a.response for a in answers])
    np.testing.assert_allclose(scores(folder, "same", answers), want, rtol=1e-4, atol=1e-5)


def test_another_tokenizer_reads_the_text_and_is_read_at_its_last_real_token(folder):
    answers = completions(AutoTokenizer.from_pretrained(folder / "policy"))
    own = AutoTokenizer.from_pretrained(folder / "other")
    texts = [
        "\n\nHuman: what is the colour of a cat\n\nAssistant: it is grey .",
        "\n\nHuman: what\n\nAssistant: so\n\nHuman: is it\n\nAssistant: well well well brown",
        "\n\nHuman: a dog\n\nAssistant: so",
    ]
    # prompt and answer are tokenised apart; the third was cut off and has no EOS
    sequences = []
    for text, ended in zip(texts, (True, True, False), strict=True):
        prompt, _, answer = text.rpartition("Assistant:")
        ids = [own.bos_token_id, *own(prompt + "Assistant:")["input_ids"], *own(answer)["input_ids"]]
        sequences.append(ids + [own.eos_token_id] * ended)
    want = expected(folder, "other", sequences)
    np.testing.assert_allclose(scores(folder, "other", answers), want, rtol=1e-4, atol=1e-5)
    # one answer at a time or all together
    one_by_one = scores(folder, "other", answers, rows=max(map(len, sequences)))
    np.testing.assert_allclose(one_by_one, want, rtol=1e-4, atol=1e-5)


def test_an_answer_that_is_nothing_but_eos_is_scored(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    answers = [Completion([1, 5], [tokenizer.eos_token_id], [0.0], "eos")]
    own = AutoTokenizer.from_pretrained(folder / "other")
    prompt = own("\n\nHuman: a dog\n\nAssistant:")["input_ids"]
    want = expected(folder, "other", [[own.bos_token_id, *prompt, own.eos_token_id]])
    np.testing.assert_allclose(scores(folder, "other", answers, CONVERSATIONS[2:]), want, rtol=1e-4, atol=1e-5)


def test_a_prompt_beyond_the_context_loses_its_oldest_tokens(folder):
    answers = completions(AutoTokenizer.from_pretrained(folder / "policy"))[:1]
    long = [[Message("user", "what is the colour of a cat " * 40)]]
    own = AutoTokenizer.from_pretrained(folder / "other")
    prompt = own("\n\nHuman: " + "what is the colour of a cat " * 40 + "\n\nAssistant:")["input_ids"]
    answer = [*own(" it is grey .")["input_ids"], own.eos_token_id]
    kept = [own.bos_token_id, *prompt[-(128 - len(answer) - 1) :], *answer]
    np.testing.assert_allclose(
        scores(folder, "other", answers, long, 256), expected(folder, "other", [kept]), rtol=1e-4, atol=1e-5
    )
    endless = [Completion([1, 5], [7] * 600, [0.0] * 600, "length")]
    with pytest.warns(UserWarning, match="reward_model: an answer does not fit its context of 128 tokens .*; lower"):
        (score,) = scores(folder, "other", endless, CONVERSATIONS[:1], 4096)
    policy = AutoTokenizer.from_pretrained(folder / "policy")
    kept = [own.bos_token_id, *own(" " + policy.decode([7] * 600))["input_ids"][-127:]]
    np.testing.assert_allclose(score, expected(folder, "other", [kept])[0], rtol=1e-4, atol=1e-5)


def test_scores_that_are_not_finite_are_named(folder, tmp_path):
    answers = completions(AutoTokenizer.from_pretrained(folder / "policy"))
    own = AutoTokenizer.from_pretrained(folder / "same")
    model = load_scalar_model(str(folder / "same"))
    with torch.no_grad():
        model.head.weight[0, 0] = torch.nan
    with pytest.raises(
        ValueError, match="reward_model: every score must be a finite number, got nan for answer 1 of 3"
    ):
        reward_judge(model, own, own, {}, max_rows=64, field="reward_model")(answers)
