"""Token rewards are those of the models' own logits, and tokens read as the text they come from."""

import pytest
import torch

from rto_fast.credit.options import Watch
from rto_fast.credit.source import open_source
from rto_fast.data.encode import EncodedDemonstration, EncodedPair
from rto_fast.data.tokenizer import load_tokenizer
from rto_fast.evaluate.token_rewards import TokenRewards, pair_heatmaps, pieces, whole_characters
from rto_fast.tasks.quickstart.tokenizer import build_tokenizer
from tests.tiny import SHARED


@pytest.fixture(scope="module")
def source(run):
    return open_source(Watch(str(run), device="cpu"))


def test_rewards_are_the_log_ratio_of_the_models_own_logits(source):
    pairs = source.pairs(None)[:5]
    answers = [EncodedDemonstration(p.prompt, p.chosen) for p in pairs]
    for answer, rewards in zip(answers, source.scorer.rewards(answers), strict=True):
        tokens = torch.tensor([answer.prompt + answer.response])
        want = 0
        for model, sign in ((source.scorer.dpo, 1), (source.scorer.reference, -1)):
            logits = model.hf(tokens).logits[0, len(answer.prompt) - 1 : -1].double()
            want = want + sign * logits.log_softmax(-1).gather(1, tokens[0, len(answer.prompt) :, None])[:, 0]
        torch.testing.assert_close(torch.tensor(rewards), source.scorer.beta * want, atol=2e-6, rtol=0)
    assert max(abs(rewards)) > 1e-3


def test_pairs_become_maps_with_the_oracles_signs(source):
    ids = source.template.tokenizer.convert_tokens_to_ids
    words = "the dog is pink . <eos>".split()
    pair = EncodedPair(
        [1, *ids("what is the colour of the dog ?".split())], ids("the dog is brown . <eos>".split()), []
    )
    pair = EncodedPair(pair.prompt, pair.chosen, ids(words))
    good, bad = pair_heatmaps(source.scorer, [pair], names=["pair 7"], oracle=source.oracle)
    assert (good.title, bad.title) == ("pair 7, chosen", "pair 7, rejected")
    assert bad.prompt == "what is the colour of the dog ?"
    assert "".join(bad.tokens) == " ".join(words)
    assert good.signs == [0, 0, 0, 1, 0, 1] and bad.signs == [0, 0, 0, -1, 0, 1]
    plain = pair_heatmaps(source.scorer, [pair], names=["p"])
    assert plain[1].signs is None and plain[1].rewards == bad.rewards


def test_words_bring_their_own_blanks():
    tokenizer = build_tokenizer()
    assert pieces(tokenizer, tokenizer("the dog is brown .")["input_ids"]) == ["the", " dog", " is", " brown", " ."]


@pytest.mark.parametrize("name", ["models/stories260K", "models/babyllama-tok105"])
def test_pieces_of_real_tokenizers_read_as_the_text(name):
    if not (SHARED / name).is_dir():
        pytest.skip(f"no {name} in {SHARED}")
    tokenizer = load_tokenizer(SHARED / name)
    text = "Lily's dog, Spot, ran  home!\nThe end. " * 6 + "café 🙂 ok"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    parts = pieces(tokenizer, ids)
    assert len(parts) == len(ids)
    # a character of several tokens is read at its last one; the others are marked
    whole = "".join(p for p in parts if p != "\ufffd" and not p.startswith("<0x"))
    assert whole == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(
    "parts, texts, ends",
    [
        (["a", " b"], ["a", " b"], [1, 2]),
        (["caf", "\ufffd", "é", "!"], ["caf", "é", "!"], [1, 3, 4]),
        (["<0xF0>", "<0x9F>", "<0x99>", "🙂", " ok"], ["🙂", " ok"], [4, 5]),
        ([" \ufffd", "\ufffd", "€"], [" €"], [3]),
        (["\ufffd", "€\ufffd", "é"], ["€é"], [3]),
        # bytes that nothing completes
        (["<0xE2>", "\ufffda"], ["<0xE2>", "\ufffda"], [1, 2]),
        (["a", "<0xE2>", "<0x82>"], ["a", "<0xE2>", "<0x82>"], [1, 2, 3]),
        ([], [], []),
    ],
)
def test_tokens_of_one_character_are_joined(parts, texts, ends):
    assert whole_characters(parts) == (texts, ends)


def test_a_map_cuts_no_character():
    if not (SHARED / "models/stories260K").is_dir():
        pytest.skip(f"no stories260K in {SHARED}")
    tokenizer = load_tokenizer(SHARED / "models/stories260K")
    ids = tokenizer("café 🙂 a €", add_special_tokens=False)["input_ids"]
    rewards = [2.0**-i for i in range(len(ids))]
    scorer = TokenRewards(None, None, tokenizer)
    shown = scorer.heatmap("t", EncodedDemonstration([1], ids), rewards, [1] * (len(ids) - 1) + [-1])
    assert "".join(shown.tokens) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert len(shown.tokens) < len(ids) and not any("\ufffd" in t or "<0x" in t for t in shown.tokens)
    assert sum(shown.rewards) == sum(rewards)
    assert shown.signs == [1] * (len(shown.tokens) - 1) + [-1]
