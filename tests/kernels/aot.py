"""Compiles the Triton kernels for GPUs that are not here: `python tests/kernels/aot.py`, with TRITON_INTERPRET unset.

Prints registers, spilled bytes, shared memory, tensor-core instructions and the width of accesses of every kernel, in
every configuration that a launch can choose, on sm_80, sm_90 and sm_100, as ptxas reports them. Exits with an error
when a kernel spills, does not fit, multiplies matrices without tensor cores, or walks along rows of logits, or along
keys and values, by less than 16 bytes. To add a kernel, add it to variants().
"""

import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime.driver import driver
from triton.runtime.jit import MockTensor

from rto_fast.kernels.common.kernel import PITCH, constants
from rto_fast.kernels.common.workspace import padded
from rto_fast.kernels.decode_attention import kernel as decode

ARCHS = (80, 90, 100)
# bytes of shared memory that a block may ask for
SHARED = {80: 166912, 90: 232448, 100: 232448}
REGISTERS = 65536
TENSORS = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "i32": torch.int32,
    "i64": torch.int64,
    "u8": torch.uint8,
}
# warp-wide matrix instructions of sm_80, sm_90 and sm_100
TENSOR_CORES = re.compile(r"^\s*(?:@\S+\s+)?(mma\.sync|wgmma\.mma_async|tcgen05\.mma)", re.M)
ACCESSES = re.compile(r"\b(?:ld|st)\.global\.(\S+)")
# what goes to shared memory without passing through registers, and its bytes
COPIES = re.compile(r"\bcp\.async\.c[ag]\.shared\.global\b.*, (0x\w+),")
# a row brings a dozen single numbers; its logits may not add to them
NARROW = 12
BOTH = (False, True)

# module, kernel, arguments in order (a dtype is a pointer, None no tensor), constexprs and launch options
Variant = tuple[str, str, str, dict]


def given(*flags: tuple[bool, str]) -> list[str]:
    """The dtype of each tensor that is there, None for those that are not."""
    return [dtype if there else "None" for there, dtype in flags]


def head_variants() -> Iterator[tuple[str, str, dict]]:
    """(V, type of d logits, constants): every transform on rows that are aligned or not, and every size of block."""
    for vocab, bias, cap in product((50304, 50257), BOTH, BOTH):
        yield str(vocab), "bf16", constants(vocab, bias, cap)
    for dtype in ("f32", "f16"):
        yield "50257", dtype, constants(50257, False, False)
    for vocab in (1, 2, *(2**k - 1 for k in range(2, 12))):
        yield str(vocab), "bf16", constants(vocab, False, False)


def widths(n: str, dtype: str) -> tuple[str, int]:
    """n columns and the distance between rows of logits; that between rows of gradients."""
    width = padded(int(n), PITCH)
    return f"{n} {width}", width if dtype == "f32" else 2 * width


def variants() -> Iterator[Variant]:
    for entropy, (n, dtype, head) in product(BOTH, head_variants()):
        bias, extra = given((head["HAS_BIAS"], "f32"), (entropy, "f32"))
        options = head | dict(ENTROPY=entropy)
        z, out = widths(n, dtype)
        yield "common", "fold_kernel", f"f32 {bias} i64 f32 f32 f32 {extra} {z} 0 1.0 30.0", options
        rows = f"f32 {dtype} {bias} i64 f32 f32 f32 f32 {extra} {extra}"
        yield "common", "d_logits_kernel", f"{rows} {z} {out} 0 1.0 30.0", options

    entropies = ((False, False), (True, False), (True, True))
    for (n, dtype, head), (entropy, slope), kl in product(head_variants(), entropies, ("none", "k1", "k2", "k3")):
        if int(n) < 4096 and (entropy or kl != "none"):
            continue
        # these differ by an instruction or two: with neither and with both transforms is enough
        if kl in ("k1", "k2") and head["HAS_BIAS"] != head["HAS_CAP"]:
            continue
        z, out = widths(n, dtype)
        bias, ref, extra = given((head["HAS_BIAS"], "f32"), (kl != "none", "f32"), (entropy, "f32"))
        words = f"f32 {dtype} {bias} i64 f32 f32 f32 {ref} f32 f32 {extra} {z} {out} 1.0 30.0 .8 1.2 .1 .1"
        for gradient in BOTH if kl in ("none", "k3") else (True,):
            options = dict(KL=kl, ENTROPY=entropy, ENTROPY_GRADIENT=slope, GRADIENT=gradient)
            yield "ppo_head", "ppo_kernel", words, head | options

    for ipo, weights in product(BOTH, BOTH):
        words = f"f32 i32 f32 {'f32' if weights else None} f32 f32 f32 f32 64 .1 .1"
        options = dict(IPO=ipo, HAS_WEIGHTS=weights, BLOCK=1024, num_warps=4)
        yield "preference_head", "pairs_kernel", words, options

    for granularity, shaping, kl, full in product(("token", "sentence", "response"), BOTH, BOTH, BOTH):
        scores, counted = given((full, "f32"), (full, "u8"))
        ends = "u8" if granularity == "sentence" else None
        words = f"f32 f32 f32 f32 i32 {scores} {scores} {ends} {counted} f32 f32 f32 f32 .1 .03 .05 1.0 10.0 1.0 .95"
        options = dict(KL=kl, GRANULARITY=granularity, SHAPING=shaping, BLOCK=512, num_warps=4, maxnreg=96)
        yield "token_reward_gae", "_token_reward_gae", words, options

    yield from attention_variants()


