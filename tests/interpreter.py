"""Repairs Triton's interpreter: imported before any kernel runs under TRITON_INTERPRET=1 (see conftest.py).

The interpreter of Triton 3.6 to 3.8 holds a bfloat16 tensor as its raw bits and computes with these bits as if they
were integers: sums, products, comparisons and dots of bfloat16 are silently wrong, and float32 is cut to bfloat16
instead of rounded. Here every operation on bfloat16 happens in float32 and is rounded once to the nearest even value,
as on the device. Triton 3.6 moreover indexes with int() of an array of one element, which numpy 2.4 forbids.
"""

import functools

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, TensorHandle


def _widen(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _narrow(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float32)
    bits = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16).view(torch.int16)
    return bits.numpy().view(np.uint16).reshape(values.shape)


def _is_bf16(x) -> bool:
    return isinstance(x, TensorHandle) and x.dtype.scalar == tl.bfloat16 and x.data.dtype == np.uint16


def _wide(x):
    return TensorHandle(_widen(x.data), tl.float32) if _is_bf16(x) else x


def _in_float32(method, result_from: int):
    """`method` on float32 copies; its result goes back to bfloat16 when argument `result_from` came as bfloat16."""

    @functools.wraps(method)
    def repaired(self, *args, **kwargs):
        if not any(map(_is_bf16, args)):
            return method(self, *args, **kwargs)
        out = method(self, *map(_wide, args), **kwargs)
        # a comparison gives booleans
        if out.data.dtype.kind != "f" or not _is_bf16(args[result_from]):
            return out
        return TensorHandle(_narrow(out.data), tl.bfloat16)

    return repaired


def _rounding(method):
    @functools.wraps(method)
    def repaired(self, src, dst_type, *args):
        if dst_type.scalar == tl.bfloat16 and not _is_bf16(src):
            return TensorHandle(_narrow(src.data), tl.bfloat16)
        if not _is_bf16(src) or dst_type.scalar == tl.bfloat16:
            return method(self, src, dst_type, *args)
        src = _wide(src)
        return src if dst_type.scalar == tl.float32 else method(self, src, dst_type, *args)

    return repaired


def _reducing(method):
    def cast(x, dtype, convert):
        shape = x.type.shape if x.type.is_block() else ()
        kind = tl.block_type(dtype, list(shape)) if shape else dtype
        return tl.core.tensor(TensorHandle(convert(x.handle.data), dtype), kind)

    @functools.wraps(method)
    def repaired(self, inputs):
        bf16 = [_is_bf16(x.handle) for x in inputs]
        if not any(bf16):
            return method(self, inputs)
        wide = (cast(x, tl.float32, _widen) if b else x for x, b in zip(inputs, bf16, strict=True))
        out = method(self, tuple(wide))
        outs = out if isinstance(out, (list, tuple)) else (out,)
        # min and max with an index return it beside the value, which is the one that came as bfloat16
        return tuple(cast(x, tl.bfloat16, _narrow) if x.handle.data.dtype == np.float32 else x for x in outs)

    return repaired


for _name, _result_from in (("binary_op", 0), ("unary_op", 0), ("ternary_op", 1), ("create_dot", 2)):
    setattr(InterpreterBuilder, _name, _in_float32(getattr(InterpreterBuilder, _name), _result_from))
for _name in ("cast_impl", "create_fp_to_fp"):
    setattr(InterpreterBuilder, _name, _rounding(getattr(InterpreterBuilder, _name)))
ReduceOps.apply_impl = _reducing(ReduceOps.apply_impl)

if triton.__version__.startswith("3.6."):
    _patch_lang_tensor = interpreter._patch_lang_tensor

    def _patch_with_index(tensor, scope):
        _patch_lang_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = _patch_with_index
