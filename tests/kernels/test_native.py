"""The native library: how it is built and loaded, what it must never do to the process, and what changes no bit."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch

from rto_fast.kernels.common import dispatch, native
from rto_fast.kernels.linear_logprob import linear_logprob
from rto_fast.kernels.ppo_head import ppo_head
from rto_fast.kernels.token_reward_gae import RewardSpec, token_reward_gae
from tests.kernels.backends import needs_native

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def python(code: str, **env: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def build(source: Path, target: Path, **env: str) -> subprocess.CompletedProcess:
    """`python setup.py build_ext` of a copy of the checkout, as an installation makes it."""
    copy(source, target)
    words = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(target / "out")]
    return subprocess.run(words, cwd=target, env={**os.environ, **env}, capture_output=True, text=True, timeout=300)


def copy(source: Path, target: Path) -> None:
    """What an installation reads of the checkout, with nothing built."""
    shutil.copytree(source / "csrc", target / "csrc")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(source / name, target / name)
    for package in ("rto_fast", "kernels"):
        shutil.copytree(source / package, target / package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))


def setuptools_is_here() -> bool:
    return subprocess.run([sys.executable, "-c", "import setuptools.command.bdist_wheel"]).returncode == 0


needs_setuptools = pytest.mark.skipif(not setuptools_is_here(), reason="building needs setuptools >= 70.1")


@needs_setuptools
def test_without_a_compiler_the_installation_goes_on_and_says_so(tmp_path):
    done = build(ROOT, tmp_path, CXX="/nonexistent/c++")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("rto_fast: ")]
    assert lines == [line for line in lines if "csrc/ is not built, CPUs will run the torch paths: " in line] and lines
    assert not list(tmp_path.rglob("*.so"))


@needs_setuptools
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_with_a_compiler_that_fails_the_installation_goes_on(tmp_path):
    done = build(ROOT, tmp_path, CXXFLAGS="--no-such-flag-exists")
    assert done.returncode == 0 and "csrc/ is not built" in done.stderr and not list(tmp_path.rglob("*.so"))


@needs_setuptools
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_a_wheel_holds_the_library_and_the_operators(tmp_path):
    copy(ROOT, tmp_path)
    words = [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(tmp_path / "dist")]
    quickly = {**os.environ, "CXXFLAGS": "-O0"}
    done = subprocess.run(words, cwd=tmp_path, env=quickly, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-py3-none-{platform}.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"rto_fast/librto_fast.so", "rto_fast/kernels/ppo_head/native.py", "rto_fast/py.typed"} <= set(names)
    assert not any(name.startswith("kernels/") for name in names)
    # what was unpacked from it runs, away from any checkout
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "from rto_fast.kernels.common import native; print(native.available(), native.PATH)"
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "dist", env=env, capture_output=True, text=True)
    assert run.stdout.split() == ["True", str(tmp_path / "site/rto_fast/librto_fast.so")], run.stderr


@needs_native
def test_denormal_numbers_outlive_the_library():
    """A library linked with -ffast-math flushes them to zero in the whole process, merely by being loaded."""
    code = """
import torch
from rto_fast.kernels.common import native
assert native.available() and native.library()
tiny = torch.tensor([1e-40])
assert (tiny * 1).item() > 0 and (tiny / 2).item() > 0, "denormals are flushed"
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def problem(rows: int, vocab: int):
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(rows, 16, generator=g), torch.randn(vocab, 16, generator=g)
    return hidden, weight, torch.randint(vocab, (rows,), generator=g)


