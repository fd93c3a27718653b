"""A run goes on only with the data, tokenizer and models that it began with; what changed is named before a step."""

import gzip
import json
import os
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from rto_fast.config import Config, DPOConfig, ModelConfig, SFTConfig
from rto_fast.files import digests
from rto_fast.runs import inputs
from rto_fast.train import main
from tests.fuzz.place import contents
from tests.tiny_run import SETTINGS, WORDS, write_model, write_pairs

SOURCES = ("pairs", "demonstrations", "prompts", "evaluation")


@pytest.fixture(scope="module")
def began(tmp_path_factory) -> Path:
    """A run that has finished its first stage, with every input that there is."""
    folder = tmp_path_factory.mktemp("began")
    write_model(folder / "model")
    write_model(folder / "tuned")
    write_pairs(folder / "pairs.jsonl")
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    write(folder / "demonstrations.jsonl", [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows])
    write(folder / "prompts.jsonl", [{"prompt": f"{r['prompt']} {w}"} for r in rows for w in ("so", "well")])
    write(folder / "evaluation.jsonl", [{"prompt": f"what is {word}"} for word in WORDS[4:]])
    (folder / "tiny.toml").write_text(SETTINGS)
    assert main(words(folder, "--stages", "sft", "--eval.prompts", "0")) == 0
    return folder


def write(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def words(folder: Path, *more: str) -> list[str]:
    paths = {"--recipe": "tiny.toml", "--model.path": "model", "--output": "run", "--dpo.model": "tuned"}
    paths |= {f"--data.{'path' if name == 'pairs' else name}": f"{name}.jsonl" for name in SOURCES}
    flags = [word for flag, name in paths.items() for word in (flag, str(folder / name))]
    return [*flags, "--device", "cpu", "--eval.prompts", "0", *more]


@pytest.fixture
def place(began, tmp_path) -> Path:
    """The same again, its paths those of a folder that a test may change."""
    shutil.copytree(began, tmp_path / "own")
    settings = tmp_path / "own" / "run" / "config.toml"
    settings.write_text(settings.read_text().replace(str(began), str(tmp_path / "own")))
    return tmp_path / "own"


def lines(change):
    def act(file: Path) -> None:
        file.write_text("".join(change(file.read_text().splitlines(keepends=True))))

    return act


def swapped(file: Path) -> None:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    write(file, [{**r, "chosen": r["rejected"], "rejected": r["chosen"]} for r in rows])


def permuted(file: Path) -> None:
    tokenizer = json.loads(file.read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["cat"], vocab["dog"] = vocab["dog"], vocab["cat"]
    file.write_text(json.dumps(tokenizer))


def nudged(file: Path) -> None:
    """One bit of one weight; size and dates stay."""
    about = file.stat()
    weights = load_file(file)
    next(iter(weights.values())).view(torch.int32)[0, 0] ^= 1
    save_file(weights, file, {"format": "pt"})
    assert file.stat().st_size == about.st_size
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))


def raised(name: str, value):
    return lambda file: file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))


