"""From files to token ids: read rows, give them one shape, write them as the model expects, cut and count.

rows = read_rows(path); pairs = to_pairs(rows).items; train, held_out = split(pairs, 0.05, seed)
items, report = encode_pairs(train, Template(load_tokenizer(model_path)), max_length=512)
"""

from rto_fast.data.encode import (
    EncodedDemonstration,
    EncodedPair,
    EncodingReport,
    encode_demonstrations,
    encode_pairs,
    encode_prompts,
)
from rto_fast.data.fingerprint import Fingerprint, check_same_tokenizer, fingerprint
from rto_fast.data.held_out import HeldOut, split
from rto_fast.data.parse import Message
from rto_fast.data.read import read_rows
from rto_fast.data.rows import (
    Demonstration,
    Normalised,
    Pair,
    Prompt,
    detect_kind,
    to_demonstrations,
    to_pairs,
    to_prompts,
)
from rto_fast.data.template import Template, TemplateRefusal
from rto_fast.data.tokenizer import load_tokenizer

__all__ = [
    "Demonstration",
    "EncodedDemonstration",
    "EncodedPair",
    "EncodingReport",
    "Fingerprint",
    "HeldOut",
    "Message",
    "Normalised",
    "Pair",
    "Prompt",
    "Template",
    "TemplateRefusal",
    "check_same_tokenizer",
    "detect_kind",
    "encode_demonstrations",
    "encode_pairs",
    "encode_prompts",
    "fingerprint",
    "load_tokenizer",
    "read_rows",
    "split",
    "to_demonstrations",
    "to_pairs",
    "to_prompts",
]
