"""The judge against a real server of real models: `transformers serve`, offline, on this machine."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from rto_fast.evaluate.__main__ import main
from tests.evaluate.runs import write_run
from tests.judges.tiny_judge import REPLY, write_judge
from tests.tiny import SHARED

COMMAND = Path(sys.executable).with_name("transformers")
MISSING = [name for name in ("openai", "fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.rest,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: pip install openai 'transformers[serving]'"),
]


@contextmanager
def serve(model: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [COMMAND, "serve", str(model), "--host", "127.0.0.1", "--port", str(port)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                assert process.poll() is None, process.stderr.read()[-2000:]
                time.sleep(0.25)
        else:
            pytest.fail("transformers serve did not start within a minute")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.communicate()


def command(folder: Path, url: str, model: Path, *more: str) -> list[str]:
    llm = ["--judge", "llm", "--llm.url", url, "--llm.model", str(model), "--llm.concurrency", "2", *more]
    return [
        "--run",
        str(folder / "run"),
        "--output",
        str(folder / "out"),
        "--device",
        "cpu",
        "--num-prompts",
        "12",
        *llm,
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    write_run(tmp_path / "run", ("sft", "dpo"))
    return tmp_path


def test_a_judge_that_always_says_a_is_undone_by_the_random_order(folder, capsys):
    judge = write_judge(folder / "judge")
    with serve(judge) as url:
        assert main(command(folder, url, judge)) == 0
    said = capsys.readouterr().out
    assert "the first answer was preferred in 100 %" in said
    counts = json.loads((folder / "out/results.json").read_text())["judgements"]
    assert counts["judged"] + counts["identical"] == 12 and counts["unparseable"] == counts["failed"] == 0
    records = [json.loads(line) for line in (folder / "out/judgements.jsonl").read_text().splitlines()]
    assert {r["reply"] for r in records} == {REPLY}
    assert {r["verdict"] for r in records} == {"sft", "dpo"} and all(r["verdict"] == r["first"] for r in records)
    # the server is gone, and nothing has to be asked
    assert main(command(folder, url, judge)) == 0
    assert json.loads((folder / "out/results.json").read_text())["judgements"]["cached"] == counts["judged"]


def test_a_model_that_tells_stories_is_no_judge(folder, capsys):
    source = SHARED / "models/stories260K"
    if not source.is_dir():
        pytest.skip("the stories260K model is not on this machine")
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    tokenizer.save_pretrained(folder / "stories")
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(folder / "stories")
    with serve(folder / "stories") as url:
        assert main(command(folder, url, folder / "stories", "--llm.max-tokens", "24")) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "got a verdict" in error and "replies name no winner and 0 questions failed" in error
        # a model that the server does not have
        assert main(command(folder, url, folder / "no-such-model")) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("rto_fast: error: judge: none of ") and "e.g. status 4" in error
