"""Whether the processes of one run are of one kind."""

import torch
import transformers

import rto_fast
from rto_fast.runs.folder import shown
from rto_fast.runs.open import Context
from rto_fast.training import mesh


def check_ranks(context: Context) -> None:
    """ValueError, on every rank, where one has other settings, data or packages than rank 0: it would part ways."""
    own = {
        "rto_fast": rto_fast.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "settings": shown(context.config),
        "data": context.corpus.digests,
        "numbers": str(context.autocast),
        "device": context.device.type,
    }
    first, *others = mesh.everyones(own)
    for number, other in enumerate(others, 1):
        if different := [name for name in own if other[name] != first[name]]:
            name = different[0]
            said = "" if isinstance(first[name], dict) else f" ({other[name]}, and {first[name]})"
            raise ValueError(
                f"WORLD_SIZE: process {number} has another {name} than process 0{said}; start all of them with one "
                "command, on machines that are installed alike"
            )
