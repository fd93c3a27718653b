"""Small wrong changes to the code, one at a time, each of which a test must notice: `python -m tests.mutate`.

tests/mutations/<area>.toml holds them, one table each:

    [name]
    file = "rto_fast/rl/rewards.py"
    old = "the text that is there, exactly once"
    new = "what takes its place"
    wrong = "one line: what would be wrong"
    tests = ["tests/stages/test_stages.py::test_that_fails_then"]        the narrowest that do
    equivalent = "why nothing that matters changes"               in place of tests, where no test could fail

A copy of the tree is changed, never the tree. One process imports torch, transformers and pytest and forks for every
mutation, so that one costs little more than its tests; the tests run once unchanged first, where they must pass.
Exit status 1 when a mutation is alive, or broken: its text is no longer there, or its tests cannot run.
"""

import argparse
import contextlib
import fnmatch
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARY = "rto_fast/librto_fast.so"
LIMIT_S = 120
BROKEN_CODES = {2: "could not be collected", 3: "pytest broke", 4: "are not there", 5: "are none"}
"""pytest's exit status where no test has failed or passed."""


@dataclass(frozen=True)
class Mutation:
    name: str
    """<area>/<table>"""
    file: str
    old: str
    new: str
    wrong: str
    tests: tuple[str, ...] = ()
    equivalent: str = ""

    def apply(self, root: Path) -> str:
        """The mutated text of its file under `root`. ValueError where `old` is not there exactly once."""
        text = (root / self.file).read_text(encoding="utf-8")
        if (found := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: its old text is {found} times in {self.file}, not once")
        return text.replace(self.old, self.new)


def load(folder: Path = ROOT / "tests" / "mutations") -> list[Mutation]:
    """All mutations, in the order of the files. TypeError or ValueError for a table that is none."""
    mutations = []
    for file in sorted(folder.glob("*.toml")):
        for name, table in tomllib.loads(file.read_text(encoding="utf-8")).items():
            mutations.append(Mutation(f"{file.stem}/{name}", **{**table, "tests": tuple(table.get("tests", ()))}))
    return mutations


class Outcomes:
    """A pytest plugin: which tests passed and which failed."""

    def __init__(self):
        self.passed, self.failed = set(), []

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.when == "call" and report.passed:
            self.passed.add(report.nodeid)


class Place:
    """A copy of the tree in which one mutation at a time is tried, by a forked process."""

    def __init__(self, folder: Path):
        self.tree, self.folder = folder / "tree", folder
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, check=True,
        )  # fmt: skip
        for name in (*os.fsdecode(listed.stdout).split("\0"), LIBRARY):
            if name and (ROOT / name).is_file():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, self.tree / name)
        self.mutation: Mutation | None = None
        self.original = b""
        """What stood in the mutated file."""
        self.pid, self.started = 0, 0.0

    def start(self, tests: list[str], mutation: Mutation | None = None) -> None:
        """Fork a process that runs the tests on the mutated copy. ValueError where the mutation does not apply."""
        self.mutation, self.started = mutation, time.monotonic()
        if mutation is not None:
            text = mutation.apply(self.tree)
            self.original = (self.tree / mutation.file).read_bytes()
            (self.tree / mutation.file).write_text(text, encoding="utf-8")
            if mutation.file.startswith("csrc/"):
                self._compile()
        (self.folder / "outcomes.json").unlink(missing_ok=True)
        self.pid = os.fork()
        if self.pid == 0:
            code = 3
            with contextlib.suppress(BaseException):
                code = _child(self.tree, self.folder, tests, stop_early=mutation is not None)
            os._exit(code)

    def finished(self, limit_s: float) -> int | None:
        """The exit status, -1 for a time-out, below it the signal that ended it; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0 and time.monotonic() - self.started < limit_s:
            return None
        code = -1 if pid == 0 else os.waitstatus_to_exitcode(status) - (os.WIFSIGNALED(status))
        self.end()
        return code

    def end(self) -> None:
        """Leave neither a process nor a change behind."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
            self.pid = 0
        if self.mutation is not None and self.original:
            (self.tree / self.mutation.file).write_bytes(self.original)
            self.original = b""
            if self.mutation.file.startswith("csrc/"):
                (self.tree / LIBRARY).unlink(missing_ok=True)
                if (ROOT / LIBRARY).is_file():
                    shutil.copyfile(ROOT / LIBRARY, self.tree / LIBRARY)

    def outcomes(self) -> tuple[set[str], list[str]]:
        """Names of the tests that passed and that failed."""
        file = self.folder / "outcomes.json"
        found = json.loads(file.read_text()) if file.exists() else {"passed": [], "failed": []}
        return set(found["passed"]), found["failed"]

    def _compile(self) -> None:
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=self.tree, capture_output=True, text=True, env={**os.environ, "CXXFLAGS": "-O1"},
        )  # fmt: skip
        if done.returncode or "is not built" in done.stderr:
            raise ValueError(f"{self.mutation.name}: csrc/ does not compile: {done.stderr.strip()[-200:]}")


