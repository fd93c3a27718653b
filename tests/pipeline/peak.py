"""The peak of real stages' memory, each in a process of its own.

A line of JSON for each list of words, STAGE FLAG ..., that standard input holds as JSON. A stage is prepared, built and
trained as a run does it, while the profiler listens to torch's CPU allocator: that counts every tensor's bytes, those
within an operator and a backward too, and nothing else, so that neither Python's own memory nor a busy machine shows.
Weights that transformers' threads load are out of its sight; they are added from the tensors that there are.
"""

import gc
import json
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from rto_fast.pipeline.build import build
from rto_fast.pipeline.estimate import needs
from rto_fast.pipeline.facts import models_of
from rto_fast.pipeline.footprint import Arithmetic
from rto_fast.pipeline.prepare import prepare
from rto_fast.train import parse
from rto_fast.training import loop


def measure(stage: str, flags: list[str]) -> dict[str, int]:
    torch.manual_seed(0)
    config = parse(flags)
    with tempfile.TemporaryDirectory() as scratch:
        context, model = prepare(config, lambda text: None, Path(scratch))
    estimated = needs(config, models_of(config), Arithmetic())[stage]
    del model
    gc.collect()
    before, steps = _live(), []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        built = build(context, stage)
        gc.collect()
        loaded = torch.ones(1)  # marks the moment
        weights = _live() - before
        loop.train(built.stage, built.state, lambda step, metrics: steps.append(step))
    events = profile.profiler.kineto_results.experimental_event_tree()
    seen = _allocations(events)
    start = [total for _, size, total, place in seen if place == loaded.data_ptr() and size > 0][-1]
    return {
        **estimated._asdict(),
        "measured": max(total for *_, total, _ in seen) - start + weights,
        "steps": len(steps),
    }


def _live() -> int:
    """Bytes of the weights that there are; tied ones are one tensor."""
    modules = [x for x in gc.get_objects() if isinstance(x, torch.nn.Module)]
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for m in modules for p in m.parameters()}
    return sum(storages.values())


def _allocations(events: list[Any]) -> list[tuple[int, int, int, int]]:
    """(time, bytes, bytes held in all, address), in the order of time."""
    found, todo = [], list(events)
    while todo:
        event = todo.pop()
        todo += event.children
        if event.name == "[memory]":
            said = event.typed[1]
            found.append((event.start_time_ns, said.alloc_size, said.total_allocated, said.ptr))
    return sorted(found)


def _case(words: list[str]) -> str:
    return json.dumps(measure(words[0], words[1:]))


if __name__ == "__main__":
    disable_progress_bar()
    # a process for each, so that nothing of another's is counted; started from here, so that imports are made once
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        for line in pool.imap(_case, json.loads(sys.stdin.read()), chunksize=1):
            print(line, flush=True)
