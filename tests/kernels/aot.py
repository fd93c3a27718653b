"""Compiles the Triton kernels for GPUs that are not here: `python tests/kernels/aot.py`, with TRITON_INTERPRET unset.

Prints registers, spilled bytes and shared memory of each kernel on sm_80, sm_90 and sm_100, as ptxas reports them, and
exits with an error when a kernel spills or does not fit. To add a kernel, add a line to KERNELS.
"""

import importlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime.driver import driver
from triton.runtime.jit import MockTensor

ARCHS = (80, 90, 100)
# bytes of shared memory that a block may ask for
SHARED = {80: 166912, 90: 232448, 100: 232448}
TENSORS = {"f32": torch.float32, "bf16": torch.bfloat16, "i32": torch.int32, "i64": torch.int64, "u8": torch.uint8}

HEAD = dict(HAS_BIAS=True, HAS_CAP=True, ENTROPY=True, BLOCK=4096, num_warps=8)
PLAIN = HEAD | dict(HAS_BIAS=False, HAS_CAP=False, ENTROPY=False)
PPO = HEAD | dict(KL="k3", ENTROPY_GRADIENT=True, GRADIENT=True)
PURE = PLAIN | dict(KL="none", ENTROPY_GRADIENT=False, GRADIENT=True)
PAIRS = dict(IPO=False, HAS_WEIGHTS=True, BLOCK=1024, num_warps=4)
TOKEN_ROWS, TOKEN_OUT = "f32 f32 f32 f32 i32", "f32 f32 f32 f32 .1 .03 .05 1.0 10.0 1.0 .95"
TOKENS = dict(KL=True, GRANULARITY="token", SHAPING=False, BLOCK=512, num_warps=4)
SENTENCES = TOKENS | dict(GRANULARITY="sentence", SHAPING=True)
# op, kernel, arguments in order (a dtype is a pointer, None no tensor), constexprs and launch options
KERNELS = [
    ("linear_logprob", "fold_kernel", "f32 f32 i64 f32 f32 f32 f32 50304 0 1.0 30.0", HEAD),
    ("linear_logprob", "fold_kernel", "f32 None i64 f32 f32 f32 None 50257 0 1.0 1.0", PLAIN),
    ("linear_logprob", "d_logits_kernel", "f32 bf16 f32 i64 f32 f32 f32 f32 f32 f32 50304 100608 0 1.0 30.0", HEAD),
    ("linear_logprob", "d_logits_kernel", "f32 f32 None i64 f32 f32 f32 f32 None None 50257 50257 0 1.0 1.0", PLAIN),
    ("ppo_head", "ppo_kernel", "f32 bf16 f32 i64 f32 f32 f32 f32 f32 f32 f32 50304 100608 1.0 30.0 .8 1.2 .1 .1", PPO),
    ("ppo_head", "ppo_kernel", "f32 f32 None i64 f32 f32 f32 None f32 f32 None 50257 50257 1.0 1.0 .8 1.2 .0 .0", PURE),
    ("preference_head", "pairs_kernel", "f32 i32 f32 f32 f32 f32 f32 f32 64 .1 .1", PAIRS),
    ("token_reward_gae", "_token_reward_gae", f"{TOKEN_ROWS} None None None None {TOKEN_OUT}", TOKENS),
    ("token_reward_gae", "_token_reward_gae", f"{TOKEN_ROWS} f32 f32 u8 u8 {TOKEN_OUT}", SENTENCES),
]


class Absent:
    """As much of a CUDA driver as compiling without a launch asks for."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def argument(word: str):
    if word == "None":
        return None
    if word in TENSORS:
        return MockTensor(TENSORS[word])
    return float(word) if "." in word else int(word)


def compiled(op: str, name: str, words: str, options: dict, arch: int):
    kernel = getattr(importlib.import_module(f"rto_fast.kernels.{op}.kernel"), name)
    # specialisations are kept by device, and every architecture is device 0 here
    kernel.device_caches.clear()
    driver.set_active(Absent(arch))
    return kernel.warmup(*map(argument, words.split()), grid=(1,), **options)


def usage(kernel, arch: int) -> tuple[int, int]:
    """(registers, spilled bytes): ptxas says both again, the driver only once it has loaded the kernel."""
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder, "kernel.ptx")
        ptx.write_text(kernel.asm["ptx"])
        target = re.search(r"^\.target (\w+)", kernel.asm["ptx"], re.M).group(1)
        command = [get_ptxas(arch).path, "-v", f"--gpu-name={target}", str(ptx), "-o", str(Path(folder, "cubin"))]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = int(re.search(r"Used (\d+) registers", report).group(1))
    return registers, sum(int(n) for n in re.findall(r"(\d+) bytes spill", report))


def main() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("aot: TRITON_INTERPRET is set; kernels that are interpreted cannot be compiled")
    failed = False
    for op, name, words, options in KERNELS:
        for arch in ARCHS:
            kernel = compiled(op, name, words, options, arch)
            registers, spilled = usage(kernel, arch)
            shared = kernel.metadata.shared
            bad = spilled > 0 or shared > SHARED[arch] or registers * 32 * options["num_warps"] > 65536
            failed |= bad
            verdict = "BAD" if bad else "ok "
            print(f"{verdict} {op}.{name} sm_{arch}: {registers} registers, {spilled} B spilled, {shared} B shared")
    sys.exit(failed)


if __name__ == "__main__":
    main()
