"""The files of the quickstart task: what they hold, and that a seed decides every byte of them."""

import json
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rto_fast.tasks.quickstart import grammar, task
from rto_fast.tasks.quickstart.grammar import MAX_RESPONSE_TOKENS, Question, all_questions, parse_prompt, sample_answer
from rto_fast.tasks.quickstart.knowledge import EOS, FACTS, MYTHS, VALUES, vocabulary
from rto_fast.tasks.quickstart.oracle import oracle_return
from rto_fast.tasks.quickstart.tokenizer import build_tokenizer

FILES = ("demonstrations.jsonl", "pairs.jsonl", "eval.jsonl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("task") / "seed0"
    task.write_task(path, 0)
    return path


def rows(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_the_same_seed_writes_the_same_bytes(folder, tmp_path):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    task.write_task(tmp_path / "again", 0)
    assert torch.equal(torch.get_rng_state(), before)
    files = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file()]
    assert {str(p) for p in files} >= {*FILES, "model/model.safetensors", "model/tokenizer.json"}
    for path in files:
        assert (folder / path).read_bytes() == (tmp_path / "again" / path).read_bytes(), path
    task.write_task(tmp_path / "other", 1)
    for path in (*FILES, "model/model.safetensors"):
        assert (folder / path).read_bytes() != (tmp_path / "other" / path).read_bytes(), path


def test_columns_sizes_and_held_out_prompts(folder):
    demonstrations, pairs, held_out = (rows(folder, name) for name in FILES)
    assert {tuple(r) for r in demonstrations} == {("prompt", "completion")}
    assert {tuple(r) for r in pairs} == {("prompt", "chosen", "rejected")}
    assert {tuple(r) for r in held_out} == {("prompt",)}
    assert (len(demonstrations), len(pairs), len(held_out)) == (
        task.NUM_DEMONSTRATIONS,
        task.NUM_PAIRS,
        task.NUM_EVAL_PROMPTS,
    )
    evaluated = {r["prompt"] for r in held_out}
    assert len(evaluated) == len(held_out)
    assert not evaluated & {r["prompt"] for r in demonstrations + pairs}
    asked = [len(parse_prompt(prompt).asked) for prompt in evaluated]
    assert [asked.count(n) for n in (1, 2, 3)] == [task.NUM_EVAL_PROMPTS // 3] * 3
    assert all(r["chosen"] != r["rejected"] for r in pairs)


def test_a_fifth_of_the_labels_is_wrong(folder):
    gaps = [
        oracle_return(r["prompt"], [*r["chosen"].split(), EOS])
        - oracle_return(r["prompt"], [*r["rejected"].split(), EOS])
        for r in rows(folder, "pairs.jsonl")
    ]
    assert 0 not in gaps
    assert 0.15 < sum(gap < 0 for gap in gaps) / len(gaps) < 0.30


def test_every_text_is_words_joined_by_spaces(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    texts = {text for name in FILES for r in rows(folder, name) for text in r.values()}
    assert len(texts) > 10_000
    texts = sorted(texts)[::20]
    special = {*tokenizer.all_special_ids}
    for text, ids in zip(texts, tokenizer(texts).input_ids, strict=True):
        assert len(ids) == len(text.split())
        assert not special & set(ids)
        assert tokenizer.decode(ids) == text
        assert tokenizer.convert_ids_to_tokens(ids) == text.split()


def test_demonstrations_fit_the_response_limit(folder):
    lengths = [len(r["completion"].split()) + 1 for r in rows(folder, "demonstrations.jsonl")]
    assert max(lengths) <= MAX_RESPONSE_TOKENS
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    longest = max(len(q.prompt.split()) for q in all_questions(3))
    assert 1 + longest + MAX_RESPONSE_TOKENS <= model.config.max_position_embeddings


def test_tokenizer_and_model_agree(folder):
    tokenizer, model = build_tokenizer(), AutoModelForCausalLM.from_pretrained(folder / "model")
    config = model.config
    assert vocabulary() == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert len(set(vocabulary())) == len(vocabulary()) == config.vocab_size
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (
        config.pad_token_id,
        config.bos_token_id,
        config.eos_token_id,
        3,
    )
    assert tokenizer("dragon").input_ids == [3]
    assert 0.5e6 <= sum(p.numel() for p in model.parameters()) <= 2e6
    assert model.dtype == torch.float32
    assert model(input_ids=torch.tensor([[1, 5, 6]])).logits.shape == (1, 3, config.vocab_size)


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="folder must be new or empty"):
        task.write_task(tmp_path, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_an_interrupted_write_leaves_no_folder(tmp_path, monkeypatch):
    def fail(seed):
        raise OSError("disk full")

    monkeypatch.setattr(task, "NUM_DEMONSTRATIONS", 10)
    monkeypatch.setattr(task, "NUM_PAIRS", 10)
    monkeypatch.setattr(task, "fresh_model", fail)
    with pytest.raises(OSError, match="disk full"):
        task.write_task(tmp_path / "task", 0)
    assert not list(tmp_path.iterdir())


def test_facts_and_myths_are_consistent():
    assert len(FACTS) == 20 and all(set(facts) == set(VALUES) for facts in FACTS.values())
    assert 0.3 < len(MYTHS) / (len(FACTS) * len(VALUES)) < 0.36
    for (animal, attribute), myth in MYTHS.items():
        assert myth in VALUES[attribute] and myth != FACTS[animal][attribute]


def test_the_likeliest_answer_of_the_authors_is_mediocre():
    # what greedy decoding of a perfect SFT model gives must leave room above it, see MYTHS
    both = [sum(getattr(a, rate) for a in grammar.AUTHORS) / 2 for rate in ("polite", "myth", "wrong")]
    assert both[0] < 0.5 < both[1] and both[2] < 0.5


def test_prompts_parse_back():
    for num_asked in (1, 2, 3):
        for question in all_questions(num_asked):
            assert parse_prompt(question.prompt) == question


def test_mixture_is_neither_good_nor_bad():
    rng = Random(5)
    questions = [Question(animal, ("sound", "food")) for animal in FACTS]
    returns = [
        oracle_return(q.prompt, [*sample_answer(rng, q), EOS]) for q in (rng.choice(questions) for _ in range(4000))
    ]
    assert 0.0 < sum(returns) / len(returns) < 1.0 < 2.75 == max(returns)
