"""The word-level tokenizer of the quickstart task: a word is a token, a space is a border, nothing is unknown."""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from rto_fast.tasks.quickstart.knowledge import BOS, EOS, PAD, UNK, vocabulary


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer for every text of the task; ids follow `vocabulary()` (pad 0, bos 1, eos 2, unk 3).

    It adds no special tokens by itself: a sequence is [bos] + prompt + response + [eos], put together as ids.
    """
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary())}, unk_token=UNK))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