def attention_variants() -> Iterator[Variant]:
    """How heads of a group are handled, at the sizes of heads that there are; all modes at one size of each."""
    whole = [("bf16", 1, 128), ("bf16", 4, 128), ("f32", 1, 128), ("f32", 4, 128)]
    others = [("bf16", 1, size) for size in (16, 64, 80, 256, 512)]
    others += [("bf16", group, size) for group, size in ((2, 64), (7, 128), (8, 80), (8, 256), (8, 512), (32, 128))]
    others += [("f16", 8, 128), ("bf16", 8, 8), ("f32", 2, 64), ("f32", 8, 128), ("f32", 2, 256), ("f32", 8, 512)]
    for dtype, group, size in whole + others:
        head = decode.constants(TENSORS[dtype], group, size, size)
        for partial, window, cap in product(BOTH, BOTH, BOTH):
            # at the other sizes, the fewest operations and the most
            if (dtype, group, size) in others and not partial == window == cap:
                continue
            out = "f32 f32 f32" if partial else f"{dtype} None None"
            cache = f"{8 * 2048 * size} {2048 * size} {size}"
            words = f"{dtype} {dtype} {dtype} i64 {out} {8 * group * size} {size} {cache} {cache} 2048 2048 4 .1 30.0"
            options = dict(PARTIAL=partial, HAS_WINDOW=window, HAS_CAP=cap)
            yield "decode_attention", "split_kernel", words, head | options
    for (dtype, size), window in product((("bf16", 80), ("bf16", 128), ("f32", 512)), BOTH):
        options = dict(HAS_WINDOW=window, DV=size, VP=128 if size < 512 else 512, SPLIT=decode.SPLIT)
        options |= dict(AT_ONCE=decode.SPLITS_AT_ONCE, num_warps=4)
        yield "decode_attention", "combine_kernel", f"f32 f32 f32 i64 {dtype} 2048 2048 4", options


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


def compiled(module: str, name: str, words: str, options: dict, arch: int):
    path = f"rto_fast.kernels.{module}.kernel" if "." not in module else module
    kernel = getattr(importlib.import_module(path), name)
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


def judge(variant: Variant, arch: int) -> tuple[bool, str]:
    """Whether the kernel is fit for the part, and a line that says why."""
    module, name, words, options = variant
    kernel = compiled(module, name, words, options, arch)
    registers, spilled = usage(kernel, arch)
    shared = kernel.metadata.shared
    cores = sorted(set(TENSOR_CORES.findall(kernel.asm["ptx"])))
    dots = "tt.dot" in kernel.asm["ttir"]
    accesses = ACCESSES.findall(kernel.asm["ptx"])
    wide = sum(access.startswith("v4.b32") for access in accesses)
    narrow = len(accesses) - wide
    copies = {int(size, 16) for size in COPIES.findall(kernel.asm["ptx"])}
    faults = [
        fault
        for fault, there in (
            ("spills", spilled > 0),
            ("too much shared memory", shared > SHARED[arch]),
            ("too many registers", registers * 32 * options["num_warps"] > REGISTERS),
            ("a dot without tensor cores", dots and not cores),
            ("narrow accesses to logits", options.get("BLOCK") == 4096 and (wide < 4 or narrow > NARROW)),
            ("narrow reads of keys and values", options.get("D", 8) % 16 == 0 and copies != {16}),
        )
        if there
    ]
    chosen = " ".join(f"{k}={v}" for k, v in options.items() if k not in ("num_warps", "maxnreg"))
    line = (
        f"{'BAD' if faults else 'ok '} {module}.{name} sm_{arch}: {registers} registers, {spilled} B spilled, "
        f"{shared} B shared, {', '.join(cores) if dots else 'no dot'}, {wide} accesses of 16 B and {narrow} others"
        f" [{chosen}] {', '.join(faults)}"
    )
    return not faults, line.rstrip()


def main() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("aot: TRITON_INTERPRET is set; kernels that are interpreted cannot be compiled")
    cases = [(variant, arch) for variant in variants() for arch in ARCHS]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        verdicts = list(pool.map(judge, *zip(*cases, strict=True), chunksize=8))
    print("\n".join(line for _, line in verdicts))
    bad = sum(not good for good, _ in verdicts)
    print(f"{len(verdicts)} kernels compiled, {bad} unfit")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