def _child(tree: Path, folder: Path, tests: list[str], stop_early: bool) -> int:
    """In the forked process: pytest on the tests, in the copy."""
    import pytest

    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    out = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(tree)
    sys.path[:] = [str(tree), *(p for p in sys.path if p and Path(p).resolve() != ROOT)]
    os.environ |= {"PYTHONPATH": str(tree), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for name in [n for n in sys.modules if n.partition(".")[0] in ("tests", "rto_fast", "bench")]:
        del sys.modules[name]
    outcomes = Outcomes()
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={folder / 'tmp'}", *(["-x"] if stop_early else [])]
    code = int(pytest.main([*options, *tests], plugins=[outcomes]))
    found = {"passed": sorted(outcomes.passed), "failed": outcomes.failed}
    (folder / "outcomes.json").write_text(json.dumps(found))
    sys.stdout.flush()
    return code


def _import() -> None:
    """What takes seconds, once, and nothing of the project; torch must not start a thread before a fork."""
    import datasets  # noqa: F401
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    import transformers
    import transformers.models.auto  # noqa: F401
    import tyro  # noqa: F401

    for kind in ("Llama", "GPT2", "GPTNeoX", "Qwen2", "Qwen3"):
        name = f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
        getattr(transformers, name)
    _ = transformers.AutoModelForCausalLM, transformers.PreTrainedTokenizerFast


def _covers(test: str, nodeid: str) -> bool:
    return nodeid == test or nodeid.startswith((test + "[", test + "::"))


def _verdict(place: Place, code: int) -> tuple[str, str]:
    """(killed, alive or broken; by what)"""
    _, failed = place.outcomes()
    if code == -1:
        return "killed", f"time-out after {LIMIT_S} s"
    if code == -1 - signal.SIGKILL:  # nobody's test: memory ran out, or somebody ended it
        return "broken", "its tests were ended from outside"
    if code < -1:
        return "killed", f"crashed with signal {-1 - code}"
    if code == 1:
        return "killed", failed[0] if failed else "a test failed"
    if code == 0:
        return "alive", place.mutation.wrong
    return "broken", f"its tests {BROKEN_CODES.get(code, f'ended with status {code}')}"


def _baseline(place: Place, mutations: list[Mutation]) -> dict[str, str]:
    """Why a mutation cannot be judged, by its name: a test of its fails, or does not run, in the unchanged code."""
    tests = sorted({test for m in mutations for test in m.tests})
    place.start(tests)
    while (code := place.finished(60 + LIMIT_S * len(mutations))) is None:
        time.sleep(0.05)
    passed, failed = place.outcomes()
    if code not in (0, 1):
        shown = (place.folder / "output.txt").read_text(errors="replace").strip()[-2000:]
        why = BROKEN_CODES.get(code, f"ended with status {code}")
        raise SystemExit(f"the tests {why} in the unchanged code:\n{shown}")
    bad = {}
    for mutation in mutations:
        for test in mutation.tests:
            if any(_covers(test, f) for f in failed):
                bad[mutation.name] = f"{test} fails in the unchanged code"
            elif not any(_covers(test, p) for p in passed):
                bad[mutation.name] = f"{test} is skipped here"
    return bad


def run(mutations: list[Mutation], jobs: int, limit_s: float) -> Counter:
    """Try the mutations and print what became of each; how many were killed, equivalent, alive and broken."""
    began = time.monotonic()
    counts: Counter = Counter()
    unkilled: list[str] = []

    def report(mutation: Mutation, verdict: str, why: str, seconds: float) -> None:
        counts[verdict] += 1
        if verdict in ("alive", "broken"):
            unkilled.append(f"{verdict:10} {mutation.name}: {why}")
        left = (time.monotonic() - tried) / counts.total() * (len(mutations) - counts.total())
        at = f"[{counts.total():3}/{len(mutations)}]"
        print(f"{at} {verdict:10} {seconds:5.1f} s  {mutation.name}: {why}  (about {left:.0f} s to go)", flush=True)

    _import()
    with tempfile.TemporaryDirectory(prefix="mutate-") as scratch:
        places = [Place(Path(scratch) / str(i)) for i in range(jobs)]
        waiting = [m for m in mutations if not m.equivalent]
        bad = _baseline(places[0], waiting) if waiting else {}
        tried = time.monotonic()
        print(f"the tests of {len(waiting)} mutations, unchanged: {tried - began:.0f} s", flush=True)
        for mutation in mutations:
            if mutation.equivalent:
                report(mutation, "equivalent", mutation.equivalent, 0.0)
        free, busy = places, []
        try:
            while waiting or busy:
                while waiting and free:
                    mutation = waiting.pop(0)
                    if mutation.name in bad:
                        report(mutation, "broken", bad[mutation.name], 0.0)
                        continue
                    place = free.pop()
                    try:
                        place.start(list(mutation.tests), mutation)
                        busy.append(place)
                    except ValueError as error:
                        place.end()
                        free.append(place)
                        report(mutation, "broken", str(error), 0.0)
                for place in list(busy):
                    if (code := place.finished(limit_s)) is not None:
                        busy.remove(place)
                        free.append(place)
                        report(place.mutation, *_verdict(place, code), time.monotonic() - place.started)
                time.sleep(0.01)
        finally:
            for place in busy:
                place.end()
    print("\n" + "\n".join(unkilled) if unkilled else "")
    print(f"{'killed':10} {'equivalent':10} {'alive':10} {'broken':10} minutes")
    kinds = ("killed", "equivalent", "alive", "broken")
    print(" ".join(f"{counts[kind]:<10}" for kind in kinds), f"{(time.monotonic() - began) / 60:.1f}")
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name them and stop")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names, parts of them, or patterns such as 'data/*'")
    parser.add_argument("--sample", type=int, metavar="N", help="so many at random")
    parser.add_argument("--seed", type=int, help="of the sample; without it the clock's, and printed")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default 1)")
    options = parser.parse_args()
    mutations = load()
    if options.only:
        mutations = [m for m in mutations if any(x in m.name or fnmatch.fnmatch(m.name, x) for x in options.only)]
    if options.sample is not None and options.sample < len(mutations):
        seed = time.time_ns() % 10**6 if options.seed is None else options.seed
        print(f"{options.sample} of {len(mutations)} mutations, --seed {seed}")
        mutations = random.Random(seed).sample(mutations, options.sample)
    if not mutations:
        parser.error(f"no mutation is named {' or '.join(options.only)}; see --list")
    if options.list:
        for m in mutations:
            print(f"{m.name:50} {m.file}: {m.wrong}" + (" (equivalent)" if m.equivalent else ""))
        return 0
    # before torch is imported: the interpreter of Triton's kernels, and one thread
    os.environ |= {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    sys.dont_write_bytecode = True
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no process of a mutation outlives this one
    counts = run(mutations, max(1, options.jobs), LIMIT_S)
    return 1 if counts["alive"] or counts["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
