"""Out of memory, in words: what was being done, and which of the budgets to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rto_fast.config import Config


def ran_out(error: BaseException) -> bool:
    """Whether this is an allocation that failed, on the host or on a GPU."""
    host = "can't allocate memory" in str(error) or "not enough memory" in str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and host)


@contextmanager
def explained(doing: str, config: Config) -> Iterator[None]:
    """Turns an allocation that failed inside into a ValueError that names the budgets, the most useful first."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        where = "GPU" if isinstance(error, torch.OutOfMemoryError) else "host"
        if where == "GPU":
            torch.cuda.empty_cache()
        workspace = config.workspace_mb or (1024 if where == "GPU" else 64)
        raise ValueError(
            f"{doing}: out of {where} memory. Lower --microbatch-rows (now {config.microbatch_rows}; results stay the "
            f"same), then --workspace-mb (now {workspace}), for rollouts --rto.sampling.batch-size (now "
            f"{config.rto.sampling.batch_size}), or set --model.gradient-checkpointing True: the same command goes "
            "on from the last checkpoint"
        ) from error
