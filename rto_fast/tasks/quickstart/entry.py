"""What the quickstart is to the rest of the package (`tasks.Task`); the grammar and the oracle alone need no torch."""

from rto_fast.tasks.quickstart.corrupt import corrupted_rows
from rto_fast.tasks.quickstart.judge import Oracle as make_oracle
from rto_fast.tasks.quickstart.task import write_task
from rto_fast.tasks.quickstart.tokenizer import build_tokenizer

__all__ = ["build_tokenizer", "corrupted_rows", "make_oracle", "write_task"]
