"""From messages to token ids: the prompt as the model expects it, and a response whose last action is EOS.

Prompt and response are tokenised apart, joined as tokens. Tokenising the joined text could merge the last characters of
one with the first of the other, and the prompt of a rollout would not be the prompt of the pair it came from.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from rto_fast.data.isolate import in_child
from rto_fast.data.parse import Message
from rto_fast.files.text import is_unicode, one_line

STYLES = ("auto", "chat", "plain", "none")

SECONDS, SECONDS_EACH, MEGABYTES = 3.0, 0.1, 1024
"""What a chat template may use for a number of conversations: so long, and so much longer for each."""

_PROBE, _ANSWER = "qqprobeqq", "qqanswerqq"
_QUESTION = " ".join(f"qqword{i}qq" for i in range(100))
_MARKS = ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "<|start_of_role|>", "[/INST]", "<|assistant|>")
"""What well-known chat templates write, so that a text of another model's is known too."""
_FIX = "fix chat_template in tokenizer_config.json, or use --data.template plain"


class TemplateRefusal(ValueError):
    """A conversation that the chat template does not accept (two user turns in a row, a system turn, ...)."""


class Template:
    """How one tokenizer writes prompts and responses.

    tokenizer  a Hugging Face tokenizer
    style      "chat"   the tokenizer's own chat template, with its generation prompt
               "plain"  "\\n\\nHuman: ...\\n\\nAssistant:" for every tokenizer; the response starts with a space
               "none"   the contents as they stand, nothing between them (stories, completions)
               "auto"   chat where the tokenizer has a template, else plain
    parse_special  special tokens spelled out in the data are special tokens: for data that is trusted. A prompt and a
               response as the tokenizer's chat template writes them then have, with style "none", the ids of style
               "chat", BOS and the token that closes an answer included

    Ids: the prompt begins with exactly one BOS where the tokenizer has one (in "chat": where the template or the
    tokenizer itself writes one); the response ends in exactly one EOS, `eos_id`: the token that closes the assistant's
    turn in the chat template (<end_of_turn>, <|im_end|>), else the tokenizer's EOS. What a tokenizer would add by
    itself is never added. Special tokens spelled out in the data stay text, without parse_special.

    Raises ValueError for an unknown style, "chat" without a chat template, and a tokenizer without EOS.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, style: str = "auto", parse_special: bool = False):
        if style not in STYLES:
            raise ValueError(f"data.template: wanted one of {', '.join(STYLES)}, got {style!r}")
        if style == "chat" and not tokenizer.chat_template:
            raise ValueError("data.template: 'chat' needs a tokenizer with a chat template; use 'plain' or 'auto'")
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "data: the tokenizer has no EOS token, so no answer could end; set eos_token in tokenizer_config.json"
            )
        self.tokenizer = tokenizer
        self.style = style if style != "auto" else ("chat" if tokenizer.chat_template else "plain")
        self.parse_special = parse_special
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int = tokenizer.eos_token_id
        specials = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        specials |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        self._specials = specials
        # a private character for each
        self._hidden = {name: chr(0xF0000 + i) for i, name in enumerate(specials)}
        self._literal = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))))
        self._lead = " " if self.style == "plain" else ""
        # texts that the chat template wrote before they came here
        self._written = self.style == "none" and parse_special and bool(tokenizer.chat_template)
        self._adds_bos = self.style != "chat" and not self._written or tokenizer("a")["input_ids"][:1] == [self.bos_id]
        self._marks_of_chat: tuple[str, ...] = _MARKS if self.style != "none" else ()
        if self.style == "chat" or self._written:
            self._read_assistant_turn()
        # an unknown word is an honest token of a text, every other special id in one would be an accident
        meant = set(specials.values()) if parse_special else {tokenizer.unk_token_id}
        self._banned = (set(specials.values()) - meant) | {self.eos_id, tokenizer.eos_token_id}
        self._eos_texts = tuple({tokenizer.eos_token, tokenizer.convert_ids_to_tokens(self.eos_id)})
        self._joint = self._find_joint()
        # whether a text behind a special token reads as one of its own (with a space put before it) or goes on
        behind = self._encode([f"{tokenizer.eos_token}b"], split_special_tokens=False)[0]
        self._restarts = behind[1:] == self._encode(["b"])[0]

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """What ends an answer: the token that closes a turn, and the tokenizer's EOS."""
        return tuple(dict.fromkeys([self.eos_id, self.tokenizer.eos_token_id]))

    def prompts(
        self, conversations: Sequence[Sequence[Message]], refused: dict[int, str] | None = None
    ) -> list[list[int]]:
        """Token ids of each prompt.

        Raises TemplateRefusal (a ValueError) for what the chat template does not take; given `refused`, it notes there
        the place and the reason of each such conversation, whose ids are then empty.
        """
        if self.style == "chat":
            return self._chat(conversations, refused)
        ids = self._encode([self.prompt_text(messages) for messages in conversations])
        return [self._one_bos(x, messages) for x, messages in zip(ids, conversations, strict=True)]

    def _chat(self, conversations: Sequence[Sequence[Message]], refused: dict[int, str] | None) -> list[list[int]]:
        literal = [
            not (self.parse_special or _is_raw(messages)) and any(self.has_literal_special(m.content) for m in messages)
            for messages in conversations
        ]
        asked = [self._quoted(m) if quoted else m for m, quoted in zip(conversations, literal, strict=True)]
        texts = self._texts(asked, refused)
        ids = self._encode(texts, split_special_tokens=False)
        for i, messages in enumerate(conversations):
            if literal[i]:
                ids[i] = self._around_literals(texts[i])
            elif not messages or _is_raw(messages):
                ids[i] = self._encode(texts[i : i + 1])[0]
            if refused is None or i not in refused:
                ids[i] = self._one_bos(ids[i], messages)
        return ids

    def _texts(self, conversations: Sequence[Sequence[Message]], refused: dict[int, str] | None) -> list[str]:
        texts = ["".join(m.content for m in messages) for messages in conversations]
        own = [i for i, messages in enumerate(conversations) if messages and not _is_raw(messages)]
        for i, (text, refusal) in zip(own, self._render([conversations[i] for i in own]), strict=True):
            if refusal:
                if refused is None:
                    raise TemplateRefusal(refusal)
                refused[i] = refusal
            texts[i] = text
        return texts

    def responses(self, texts: Sequence[str], prompts: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Token ids of each response to the prompt beside it, EOS last. A response that is nothing but EOS is empty."""
        bodies = [self.without_eos(text) for text in texts]
        fresh = [i for i, messages in enumerate(prompts) if not messages]
        going_on = [i for i, messages in enumerate(prompts) if messages]
        led = [
            bodies[i] if self.style == "none" or _is_raw(prompts[i]) else self._lead + bodies[i].lstrip()
            for i in going_on
        ]
        ids = dict(zip(fresh, self._encode([bodies[i] for i in fresh]), strict=True))
        ids |= zip(going_on, self._continue(led), strict=True)
        return [[*ids[i], self.eos_id] if body.strip() else [] for i, body in enumerate(bodies)]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """`prompts` for one."""
        return self.prompts([messages])[0]

    def response(self, text: str, messages: Sequence[Message]) -> list[int]:
        """`responses` for one."""
        return self.responses([text], [messages])[0]

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The prompt as text (without a BOS that the tokenizer or this class would add)."""
        if self.style == "none" or not messages or _is_raw(messages):
            return "".join(m.content for m in messages)
        if self.style == "chat":
            return self._texts([messages], None)[0]
        turns = [f"\n\n{'Human' if m.role == 'user' else m.role.capitalize()}: {m.content}" for m in messages]
        return "".join(turns) + "\n\nAssistant:"

    def has_literal_special(self, text: str) -> bool:
        """Whether a special token is spelled out in a text; it is encoded as the characters it is made of."""
        return self._literal.search(text) is not None

    def marker_in(self, messages: Sequence[Message]) -> str:
        """Which mark of a chat template a prompt holds already, though it is put into a template here; "" for none."""
        if _is_raw(messages):
            return ""
        return next((mark for mark in self._marks_of_chat for m in messages if mark in m.content), "")

    def holds_special(self, ids: Sequence[int]) -> bool:
        """Whether the tokenizer made a special token out of mere text, which a few (unigram, word-level) insist on."""
        return not self._banned.isdisjoint(ids)

    def _encode(self, texts: Sequence[str], *, split_special_tokens: bool | None = None) -> list[list[int]]:
        if not texts:
            return []
        return self.tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=not self.parse_special if split_special_tokens is None else split_special_tokens,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]

    def _find_joint(self) -> tuple[str, list[int]] | None:
        """A text and its ids behind which a continuation can be cut off; None where a text reads the same anywhere.

        SentencePiece-style tokenizers put a space before every text, also before one that continues another.
        """
        for joint in ("\n", ".", ":", "a"):
            prefix, whole, alone = self._encode([joint, joint + "b", "b"])
            if self.tokenizer.unk_token_id not in prefix and whole[: len(prefix)] == prefix:
                return (joint, prefix) if whole[len(prefix) :] != alone else None
        return None

    def _continue(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that go on from a prompt, without the space that would be put before a text of its own."""
        if self._joint is None:
            return self._encode(texts)
        joint, prefix = self._joint
        behind = zip(texts, self._encode([joint + t for t in texts]), strict=True)
        return [x[len(prefix) :] if x[: len(prefix)] == prefix else self._encode([t])[0] for t, x in behind]

    def _one_bos(self, ids: list[int], messages: Sequence[Message]) -> list[int]:
        if self.bos_id is None:
            return ids
        start = next((i for i, token in enumerate(ids) if token != self.bos_id), len(ids))
        if start or self._adds_bos or not messages or (_is_raw(messages) and not self._written):
            return [self.bos_id, *ids[start:]]
        return ids

    def without_eos(self, text: str) -> str:
        """A response without the spellings of EOS at its end, which is written there anyway."""
        while (cut := text.rstrip()).endswith(self._eos_texts):
            text = cut[: -max(len(e) for e in self._eos_texts if cut.endswith(e))].rstrip()
        return text

    def _render(self, conversations: Sequence[Sequence[Message]], *, answered: bool = False) -> list[tuple[str, str]]:
        """(text, "") of each conversation, or ("", why the template refuses it); `answered`: no generation prompt.

        The template is a program that came with the model: it runs in Jinja's sandbox and in a child process.
        """
        if not conversations:
            return []
        return in_child(
            lambda: [self._rendered(messages, answered) for messages in conversations],
            "data.template: the tokenizer's chat template",
            _FIX,
            seconds=SECONDS + SECONDS_EACH * len(conversations),
            megabytes=MEGABYTES,
        )

    def _rendered(self, messages: Sequence[Message], answered: bool) -> tuple[str, str]:
        turns = list(map(asdict, messages))
        try:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=not answered)
        except TemplateSyntaxError:
            raise
        except TemplateError as error:
            return "", one_line(f"the chat template refuses this conversation: {error}", 300)
        if not isinstance(text, str) or not is_unicode(text):
            return "", "the chat template refuses this conversation: it writes no Unicode text"
        return text, ""

    def _read_assistant_turn(self) -> None:
        """What the chat template writes between its generation prompt and an answer (only whitespace counts), and which
        special token it closes the answer with."""
        user = Message("user", _PROBE)
        (asked, refusal), (written, third) = self._render([[user], [Message("user", _QUESTION)]])
        answered, second = self._render([[user, Message("assistant", _ANSWER)]], answered=True)[0]
        if refusal := refusal or second or third:
            raise TemplateRefusal(f"data.template: {refusal} (a question and its answer); {_FIX}")
        if not asked.strip():
            raise ValueError(
                "data.template: the tokenizer's chat template writes nothing for a question; use --data.template plain"
            )
        if missing := next((word for word in _QUESTION.split() if word not in written.lower()), None):
            raise ValueError(
                f"data.template: the tokenizer's chat template drops words of the user ({missing!r} of a question is "
                f"not in what it writes); {_FIX}"
            )
        # what stands between a question and its answer
        _, kept, turn = asked.rpartition(_PROBE)
        if self.style == "chat" and kept and len(turn.strip()) > 2:
            self._marks_of_chat = (turn.strip(), *_MARKS)
        before, found, after = answered.partition(_ANSWER)
        if found and before.startswith(asked) and not before[len(asked) :].strip():
            self._lead = before[len(asked) :]
        closing = self._literal.match(after.lstrip()) if found else None
        if closing and self._specials[closing[0]] != self.bos_id:
            self.eos_id = self._specials[closing[0]]

    def _quoted(self, messages: Sequence[Message]) -> list[Message]:
        """Messages whose spelled-out special tokens are hidden from the template and from the tokenizer."""
        return [Message(m.role, self._literal.sub(lambda found: self._hidden[found[0]], m.content)) for m in messages]

    def _around_literals(self, rendered: str) -> list[int]:
        """Ids of a chat prompt rendered from `_quoted` messages: only the template's own special tokens become special.

        The spellings travel through the template as private characters and come back in the pieces between them.
        """
        shown = {ord(mark): name for name, mark in self._hidden.items()}
        ids, start = [], 0
        for found in [*self._literal.finditer(rendered), None]:
            piece = rendered[start : found.start() if found else None].translate(shown)
            if piece:
                ids += self._encode([piece])[0] if start == 0 or self._restarts else self._continue([piece])[0]
            if found:
                ids.append(self._specials[found[0]])
                start = found.end()
        return ids


def _is_raw(messages: Sequence[Message]) -> bool:
    return len(messages) == 1 and messages[0].role == "text"
