"""The page as a file: whole, self-contained, safe whatever a run holds; and the command that writes it."""

import json
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rto_fast.report import write_report
from rto_fast.report.__main__ import main
from rto_fast.report.page import default_output
from tests.report.made_up import HOSTILE, make_run

VOID = {"meta", "link", "br", "wbr", "img", "input"}


class Page(HTMLParser):
    """Sections, tags and nesting of a page."""

    def __init__(self, source: str):
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.scripts = 0
        self.words = ""
        self.feed(source)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        names = dict(attrs)
        assert not any(name.startswith("on") for name in names), (tag, attrs)
        self.tags.add(tag)
        self.scripts += tag == "script"
        if "id" in names:
            self.ids.append(names["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag == "path"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closes something else"

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words += data


def read(path: Path) -> Page:
    page = Page(path.read_text(encoding="utf-8"))
    assert page.scripts == 1 and "img" not in page.tags and "iframe" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    return page


def test_three_seeds_of_every_algorithm(tmp_path: Path):
    folders = [make_run(tmp_path / f"seed-{s}", seed=s) for s in range(3)]
    page = read(write_report(folders, tmp_path / "report.html"))
    sections = [i for i in page.ids if "-h" not in i and i not in ("main", "theme")]
    assert sections == "runs results wins curves frontier reward length dpo credit samples costs".split()
    for words in ("Mean over 3 seeds; band: lowest to highest seed.", "Rollouts to catch up", "Full colour at"):
        assert words in page.words
    assert "missing" not in page.words


def test_the_page_asks_the_network_for_nothing(tmp_path: Path):
    source = write_report([make_run(tmp_path / "run")], tmp_path / "a.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in source and not re.search(r"https?:|//[a-z]|@import|url\(", source)


def test_a_wheel_holds_the_style_and_the_script():
    root = Path(__file__).parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["rto_fast"]
    for file in (root / "rto_fast" / "report").iterdir():
        if file.is_file() and file.suffix != ".py":
            assert any(file.relative_to(root / "rto_fast").match(pattern) for pattern in patterns), file


def test_nothing_but_one_file_is_asked_for(tmp_path: Path):
    (tmp_path / "results.json").write_text("{}")
    page = read(write_report([tmp_path], tmp_path / "report.html"))
    for words in (
        "results.json holds no policies",
        "results.json holds no win rates",
        "there are no learning curves",
        "Neither results.json nor metrics.jsonl holds a KL beside a reward",
        "holds no reward/…_share",
        "holds no answers/length",
        "holds no lines of a dpo stage",
        "heatmaps.json is missing or empty",
        "answers.jsonl is missing or empty",
        "metrics.jsonl holds no stages",
        "config.toml is missing",
    ):
        assert words in page.words


def test_whatever_a_run_holds_stays_text(tmp_path: Path):
    run = make_run(tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    results["policies"][HOSTILE] = results["policies"]["rto"] | {HOSTILE: {"mean": 1, "ci95": 1}}
    results["win_rate"][HOSTILE] = {"rto": {"mean": 0.5, "ci95": 0.1}}
    results["judge"] = HOSTILE
    results["sweep"] = [{"ratio": HOSTILE, "clip": [HOSTILE], "kl": {"mean": 1, "ci95": 1}}, HOSTILE]
    (run / "results.json").write_text(json.dumps(results))
    with (run / "metrics.jsonl").open("a") as file:
        for i in (1, 2):
            line = {"stage": HOSTILE, "step": i, "iteration": i, "judge/return": 1e29, "kl/per_answer": -1e29}
            file.write(json.dumps(line | {"reward/kl_share": i, "seconds": -(10**400), "answers/length": i}) + "\n")
    with (run / "answers.jsonl").open("a") as file:
        odd = {"prompt": HOSTILE, "policy": HOSTILE, "response": HOSTILE + "y" * 2_000_000, "finish": {}, "judged": "x"}
        file.write(json.dumps({"index": HOSTILE, **odd}) + "\n")
        file.write(json.dumps({"index": [[]], "response": 3}) + "\n{}\n")
    maps = [{"title": HOSTILE, "prompt": HOSTILE, "tokens": [HOSTILE, "\n"], "rewards": [1, -1], "signs": [1, -1]}]
    maps += [{}, {"tokens": ["a"], "rewards": [None]}, {"tokens": "abc", "rewards": [1, 2, 3]}]
    (run / "heatmaps.json").write_text(json.dumps(maps))
    (run / "config.toml").write_text("recipe = '<script>alert(3)</script>'\nseed = 0\n['\"<b>\"']\nx = '</style>'\n")
    out = write_report([run], tmp_path / "report.html")
    page = read(out)
    assert "alert(2)" in page.words and "<script>alert(3)" in page.words
    assert "(1,999,9" not in page.words and "more characters)" in page.words
    assert "3 heat maps of another shape left out" in page.words
    assert out.stat().st_size < 400_000


def test_an_evaluation_of_its_own_is_a_run_too(tmp_path: Path):
    wins = {"a": {"b": {"mean": 0.75, "ci95": 0.1}}, "b": {"a": {"mean": 0.25, "ci95": 0.1}}}
    judgements = {"model": "<judge>", "prompt": "table6", "unparseable": 3, "more": []}
    results = {"recipe": "evaluate", "win_rate": wins, "length_controlled": wins, "judge": "llm"}
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "results.json").write_text(json.dumps(results | {"judgements": judgements}))
    make_run(tmp_path / "run", seed=0)
    page = read(write_report([tmp_path / "evaluation", tmp_path / "run"], tmp_path / "r.html"))
    assert "Judged by an LLM judge (model <judge>, prompt table6, unparseable 3)" in page.words
    assert "At equal length" in page.words and "A: evaluate" in page.words


def test_broken_lines_are_said(tmp_path: Path):
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "rto", "step\n')
    assert "metrics.jsonl: 1 broken line was passed over" in read(write_report([run], tmp_path / "r.html")).words


def test_seeds_that_are_still_going_are_told_from_those_that_are_done(tmp_path: Path):
    done, going = (make_run(tmp_path / f"seed-{s}", seed=s) for s in (0, 1))
    lines = (going / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["stage"] != "rto"][:-150]
    (going / "metrics.jsonl").write_text("".join(kept))
    (going / "results.json").unlink()
    words = read(write_report([done, going], tmp_path / "r.html")).words
    assert "not finished" in words and "1 of 2 seeds has been evaluated" in words
    assert "Mean over 1 to 2 seeds" in words and "Seeds that have not got as far are left out." in words
    assert "results.json is missing" in words


@pytest.mark.parametrize("cut", range(0, 9000, 450))
def test_a_run_that_is_still_going_has_a_report(tmp_path: Path, cut: int):
    run = make_run(tmp_path / "run", iterations=3, members=("ppo", "rto"))
    data = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(data[-9000:][cut:])
    for name in ("results.json", "answers.jsonl", "heatmaps.json")[: cut % 4]:
        (run / name).unlink()
    read(write_report([run], tmp_path / "r.html"))


def test_several_configurations_are_told_apart(tmp_path: Path):
    a, b = make_run(tmp_path / "a", members=("ppo", "rto")), make_run(tmp_path / "b", iterations=9, members=("rto",))
    words = read(write_report([a, b], tmp_path / "r.html")).words
    assert "rto.iterations" in words and "A: compare" in words and "rto B" in words


def test_more_algorithms_than_can_be_told_apart_are_left_out(tmp_path: Path):
    runs = [make_run(tmp_path / name, recipe=name) for name in ("a", "b", "c")]
    page = read(write_report(runs, tmp_path / "report.html"))
    assert "Only the first 14 are drawn." in page.words and "During training: Return" in page.words


def run_command(*args: object) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "rto_fast.report", *map(str, args)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_writes_beside_the_run_or_above_the_runs(tmp_path: Path):
    for seed in (0, 1):
        make_run(tmp_path / f"seed-{seed}", seed=seed)
    assert run_command(tmp_path / "seed-0") == (0, f"{tmp_path / 'seed-0' / 'report.html'}\n", "")
    assert default_output([tmp_path / "seed-0", tmp_path / "seed-1"]) == tmp_path / "report.html"
    (tmp_path / "config.toml").write_text("recipe = 'compare'\n")  # a comparison's own folder
    assert run_command(tmp_path)[:2] == (0, f"{tmp_path / 'report.html'}\n")
    assert "seeds 0, 1" in read(tmp_path / "report.html").words
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    "args, why",
    [
        ([], "name at least one run folder"),
        (["nowhere"], "nowhere is not there"),
        (["folder.html"], "is no run of rto_fast: it holds none of config.toml, metrics.jsonl, results.json"),
        (["run", "--output", "page.txt"], "output must be named .html, got page.txt"),
        (["run", "--output", "folder.html"], "output must be a file, folder.html is a folder"),
        (["run", "--output", "run/config.toml/r.html"], "Not a directory|File exists"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, monkeypatch, capsys, args: list[str], why: str):
    make_run(tmp_path / "run")
    (tmp_path / "folder.html").mkdir()
    monkeypatch.chdir(tmp_path)
    status = main(args)
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("rto_fast: error: ") and re.search(why, err)
