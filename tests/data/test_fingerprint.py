"""Models that read token ids differently are told apart, and the message says how."""

import pytest

from rto_fast.data.fingerprint import check_same_tokenizer, fingerprint
from tests.data.shared import DATA, needs_data
from tests.data.tokenizers import CHATML, byte_level, word_level


def test_the_same_tokenizer_twice():
    assert fingerprint(byte_level()) == fingerprint(byte_level())
    check_same_tokenizer(byte_level(), byte_level())
    # what pads is of no consequence: nothing is padded
    padded = byte_level()
    padded.pad_token = "</s>"
    check_same_tokenizer(byte_level(), padded)


@pytest.mark.parametrize(
    ("a", "b", "what"),
    [
        (word_level("a b c"), word_level("a x c"), "1 ids differ, the first is 4, 'b' for A and 'x' for B"),
        (word_level("a b"), word_level("a b c"), "5 and 6 tokens, 1 ids differ, the first is 5, absent for A and 'c'"),
        (byte_level(), byte_level(eos="<|eot|>"), "EOS is '</s>' for A and '<|eot|>' for B"),
        (byte_level(), byte_level(bos=None), "BOS is '<s>' for A and None for B"),
        (byte_level(), byte_level(template=CHATML), "only B has a chat template"),
        (byte_level(template=CHATML + " "), byte_level(template=CHATML), "their chat templates differ"),
    ],
)
def test_what_differs_is_said_in_one_sentence(a, b, what):
    with pytest.raises(ValueError, match=f"A and B do not have the same tokenizer: {what}.*; ") as error:
        check_same_tokenizer(a, b, "A", "B")
    assert "\n" not in str(error.value)
    assert fingerprint(a) != fingerprint(b)


@needs_data
def test_real_ones():
    from rto_fast.data.tokenizer import load_tokenizer

    gpt2, neox = (load_tokenizer(DATA / "tokenizers" / name) for name in ("gpt2", "gpt-neox-20b"))
    check_same_tokenizer(gpt2, gpt2)
    with pytest.raises(ValueError, match="50257 and 50277 tokens"):
        check_same_tokenizer(gpt2, neox)
