"""Runs the operators as on a GPU where there is none: `python tests/kernels/meta_device.py`, TRITON_INTERPRET unset.

Tensors are on torch's meta device: they have shapes and dtypes but no numbers, so that real shapes cost nothing and
whatever would wait for the device's numbers raises. Every Triton launch is compiled for sm_90 with the arguments, the
alignment and the options that it came with. Prints a line of JSON for each run: its GEMMs, launches and memory.
"""

import importlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product

import torch
from aot import Absent, usage
from torch import Tensor
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction, MockTensor

from bench.shapes import REAL, Decisions, Shape
from rto_fast.kernels.decode_attention import decode_attention
from rto_fast.kernels.linear_logprob import linear_logprob
from rto_fast.kernels.ppo_head import ppo_head
from rto_fast.kernels.preference_head import preference_head
from rto_fast.kernels.rto_score import FactoredLogits, rto_score
from rto_fast.kernels.token_reward_gae import RewardSpec, token_reward_gae

Run = Callable[[], object]
ROWS = (8192, 32768)
# heads, key/value heads and head size of the networks in REAL
HEADS = {"Pythia-2.8B": (32, 32, 80), "Llama-3-8B": (32, 8, 128), "Qwen-1.7B": (16, 8, 128)}
WORKSPACE_MB = 1024
REWARD = RewardSpec(beta_1=0.05, beta_2=0.01, clip=0.05)
ARCH = 90


class Placed(MockTensor):
    """A launch's argument: what the specialisation of a kernel asks of a tensor."""

    def __init__(self, x: Tensor):
        super().__init__(x.dtype, list(x.shape))
        # the allocator aligns what it gives
        self.address = x.storage_offset() * x.itemsize

    def data_ptr(self) -> int:
        return self.address


class Launches:
    """Takes the place of every launch, from `with` to its end."""

    def __init__(self):
        self.count: Counter[str] = Counter()
        self.spilled = 0

    def __enter__(self) -> "Launches":
        self.run = JITFunction.run
        JITFunction.run = lambda kernel, *args, **options: self._compile(kernel, *args, **options)
        return self

    def __exit__(self, *_) -> None:
        JITFunction.run = self.run

    def _compile(self, kernel: JITFunction, *args, grid, warmup, **options) -> None:
        self.count[kernel.__name__] += 1
        args = [Placed(x) if isinstance(x, Tensor) else x for x in args]
        options = {k: Placed(x) if isinstance(x, Tensor) else x for k, x in options.items()}
        compiled = self.run(kernel, *args, grid=grid, warmup=True, **options)
        if compiled.hash not in SPILLED:
            SPILLED[compiled.hash] = usage(compiled, ARCH)[1]
        self.spilled += SPILLED[compiled.hash]


SPILLED: dict[str, int] = {}


class Gemms(TorchDispatchMode):
    """FLOPs of the matrix products, by "operands -> result", and whether the library may take 16 bytes at a time."""

    def __init__(self):
        super().__init__()
        self.flops: Counter[str] = Counter()
        self.aligned = True

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = function.overloadpacket
        if packet in (torch.ops.aten.mm, torch.ops.aten.addmm):
            a, b = args[:2] if packet is torch.ops.aten.mm else args[1:3]
            accumulated = function is torch.ops.aten.addmm.dtype_out
            # torch 2.11 has no such product on the meta device
            out = kwargs["out"] if accumulated else function(*args, **kwargs)
            words = [str(x.dtype).removeprefix("torch.") for x in (a, b, out)]
            self.flops["{} x {} -> {}".format(*words)] += 2 * a.shape[0] * a.shape[1] * b.shape[1]
            self.aligned &= all(map(aligned, (a, b, out)))
            return out
        return function(*args, **kwargs)


def aligned(x: Tensor) -> bool:
    """Whether every row (or column, if those lie end to end) of a matrix begins at a multiple of 16 bytes."""
    return all(step * x.itemsize % 16 == 0 for step in (x.storage_offset(), max(x.stride())))


def observe(run: Run, inputs: list[Tensor], unit: int) -> dict[str, object]:
    """What one run does; FLOPs in multiples of `unit`, MiB above the inputs and what the run gives back."""
    memory = MemTracker()
    memory.track_external(*inputs)
    before = sum(x.untyped_storage().nbytes() for x in {x.untyped_storage()._cdata: x for x in inputs}.values())
    with Launches() as launches, memory, Gemms() as gemms:
        out = run()
    given = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in tree_leaves(out) if x is not None}
    peak = memory.get_tracker_snapshot("peak")[torch.device("meta")]["Total"]
    return {
        "gemms": {name: flops / unit for name, flops in gemms.flops.items()},
        "aligned": gemms.aligned,
        "launches": dict(launches.count),
        "spilled": launches.spilled,
        "mib": (peak - before - sum(given.values())) / 2**20,
    }


