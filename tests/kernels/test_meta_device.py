"""What the operators do on a GPU, as far as a machine without one can tell: see meta_device.py."""

import json
import subprocess

import pytest
import torch

from bench.shapes import REAL
from rto_fast.kernels.common.workspace import CUDA_GEMM_ROWS, chunk_rows, tile_shape
from tests.kernels.test_compiles import ROOT, python

HALF = "bfloat16 x bfloat16 -> "
# GEMMs of T x V x H
GEMMS = {
    "linear_logprob": 1,
    "linear_logprob, backward": 4,
    "ppo_head": 3,
    "ppo_head, frozen": 2,
    "ppo_head, main_grad": 3,
    "preference_head": 4,
    "rto_score": 3,
    "rto_score, shared": 3,
}
# float32 sums of a gradient that its dtype cannot hold, and the hidden states of three models end to end
SUMS = {"linear_logprob, backward", "preference_head", "ppo_head", "rto_score, shared"}


@pytest.fixture(scope="module")
def runs() -> list[dict]:
    """A dict for each run of meta_device.py; whatever waits for the device's numbers makes it fail."""
    done: subprocess.CompletedProcess = python(ROOT / "tests" / "kernels" / "meta_device.py")
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def real(runs: list[dict]) -> list[dict]:
    found = [run for run in runs if run.get("shape") in {shape.name for shape in REAL}]
    assert len(found) == len(REAL) * 2 * len(GEMMS)
    return found


def test_no_launch_spills_at_the_alignment_it_comes_with(runs):
    assert {name for run in runs for name in run["launches"]} == {
        "fold_kernel", "d_logits_kernel", "ppo_kernel", "pairs_kernel", "_token_reward_gae", "split_kernel",
        "combine_kernel",
    }  # fmt: skip
    assert [run for run in runs if run["spilled"]] == []


def test_gemms_are_as_few_as_can_be_and_take_half_precision(runs):
    for run in real(runs):
        assert sum(run["gemms"].values()) == GEMMS[run["op"]], run
        assert set(run["gemms"]) <= {HALF + "float32", HALF + "bfloat16"}, run


def test_gemms_take_16_bytes_at_a_time_whatever_the_vocabulary(runs):
    assert any(run["shape"] == "odd" for run in runs if "shape" in run)
    assert [run for run in runs if not run["aligned"]] == []


def test_logits_and_sums_are_float32(runs):
    """Only a gradient that is a single sum may be rounded by its GEMM."""
    for run in real(runs):
        rounded = run["gemms"].get(HALF + "bfloat16", 0)
        assert rounded <= (0 if run["op"] in ("linear_logprob", "rto_score", "rto_score, shared") else 2), run


@pytest.mark.parametrize("op", sorted(GEMMS.keys() - SUMS))
def test_memory_is_the_workspace_and_flat_in_rows(runs, op):
    for shape in REAL:
        few, many = (run for run in real(runs) if run["op"] == op and run["shape"] == shape.name)
        assert (few["rows"], many["rows"]) == (8192, 32768)
        assert max(few["mib"], many["mib"]) <= 1.1 * 1024, (few, many)


def test_rewards_take_one_launch_and_no_memory(runs):
    alone = [run for run in runs if run["op"] == "token_reward_gae"]
    assert len(alone) == 3 and {run["sequences"] for run in alone} == {64, 8192, 65537}
    for run in alone:
        assert run["launches"] == {"_token_reward_gae": 1} and run["mib"] == 0.0
    assert all(run["launches"]["_token_reward_gae"] == 1 for run in runs if run["op"].startswith("rto_score"))


def test_a_step_of_attention_takes_two_launches_at_most_and_a_sliver_of_the_cache(runs):
    """Partial sums of 512 positions: D + 2 float32 numbers a head, beside the keys and values of those positions."""
    alone = [run for run in runs if run["op"] == "decode_attention"]
    assert len(alone) == 3 * 2 * 4
    for run in alone:
        heads, kv_heads, size = run["heads"]
        splits = -(-run["capacity"] // 512)
        assert run["launches"] == {"split_kernel": 1} | ({"combine_kernel": 1} if splits > 1 else {}), run
        wanted = run["rows"] * heads * splits * (size + 2) * 4 / 2**20 if splits > 1 else 0.0
        # the allocator counts by 512 bytes
        assert wanted <= run["mib"] <= wanted + 1024 / 2**20, run
        read = run["rows"] * kv_heads * splits * 512 * 2 * size * 2 / 2**20
        assert 2 * wanted <= 0.033 * read


def test_a_chunk_of_ppo_head_is_one_launch(runs):
    for run in real(runs):
        if run["op"].startswith("ppo_head"):
            vocab = next(shape.vocab for shape in REAL if shape.name == run["shape"])
            rows = (1 << 28) // vocab // 128 * 128
            assert run["launches"] == {"ppo_kernel": -(-run["rows"] // rows)}, run


@pytest.mark.parametrize("vocab", [50257, 50304, 128256, 151936, 262144])
@pytest.mark.parametrize("megabytes", [64, 1024, None])
def test_chunks_are_whole_tiles_of_a_gpus_gemms(vocab, megabytes):
    cuda = torch.device("cuda")
    limit = (megabytes or 2048) << 18
    for rows, columns in (tile_shape(vocab, cuda, torch.float32, megabytes), (chunk_rows(vocab, cuda, limit), vocab)):
        assert rows * columns <= limit
        assert rows % CUDA_GEMM_ROWS == 0 or rows < CUDA_GEMM_ROWS
        assert (rows + CUDA_GEMM_ROWS) * columns > limit


def test_what_waits_for_the_device_fails_here():
    """The instrument sees what it is for: the mask of linear_logprob needs the number of its rows on the host."""
    code = """
import sys
sys.path.insert(0, "tests/kernels")
import meta_device as m
from rto_fast.kernels.common import kernel
from rto_fast.kernels.linear_logprob import linear_logprob
m.driver.set_active(m.Absent(90))
m.os.environ["TRITON_INTERPRET"] = "1"
half = dict(dtype=m.torch.bfloat16)
hidden, weight, target = m.empty(8, 16, **half), m.empty(32, 16, **half), m.empty(8, dtype=m.torch.int64)
call = lambda **more: linear_logprob(hidden, weight, target, backend="triton", **more)
print(m.observe(call, [hidden, weight, target], 1)["launches"])
call(mask=m.empty(8, dtype=m.torch.bool))
"""
    done = python("-c", code)
    assert done.stdout == "{'fold_kernel': 1}\n" and "nonzero" in done.stderr
