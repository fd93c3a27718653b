"""Every kernel compiles, in every configuration, for the GPUs it is written for, without spilling registers."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("aot.py")


def python(*arguments):
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], env=env, cwd=ROOT, capture_output=True, text=True, timeout=900)


def test_kernels_compile_for_sm80_sm90_and_sm100_without_spills():
    run = python(SCRIPT)
    assert run.returncode == 0, run.stdout + run.stderr
    print(run.stdout)
    # every kernel there is
    written = {
        f"{path.parent.name}.{name}"
        for path in ROOT.glob("kernels/*/kernel.py")
        for name in re.findall(r"(\w+)\[\(.*\)\]\(", path.read_text())
    }
    assert len(written) == 7
    for kernel in written:
        for arch in (80, 90, 100):
            assert f"ok  {kernel} sm_{arch}: " in run.stdout


def test_an_unfit_kernel_is_refused():
    code = """
import sys
sys.path.insert(0, "tests/kernels")
import aot
options = dict(M=128, N=256, K=64, num_warps=4, num_stages=3)
for arch, n in ((90, 256), (90, 64)):
    print(*aot.judge(("tests.kernels.unfit", "matmul", "bf16 bf16 f32 512", options | dict(N=n)), arch))
aot.SHARED[90] = 1024
print(*aot.judge(("tests.kernels.unfit", "matmul", "bf16 bf16 f32 512", options | dict(N=64)), 90))
"""
    run = python("-c", code)
    assert run.returncode == 0, run.stderr
    large, small, cramped = run.stdout.splitlines()
    assert large.startswith("False BAD ") and large.endswith("spills")
    assert small.startswith("True ok ") and "wgmma.mma_async" in small
    assert cramped.startswith("False BAD ") and cramped.endswith("too much shared memory")


def test_threads_that_fold_a_row_meet_once_it_is_read():
    """No barrier and no exchange between threads in a loop over a row's columns."""
    code = """
import re, sys
sys.path.insert(0, "tests/kernels")
import aot
for arch in aot.ARCHS:
    for variant in aot.variants():
        if variant[1] == "fold_kernel" and variant[3]["BLOCK"] == 4096:
            ptx = aot.compiled(*variant, arch).asm["ptx"]
            labels = {m[1]: m.end() for m in re.finditer(r"^([$]L__\\w+):", ptx, re.M)}
            ends = [(m[1], m.start()) for m in re.finditer(r"bra(?:[.]uni)?\\s+([$]L__\\w+);", ptx)]
            loops = [ptx[labels[name]:end] for name, end in ends if labels[name] < end]
            meet = [len(re.findall(r"bar[.]sync|shfl[.]sync", text)) for text in loops]
            print(arch, len(loops), sum(meet), "bar.sync" in ptx)
            break
"""
    run = python("-c", code)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [f"{arch} 1 0 True" for arch in (80, 90, 100)]
