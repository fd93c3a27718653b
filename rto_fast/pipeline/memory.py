"""Out of memory: what to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rto_fast.config import Config
from rto_fast.kernels.common.workspace import CPU_WORKSPACE_MB, CUDA_WORKSPACE_MB


@contextmanager
def explained(doing: str, config: Config) -> Iterator[None]:
    """Turns an allocation that failed inside into a ValueError that names the budgets, the most useful first."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said = any(text in str(error) for text in ("can't allocate memory", "not enough memory"))
        if not (said or isinstance(error, MemoryError | torch.OutOfMemoryError)):
            raise
        where = "GPU" if isinstance(error, torch.OutOfMemoryError) else "host"
        if where == "GPU":
            torch.cuda.empty_cache()
        workspace = config.workspace_mb or (CUDA_WORKSPACE_MB if where == "GPU" else CPU_WORKSPACE_MB)
        raise ValueError(
            f"{doing}: out of {where} memory. Lower --microbatch-rows (now {config.microbatch_rows}; results stay the "
            f"same), then --workspace-mb (now {workspace}), for rollouts --rto.sampling.batch-size (now "
            f"{config.rto.sampling.batch_size}), or set --model.gradient-checkpointing, --offload.frozen or "
            "--offload.optimizer True: the same command goes on from the last checkpoint"
        ) from error
