"""A reward model's scores: the same answer gets the same score in training and in evaluation.

It is read as the reward model was trained. Where the policy has its tokenizer, token ids are scored as they are. Where
it has one of its own, prompt and response are tokenised again, apart, and joined: a conversation through the reward
model's own chat template, or as plain turns where it has none; a text that is no conversation as it stands. A server
(`judges.serve`) scores alike what it can see: it is given texts alone, so turns must be plain to be known as such.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rto_fast.config.checks import check
from rto_fast.data.fingerprint import fingerprint
from rto_fast.data.parse import Message, as_messages, is_dialogue
from rto_fast.data.template import Template
from rto_fast.judges import Answer, Judge, as_texts, check_scores
from rto_fast.model.lend import lent
from rto_fast.model.logprobs import last_token_scores
from rto_fast.model.scalar import ScalarModel

OPEN_TURN = "\n\nAssistant:"


class RewardModel:
    r"""A scorer of texts.

    score = the model's output at the last token: EOS of a finished answer, else the last token of one that was cut off

    model      a scalar model, on its device
    device     to score on, where the model waits elsewhere
    tokenizer  the reward model's own
    max_rows   tokens in one forward pass, or one answer; what an answer is packed with changes nothing
    style      how a conversation becomes text, as data.template
    field      the setting that names the model, in errors

    An answer's `messages` are its conversation; without them a text of plain turns ("\n\nHuman: ...\n\nAssistant:") is
    one where the reward model has a chat template. One that the chat template refuses is written as plain turns.

    What is longer than the model's context loses its oldest tokens, those of the prompt first and never BOS, and is
    counted in `truncated`; that an answer itself lost some is warned of.

    Raises ValueError, one sentence naming `field`: for a tokenizer without EOS, one with more tokens than the model has
    embeddings (when such a token comes), and a score that is not finite.
    """

    def __init__(
        self,
        model: ScalarModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_rows: int,
        style: str = "auto",
        field: str = "rm.model",
        device: torch.device | None = None,
    ):
        check(max_rows >= 1, f"{field}: max_rows", "positive", max_rows)
        self.model = model.eval()
        self.max_rows = max_rows
        self.field = field
        self._device = device or model.head.weight.device
        self.truncated = 0
        self._own, self._plain = Template(tokenizer, style), Template(tokenizer, "plain")
        self._context: int | None = getattr(model.backbone.config, "max_position_embeddings", None)
        embeddings: Any = model.backbone.get_input_embeddings()  # an nn.Embedding, or a class of the model's own
        self._num_embeddings: int = embeddings.num_embeddings

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        return self.score(self.encode(answers))

    def score(self, answers: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """The scores of (prompt, response) token ids."""
        ids = [self._fitted(prompt, response) for prompt, response in answers]
        if (largest := max(map(max, ids), default=0)) >= self._num_embeddings:
            raise ValueError(
                f"{self.field}: its tokenizer made token {largest}, but the model has {self._num_embeddings} "
                "embeddings; give the tokenizer that belongs to the model"
            )
        # texts can come out longer here than the policy's tokens that the budget was made for
        with lent((self.model,), self._device):
            scores = last_token_scores(self.model, ids, max([self.max_rows, *map(len, ids)])).tolist()
        return check_scores(scores, len(ids), self.field)

    def encode(self, answers: Sequence[Answer]) -> list[tuple[list[int], list[int]]]:
        """(prompt, response) token ids as in the reward model's training: BOS first where the tokenizer has one, EOS
        last where the answer is finished; never both empty."""
        turns = [tuple(a.messages) or self._turns(a.prompt) for a in answers]
        # what its template does not write
        refused = {i: "" for i, messages in enumerate(turns) if not messages}
        prompts = self._own.prompts(turns, refused)
        out = []
        for i, answer in enumerate(answers):
            template, messages, prompt, text = self._own, turns[i], prompts[i], answer.response
            if i in refused:
                template, messages = self._plain, tuple(answer.messages) or (Message("text", answer.prompt),)
                prompt = template.prompt(messages)
                if not answer.messages and self._own.style != "none" and answer.prompt.endswith(OPEN_TURN):
                    # an answer that was decoded apart from its prompt may have lost the space between them
                    text = " " + text.lstrip()
            # a response that is nothing but EOS comes without it
            response = template.response(text, messages)[:-1] + [template.eos_id] * answer.finished
            out.append((prompt, response) if prompt or response else ([template.eos_id], []))
        return out

    def _turns(self, prompt: str) -> tuple[Message, ...]:
        """A text of plain turns as a conversation; empty for any other."""
        is_turns = self._own.style == "chat" and prompt.endswith(OPEN_TURN) and is_dialogue(prompt)
        return as_messages(prompt) if is_turns else ()

    def _fitted(self, prompt: list[int], response: list[int]) -> list[int]:
        """Prompt and response as one, within the model's context."""
        ids = prompt + response
        if self._context is None or len(ids) <= self._context:
            return ids
        bos = ids[:1] if ids[0] == self._own.bos_id else []
        room = self._context - len(bos)
        if len(response) > room:
            warnings.warn(
                f"{self.field}: an answer does not fit its context of {self._context} tokens and was scored without "
                "its beginning; lower --max-new-tokens, or take a reward model with a longer context",
                stacklevel=2,
            )
        self.truncated += 1
        return bos + ids[len(ids) - room :]


def reward_judge(
    model: ScalarModel,
    tokenizer: PreTrainedTokenizerBase,
    policy_tokenizer: PreTrainedTokenizerBase,
    conversations: Mapping[tuple[int, ...], Sequence[Message]],
    *,
    max_rows: int,
    field: str,
    device: torch.device | None = None,
) -> Judge:
    """A reward model as a judge of a policy's answers: their token ids where the tokenizers are the same, chat template
    included, else their texts.

    conversations  by the prompt's token ids; a prompt that is not there is read as the text that the policy read

    Raises ValueError as `RewardModel` does.
    """
    if fingerprint(tokenizer) == fingerprint(policy_tokenizer):
        # ids need no template
        scorer = RewardModel(model, tokenizer, max_rows=max_rows, style="none", field=field, device=device)
        return lambda answers: scorer.score([(a.prompt, a.response) for a in answers])
    scorer = RewardModel(model, tokenizer, max_rows=max_rows, field=field, device=device)
    return lambda answers: scorer(as_texts(policy_tokenizer, answers, conversations))
