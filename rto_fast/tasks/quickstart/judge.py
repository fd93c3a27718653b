"""The oracle on token ids, as the evaluation calls it."""

from transformers import PreTrainedTokenizerBase

from rto_fast.tasks.quickstart.oracle import oracle_return, token_signs


class Oracle:
    """Judges answers of token ids; the prompt starts with BOS, the answer ends with EOS or was cut off."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer

    def answer_return(self, prompt: list[int], response: list[int]) -> float:
        return oracle_return(*self._words(prompt, response))

    def answer_signs(self, prompt: list[int], response: list[int]) -> list[int]:
        return token_signs(*self._words(prompt, response))

    def _words(self, prompt: list[int], response: list[int]) -> tuple[str, list[str]]:
        question, answer = (list(self.tokenizer.convert_ids_to_tokens(ids)) for ids in (prompt, response))
        return " ".join(question[question[0] == self.tokenizer.bos_token :]), answer
