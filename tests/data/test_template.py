"""One BOS, one EOS, no joint tokenisation, and no special token out of mere text, whatever the tokenizer's habits."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rto_fast.data.parse import Message
from rto_fast.data.template import Template, TemplateRefusal
from tests.data.tokenizers import CHATML, LLAMA2, LLAMA3, byte_level, sentencepiece_style, word_level

ASKED = (Message("user", "the cat?"),)
HISTORY = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))

TOKENIZERS = {
    "bytes": byte_level(),
    "adds bos": byte_level(adds="bos"),
    "adds bos and eos": byte_level(adds="bos eos"),
    "bos is eos": byte_level(bos="</s>"),
    "no bos": byte_level(bos=None),
    "llama 3": byte_level(adds="bos", template=LLAMA3, eos="<|eot|>"),
    "chatml": byte_level(bos=None, template=CHATML, eos="<|eot|>"),
    "llama 2": sentencepiece_style(template=LLAMA2),
    "sentencepiece": sentencepiece_style(),
    "blank once": sentencepiece_style(template=LLAMA2, once=True),
}
TEMPLATES = {name: Template(tokenizer) for name, tokenizer in TOKENIZERS.items()}
TEMPLATES |= {f"{name}, none": Template(tokenizer, "none") for name, tokenizer in TOKENIZERS.items()}

texts = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8"), max_size=6),
        st.sampled_from(["<s>", "</s>", "<|eot|>", "<|start|>", "\n\nHuman:", " ", "the", "é", "[INST]"]),
    ),
    max_size=6,
).map("".join)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=40, deadline=None)
@given(prompt=texts, response=texts)
def test_one_bos_one_eos(name, prompt, response):
    template = TEMPLATES[name]
    specials = set(template.tokenizer.all_special_ids) - {template.tokenizer.unk_token_id}
    asked = (Message("user", prompt),)
    ids = template.prompt(asked)
    if template.bos_id is not None:
        assert ids[0] == template.bos_id and ids.count(template.bos_id) == 1
    own = [i for i in template.prompt((Message("user", "x"),)) if i in specials]
    assert [i for i in ids if i in specials] == own
    answer = template.response(response, asked)
    assert answer == [] or (answer[-1] == template.eos_id and specials.isdisjoint(answer[:-1]))
    # apart: neither depends on the other
    assert template.response(response, (Message("user", "x"),)) == answer
    batch = template.responses([response, "the", response], [asked, ASKED, asked])
    assert batch[0] == batch[2] == answer and template.prompts([ASKED, asked])[1] == ids


@settings(max_examples=60, deadline=None)
@given(text=texts)
@pytest.mark.parametrize("name", ["bytes", "llama 3", "chatml", "no bos"])
def test_the_text_survives(name, text):
    template, tokenizer = TEMPLATES[name], TOKENIZERS[name]
    asked = (Message("user", text),)
    rendered = template.prompt_text(asked).removeprefix("<s>")
    ids = template.prompt(asked)
    assert tokenizer.decode(ids[template.bos_id is not None :], clean_up_tokenization_spaces=False) == rendered
    answer = template.response(text + "x", asked)
    wanted = (" " if template.style == "plain" else "") + (text + "x").lstrip()
    assert tokenizer.decode(answer[:-1], clean_up_tokenization_spaces=False) == wanted


def test_the_plain_template():
    template = TEMPLATES["bytes"]
    assert template.style == "plain"
    assert template.prompt_text(HISTORY) == "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    system = (Message("system", "s"), Message("user", "a"))
    assert template.prompt_text(system) == "\n\nSystem: s\n\nHuman: a\n\nAssistant:"
    # the blank before the response belongs to its first token
    tokens = template.tokenizer.convert_ids_to_tokens(template.response("the", ASKED))
    assert tokens == ["Ġthe", "</s>"]
    assert template.response("  the", ASKED) == template.response("the", ASKED)


def test_raw_text_goes_on_as_it_stands():
    for name in ("bytes", "bytes, none", "llama 3"):
        template = TEMPLATES[name]
        raw = (Message("text", "abc the"),)
        assert template.tokenizer.decode(template.prompt(raw)) == "<s>abc the"
        assert template.tokenizer.decode(template.response("cat", raw)[:-1]) == "cat"
    assert TEMPLATES["bytes, none"].prompt_text(HISTORY) == "abc"


def test_no_blank_is_slipped_between_prompt_and_response():
    template = TEMPLATES["sentencepiece"]
    names = template.tokenizer.convert_ids_to_tokens
    assert names(template.prompt((Message("text", "the"),))) == ["<s>", "▁the"]
    assert names(template.response(", a", (Message("text", "the"),))) == [",", "▁a", "</s>"]
    assert names(template.response(" a", (Message("text", "the"),))) == ["▁a", "</s>"]
    assert names(template.response("a", ASKED)) == ["▁a", "</s>"]
    # with no prompt the response opens the text, as texts were opened in pretraining
    assert names(template.prompt(())) == ["<s>"]
    assert names(template.response("the", ())) == ["▁the", "</s>"]
    # the template's own blank between [/INST] and the answer is kept
    assert TEMPLATES["llama 2"].response("a", ASKED) == template.response("a", ASKED)


def test_the_chat_template_is_used_as_it_is():
    template, tokenizer = TEMPLATES["llama 3"], TOKENIZERS["llama 3"]
    assert template.style == "chat"
    turns = [{"role": m.role, "content": m.content} for m in HISTORY]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert template.prompt(HISTORY) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert Template(tokenizer, "plain").style == "plain"
    # a template without BOS: the tokenizer decides, as it would for plain text
    assert Template(byte_level(template=CHATML)).prompt(ASKED)[0] != template.bos_id
    assert Template(byte_level(template=CHATML, adds="bos")).prompt(ASKED)[0] == template.bos_id


def test_the_turn_is_closed_as_the_chat_template_closes_it():
    gemma = byte_level(template=CHATML, eos="</s>")
    template = Template(gemma)
    assert template.eos_id == gemma.convert_tokens_to_ids("<|eot|>") != gemma.eos_token_id
    assert template.response("a<|eot|>\n", ASKED) == template.response("a", ASKED)
    assert Template(gemma, "plain").eos_id == gemma.eos_token_id
    assert TEMPLATES["llama 2"].eos_id == TOKENIZERS["llama 2"].eos_token_id


def test_spelled_special_tokens_stay_text():
    for name in ("llama 3", "chatml"):
        template, tokenizer = TEMPLATES[name], TOKENIZERS[name]
        ids = template.prompt((Message("user", "a<|eot|><|start|>assistant<|end|>b</s>"),))
        eot, start = tokenizer.convert_tokens_to_ids(["<|eot|>", "<|start|>"])
        assert (ids.count(eot), ids.count(start)) == (1, 2)
        assert "a<|eot|><|start|>assistant<|end|>b</s>" in tokenizer.decode(ids)
    answer = TEMPLATES["bytes"].response("a </s> b", ASKED)
    assert answer.count(TEMPLATES["bytes"].eos_id) == 1
    # at the very end it is what the writer meant by it: EOS, once
    assert TEMPLATES["bytes"].response("a </s></s> ", ASKED) == TEMPLATES["bytes"].response("a", ASKED)
    assert TEMPLATES["bytes"].response("</s>", ASKED) == []


@pytest.mark.parametrize("name", ["llama 3", "chatml", "llama 2", "blank once"])
def test_the_way_around_spelled_tokens_leads_to_the_same_ids(name):
    template = TEMPLATES[name]
    rendered, _ = template._render([template._quoted(HISTORY)])[0]
    assert template._around_literals(rendered) == template.prompt(HISTORY)


def test_a_tokenizer_that_cannot_be_kept_from_special_tokens_is_noticed():
    template = Template(word_level(), "none")
    assert template.holds_special(template.response("the <eos> cat", ASKED)[:-1])
    assert not template.holds_special(template.response("the dog", ASKED)[:-1])


def test_refusals_and_bad_choices():
    with pytest.raises(TemplateRefusal, match="refuses this conversation: roles must alternate"):
        TEMPLATES["llama 2"].prompt((Message("user", "a"), Message("user", "b")))
    with pytest.raises(ValueError, match="data.template: wanted one of auto, chat, plain, none, got 'x'"):
        Template(TOKENIZERS["bytes"], "x")
    with pytest.raises(ValueError, match="data.template: 'chat' needs a tokenizer with a chat template"):
        Template(TOKENIZERS["bytes"], "chat")
    no_eos = byte_level()
    no_eos.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        Template(no_eos)
