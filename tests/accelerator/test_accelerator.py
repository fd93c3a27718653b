"""A run keeps every tensor on its device: tried without a GPU on a device that refuses two devices as a GPU does."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.accelerator.runs import RUNS

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU says so itself")
def test_runs_keep_their_tensors_on_the_device(tmp_path):
    library, torch_folder = tmp_path / "device.so", Path(torch.__file__).parent
    sources = [Path(__file__).with_name("device.cpp"), "-o", library]
    linked = [f"-I{torch_folder}/include", f"-L{torch_folder}/lib", "-ltorch_cpu", "-lc10"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    built = ["g++", "-O0", "-fPIC", "-shared", "-std=c++20", abi, *map(str, sources), *linked]
    subprocess.run(built, check=True, timeout=300)
    done = subprocess.run(
        [sys.executable, "-m", "tests.accelerator.runs", library, tmp_path],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    # the device is as strict as it is meant to be
    assert lines[0].startswith("mixed: "), done.stderr[-3000:]
    assert [f"{name}: 0" for name in RUNS] == [line for line in lines if line.split(":")[0] in RUNS], done.stderr[
        -3000:
    ]
    assert all((tmp_path / name / "rto" / "model.safetensors").is_file() for name in RUNS)
    assert (done.stdout + done.stderr).count(" parameters, strict:0, ") == len(RUNS)
