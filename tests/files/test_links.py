"""Links that somebody has planted: nothing is written or deleted outside of a run's folder."""

import ast
import os
import shutil
from pathlib import Path

import pytest

from rto_fast.credit.__main__ import main as credit
from rto_fast.evaluate.__main__ import main as evaluate
from rto_fast.files import disk
from rto_fast.report.__main__ import main as report
from rto_fast.runs.folder import LOCK
from rto_fast.train import main
from tests.fuzz.place import base, contents, make_shared

ROOT = Path(__file__).parents[2]
PARTIAL = ".rto_fast-0123456789abcdef.partial"


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    return make_shared(tmp_path_factory.mktemp("links"))


@pytest.fixture
def run(shared, tmp_path) -> Path:
    """A finished run but for its last stage, and beside it a file and a folder of somebody else's."""
    run = tmp_path / "run"
    shutil.copytree(shared / "run", run)
    config = run / "config.toml"
    config.write_text(config.read_text().replace(str(shared / "run"), str(run)))
    shutil.rmtree(run / "rto")
    (tmp_path / "file").write_text("mine")
    for stage in ("sft", "rto", "answers", "step-00000001"):
        (tmp_path / "folder" / stage).mkdir(parents=True)
        (tmp_path / "folder" / stage / "notes").write_text("mine")
    return run


def others(run: Path) -> dict:
    return {name: held for name, held in contents(run.parent).items() if not name.startswith("run")}


NAMES = {
    "file": [
        *("config.toml.partial", "results.json.partial", "metrics.jsonl.partial", "metrics.jsonl", LOCK, "samples.md"),
        *("rto.bad-step.safetensors", PARTIAL, "tb/rto/events.out.tfevents.1"),
    ],
    "folder": ["rto.checkpoints", "rto.partial", "rto", "tb", "tb/rto", "task", "rto.checkpoints/step-00000001"],
}


@pytest.mark.parametrize("target, name", [(target, name) for target, names in NAMES.items() for name in names])
def test_a_run_writes_through_no_link(run, shared, target, name, capfd):
    link = run / name
    link.parent.mkdir(parents=True, exist_ok=True)
    disk.remove(link)
    link.symlink_to(run.parent / target)
    before = contents(run.parent)
    capfd.readouterr()
    assert main(base(shared, run)) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith(f"rto_fast: error: output: {link} is a link, ") and "remove it" in error
    assert contents(run.parent) == before
    link.unlink()
    assert main(base(shared, run)) == 0


@pytest.mark.parametrize("name", ["report.html.partial", "report.html"])
def test_a_report_replaces_a_link(run, name):
    (run / name).symlink_to(run.parent / "file")
    before = others(run)
    assert report([str(run)]) == 0
    assert others(run) == before
    assert (run / "report.html").is_file() and not (run / "report.html").is_symlink()


@pytest.mark.parametrize("name", ["heatmaps.json.partial", "heatmaps.json", "credit.html", "manifest.json"])
def test_credit_replaces_a_link(run, name):
    disk.remove(run / name)
    (run / name).symlink_to(run.parent / "file")
    before = others(run)
    assert credit(["--run", str(run), "--rows", "1"]) == 0
    assert others(run) == before


@pytest.mark.parametrize("name", ["evaluation", "evaluation/answers", "evaluation/implicit", "evaluation/judge.sqlite"])
def test_an_evaluation_writes_through_no_link(run, name, capfd):
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(run.parent / ("file" if name.endswith("sqlite") else "folder"))
    before = contents(run.parent)
    assert evaluate(["--run", str(run), "--num-prompts", "2"]) == 2
    assert f"output: {run / name} is a link" in capfd.readouterr().err
    assert contents(run.parent) == before


def test_an_output_that_the_user_names_may_be_a_link(shared, tmp_path):
    (tmp_path / "large-disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "large-disk")
    assert main(base(shared, tmp_path / "run")) == 0
    assert (tmp_path / "run").is_symlink() and (tmp_path / "large-disk" / "results.json").is_file()
    (tmp_path / "tables").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "tables")
    assert evaluate(["--run", str(tmp_path / "run"), "--num-prompts", "2", "--output", str(tmp_path / "link")]) == 0
    assert (tmp_path / "tables" / "results.json").is_file()


