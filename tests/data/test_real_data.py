"""Real rows under real tokenizers: nothing is lost, doubled or merged."""

import pytest

from rto_fast.data.encode import encode_demonstrations, encode_pairs
from rto_fast.data.held_out import split
from rto_fast.data.parse import Message
from rto_fast.data.read import read_rows
from rto_fast.data.rows import to_demonstrations, to_pairs
from rto_fast.data.template import Template
from rto_fast.data.tokenizer import load_tokenizer
from tests.data.shared import DATA, needs_data

pytestmark = needs_data

NAMES = ["models/stories260K", "models/babyllama-tok105", "tokenizers/gpt2", "tokenizers/gpt-neox-20b"]
ASKED = (Message("user", "Why?"),)


@pytest.fixture(scope="module")
def templates():
    return {name: Template(load_tokenizer(DATA / name)) for name in NAMES}


def test_both_forms_of_hh_give_the_same_pairs():
    by_messages = set(to_pairs(read_rows(DATA / "hh-helpful")).items)
    raw = to_pairs(read_rows(DATA / "hh-helpful/raw-hh-format.jsonl.gz"))
    assert raw.dropped == {"histories differ": 9, "empty response": 4, "chosen equals rejected": 2}
    assert len(raw.items) == 2117 and by_messages.issuperset(raw.items)


def test_a_post_of_tldr_is_on_one_side():
    train, held = split(to_pairs(read_rows(DATA / "tldr")).items, 0.1, 0)
    assert 0 < len(held) <= 63
    assert {p.prompt for p in train}.isdisjoint(p.prompt for p in held)


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_of_the_model(templates, name):
    template = templates[name]
    assert template.style == "plain"
    if name.startswith("models"):
        assert (template.bos_id, template.eos_id) == (1, 2)
    else:
        # GPT-2 and GPT-NeoX have one token for both
        assert template.bos_id == template.eos_id == template.tokenizer.convert_tokens_to_ids("<|endoftext|>")


@pytest.mark.parametrize("name", NAMES)
def test_rows_come_back_as_their_text(templates, name):
    template, tokenizer = templates[name], templates[name].tokenizer
    pairs = to_pairs(read_rows(DATA / "hh-helpful", limit=150)).items
    items, report = encode_pairs(pairs, template, max_length=100_000, max_prompt=50_000)
    assert report.kept == list(range(150)) and report.truncated_prompts == report.literal_specials == 0
    for item, pair in zip(items, pairs, strict=True):
        assert item.prompt[0] == template.bos_id and item.prompt.count(template.bos_id) == 1
        for ids, text in ((item.chosen, pair.chosen), (item.rejected, pair.rejected)):
            assert ids[-1] == template.eos_id and ids.count(template.eos_id) == 1
            if "baby" not in name:
                # byte fallback and byte-level vocabularies lose nothing
                decoded = tokenizer.decode([*item.prompt[1:], *ids[:-1]], clean_up_tokenization_spaces=False)
                assert decoded.lstrip(" ") == template.prompt_text(pair.prompt) + " " + text


@pytest.mark.parametrize("name", NAMES)
def test_spelled_special_tokens_of_tldr(templates, name):
    template, tokenizer = templates[name], templates[name].tokenizer
    for spelled in (tokenizer.eos_token, tokenizer.bos_token):
        ids = template.response(f"A summary. {spelled} And more", ASKED)
        assert ids.count(template.eos_id) == 1 and not template.holds_special(ids[:-1])
        assert (
            tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False).strip() == f"A summary. {spelled} And more"
        )
        prompt = template.prompt((Message("user", f"a {spelled} b"),))
        assert prompt.count(template.bos_id) == 1 and not template.holds_special(prompt[1:])
    assert template.response(f"A summary. {tokenizer.eos_token}", ASKED) == template.response("A summary.", ASKED)


def test_sentencepiece_responses_start_with_one_blank(templates):
    for name in NAMES[:2]:
        names = templates[name].tokenizer.convert_ids_to_tokens(templates[name].response("He", ASKED))
        assert "".join(names) == "▁He</s>"


def test_stories_as_the_models_have_read_them():
    rows = to_demonstrations(read_rows(DATA / "text", limit=50)).items
    for name in NAMES[:2]:
        template = Template(load_tokenizer(DATA / name), "none")
        items, _ = encode_demonstrations(rows, template, max_length=4096)
        for item, row in zip(items, rows, strict=True):
            own = template.tokenizer(row.completion)["input_ids"]
            assert [*item.prompt, *item.response] == [*own, template.eos_id]


def test_gsm8k_by_its_own_column_names(templates):
    columns = {"prompt": "question", "completion": "answer"}
    rows = to_demonstrations(read_rows(DATA / "gsm8k", limit=50), columns=columns).items
    items, report = encode_demonstrations(rows, templates["tokenizers/gpt2"], max_length=512)
    assert len(items) == 50 and not report.dropped
