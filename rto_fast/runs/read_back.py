"""A finished stage's folder compared with the model that was written, a tensor at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rto_fast.files.foreign import check_loaded, opening


def check_export(
    folder: Path,
    hf: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype | None = None,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Read the folder back and compare every weight, bit for bit; ValueError, one line, where one differs, where one is
    missing, and where configuration or tokenizer do not load.

    hf, tokenizer, dtype, weights  as `save_stage` had them

    Costs the machine's memory of one tensor at a time, none of the device, and no second model; of a family whose
    weights have other names in files than in memory (experts that are fused when they are loaded) one model in the
    machine's memory.
    """
    with opening("export", folder, "configuration"):
        type(hf.config).from_pretrained(folder)
    with opening("export", folder, "tokenizer"):
        type(tokenizer).from_pretrained(folder)
    wanted = dict(weights or hf.state_dict())
    missing = dict(wanted)
    for name, found in _read(folder, hf, set(wanted)):
        x = wanted[name].detach().cpu()
        x = x.to(dtype) if dtype is not None and x.is_floating_point() else x
        if found.shape != x.shape or not torch.equal(found.to(x.dtype), x):
            raise ValueError(f"export: {folder} reads back to another {name}; check free disk space")
        # weights that are tied have one name in the file
        place = wanted[name].data_ptr()
        missing = {key: y for key, y in missing.items() if key != name and y.data_ptr() != place}
    if missing:
        raise ValueError(f"export: {folder} holds no {next(iter(missing))}; check free disk space")


def _read(folder: Path, hf: PreTrainedModel, names: set[str]) -> Iterator[tuple[str, Tensor]]:
    """The folder's weights by the names that they have in memory."""
    files = [safe_open(path, framework="pt") for path in sorted(folder.glob("*.safetensors"))]
    stored = {name for file in files for name in file.keys()}
    strange, left = stored - names, names - stored
    # a single weight under another name: GPT-NeoX's head is embed_out in files and lm_head in memory
    renamed = dict(zip(strange, left, strict=True)) if len(strange) == len(left) == 1 else {}
    if strange <= renamed.keys():
        for file in files:
            for name in file.keys():
                yield renamed.get(name, name), file.get_tensor(name)
        return
    with opening("export", folder, "model"):
        network: Any = type(hf)
        loaded, info = network.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    check_loaded(info, "export", str(folder))
    yield from loaded.state_dict().items()
