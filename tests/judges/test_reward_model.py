"""A reward model scores texts as it would score each alone, tokenised as in its training."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from rto_fast.data.parse import Message
from rto_fast.data.read import read_rows
from rto_fast.data.rows import to_pairs
from rto_fast.data.template import Template
from rto_fast.data.tokenizer import load_tokenizer
from rto_fast.judges import Answer
from rto_fast.judges.reward_model import RewardModel
from rto_fast.model import attention
from rto_fast.model.scalar import ScalarModel
from tests.data.tokenizers import CHATML, LLAMA2, byte_level, sentencepiece_style, word_level
from tests.tiny import ARCHITECTURES, SHARED, config

TURNS = "\n\nHuman: why?\n\nAssistant:"
ANSWERS = [
    Answer(TURNS, " Because."),
    Answer(TURNS, "Because.", finished=False),
    Answer("\n\nHuman: hello\n\nAssistant: hi\n\nHuman: and the rest?\n\nAssistant:", " The the the rest of it."),
    Answer("Once upon a time", ", the end", finished=False),
    Answer("Once upon a time", ""),
    Answer("", "the"),
    Answer("", "", finished=False),
    Answer("", ""),
    Answer("a </s> b <s>", "c </s> d", finished=False),
]


def scalar(architecture: str, vocab_size: int, seed: int = 0, **changes) -> ScalarModel:
    torch.manual_seed(seed)
    settings = config(architecture, vocab_size)
    for name, value in changes.items():
        setattr(settings, name, value)
    backbone = AutoModel.from_config(settings, attn_implementation=attention.register())
    return ScalarModel(backbone, torch.nn.Linear(48, 1), mean=0.3, std=2.0)


def write_reward_model(folder, model: ScalarModel, tokenizer) -> str:
    """As users have it: backbone, score.weight and tokenizer."""
    model.backbone.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"score.weight": model.head.weight.detach()}, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def scorer_of(tokenizer, architecture: str = "llama", max_rows: int = 64, **changes):
    return RewardModel(scalar(architecture, len(tokenizer), **changes), tokenizer, max_rows=max_rows)


def encode(scorer: RewardModel, answer: Answer) -> list[int]:
    """Prompt and response as token ids."""
    prompt, response = scorer.encode([answer])[0]
    return prompt + response


@torch.no_grad()
def alone(model: ScalarModel, ids: list[int]) -> float:
    """Unpacked, by the backbone's own attention."""
    model.backbone.set_attn_implementation("sdpa")
    hidden = model.backbone(torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1]
    model.backbone.set_attn_implementation(attention.NAME)
    return ((model.head(hidden)[0] - model.mean) / model.std).item()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_equals_one_by_one(architecture):
    for tokenizer in (byte_level(), sentencepiece_style(), byte_level(template=CHATML, eos="<|eot|>", bos=None)):
        scorer = scorer_of(tokenizer, architecture)
        expected = [alone(scorer.model, encode(scorer, a)) for a in ANSWERS]
        assert scorer(ANSWERS) == pytest.approx(expected, abs=2e-6)
        assert scorer(ANSWERS[::-1]) == pytest.approx(expected[::-1], abs=2e-6)
        assert [scorer([a])[0] for a in ANSWERS] == pytest.approx(expected, abs=2e-6)
        assert len({round(e, 5) for e in expected}) >= len(ANSWERS) - 3, "scores that tell texts apart"


def test_the_last_real_token_is_scored():
    tokenizer = byte_level()
    scorer = scorer_of(tokenizer)
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    for answer in ANSWERS:
        ids = encode(scorer, answer)
        assert (ids[-1] == eos) == answer.finished or ids == [bos]
        assert ids[0] == bos and ids.count(bos) == 1 and ids.count(eos) == int(answer.finished)
        spoken = answer.prompt + answer.response
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == spoken.replace(" ", "")


def test_turns_go_through_the_models_own_chat_template():
    tokenizer = byte_level(template=CHATML, eos="<|eot|>", bos=None)
    ids = encode(scorer_of(tokenizer), ANSWERS[2])
    turns = [("user", "hello"), ("assistant", "hi"), ("user", "and the rest?")]
    messages = [Message(*t) for t in turns]
    template = Template(tokenizer, "chat")
    assert ids == template.prompt(messages) + template.response("The the the rest of it.", messages)
    text = "".join(f"<|start|>{role}\n{content}<|eot|>\n" for role, content in turns)
    assert tokenizer.decode(ids) == text + "<|start|>assistant\nThe the the rest of it.<|eot|>"
    # a story is none
    assert tokenizer.decode(encode(scorer_of(tokenizer), ANSWERS[3])) == "Once upon a time, the end"
    # nor is anything when that was asked for
    model = scalar("llama", len(tokenizer))
    for style in ("plain", "none"):
        plain = RewardModel(model, tokenizer, max_rows=64, style=style)
        assert encode(plain, ANSWERS[0]) == tokenizer(TURNS)["input_ids"] + tokenizer(" Because.<|eot|>")["input_ids"]


def test_a_conversation_that_the_template_refuses_stays_text():
    tokenizer = sentencepiece_style(template=LLAMA2)
    twice = "\n\nHuman: a\n\nHuman: b\n\nAssistant:"
    ids = encode(scorer_of(tokenizer), Answer(twice, " c"))
    assert ids == Template(tokenizer, "none").prompt([Message("text", twice)]) + [
        *Template(tokenizer, "plain").response("c", [Message("user", "b")])
    ]