def test_what_stands_for_a_file_or_folder_until_it_is_whole_cannot_be_foreseen(tmp_path, monkeypatch):
    """Made with O_EXCL, so that a link of its name would be an error, and under another name each time."""
    opened, made = [], []
    original, mkdir = os.open, Path.mkdir

    def watched(path, flags, *rest, **more):
        opened.append((Path(path).name, flags)) if flags & os.O_CREAT else None
        return original(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", watched)
    monkeypatch.setattr(Path, "mkdir", lambda self, *a, **b: (made.append(self.name), mkdir(self, *a, **b)))
    for _ in range(2):
        disk.write_whole(tmp_path / "results.json", "x")
        with disk.new_folder(tmp_path / "sft"):
            pass
    assert len({name for name, _ in opened}) == 2 and all(flags & os.O_EXCL for _, flags in opened)
    folders = [name for name in made if name != tmp_path.name]
    assert len(set(folders)) == 2
    assert all(disk.is_partial(name) for name in (*folders, *(name for name, _ in opened)))


def test_a_links_target_stays_when_the_link_is_replaced_or_deleted(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "notes").write_text("mine")
    for name in ("file", "folder", "dangling", "gone"):
        (tmp_path / name).symlink_to({"file": kept / "notes", "dangling": tmp_path / "nowhere"}.get(name, kept))
    with pytest.raises(OSError):
        disk.appending(tmp_path / "file")
    disk.write_whole(tmp_path / "file", "new")
    with disk.new_folder(tmp_path / "folder") as partial:
        (partial / "inside").symlink_to(kept)
    disk.write_whole(tmp_path / "dangling", "new")
    disk.remove(tmp_path / "gone")
    disk.remove(tmp_path / "folder")
    assert not os.path.lexists(tmp_path / "gone") and not (tmp_path / "folder").exists()
    assert (tmp_path / "file").read_text() == (tmp_path / "dangling").read_text() == "new"
    assert not (tmp_path / "nowhere").exists() and contents(kept) == {"notes": b"mine"}


def test_no_device_is_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe could not be written .it is there and is no file"):
        disk.write_whole(tmp_path / "pipe", "x")
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1


class Killed(BaseException):
    """Nothing catches it, and nothing is cleaned up on its way."""


def test_what_a_killed_run_left_unfinished_goes_at_the_next_start(run, shared):
    strangers = [".rto_fast-0123.partial", "notes.partial", f"{PARTIAL}.txt"]
    for place in (run, run / "rto.checkpoints", run / "evaluation" / "answers"):
        place.mkdir(parents=True, exist_ok=True)
        (place / PARTIAL).write_text("half")
    (run / PARTIAL.replace("0", "f")).mkdir()
    (run / PARTIAL.replace("0", "f") / "model.safetensors").write_text("half")
    for name in strangers:
        (run / name).write_text("mine")
    assert main(base(shared, run)) == 0
    left = sorted(path.name for path in run.rglob("*") if ".partial" in path.name)
    assert left == sorted(strangers)


def test_a_run_that_died_at_its_first_file_goes_on(shared, tmp_path, monkeypatch):
    original = os.replace

    def die(source, target):
        if Path(target).name == "config.toml":
            raise Killed
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        patch.setattr(disk, "remove", lambda path: None)
        with pytest.raises(Killed):
            main(base(shared, tmp_path / "run"))
    left = [path.name for path in (tmp_path / "run").iterdir()]
    assert any(disk.is_partial(name) for name in left) and "config.toml" not in left
    assert main(base(shared, tmp_path / "run")) == 0
    assert not list((tmp_path / "run").glob("*.partial"))


def test_somebodys_partial_file_makes_no_run(shared, tmp_path, capfd):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.partial").write_text("mine")
    assert main(base(shared, tmp_path / "run")) == 2
    assert "is no run of rto_fast" in capfd.readouterr().err


MODULES = {"os": {"open", "remove", "unlink", "rename", "replace", "rmdir", "makedirs"}, "shutil": {"rmtree", "move"}}
INTO_NEW_FOLDERS = {"runs/export.py", "training/checkpoint.py", "tasks/quickstart/task.py"}
"""They write the files of a folder that `disk.new_folder` has made for them."""
ELSEWHERE = {"data/isolate.py", "files/regular.py", "files/unread.py", "theory/__main__.py"}
"""They open pipes, files to be read, and /dev/null."""


def writes(tree: ast.AST) -> list[str]:
    """Calls that write, rename or delete files."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, module = ast.unparse(node.func).rpartition(".")[::2][::-1]
        mode = [
            ast.literal_eval(a) for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant)
        ]
        plain = name == "open" and module not in ("os", "sqlite3")
        if module in MODULES:
            found += [f"{module}.{name}"] if name in MODULES[module] else []
        elif plain and any(isinstance(m, str) and set(m) & set("wax+") and len(m) < 4 for m in mode):
            found.append(ast.unparse(node))
        elif name in ("write_text", "write_bytes", "touch", "unlink", "rmdir", "rename", "symlink_to"):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", sorted(ROOT.glob("rto_fast/**/*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_written_in_one_place(path):
    name = str(path.relative_to(ROOT / "rto_fast"))
    if name != "files/disk.py" and name not in INTO_NEW_FOLDERS | ELSEWHERE:
        assert writes(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [*("path.write_text(x)", "path.open('a')", "open(path, mode='w')", "os.replace(a, b)", "shutil.rmtree(a)")],
)
def test_the_search_finds_them(line):
    assert writes(ast.parse(line))
