"""Without a GPU the Triton kernels run under the interpreter, which has to be chosen before triton is imported."""

import os
import sys

import torch

if not torch.cuda.is_available():
    asked = os.environ.get("TRITON_INTERPRET") == "1"
    assert asked or "triton" not in sys.modules, "triton was imported before TRITON_INTERPRET could be set"
    os.environ["TRITON_INTERPRET"] = "1"
    from tests import interpreter  # noqa: F401