@needs_native
def test_neither_threads_nor_levels_change_a_bit():
    hidden, weight, target = problem(70, 5003)
    weight = weight * 0.5
    lengths = torch.tensor([0, 9000, 9000, 9001, 12000])

    def everything(level: str, threads: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        library = native.Library(native.PATH, level)
        with pytest.MonkeyPatch.context() as patch:
            for module in (
                "common.native_rows",
                "ppo_head.native",
                "token_reward_gae.native",
                "preference_head.native",
            ):
                patch.setattr(f"rto_fast.kernels.{module}.library", lambda: library)
            # one thread of GEMM, so that the rows alone can differ
            z = (hidden @ weight.T).contiguous()
            from rto_fast.kernels.common import native_rows as rows

            state = rows.new_state(70, True, z.device, z.dtype)
            rows.fold(z.clone(), None, (0.7, 20.0), target, 0, state)
            stats = rows.finish(state)
            slope = torch.linspace(-1, 1, 70)
            dz = rows.d_logits_(z.clone(), None, (0.7, 20.0), target, 0, z.dtype, stats, slope, slope.flip(0))
            g = torch.Generator().manual_seed(1)
            columns = [torch.randn(12000, generator=g) for _ in range(4)]
            rewards = token_reward_gae(*columns, lengths.int(), RewardSpec(0.3, 0.1, clip=0.2), backend="native")
        return [*stats, dz, *rewards]

    before = torch.get_num_threads()
    try:
        best = native.library().level
        levels = native.LEVELS[: native.LEVELS.index(best) + 1]
        wanted = everything("plain", 1)
        for level in levels:
            for threads in (1, 2, 3):
                for a, b in zip(everything(level, threads), wanted, strict=True):
                    assert torch.equal(a, b), (level, threads)
    finally:
        torch.set_num_threads(before)


@needs_native
def test_a_library_for_other_signatures_is_refused(monkeypatch):
    built = native.INTERFACE
    monkeypatch.setattr(native, "INTERFACE", 999)
    native._load.cache_clear()
    try:
        assert not native.available()
        reason = native.missing()
        assert f"is stale (interface {built}, wanted 999)" in reason and "pip install" in reason
        with pytest.raises(ValueError, match="ppo_head: backend 'native' cannot run: .*is stale"):
            dispatch.choose("ppo_head", CPU, "native")
        assert set(dispatch.table(CPU).values()) == {"reference"}
    finally:
        monkeypatch.undo()
        native._load.cache_clear()


def test_a_library_that_is_not_there_or_is_none(monkeypatch, tmp_path):
    for name, content, word in (("absent.so", None, "it is not built"), ("text.so", b"no library", "does not load")):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        monkeypatch.setattr(native, "PATH", path)
        native._load.cache_clear()
        assert word in native.missing() and dispatch.choose("ppo_head", CPU, None) == "reference"
        with pytest.raises(ValueError, match="backend 'native' cannot run"):
            dispatch.choose("ppo_head", CPU, "native")
    monkeypatch.undo()
    native._load.cache_clear()


@needs_native
def test_native_serves_on_the_cpu_and_only_there(monkeypatch):
    assert set(dispatch.table(CPU).values()) == {"native"}
    with pytest.raises(ValueError, match="backend 'native' needs CPU tensors, got cuda; use 'triton'"):
        dispatch.choose("ppo_head", torch.device("cuda"), "native")
    assert dispatch.choose("ppo_head", CPU, None, dtype=torch.float64) == "reference"
    monkeypatch.setenv("RTO_FAST_BACKEND", "reference")
    assert dispatch.choose("ppo_head", CPU, None) == "reference"


@needs_native
def test_the_ways_agree():
    """native, reference and (interpreted) Triton on one problem, gradients included."""
    hidden, weight, target = problem(9, 300)
    old, advantages, weights = torch.linspace(-6, -4, 9), torch.linspace(-1, 1, 9), torch.ones(9)
    backends = ["native", "reference"] + ["triton"] * (os.environ.get("TRITON_INTERPRET") == "1")

    def run(backend):
        leaves = [x.clone().requires_grad_() for x in (hidden, weight)]
        loss = ppo_head(*leaves, target, old, advantages, weights, entropy_coef=0.1, backend=backend).loss
        logprobs = linear_logprob(hidden, weight, target, backend=backend)
        return [loss, logprobs, *torch.autograd.grad(loss, leaves)]

    wanted = run(backends[0])
    for backend in backends[1:]:
        for a, b in zip(run(backend), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


SANITIZED = """
import importlib
import torch
from rto_fast.kernels.common import native
native.PATH = __import__("pathlib").Path({path!r})
from rto_fast.kernels.linear_logprob import linear_logprob
from rto_fast.kernels.ppo_head import ppo_head
from rto_fast.kernels.preference_head import preference_head
from rto_fast.kernels.token_reward_gae import RewardSpec, token_reward_gae
torch.manual_seed(0)
for level in native.LEVELS[: native.LEVELS.index(native.library().level) + 1]:
    library = native.Library(native.PATH, level)
    for module in ("common.native_rows", "ppo_head.native", "preference_head.native", "token_reward_gae.native"):
        importlib.import_module(f"rto_fast.kernels.{{module}}").library = lambda: library
    for vocab in (1, 15, 16, 17, 2047, 2049, 5003):
        for rows in (0, 1, 7):
            hidden, weight = torch.randn(rows, 5, requires_grad=True), torch.randn(vocab, 5, requires_grad=True)
            bias, target = torch.randn(vocab, requires_grad=True), torch.randint(vocab, (rows,))
            out = linear_logprob(hidden, weight, target, bias=bias, softcap=9.0, return_stats=True, backend="native")
            (out.logprobs.sum() + out.entropy.sum()).backward()
            columns = [torch.randn(rows) for _ in range(3)]
            options = dict(entropy_coef=0.1, kl_coef=0.1, ref_logprobs=torch.randn(rows), backend="native")
            ppo_head(hidden, weight, target, *columns, **options).loss.backward()
            cu = torch.tensor([0, rows // 2, rows]).int()
            preference_head(hidden, weight, target, cu, torch.zeros(2), backend="native").loss.backward()
    for lengths in ([], [0], [1], [3, 0, 8, 17]):
        rows, cu = sum(lengths), torch.tensor([0, *lengths]).cumsum(0).int()
        for granularity in ("token", "sentence", "response"):
            for shaping in (False, True):
                reward = RewardSpec(
                    0.1, 0.1, granularity=granularity, sentence_ends=torch.arange(rows) % 2 == 0, beta_3=1.0,
                    scores=torch.randn(len(lengths)), terminal=torch.randn(len(lengths)),
                    counted=torch.arange(len(lengths)) % 2 == 0, shaping_only=shaping,
                )
                token_reward_gae(*(torch.randn(rows) for _ in range(4)), cu, reward, backend="native")
print("clean")
"""


def address_sanitizer() -> str | None:
    """The runtime of gcc's address sanitizer, None where there is none."""
    if shutil.which("g++") is None:
        return None
    path = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    return path if os.path.isabs(path) else None


@pytest.mark.skipif(address_sanitizer() is None, reason="needs g++ and its address sanitizer")
@pytest.mark.parametrize("broken", [False, True], ids=["as it is", "with a bug"])
def test_address_sanitizer(tmp_path, broken):
    """Clean on ragged shapes at every level; and, to show that it looks, not clean with an index far too large."""
    for path in (ROOT / "csrc").iterdir():
        text = path.read_text()
        if broken and path.name == "token_reward_gae.cpp":
            text = text.replace("float carry = 0.0f;", "float carry = 0.0f * advantages[n + 4096];")
            assert "n + 4096" in text
        (tmp_path / path.name).write_text(text)
    library = tmp_path / "librto_fast.so"
    levels = {"plain": [], "avx2": ["-mavx2"], "avx512": [f"-mavx512{x}" for x in ("f", "dq", "vl", "bw")]}
    objects = []
    for level, flags in levels.items():
        for source in sorted(tmp_path.glob("*.cpp")):
            if level == "plain" or source.name != "library.cpp":
                out = tmp_path / f"{source.stem}_{level}.o"
                base = ["g++", "-std=c++17", "-O1", "-g", "-fPIC", "-fsanitize=address", "-fno-omit-frame-pointer"]
                subprocess.run([*base, *flags, f"-DLEVEL={level}", "-c", str(source), "-o", str(out)], check=True)
                objects.append(str(out))
    subprocess.run(["g++", "-shared", "-fsanitize=address", "-o", str(library), *objects], check=True)
    env = {"LD_PRELOAD": address_sanitizer(), "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1"}
    done = python(SANITIZED.format(path=str(library)), **env)
    if broken:
        assert "AddressSanitizer: " in done.stderr and "token_reward_gae" in done.stderr
    else:
        assert done.returncode == 0 and done.stdout.strip() == "clean", done.stderr[-3000:]
