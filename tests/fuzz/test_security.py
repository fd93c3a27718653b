"""What SECURITY.md says is never done is nowhere in the sources, and what it says is hidden is hidden."""

import ast
import os
import time
import tomllib
from pathlib import Path

import pytest

from rto_fast.config import Config
from rto_fast.config.recipe import build, plain
from rto_fast.files.foreign import MAX_JSON_BYTES
from rto_fast.files.text import one_line, without_secrets
from rto_fast.runs.folder import check, claim
from rto_fast.train import main

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("rto_fast/**/*.py"), *ROOT.glob("kernels/**/*.py")])
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml", "code", "pty"}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {"torch.load", "os.system", "os.popen", "yaml.load", "numpy.load", "np.load", "pickle.load", "pickle.loads"}


def offences(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES and not node.level:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name in CALLS or (name in METHODS and options.get("weights_only") != "True"):
                found.append(name)
            if options.get("shell") == "True" or options.get("trust_remote_code") == "True":
                found.append(f"{name} with {options}")
            # what is not said is asked of the user, or taken from a configuration
            if name.startswith("Auto") and name.endswith(".from_pretrained"):
                if "trust_remote_code" not in options and None not in options:
                    found.append(f"{name} without trust_remote_code")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_forbidden_is_called(path):
    assert offences(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import yaml.reader",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "eval(text)",
        "exec(text)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "AutoModel.from_pretrained(path)",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=True)",
    ],
)
def test_the_search_finds_them(line):
    assert offences(ast.parse(line))


def test_the_search_lets_the_rest_be():
    fine = "model.eval(); re.compile(x); torch.load(p, weights_only=True); AutoModel.from_pretrained(**options)"
    assert offences(ast.parse(fine)) == []


SECRET = "http://name:pa%40ss@word@host.example:8000/score?key=hunter2&x=1"


def test_secrets_are_hidden():
    hidden = without_secrets(f"asked {SECRET} and '{SECRET}' and http://host/path?a=b")
    shown = "http://***@host.example:8000/score?***"
    assert hidden == f"asked {shown} and '{shown}' and http://host/path?***"
    assert without_secrets("me@host and http://host/a@b") == "me@host and http://host/a@b"
    assert "word" not in one_line(f"no {SECRET}") and "hunter2" not in one_line(f"no {SECRET}")


@pytest.mark.parametrize(
    "url, shown",
    [
        ("http://me:hunter2@h:80/a@b#hunter3", "http://***@h:80/a@b#***"),
        ("gopher://me:hunter2@h", "gopher://***@h"),
        ("https://h/x?hunter2", "https://h/x?***"),
        ("http://me:hunter2/3@h/x", "http://***"),
        ("http://me:hunter2#3@h/x", "http://***"),
        ("http://me:hunter2?3@h/x", "http://***"),
        ("http://me:hunter'2@h/x?k='hunter2", "http://***@h/x?***"),
        ("http://[::1]:5000/get_reward", "http://[::1]:5000/get_reward"),
        ("http://127.0.0.1:5000/get_reward", "http://127.0.0.1:5000/get_reward"),
    ],
)
def test_secrets_are_hidden_wherever_a_url_holds_them(url, shown):
    assert without_secrets(f"{url} failed") == f"{shown} failed"
    quote = repr(url)[0]
    assert without_secrets(f"got {url!r}, no") == f"got {quote}{shown}{quote}, no"


def test_looking_for_secrets_takes_no_longer_than_the_text():
    started = time.perf_counter()
    for part in ("a.", "http://", "'http://a'", "http://a:", "'", "http://@:"):
        without_secrets(part * 200_000)
    assert time.perf_counter() - started < 10


def test_a_secret_in_a_setting_is_not_written_down(tmp_path):
    config = build(Config, {"output": str(tmp_path / "run"), "data": {"path": SECRET}}, "recipe x")
    claim(config)
    written = (tmp_path / "run" / "config.toml").read_text()
    assert "word" not in written and "hunter2" not in written
    assert tomllib.loads(written)["data"]["path"] == "http://***@host.example:8000/score?***"
    # another password is the same run; another address is not
    assert check(config) == tmp_path / "run"
    other = plain(config) | {"data": {"path": SECRET.replace("host.example", "else.example")}}
    with pytest.raises(ValueError, match="holds another run .data.path was") as error:
        check(build(Config, other, "recipe x"))
    assert "hunter2" not in str(error.value)


def test_a_secret_in_a_flag_is_not_printed(tmp_path, capfd):
    assert main(["--data.path", SECRET, "--model.path", str(tmp_path), "--output", str(tmp_path / "run")]) == 2
    error = capfd.readouterr().err
    assert "hunter2" not in error and "word@" not in error


@pytest.mark.parametrize("flag", ["--rto.score.servr", "--rto.score.timeout", "--rto.score.servr="])
def test_a_long_secret_is_not_printed_by_the_parser_of_flags(flag, capfd):
    """Which breaks long words over lines."""
    url = f"http://me:{'p' * 90}hunter2@h:5000/x?key={'q' * 70}hunter2"
    assert main([flag + url] if flag.endswith("=") else [flag, url]) == 2
    error = capfd.readouterr().err
    assert "hunter2" not in error and "ppp" not in error and "rto.score" in error


def test_the_page_says_what_the_code_bounds():
    page = (ROOT / "SECURITY.md").read_text()
    assert f"{MAX_JSON_BYTES // 2**20} MiB else" in page
    from rto_fast import cli
    from rto_fast.config import recipe
    from rto_fast.data import allowance, encode, read, trial

    assert f"({read.MAX_LINE_BYTES // 2**20} MiB)" in page and f"{read.MAX_JSON_BYTES // 2**30} GiB of rows" in page
    assert f"{allowance.MAX_GROWTH} times its size, or {allowance.FREE_BYTES // 2**20} MiB" in page
    assert encode.MAX_CHARACTERS == 2**20 and f"or {encode.MAX_CHARACTERS_PER_TOKEN} for each token" in page
    assert trial.MAX_ID == 2**24 and "(2^24)" in page and f"at most {trial.MAX_GROWTH} characters or tokens" in page
    assert f"({recipe.MAX_BYTES // 2**10} KiB)" in page and f"({cli.MAX_WORD:,} characters)" in page


def test_no_secret_of_the_environment_is_written_down(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "hunter2")
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    claim(build(Config, {"output": str(tmp_path / "run")}, "recipe x"))
    assert all("hunter2" not in p.read_text() for p in (tmp_path / "run").iterdir()) and os.environ["HF_TOKEN"]
