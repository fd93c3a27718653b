"""The embedded task: short questions about animals, answers of known quality per token, made by code from a seed.

`grammar` asks and answers, `oracle` scores every token in closed form, `tokenizer` and `task` write the files that the
pipeline reads. Nothing is downloaded.
"""

from rto_fast.tasks.quickstart.corrupt import corrupted_rows
from rto_fast.tasks.quickstart.judge import Oracle as make_oracle
from rto_fast.tasks.quickstart.task import write_task
from rto_fast.tasks.quickstart.tokenizer import build_tokenizer

__all__ = ["build_tokenizer", "corrupted_rows", "make_oracle", "write_task"]
