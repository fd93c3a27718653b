"""Packed sequences: the tensors that flow between the parts, and the one place that shifts tokens."""

from rto_fast.packing.pack import cumulative, microbatches, pack, pack_whole, segment_gather, select
from rto_fast.packing.types import PackedBatch

__all__ = ["PackedBatch", "cumulative", "microbatches", "pack", "pack_whole", "segment_gather", "select"]
