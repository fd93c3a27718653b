"""Scores of a reward model that has a tokenizer of its own."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase

from rto_fast.data.parse import Message, as_messages, is_dialogue
from rto_fast.data.template import Template, TemplateRefusal
from rto_fast.judges import Answer, check_scores
from rto_fast.model.logprobs import last_token_scores
from rto_fast.model.scalar import ScalarModel

OPEN_TURN = "\n\nAssistant:"


class TextScorer:
    """A scorer; `truncated` counts the answers so far whose beginning did not fit into the model's context."""

    def __init__(
        self,
        model: ScalarModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_rows: int,
        device: torch.device | str,
        style: str,
        field: str,
    ):
        if max_rows < 1:
            raise ValueError(f"{field}: max_rows must be positive, got {max_rows}")
        self.model = model.eval().to(device)
        self.max_rows = max_rows
        self.device = device
        self.field = field
        self.truncated = 0
        self._template, self._plain = Template(tokenizer, style), Template(tokenizer, "none")
        self._context: int | None = getattr(model.backbone.config, "max_position_embeddings", None)
        self._num_embeddings: int = model.backbone.get_input_embeddings().num_embeddings

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        ids = [self._cut(self.encode(answer)) for answer in answers]
        # texts can come out longer here than the policy's tokens that the budget was made for
        scores = last_token_scores(self.model, ids, max([self.max_rows, *map(len, ids)])).tolist()
        check_scores(scores, len(answers), self.field)
        return scores

    def encode(self, answer: Answer) -> list[int]:
        """Token ids as in training, BOS first where the tokenizer has one, EOS last where the answer is finished."""
        response = answer.response
        if self._template.style != "none" and answer.prompt.endswith(OPEN_TURN):
            if self._template.style == "chat" and is_dialogue(answer.prompt):
                with suppress(TemplateRefusal):
                    return self._join(self._template, as_messages(answer.prompt), answer)
            # an answer that was decoded apart from its prompt may have lost the space between them
            response = " " + response.lstrip()
        return self._join(self._plain, (Message("text", answer.prompt),), replace(answer, response=response))

    def _join(self, template: Template, messages: Sequence[Message], answer: Answer) -> list[int]:
        # a response that is nothing but EOS comes without it
        response = template.response(answer.response, messages)[:-1]
        ids = template.prompt(messages) + response + [template.eos_id] * answer.finished
        if max(ids, default=0) >= self._num_embeddings:
            raise ValueError(
                f"{self.field}: its tokenizer made token {max(ids)}, but the model has {self._num_embeddings} "
                "embeddings; give the tokenizer that belongs to the model"
            )
        return ids or [template.eos_id]

    def _cut(self, ids: list[int]) -> list[int]:
        if self._context is None or len(ids) <= self._context:
            return ids
        self.truncated += 1
        if ids[0] == self._plain.bos_id:
            return [ids[0], *ids[len(ids) - self._context + 1 :]]
        return ids[len(ids) - self._context :]


def text_scorer(
    model: ScalarModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_rows: int,
    device: torch.device | str,
    style: str = "auto",
    field: str = "rm.model",
) -> TextScorer:
    r"""A scorer that tokenises prompt and response with the reward model's own tokenizer.

    score = the model's output at the last real token: EOS for a finished answer, else the answer's last token

    A prompt of plain turns ("\n\nHuman: ...\n\nAssistant:") is written with the tokenizer's chat template where it has
    one (`style`, as data.template: auto, chat, plain, none), and kept where it has none; any other text is kept as it
    stands. Prompt and response are tokenised apart and joined, as in training. What is longer than the model's context
    loses its oldest tokens behind BOS, and is counted in `truncated`. Packs hold at most `max_rows` rows, or one
    answer; what an answer is packed with changes nothing.

    Raises ValueError, naming `field`: for a tokenizer without EOS, one with more tokens than the model has embeddings
    (when such a token comes), and for a score that is not finite.
    """
    return TextScorer(model, tokenizer, max_rows=max_rows, device=device, style=style, field=field)
