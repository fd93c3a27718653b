"""Finds and loads the native library of csrc/: row operators in C++ for CPU tensors, called through ctypes.

The library is built by `pip install` where a C++ compiler is there, or in a checkout by `python setup.py build_ext
--inplace`. Nothing needs it: without it the torch paths serve. torch is imported first, so that both share one OpenMP.
"""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import rto_fast.kernels

PATH = Path(rto_fast.kernels.__file__).parents[1] / "librto_fast.so"
# RTO_FAST_INTERFACE of csrc/native.h: a library that was built for other signatures is not called
INTERFACE = 2
LEVELS = ("plain", "avx2", "avx512")
HOW = "with a C++ compiler, `pip install -e .` or `python setup.py build_ext --inplace` builds it"

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float
# p pointer, l int64, i int32, f float32, in the order of the functions' arguments
SIGNATURES = {
    "fold": "pllpffplppppi",
    "finish": "lppppppp",
    "d_logits": "pllpffplppppppi",
    "ppo_rows": "pllpffpppppffffiippppi",
    "pairs": "pppplffipppp",
    "token_reward_gae": "ppppplppppfffffffiippppi",
}
_TYPES = {"p": _POINTER, "l": _LONG, "i": _INT, "f": _FLOAT}


class Library:
    """The functions of one shared library, at one level of vector instructions."""

    fold: Callable[..., None]
    finish: Callable[..., None]
    d_logits: Callable[..., None]
    ppo_rows: Callable[..., None]
    pairs: Callable[..., None]
    token_reward_gae: Callable[..., None]

    def __init__(self, path: Path, level: str | None = None):
        """`level` None takes the best that this CPU runs. OSError where the library cannot be loaded or is stale."""
        shared = ctypes.CDLL(str(path))
        found = shared.rto_fast_interface()
        if found != INTERFACE:
            raise OSError(f"{path} is stale (interface {found}, wanted {INTERFACE})")
        self.level = level or LEVELS[shared.rto_fast_level()]
        for name, signature in SIGNATURES.items():
            function = getattr(shared, f"{name}_{self.level}")
            function.argtypes, function.restype = [_TYPES[letter] for letter in signature], None
            setattr(self, name, function)


@functools.cache
def _load() -> Library | str:
    """The library, or why there is none."""
    if not PATH.is_file():
        return "it is not built"
    try:
        return Library(PATH)
    except (OSError, AttributeError) as error:
        return f"it does not load: {error}"


def available() -> bool:
    """Whether the native operators can run."""
    return isinstance(_load(), Library)


def missing() -> str | None:
    """Why the native library does not serve and how to get it, in a sentence without a capital; None when it does."""
    found = _load()
    return None if isinstance(found, Library) else f"the native library serves no operator, {found}; {HOW}"


def library() -> Library:
    """The loaded library. The caller has asked `available`, as dispatch.choose does."""
    found = _load()
    assert isinstance(found, Library), found
    return found


def pointer(x: Tensor | None) -> int | None:
    """Where a contiguous CPU tensor's numbers lie, as the functions take them; None stays None."""
    return None if x is None else x.data_ptr()


def threads() -> int:
    """As many as torch itself uses."""
    return torch.get_num_threads()