def empty(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(size, dtype=dtype, device="meta")


def of_heads(shape: Shape, rows: int, workspace_mb: int, **head: object) -> Iterator[tuple[str, Run, list[Tensor]]]:
    """Every operator that has a head, and what it reads; `head` holds bias, temperature and soft-cap."""
    hidden = empty(rows, shape.width, dtype=torch.bfloat16)
    weights = [empty(shape.vocab, shape.width, dtype=torch.bfloat16) for _ in range(3)]
    leaves = [x.detach().requires_grad_() for x in (hidden, weights[0])]
    target, values, scale = empty(rows, dtype=torch.int64), empty(rows), empty()
    given = Decisions(*(empty(rows) for _ in range(3)))
    cu_seqlens, ref_logprobs = empty(9, dtype=torch.int32), empty(8)
    main_grad = empty(shape.vocab, shape.width)
    others = [x for x in head.values() if isinstance(x, Tensor)]
    inputs = [hidden, *weights, target, values, scale, *given, cu_seqlens, ref_logprobs, main_grad, *others]
    where = dict(workspace_mb=workspace_mb, backend="triton")
    terms = dict(entropy_coef=0.01, kl_coef=0.1, ref_logprobs=values, loss_scale=scale)

    def scored() -> Tensor:
        with torch.no_grad():
            return linear_logprob(hidden, weights[0], target, **head, **where)

    def differentiated() -> tuple[Tensor, ...]:
        out = linear_logprob(*leaves, target, return_stats=True, **head, **where)
        return torch.autograd.grad(out.logprobs.sum() + out.entropy.sum(), leaves)

    def updated(weight: Tensor, wanted: list[Tensor], buffer: Tensor | None = None) -> tuple[Tensor, ...]:
        out = ppo_head(leaves[0], weight, target, *given, weight_grad=buffer, **terms, **head, **where)
        return torch.autograd.grad(out.loss, wanted)

    def preferred() -> tuple[Tensor, ...]:
        out = preference_head(*leaves, target, cu_seqlens, ref_logprobs, **head, **where)
        return torch.autograd.grad(out.loss, leaves)

    def rewarded(heads: list[Tensor], temperatures: tuple[float, ...]) -> tuple[Tensor, ...]:
        both = zip(heads, temperatures, strict=True)
        logits = [FactoredLogits(hidden, weight, **head | dict(temperature=t)) for weight, t in both]
        return rto_score(*logits, target, values, cu_seqlens, REWARD, **where)

    yield "linear_logprob", scored, inputs
    yield "linear_logprob, backward", differentiated, inputs
    yield "ppo_head", lambda: updated(leaves[1], leaves), inputs
    yield "ppo_head, frozen", lambda: updated(weights[0], leaves[:1]), inputs
    yield "ppo_head, main_grad", lambda: updated(leaves[1], leaves[:1], main_grad), inputs
    yield "preference_head", preferred, inputs
    # all addresses are 0 here, so that only their temperatures tell the heads apart
    yield "rto_score", lambda: rewarded(weights, (1.0, 0.9, 0.8)), inputs
    yield "rto_score, shared", lambda: rewarded(weights[:1] * 3, (1.0,) * 3), inputs


def of_rewards(rows: int, sequences: int) -> tuple[Run, list[Tensor]]:
    columns, cu_seqlens = [empty(rows) for _ in range(4)], empty(sequences + 1, dtype=torch.int32)
    inputs = [*columns, cu_seqlens]
    return lambda: token_reward_gae(*inputs, REWARD, backend="triton"), inputs


def of_attention(heads: int, kv_heads: int, size: int, rows: int, capacity: int) -> tuple[Run, list[Tensor]]:
    """One step of a rollout: rows of a cache that has 8 rows and 64 positions more."""
    half = dict(dtype=torch.bfloat16)
    query, lengths = empty(rows, heads, size, **half), empty(rows, dtype=torch.int64)
    stores = [empty(rows + 8, kv_heads, capacity + 64, size, **half) for _ in range(2)]
    keys, values = (store[:rows, :, :capacity] for store in stores)
    inputs = [query, *stores, lengths]
    return lambda: decode_attention(query, keys, values, lengths, size**-0.5, backend="triton"), inputs


def report(run: Run, inputs: list[Tensor], unit: int, **facts: object) -> None:
    print(json.dumps(facts | observe(run, inputs, unit)), flush=True)


def main() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("meta_device: TRITON_INTERPRET is set; kernels that are interpreted cannot be compiled")
    driver.set_active(Absent(ARCH))
    for folder in ("common", "decode_attention", "ppo_head", "preference_head", "token_reward_gae"):
        importlib.import_module(f"rto_fast.kernels.{folder}.kernel")
    # asked for by name, Triton takes what is no CUDA tensor only when this is set; its kernels are compiled ones by now
    os.environ["TRITON_INTERPRET"] = "1"

    for shape, rows in product(REAL, ROWS):
        for op, run, inputs in of_heads(shape, rows, WORKSPACE_MB):
            report(run, inputs, shape.gemm_flops(rows), op=op, shape=shape.name, rows=rows)
    odd = Shape("odd", 64, 50257)
    for softcap, bias, megabytes in product((None, 30.0), (None, empty(odd.vocab, dtype=torch.bfloat16)), (64, 8)):
        for op, run, inputs in of_heads(odd, 701, megabytes, softcap=softcap, bias=bias):
            facts = dict(op=op, shape=odd.name, rows=701, softcap=softcap, bias=bias is not None, megabytes=megabytes)
            report(run, inputs, odd.gemm_flops(701), **facts)
    for rows, sequences in ((32768, 64), (1 << 24, 8192), (1 << 20, 65537)):
        report(*of_rewards(rows, sequences), 1, op="token_reward_gae", rows=rows, sequences=sequences)
    for (name, heads), rows, capacity in product(HEADS.items(), (1, 256), (512, 513, 4096, 131072)):
        facts = dict(op="decode_attention", heads=heads, network=name, rows=rows, capacity=capacity)
        report(*of_attention(*heads, rows, capacity), 1, **facts)


if __name__ == "__main__":
    main()
