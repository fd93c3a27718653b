"""A reward model's score of answers, also where it reads other tokens than the policy."""

from collections.abc import Callable, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from rto_fast.data.fingerprint import fingerprint
from rto_fast.data.parse import Message
from rto_fast.data.template import Template
from rto_fast.evaluate.answers import answer_text
from rto_fast.model.logprobs import last_token_scores
from rto_fast.model.scalar import ScalarModel
from rto_fast.rollout import Completion


def scorer(
    model: ScalarModel,
    tokenizer: PreTrainedTokenizerBase,
    policy_tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    *,
    template: str,
    microbatch_rows: int,
) -> Callable[[list[Completion]], np.ndarray]:
    """A function answers -> (answers,) scores; answer i is to conversations[i].

    With the policy's own tokenizer the very ids are scored, at the EOS, or at the last token of an answer that was cut
    off. With another one the conversation and the answer's text are tokenised again as `Template` does for the reward
    model's training data; there a cut-off answer gets no EOS either. A text that is longer than the reward model's
    context loses the oldest tokens of its prompt. ValueError when the answer alone is longer, or a score is not finite.
    """
    same = _ids(tokenizer) == _ids(policy_tokenizer)
    own = None if same else Template(tokenizer, template)
    prompts = None if own is None else own.prompts(conversations)
    limit = getattr(model.backbone.config, "max_position_embeddings", None)

    def score(answers: list[Completion]) -> np.ndarray:
        if own is None:
            asked, responses = [a.prompt for a in answers], [a.response for a in answers]
        else:
            texts = [answer_text(policy_tokenizer, a) for a in answers]
            responses = [
                r if a.finish == "eos" or len(r) < 2 else r[:-1]
                for a, r in zip(answers, own.responses(texts, conversations), strict=True)
            ]
            # an empty answer is its EOS
            responses = [r or [own.eos_id] for r in responses]
            asked = prompts
        if limit is not None:
            asked = [_cut(p, r, limit, tokenizer.bos_token_id) for p, r in zip(asked, responses, strict=True)]
        texts = [prompt + response for prompt, response in zip(asked, responses, strict=True)]
        values = last_token_scores(model, texts, microbatch_rows).cpu().numpy()
        if not np.isfinite(values).all():
            raise ValueError(
                f"reward_model: {np.count_nonzero(~np.isfinite(values))} of {len(values)} scores are not finite; "
                "look for NaN or inf in its weights"
            )
        return values

    return score


def _cut(prompt: list[int], response: list[int], limit: int, bos_id: int | None) -> list[int]:
    room = limit - len(response)
    if room < 1:
        raise ValueError(
            f"reward_model: an answer of {len(response)} of its tokens does not fit its context of {limit}; "
            "lower --max-new-tokens, or take a reward model with a longer context"
        )
    if len(prompt) <= room:
        return prompt
    kept = prompt[len(prompt) - room :]
    return [bos_id, *kept[1:]] if prompt[0] == bos_id else kept


def _ids(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str | None]:
    """What decides whether two tokenizers give a text the same ids; chat templates and BOS are in the ids already."""
    print_ = fingerprint(tokenizer)
    return print_.vocab, print_.eos
