"""Packed sequences: the tensors that flow between the parts, and the one place that shifts tokens."""

from rto_fast.packing.pack import cumulative, microbatches, pack, pack_whole, segment_gather
from rto_fast.packing.types import PackedBatch, Rows

__all__ = ["PackedBatch", "Rows", "cumulative", "microbatches", "pack", "pack_whole", "segment_gather"]
