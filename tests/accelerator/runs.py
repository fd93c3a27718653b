"""Trains on the device of device.cpp: `python -m tests.accelerator.runs LIBRARY FOLDER`, LIBRARY being it, built.

Every run is the command as a user gives it, with `--device` meaning that device.
"""

import sys
from pathlib import Path

import torch

from tests.tiny_run import SETTINGS, write_model, write_pairs

RUNS = {
    "scored": (
        *("--stages", "sft", "dpo", "rm", "rto", "--rto.reward.beta-3", "1", "--rto.critic.warmup-iterations", "1"),
        *(
            "--rto.sampling.top-k",
            "5",
            "--rto.sampling.top-p",
            "0.9",
            "--checkpoint.every",
            "2",
            "--checkpoint.best",
            "kl",
        ),
        *("--offload.frozen", "True", "--offload.optimizer", "True"),
    ),
    "shared": (
        *("--rto.critic.kind", "shared", "--rto.entropy-coef", "0.01", "--model.gradient-checkpointing", "True"),
        *("--rto.reward.granularity", "sentence", "--rto.reward.adaptive-kl-target", "0.1", "--dpo.loss", "ipo"),
        *("--rto.reward.truncated", "mask", "--microbatch-rows", "40", "--guards.grad-norm", "100"),
    ),
    "grouped": (
        *(
            "--rto.critic.kind",
            "group",
            "--rto.group",
            "2",
            "--rto.score.rule",
            "rto_fast.kernels.common.testing:nothing",
        ),
        *("--model.dtype", "bfloat16", "--rto.reward.missing-eos-penalty", "1"),
    ),
}


class Module:
    """What torch asks of a device's Python side."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """All random numbers are the CPU's."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def install(library: str) -> torch.device:
    torch.ops.load_library(library)
    torch.utils.rename_privateuse1_backend("strict")
    torch._register_device_module("strict", Module)
    torch.utils.generate_methods_for_privateuse1_backend()
    return torch.device("strict", 0)


def main(library: str, folder: Path) -> None:
    device = install(library)
    try:
        torch.ones(2, device=device) + torch.ones(2)
    except RuntimeError as error:
        print(f"mixed: {str(error).splitlines()[0]}")

    from rto_fast.runs import open as runs
    from rto_fast.train import main as train

    runs.device_of = lambda name: device
    write_model(folder / "model")
    write_pairs(folder / "pairs.jsonl")
    (folder / "tiny.toml").write_text(SETTINGS)
    given = ["--recipe", folder / "tiny.toml", "--model.path", folder / "model", "--data.path", folder / "pairs.jsonl"]
    for name, more in RUNS.items():
        print(f"{name}: {train([*map(str, given), '--output', str(folder / name), *more])}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