CHANGES = {
    "a row removed": ("pairs.jsonl", lines(lambda rows: rows[1:]), "data.path: pairs.jsonl"),
    "rows reversed": ("pairs.jsonl", lines(lambda rows: rows[::-1]), "data.path: pairs.jsonl"),
    "halved": ("pairs.jsonl", lines(lambda rows: rows[::2]), "data.path: pairs.jsonl"),
    "a row more": ("pairs.jsonl", lines(lambda rows: [*rows, rows[0]]), "data.path: pairs.jsonl"),
    "labels swapped": ("pairs.jsonl", swapped, "data.path: pairs.jsonl"),
    "demonstrations": (
        "demonstrations.jsonl",
        lines(lambda rows: rows[:-1]),
        "data.demonstrations: demonstrations.jsonl",
    ),
    "prompts": ("prompts.jsonl", lines(lambda rows: rows[::-1]), "data.prompts: prompts.jsonl"),
    "evaluation": ("evaluation.jsonl", lines(lambda rows: rows[1:]), "data.evaluation: evaluation.jsonl"),
    "tokenizer permuted": ("model/tokenizer.json", permuted, "model.path: tokenizer.json"),
    "EOS": ("model/tokenizer_config.json", raised("eos_token", "<pad>"), "model.path: tokenizer_config.json"),
    "a template": ("model/chat_template.jinja", lambda f: f.write_text("{{ 1 }}"), "model.path: chat_template.jinja"),
    "a weight": ("model/model.safetensors", nudged, "model.path: model.safetensors"),
    "the architecture": ("model/config.json", raised("rms_norm_eps", 1e-3), "model.path: config.json"),
    "a given stage": ("tuned/model.safetensors", nudged, "dpo.model: model.safetensors"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changed_is_named_before_anything_is_done(name, place, capsys):
    file, change, says = CHANGES[name]
    before = (place / file).read_bytes() if (place / file).exists() else None
    change(place / file)
    held = contents(place / "run")
    capsys.readouterr()
    for more in ((), ("--preflight-only",)):
        assert main(words(place, *more)) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"rto_fast: error: {says} is not what this run began with (" in error
        assert "name another folder with --output" in error
    assert contents(place / "run") == held
    (place / file).unlink() if before is None else (place / file).write_bytes(before)
    assert main(words(place, "--stages", "sft")) == 0


def test_what_is_not_read_may_change(place, capsys):
    """Rows beyond data.max_rows, another file of the model's folder, the data packed or dated differently."""
    few = ("--data.max-rows", "12", "--output", str(place / "few"), "--stages", "sft")
    assert main(words(place, *few)) == 0
    lines(lambda rows: [*rows[:12], rows[3]])(place / "pairs.jsonl")
    (place / "model" / "README.md").write_text("about this model")
    (place / "prompts.jsonl").touch()
    assert main(words(place, *few)) == 0
    lines(lambda rows: rows[1:])(place / "pairs.jsonl")
    assert main(words(place, *few)) == 2


def test_before_anything_is_trained_all_may_change(place, capsys):
    """A damaged model is found when its stage begins; a good copy in its place goes on."""
    own = ("--sft.model", str(place / "sft"), "--stages", "sft", "dpo", "rto", "--output", str(place / "damaged"))
    shutil.copytree(place / "tuned", place / "sft")
    good = (place / "sft" / "model.safetensors").read_bytes()
    (place / "sft" / "model.safetensors").write_bytes(good[:-1])
    assert main(words(place, *own)) == 2
    assert "safetensors" in capsys.readouterr().err and (place / "damaged" / "inputs.json").exists()
    (place / "sft" / "model.safetensors").write_bytes(good)
    assert main(words(place, *own)) == 0


def test_every_file_of_a_folder_of_data_is_known(place, capsys):
    data, rows = place / "data", (place / "pairs.jsonl").read_bytes().splitlines(keepends=True)
    data.mkdir()
    (data / "train-0.jsonl").write_bytes(b"".join(rows[:8]))
    (data / "train-1.jsonl.gz").write_bytes(gzip.compress(b"".join(rows[8:])))
    own = ("--data.path", str(data), "--output", str(place / "parts"), "--stages", "sft")
    assert main(words(place, *own)) == 0
    (data / "train-1.jsonl.gz").write_bytes(gzip.compress(b"".join(rows[8:]), 1))
    assert main(words(place, *own)) == 0
    (data / "train-1.jsonl.gz").write_bytes(gzip.compress(b"".join(rows[9:])))
    capsys.readouterr()
    assert main(words(place, *own)) == 2
    assert "data.path: train-1.jsonl.gz is not what this run began with (16 rows" in capsys.readouterr().err


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> list[str]:
    """The command of a run of the quickstart that has ended."""
    small = ("--stages", "sft", "--sft.epochs", "0.002", "--eval.prompts", "0", "--sweep.ratios", "--sweep.clips")
    command = [*small, "--output", str(tmp_path_factory.mktemp("quickstart") / "run"), "--device", "cpu"]
    assert main(command) == 0
    return command


@pytest.mark.parametrize(
    "file, field, change",
    [
        ("pairs.jsonl", "data.path", lines(lambda rows: rows[::-1])),
        ("eval.jsonl", "data.evaluation", lines(lambda rows: rows[::-1])),
        ("model/model.safetensors", "model.path", nudged),
    ],
    ids=["pairs", "evaluation", "model"],
)
def test_the_quickstarts_own_files_count(quickstart, capsys, file, field, change):
    path = Path(quickstart[quickstart.index("--output") + 1]) / "task" / file
    before = path.read_bytes()
    change(path)
    capsys.readouterr()
    assert main(quickstart) == 2 and f"{field}: {path.name} is not what" in capsys.readouterr().err
    path.write_bytes(before)


def test_a_folder_of_an_older_version_takes_what_is_there(place, capsys):
    record = (place / "run" / "inputs.json").read_bytes()
    (place / "run" / "inputs.json").unlink()
    capsys.readouterr()
    assert main(words(place, "--stages", "sft")) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "inputs.json" in line]
    assert len(said) == 1 and "an older version began it" in said[0]
    assert (place / "run" / "inputs.json").read_bytes() == record
    assert main(words(place, "--stages", "sft")) == 0
    assert "inputs.json" not in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"inputs": {"data.path": 5}, "made_with": {}}'])
def test_a_damaged_record_is_one_sentence(content, place, capsys):
    (place / "run" / "inputs.json").write_text(content)
    capsys.readouterr()
    assert main(words(place)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "inputs.json" in error


def test_another_order_of_sums_is_said_once(place, capsys, monkeypatch):
    def lines_of(*more: str) -> list[str]:
        capsys.readouterr()
        assert main(words(place, "--stages", "sft", *more)) == 0
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("Until now")]

    assert lines_of() == []
    said = lines_of("--microbatch-rows", "40")
    assert len(said) == 1 and "made with microbatch_rows 16384, now 40: " in said[0] and "last bits" in said[0]
    assert lines_of("--microbatch-rows", "40") == []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert "threads 1, now 7: " in lines_of("--microbatch-rows", "40")[0]


def test_a_hub_ids_files_are_known_by_their_content(tmp_path, monkeypatch):
    """A cache as the hub's client leaves it."""
    repo = tmp_path / "models--somebody--tiny"
    write_model(repo / "snapshots" / "abc")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    config = Config(model=ModelConfig(path="somebody/tiny"))
    before = inputs.of_models(config, print)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(before["model.path"])
    nudged(repo / "snapshots" / "abc" / "model.safetensors")
    with pytest.raises(ValueError, match="model.path: model.safetensors is not what this run began with"):
        inputs.check({"inputs": before}, inputs.of_models(config, print))
    with pytest.raises(ValueError, match="^model.path: "):
        inputs.of_models(Config(model=ModelConfig(path="somebody/else")), print)


def test_a_file_is_read_once(tmp_path, monkeypatch):
    """A model of three fields, and a second look."""
    model, read = write_model(tmp_path / "model"), []
    original = digests.hashlib.file_digest
    monkeypatch.setattr(
        digests.hashlib, "file_digest", lambda file, kind: (read.append(file.name), original(file, kind))[1]
    )
    config = Config(
        model=ModelConfig(path=str(model)), sft=SFTConfig(model=str(model)), dpo=DPOConfig(model=str(model))
    )
    inputs.of_models(config, print)
    inputs.of_models(config, print)
    assert len(read) == len(set(read)) == 5
