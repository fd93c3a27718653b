"""A run that loses rows says so loudly, and one that loses most of them does not start unasked."""

import json

import pytest

from rto_fast.config import DataConfig
from rto_fast.config.recipe import load_recipe
from rto_fast.data.__main__ import main as show
from rto_fast.data.corpus import Corpus, load_corpus
from rto_fast.train import main
from tests.data.tokenizers import byte_level
from tests.tiny_run import SETTINGS, write_model, write_pairs

LIMITS = {"template": "plain", "max_prompt": 40, "max_length": 60}
ANSWERS = {"path": ("chosen", "rejected"), "demonstrations": ("completion",), "prompts": ()}


def rows(name: str, fine: int, long: int = 0, blank: int = 0) -> list[dict[str, str]]:
    """Some that fit, some with an answer that does not, some without an answer (of prompts: without a prompt)."""
    answers = ANSWERS[name]
    kept = [{"prompt": f"q {i}"} | {a: f"{a} {i}" for a in answers} for i in range(fine)]
    kept += [{"prompt": f"long {i}"} | {a: a * 60 for a in answers} for i in range(long)]
    return kept + [{"prompt": f"blank {i}" if answers else " "} | dict.fromkeys(answers, " ") for i in range(blank)]


def load(folder, allow_dropped: bool = False, **files: list[dict]) -> Corpus:
    for name, content in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    paths = {name: str(folder / f"{name}.jsonl") for name in files}
    return load_corpus(DataConfig(**paths, held_out=0, allow_dropped=allow_dropped, **LIMITS), byte_level(), 0)


def test_a_tenth_is_a_note_and_more_is_a_warning(tmp_path):
    assert load(tmp_path, path=rows("path", 18, 1, 1)).warnings == []
    assert load(tmp_path, path=rows("path", 16, 2, 1)).warnings == [
        "data.path: 3 of 19 rows (16 %) are dropped: 2 response does not fit, 1 empty response; raise "
        "--data.max-length (now 60) as far as the model's context goes, or lower --data.max-prompt (now 40)"
    ]


@pytest.mark.parametrize("name", ANSWERS)
def test_more_than_half_is_refused_unless_it_is_allowed(tmp_path, name):
    good = {} if name == "prompts" else {"path": rows("path", 4)}
    load(tmp_path, **good | {name: rows(name, 4, blank=4)})
    lost = rf"data.{name}: 5 of 9 rows \(56 %\) are dropped: 5 empty \w+; "
    with pytest.raises(ValueError, match=rf"^{lost}accept it with --data.allow-dropped True$"):
        load(tmp_path, **good | {name: rows(name, 4, blank=5)})
    (said,) = load(tmp_path, allow_dropped=True, **good | {name: rows(name, 4, blank=5)}).warnings
    assert said.endswith("; python -m rto_fast.data shows what is left")


def test_rows_that_are_held_out_are_not_dropped(tmp_path):
    asked = [{"prompt": f"q {i}"} for i in range(9)]
    (tmp_path / "evaluation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (tmp_path / "path.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows("path", 10)))
    paths = {"path": str(tmp_path / "path.jsonl"), "evaluation": str(tmp_path / "evaluation.jsonl")}
    corpus = load_corpus(DataConfig(**paths, held_out=0, **LIMITS), byte_level(), 0)
    assert len(corpus.pairs) == 1 and corpus.warnings == []


def test_answers_that_share_nothing_are_refused_with_the_setting_to_change(tmp_path):
    answers = [{"asked": f"q {i}", "chosen": f"Yes, {i}.", "rejected": f"No, {i}."} for i in range(9)]
    shared = [{"asked": "q", "chosen": "Most are grey.", "rejected": "Most are brown."}]
    with pytest.raises(ValueError, match="9 no shared prompt; name the column of .* --data.columns prompt=YOURS"):
        load(tmp_path, path=answers + shared)


def test_a_run_says_it_at_its_start_and_at_its_end(tmp_path, capsys):
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    with pairs.open("a") as file:
        file.writelines(json.dumps({"prompt": f"{i}", "chosen": "", "rejected": "it"}) + "\n" for i in range(5))
    (tmp_path / "tiny.toml").write_text(SETTINGS)
    model = write_model(tmp_path / "model")
    words = ["--recipe", str(tmp_path / "tiny.toml"), "--model.path", str(model), "--data.path", str(pairs)]
    words += ["--stages", "sft", "--eval.prompts", "0", "--output", str(tmp_path / "run"), "--device", "cpu"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    said = "WARNING: data.path: 5 of 25 rows (20 %) are dropped: 5 empty response; "
    at = [i for i, line in enumerate(lines) if line.startswith(said)]
    assert len(at) == 2 and lines[at[1] + 1].startswith("Finished")
    assert show(["--path", str(pairs), "--model.path", str(model), "--data.max-length", "30", "--rows", "0"]) == 0
    assert "WARNING   data.path: 5 of 29 rows (17 %) are dropped" in capsys.readouterr().out


def test_recipes_that_drop_most_rows_on_purpose_say_so():
    assert load_recipe("hh_small").data.allow_dropped and load_recipe("hh_compare").data.allow_dropped
    assert not load_recipe("rto_v1_hh").data.allow_dropped