def test_a_long_text_loses_its_oldest_tokens():
    tokenizer = byte_level()
    scorer = scorer_of(tokenizer, max_rows=8, max_position_embeddings=16)
    long, short = Answer("x" * 30, "yyyy"), Answer("x", "y")
    kept = [tokenizer.bos_token_id, *tokenizer("x" * 10 + "yyyy")["input_ids"], tokenizer.eos_token_id]
    assert len(kept) == 16
    expected = [alone(scorer.model, kept), alone(scorer.model, encode(scorer, short))]
    assert scorer([long, short]) == pytest.approx(expected, abs=2e-6)
    assert scorer.truncated == 1
    scorer([long, long, short])
    assert scorer.truncated == 3


def test_a_long_text_without_bos_loses_its_oldest_tokens():
    tokenizer = byte_level()
    tokenizer.bos_token = None
    scorer = scorer_of(tokenizer, max_position_embeddings=16)
    kept = [*tokenizer("x" * 11 + "yyyy")["input_ids"], tokenizer.eos_token_id]
    assert len(kept) == 16
    assert scorer([Answer("x" * 30, "yyyy")]) == pytest.approx([alone(scorer.model, kept)], abs=2e-6)


def test_calibration_and_mode_of_the_model():
    scorer = scorer_of(byte_level())
    model = scorer.model
    assert not model.training
    before = scorer(ANSWERS)
    model.mean, model.std = model.mean + 1.0, model.std
    assert scorer(ANSWERS) == pytest.approx([b - 0.5 for b in before], abs=1e-6)
    assert not any(p.grad is not None for p in model.parameters())


def test_a_tokenizer_of_another_model_is_named():
    tokenizer = byte_level()
    scorer = RewardModel(scalar("llama", 61), tokenizer, max_rows=64)
    with pytest.raises(ValueError, match="^rm.model: its tokenizer made token .* the model has 61 embeddings"):
        scorer(ANSWERS)
    with pytest.raises(ValueError, match="no EOS"):
        RewardModel(scalar("llama", 300), byte_level(eos=None), max_rows=64)


def test_a_score_that_is_not_finite_is_named():
    scorer = scorer_of(byte_level())
    with torch.no_grad():
        scorer.model.head.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="^rm.model: every score must be a finite number, got nan for answer 1 of"):
        scorer(ANSWERS)


def test_an_unknown_word_is_scored():
    scorer = scorer_of(word_level())
    assert len(scorer([Answer("the cat", " flew"), Answer("", "zzz")])) == 2


@pytest.mark.parametrize("name", ["tokenizers/gpt2", "tokenizers/gpt-neox-20b", "models/stories260K"])
def test_real_dialogues_are_tokenised_as_in_training(name):
    """From the ids of the reward model's training to texts and back, the way a policy's answers come."""
    if not (SHARED / name).exists():
        pytest.skip("the real tokenizers (../shared/data) are not beside this checkout")
    tokenizer = load_tokenizer(SHARED / name)
    rows = to_pairs(read_rows(SHARED / "hh-helpful/train.jsonl.gz", limit=200)).items
    template = Template(tokenizer, "auto")
    scorer = scorer_of(tokenizer)
    for row in rows:
        expected = template.prompt(row.prompt) + template.response(row.chosen, row.prompt)
        assert encode(scorer, Answer(template.prompt_text(row.prompt), row.chosen)) == expected
        assert encode(scorer, Answer(template.prompt_text(row.prompt), row.chosen, finished=False)) == expected[:-1]


@pytest.mark.parametrize(
    "policy, reward", [("models/stories260K", "models/babyllama-tok105"), ("tokenizers/gpt2", "models/stories260K")]
)
@pytest.mark.filterwarnings("ignore:rm.model. an answer does not fit its context")
def test_real_models_with_two_tokenizers(policy, reward):
    """Texts of one tokenizer under a real model of another, packed against alone."""
    if not (SHARED / reward).exists() or not (SHARED / policy).exists():
        pytest.skip("the real models and tokenizers (../shared/data) are not beside this checkout")
    spoken = load_tokenizer(SHARED / policy)
    torch.manual_seed(0)
    backbone = AutoModel.from_pretrained(SHARED / reward, attn_implementation=attention.register())
    model = ScalarModel(backbone, torch.nn.Linear(backbone.config.hidden_size, 1))
    scorer = RewardModel(model, load_tokenizer(SHARED / reward), max_rows=1024)
    template = Template(spoken, "plain")
    answers = []
    for i, row in enumerate(to_pairs(read_rows(SHARED / "hh-helpful/train.jsonl.gz", limit=24)).items):
        prompt, response = template.prompt(row.prompt), template.response(row.chosen, row.prompt)
        texts = (spoken.decode(ids, skip_special_tokens=True) for ids in (prompt, response))
        answers.append(Answer(*texts, finished=i % 2 == 0))
    scores = scorer(answers)
    context = backbone.config.max_position_embeddings
    encoded = [prompt + response for prompt, response in scorer.encode(answers)]
    assert scorer.truncated == sum(len(ids) > context for ids in encoded) > 0
    whole = [i for i, ids in enumerate(encoded) if len(ids) <= context]
    expected = [alone(model, encoded[i]) for i in whole]
    assert [scores[i] for i in whole] == pytest.approx(expected, abs=2e-5)
    assert len(whole) >= 3 and len({round(e, 4) for e in expected}) == len(expected)
