"""The processes of a run that torchrun has started, its ranks; of a run alone there is one, and nothing here is sent.

Every rank knows all token lists and every number of a row, so that all decide alike: what one rank has computed,
`gather` and `total` make known to all. Whoever calls one of them, all do, in the same order. When a rank ends, the
others find out at the next one of them, as `Parted`.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rto_fast.files.text import one_line
from rto_fast.packing import Share, partition

T = TypeVar("T")
FAULT = "rto_fast/fault/"
"""Where in the ranks' common store each leaves its last words."""
BUCKET = 2**24
"""Numbers of a gradient that are sent at once."""
WAIT = timedelta(days=1)
"""How long a rank waits for another that lives: an evaluation takes its time, and a stalled one ends itself."""


class Parted(ConnectionError):
    """Another rank has ended."""


def ranks() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process writes and speaks; before the ranks have met, torchrun's number tells."""
    return rank() == 0 if dist.is_initialized() else os.environ.get("RANK", "0") == "0"


def asked() -> int:
    """How many processes torchrun has started; ValueError where the environment says nonsense."""
    said = os.environ.get("WORLD_SIZE", "1")
    if not said.isascii() or not said.isdigit() or not int(said):
        raise ValueError(f"WORLD_SIZE: must be a number of processes, as torchrun sets it, got {said[:40]!r}")
    return int(said)


def start(device: torch.device) -> torch.device:
    """Meet the other ranks, where there are any; the device of this one."""
    if asked() == 1 or dist.is_initialized():
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if device.index >= torch.cuda.device_count():
            raise ValueError(
                f"WORLD_SIZE: process {device.index} of this machine has no GPU, {torch.cuda.device_count()} are "
                "there; start as many with --nproc-per-node"
            )
        torch.cuda.set_device(device)
    with _met():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=WAIT)
    return device


def end() -> None:
    """Leave the other ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()


def confess(kind: type | None, error: BaseException | None, _: object) -> None:
    """Leave what ends this rank where rank 0, which alone speaks, finds it: an ExitStack's last call before `end`."""
    if dist.is_initialized() and error is not None and not isinstance(error, Parted):
        with suppress(RuntimeError):
            _store().set(f"{FAULT}{rank()}", one_line(error, 500) or type(error).__name__)


@contextmanager
def _met() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise Parted(f"WORLD_SIZE: {_fault()}; the same command goes on from the last checkpoint") from error


def _fault() -> str:
    """Which other rank has ended, and of what, as far as it had time to say."""
    with suppress(RuntimeError):
        for number in range(ranks()):
            if number != rank() and _store().check([f"{FAULT}{number}"]):
                return f"process {number} has ended: {_store().get(f'{FAULT}{number}').decode()}"
    return "another process of this run has ended, as one does that was killed or has run out of memory"


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def shares(lengths: Sequence[int], max_rows: int, finer: bool = True) -> list[Share]:
    """Each rank's part of the items that all ranks have before them: see `partition`."""
    return partition(lengths, max_rows, ranks(), finer)


def share(lengths: Sequence[int], max_rows: int) -> Share:
    """This rank's part."""
    return shares(lengths, max_rows)[rank()]


def gather(x: Tensor, sizes: list[int]) -> Tensor:
    """Every rank's rows, in the order of the ranks: `sizes` says how many each brings."""
    if ranks() == 1:
        return x
    most = x.new_zeros(max(sizes), *x.shape[1:])
    most[: len(x)] = x
    parts = [torch.empty_like(most) for _ in sizes]
    with _met():
        dist.all_gather(parts, most)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def total(x: Tensor) -> Tensor:
    """The sum over all ranks, in place."""
    if ranks() > 1:
        with _met():
            dist.all_reduce(x)
    return x


def add_up(sums: dict[str, Tensor], networks: dict[str, list[Tensor]]) -> None:
    """A step's statistics and gradients become those of all ranks, which have the same names and parameters."""
    if ranks() == 1:
        return
    names = sorted(sums)
    for name, value in zip(names, total(torch.stack([sums[name].float() for name in names])), strict=True):
        sums[name] = value
    for parameters in networks.values():
        # an expert that no token of this rank was given to has no gradient here
        some = total(torch.tensor([float(p.grad is not None) for p in parameters])).tolist()
        trained = [p for p, there in zip(parameters, some, strict=True) if there]
        for p in trained:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        for bucket in _buckets([p.grad for p in trained if p.grad is not None]):
            flat = total(torch.cat([x.flatten() for x in bucket]))
            for x, summed in zip(bucket, flat.split([x.numel() for x in bucket]), strict=True):
                x.copy_(summed.view_as(x))


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type, of so many numbers together: one message for many small ones."""
    bucket: list[Tensor] = []
    size = 0
    for x in tensors:
        if bucket and (x.dtype != bucket[0].dtype or size + x.numel() > BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(x)
        size += x.numel()
    if bucket:
        yield bucket


def everyones(value: Any) -> list[Any]:
    """What each rank says, as JSON has it."""
    if ranks() == 1:
        return [value]
    text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
    mine = torch.zeros(ranks(), dtype=torch.int64)
    mine[rank()] = len(text)
    sizes = total(mine).tolist()
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    whole = bytes(gather(text, sizes).tolist())
    return [json.loads(whole[a:b]) for a, b in zip(ends, ends[1:], strict=False)]


def any_of(flag: bool) -> bool:
    """Whether some rank says so."""
    return bool(total(torch.tensor(float(flag)))) if ranks() > 1 else flag


def first_does(work: Callable[[], object]) -> None:
    """Rank 0 does it while the others wait; its mistake ends all of them."""

    def quietly() -> None:
        work()

    first_tells(quietly)


def first_tells(work: Callable[[], T]) -> T:
    """What rank 0 makes of it, as JSON has it, while the others wait; its mistake ends all of them."""
    if ranks() == 1:
        return work()
    result: Any = None
    fault: Exception | None = None
    if rank() == 0:
        try:
            result = work()
        except (ValueError, OSError) as error:
            fault = error
    failed, result = everyones([fault is not None, result])[0]
    if fault is not None:
        raise fault
    if failed:
        raise Parted("WORLD_SIZE: process 0 has ended")
    return result
