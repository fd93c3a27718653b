"""Packed sequences: the tensors that flow between the parts, and the one place that shifts tokens."""

from rto_fast.packing.pack import cumulative, microbatches, pack, pack_whole, segment_gather, select
from rto_fast.packing.partition import Share, partition
from rto_fast.packing.types import PackedBatch

__all__ = [
    "PackedBatch",
    "Share",
    "cumulative",
    "microbatches",
    "pack",
    "pack_whole",
    "partition",
    "segment_gather",
    "select",
]
