"""Laws of reading: what is written is what is read, and whatever is read is rows or a ValueError of one line."""

import json
import tempfile
import tomllib
from pathlib import Path

import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from rto_fast.config import Config
from rto_fast.config.recipe import build, plain
from rto_fast.data.encode import encode_pairs
from rto_fast.data.read import read_rows
from rto_fast.data.rows import to_demonstrations, to_pairs, to_prompts
from rto_fast.data.template import Template
from rto_fast.files.text import is_unicode, one_line
from tests.data.tokenizers import byte_level
from tests.fuzz.laws import SEEDS, thorough

FOLDER = tempfile.TemporaryDirectory()
FILE = Path(FOLDER.name) / "rows.jsonl"
TEXT = st.text(max_size=8)
LEAVES = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    LEAVES | TEXT, lambda x: st.lists(x, max_size=3) | st.dictionaries(TEXT, x, max_size=3), max_leaves=3
)
COLUMNS = st.sampled_from(["prompt", "chosen", "rejected", "completion", "messages", "text"])
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "x"]), "content": TEXT}), max_size=3
)
DIALOGUES = st.sampled_from(["\n\nHuman: a\n\nAssistant: ", "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"])
CELLS = TEXT | MESSAGES | VALUES | st.builds(str.__add__, DIALOGUES, TEXT)


@given(st.lists(st.dictionaries(TEXT, VALUES, max_size=3), min_size=1, max_size=3), st.booleans())
@thorough
def test_rows_come_back_as_they_were_written(rows, escaped):
    lines = "\n".join(json.dumps(row, ensure_ascii=escaped) for row in rows)
    FILE.write_bytes(lines.encode("utf-8"))
    assert read_rows(FILE) == rows


@given(
    st.binary(max_size=40) | st.text(alphabet='{}[]":,0123456789.eE-NaInfty tru\\u d8\n', max_size=40).map(str.encode)
)
@thorough
def test_any_bytes_are_rows_or_one_line(data):
    FILE.write_bytes(data)
    try:
        rows = read_rows(FILE)
    except ValueError as error:
        assert "\n" not in str(error) and str(FILE) in str(error)
    else:
        assert rows and all(isinstance(row, dict) for row in rows)


@given(st.lists(st.dictionaries(COLUMNS, CELLS, min_size=1, max_size=3), min_size=1, max_size=3))
@thorough
def test_any_rows_are_counted_or_one_line(rows):
    for normalise in (to_pairs, to_prompts, to_demonstrations):
        try:
            found = normalise(rows)
        except ValueError as error:
            assert "data" in str(error) and "\n" not in one_line(error)
            continue
        assert len(found.items) == len(found.rows) == len(rows) - sum(found.dropped.values())
        assert all(is_unicode(m.content) for item in found.items for m in item.prompt)


TOKENIZER = byte_level(adds="bos eos")
TEMPLATES = {style: Template(TOKENIZER, style) for style in ("plain", "none")}


@given(st.sampled_from(["plain", "none"]), TEXT, TEXT, TEXT, st.integers(2, 40))
@thorough
def test_an_encoded_pair_fits_begins_and_ends(style, prompt, chosen, rejected, max_length):
    template = TEMPLATES[style]
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    rows = to_pairs([{"prompt": prompt, "chosen": chosen, "rejected": rejected}, good]).items
    try:
        items, report = encode_pairs(rows, template, max_length=max_length)
    except ValueError as error:
        assert "data: none of the" in str(error)
        return
    assert len(items) == len(report.kept) == len(rows) - sum(report.dropped.values())
    for item in items:
        assert item.prompt.count(template.bos_id) == 1 and item.prompt[0] == template.bos_id
        assert len(item.prompt) <= max(1, max_length // 2)
        for response in (item.chosen, item.rejected):
            assert response.index(template.eos_id) == len(response) - 1
            assert len(item.prompt) + len(response) <= max_length


KEYS = st.sampled_from(["seed", "stages", "rto", "reward", "data", "optim", "lr", "betas", "columns", "path", "clip"])
NUMBERS = st.integers() | st.floats() | st.booleans()
SETTINGS = st.recursive(NUMBERS | TEXT | st.lists(NUMBERS, max_size=2), lambda x: st.dictionaries(KEYS, x, max_size=2))


@given(st.dictionaries(KEYS, SETTINGS, max_size=3))
@thorough
def test_any_settings_are_a_configuration_or_name_their_key(values):
    try:
        config = build(Config, values, "recipe x")
    except ValueError as error:
        assert str(error).startswith("recipe x: ")
    else:
        assert build(Config, tomllib.loads(tomli_w.dumps(plain(config))), "again") == config


@given(st.text() | st.text(alphabet="\x1b[2J\n\r\u2028\ud800ab"), SEEDS.map(lambda s: 20 + s % 50))
@thorough
def test_what_is_printed_is_one_line_that_drives_no_terminal(text, limit):
    line = one_line(text, limit)
    assert line.isprintable() and line.splitlines() in ([], [line]) and len(line) <= limit + 5
