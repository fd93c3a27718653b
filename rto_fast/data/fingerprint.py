"""Whether two models read the same token ids: RTO subtracts their log-probs token by token, which means nothing if not.

The error this prevents is silent: another model's ids are valid ids, and the rewards come out as plausible noise.
"""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What must agree. Padding is left out: no sequence is ever padded."""

    vocab: dict[str, int]
    """Token -> id."""
    bos: str | None
    eos: str | None
    chat_template: str | None


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> Fingerprint:
    """The fingerprint of a Hugging Face tokenizer."""
    return Fingerprint(
        vocab=tokenizer.get_vocab(),
        bos=tokenizer.bos_token,
        eos=tokenizer.eos_token,
        chat_template=tokenizer.chat_template,
    )


def check_same_tokenizer(
    a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase, name_a: str = "the policy", name_b: str = "the DPO model"
) -> None:
    """Raises ValueError, one sentence that says what differs and what fixes it, unless `a` and `b` agree on every
    token id, on BOS and EOS and on the chat template."""
    one, two = fingerprint(a), fingerprint(b)
    if one == two:
        return
    same = f"train both from one base model, or give {name_b} the tokenizer files of {name_a}"
    if one.vocab != two.vocab:
        what = _first_difference(one.vocab, two.vocab, name_a, name_b)
        fix = "use models that were trained from the same base model"
    elif (one.bos, one.eos) != (two.bos, two.eos):
        name, x, y = ("BOS", one.bos, two.bos) if one.bos != two.bos else ("EOS", one.eos, two.eos)
        what, fix = f"{name} is {x!r} for {name_a} and {y!r} for {name_b}", same
    else:
        has = [name for name, print_ in ((name_a, one), (name_b, two)) if print_.chat_template is not None]
        what = "their chat templates differ" if len(has) == 2 else f"only {has[0]} has a chat template"
        fix = same
    raise ValueError(f"{name_a} and {name_b} do not have the same tokenizer: {what}; {fix}")


def _first_difference(a: dict[str, int], b: dict[str, int], name_a: str, name_b: str) -> str:
    one, two = ({i: token for token, i in sorted(vocab.items())} for vocab in (a, b))
    differ = [i for i in sorted(one.keys() | two.keys()) if one.get(i) != two.get(i)]
    i = differ[0]
    sizes = f"{len(one)} and {len(two)} tokens, " if len(one) != len(two) else ""
    first, second = (repr(v[i]) if i in v else "absent" for v in (one, two))
    return f"{sizes}{len(differ)} ids differ, the first is {i}, {first} for {name_a} and {second} for {name_b}"
