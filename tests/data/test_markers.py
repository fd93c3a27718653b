"""Texts that were templated before: refused where they would be again, and read to the same ids where that is asked."""

import json

import pytest

from rto_fast.config import DataConfig
from rto_fast.data.__main__ import main as show
from rto_fast.data.corpus import Corpus, load_corpus
from rto_fast.data.parse import Message
from rto_fast.data.template import Template
from tests.data.tokenizers import CHATML, LLAMA2, LLAMA3, byte_level, sentencepiece_style

TURNS = [("user", "the cat?"), ("assistant", "the mat"), ("user", "no, the"), ("assistant", "a hat.")]
MESSAGES = [{"role": role, "content": content} for role, content in TURNS]
TOKENIZERS = {
    "chatml, no BOS": lambda: byte_level(template=CHATML, bos=None),
    "chatml, a BOS that nothing writes": lambda: byte_level(template=CHATML),
    "chatml, a BOS that the tokenizer writes": lambda: byte_level(template=CHATML, adds="bos"),
    "llama 3, a BOS that the template writes": lambda: byte_level(template=LLAMA3),
    "llama 2": lambda: sentencepiece_style(template=LLAMA2),
    "llama 2, one blank": lambda: sentencepiece_style(template=LLAMA2, once=True),
}


def rendered(tokenizer, count: int) -> tuple[str, str]:
    """The prompt of `count` turns as the chat template writes it, and what it writes for the answer."""
    prompt = tokenizer.apply_chat_template(MESSAGES[: count - 1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(MESSAGES[:count], tokenize=False)
    assert whole.startswith(prompt)
    return prompt, whole.removeprefix(prompt)


def load(folder, tokenizer, rows: list[dict], **settings) -> Corpus:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(path=str(folder / "rows.jsonl"), held_out=0, max_prompt=200, max_length=400, **settings)
    return load_corpus(data, tokenizer, 0)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_parsed_texts_have_the_ids_of_the_template(tmp_path, name):
    tokenizer = TOKENIZERS[name]()
    texts, messages = [], []
    for count in (2, 4):
        prompt, answer = rendered(tokenizer, count)
        texts.append({"prompt": prompt, "chosen": answer, "rejected": answer.replace("at", "it")})
        answer = MESSAGES[count - 1]["content"]
        asked = MESSAGES[: count - 1]
        messages.append({"prompt": asked, "chosen": answer, "rejected": answer.replace("at", "it")})
    wanted = load(tmp_path, tokenizer, messages, template="chat")
    got = load(tmp_path, tokenizer, texts, template="none", parse_special=True)
    assert got.pairs == wanted.pairs and got.eos_token_ids == wanted.eos_token_ids and got.warnings == []
    assert len(got.pairs) == 2 and got.pairs[0].chosen[-1] == wanted.eos_token_ids[0]
    # without it they are the tokens' characters, and a line says so
    letters = load(tmp_path, tokenizer, texts, template="none")
    assert letters.pairs[0].prompt != wanted.pairs[0].prompt
    if "llama 2" not in name:
        assert letters.warnings == [
            "data.path: 2 of 2 rows spell out special tokens, which are read as text; --data.parse-special True reads "
            "them as tokens, for data that you trust"
        ]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_templated_prompts_are_not_templated_again(tmp_path, name):
    tokenizer = TOKENIZERS[name]()
    prompt, _ = rendered(tokenizer, 2)
    rows = [{"prompt": prompt, "chosen": "a", "rejected": "the"}] * 3
    rows += [{"prompt": "the cat", "chosen": "a", "rejected": "the"}]
    wanted = (
        "^data.path: 3 of 4 prompts hold .* already, and template 'chat' is put around them once more; give messages"
    )
    for trusted in (False, True):
        with pytest.raises(ValueError, match=wanted):
            load(tmp_path, tokenizer, rows, parse_special=trusted)
    (said,) = load(tmp_path, tokenizer, [*rows, *rows[3:] * 2]).warnings
    assert said.startswith("data.path: 3 of 6 prompts hold ")


def test_marks_of_another_models_template_are_known(tmp_path):
    rows = [{"prompt": f"<|im_start|>user\n{i}<|im_end|>\n", "chosen": "a", "rejected": "the"} for i in range(3)]
    with pytest.raises(ValueError, match="3 of 3 prompts hold '<|im_start|>' already, and template 'plain'"):
        load(tmp_path, byte_level(), rows)


def test_special_tokens_in_data_are_text_unless_they_are_trusted():
    tokenizer = byte_level(template=LLAMA3)
    asked = (Message("user", "a<|eot|>b"),)
    eot = tokenizer.convert_tokens_to_ids("<|eot|>")
    assert Template(tokenizer).prompt(asked).count(eot) == 1
    trusting = Template(tokenizer, parse_special=True)
    assert trusting.prompt(asked).count(eot) == 2
    assert trusting.response("x<|start|>y", asked).count(tokenizer.convert_tokens_to_ids("<|start|>")) == 1
    # what ends an answer still ends it
    assert not trusting.holds_special(trusting.response("x<|start|>y", asked)[:-1])
    assert trusting.holds_special(trusting.response("x<|eot|>y", asked)[:-1])


def test_eos_at_the_end_of_an_answer_is_no_cause_to_warn(tmp_path):
    rows = [{"prompt": f"q {i}", "chosen": "a</s>", "rejected": "the </s>"} for i in range(3)]
    assert load(tmp_path, byte_level(), rows).warnings == []


def test_the_command_shows_it(tmp_path, capsys):
    byte_level(template=CHATML).save_pretrained(tmp_path / "model")
    prompt, answer = rendered(byte_level(template=CHATML), 2)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": prompt, "chosen": answer, "rejected": "a"}) + "\n")
    words = ["--path", str(tmp_path / "rows.jsonl"), "--model.path", str(tmp_path / "model")]
    assert show(words) == 0
    assert "WARNING   data.path: 1 of 1 prompts hold '<|eot|>\\n<|start|>assistant' already" in capsys.readouterr().out
    assert show([*words, "--template", "none", "--data.parse-special", "True"]) == 0
    out = capsys.readouterr().out
    assert "WARNING" not in out and "rows that spell out a special token, parsed: 1" in out
    assert r"0 |<\|start\|>|u|s|e|r|\n|t|he|" in out
