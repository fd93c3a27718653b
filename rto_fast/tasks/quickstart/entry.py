"""What the quickstart is to the rest of the package (`tasks.Task`); the grammar and the oracle alone need no torch."""

from transformers import PreTrainedTokenizerBase

from rto_fast.tasks.quickstart.corrupt import corrupted_answers
from rto_fast.tasks.quickstart.oracle import oracle_return, token_signs
from rto_fast.tasks.quickstart.task import write_task
from rto_fast.tasks.quickstart.tokenizer import build_tokenizer

__all__ = ["build_tokenizer", "corrupted_rows", "make_oracle", "write_task"]


class Oracle:
    """The oracle on token ids (`tasks.Oracle`)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer

    def answer_return(self, prompt: list[int], response: list[int]) -> float:
        return oracle_return(*self._words(prompt, response))

    def answer_signs(self, prompt: list[int], response: list[int]) -> list[int]:
        return token_signs(*self._words(prompt, response))

    def _words(self, prompt: list[int], response: list[int]) -> tuple[str, list[str]]:
        question, answer = (list(self.tokenizer.convert_ids_to_tokens(ids)) for ids in (prompt, response))
        return " ".join(question[question[0] == self.tokenizer.bos_token :]), answer


make_oracle = Oracle


def corrupted_rows(count: int, seed: int) -> list[dict[str, str]]:
    return [answer.row for answer in corrupted_answers(count, seed)]
