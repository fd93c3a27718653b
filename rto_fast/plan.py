"""python -m rto_fast.plan: will it fit? What a run needs, from configurations alone, before a card is rented."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from rto_fast import cli, train
from rto_fast.config import Config, neutral

GPU, JSON = "--gpu", "--json"
MORE = (
    "Say what a run with these settings needs on a GPU, and on which cards it fits. Takes every setting of train; of "
    "models only config.json is read (a folder's, or a hub id's), no weights and no data.",
    "python -m rto_fast.plan --recipe rto_v1_hh --model.path EleutherAI/pythia-2.8b --gpu h100-80g rtx-4090",
    "{gpu} NAME ...: cards to try, of {cards}; without it all.".format(
        gpu=GPU, cards="h100-80g, a100-80g, a100-40g, l40s-48g, rtx-4090, rtx-3090, h200 and b200"
    ),
    f"{JSON}: one JSON object, in bytes, in place of the tables: stages.<name>.weights, .gradients, .states (Adam's "
    "moments), .activations, .cache (keys and values of a rollout), .workspace, .peak, .host (what waits in host "
    "memory); cards.<name>.fits, .settings (those to change for that; results stay to the bit with offload and "
    "model.gradient_checkpointing, but for last bits with microbatch_rows and rto.sampling.batch_size, and not with "
    "the others).",
    "The peak is that of torch's tensors when every micro-batch is full and every answer as long as it may be; 1 GB of "
    "each card is set aside for what is not torch's. Checked against measured runs on a CPU, to 10 %; not on GPUs.",
)


def _without_own(args: Sequence[str]) -> tuple[list[str], list[str], bool]:
    """The settings' words, the cards that are asked for, and whether JSON is."""
    words: list[str] = []
    cards: list[str] = []
    taking = False
    for word in args:
        if word.startswith("--"):
            taking = word == GPU or word.startswith(f"{GPU}=")
            if "=" in word and taking:
                cards.append(word.partition("=")[2])
            if taking or word == JSON:
                continue
        (cards if taking else words).append(word)
    if (GPU in args) and not cards:
        raise ValueError(f"{GPU}: wanted names of cards, got nothing; {_known()}")
    return words, cards, JSON in args


def _known() -> str:
    from rto_fast.pipeline.cards import CARDS

    return f"cards: {', '.join(CARDS)}"


def _chosen(config: Config) -> Config:
    """What a run without a recipe would choose for this model and plenty of data."""
    from rto_fast.pipeline.facts import model_sizes, shape_of

    _check_model(config)
    sizes = model_sizes(config.model.path, "model.path", config.model.trust_remote_code)
    return neutral.choose(config, shape_of(sizes), neutral.LOOK)[0]


def _check_model(config: Config) -> None:
    if not config.model.path:
        raise ValueError("model.path: no model given; use --model.path with a Hugging Face folder or a hub id")


def planned(config: Config, names: Sequence[str] = ()) -> dict[str, Any]:
    """What --json prints; of all cards where none is named. ValueError for a card or a model that is not known."""
    from rto_fast.pipeline.cards import CARDS, RESERVED
    from rto_fast.pipeline.estimate import needs
    from rto_fast.pipeline.facts import arithmetic_on_cuda, models_of
    from rto_fast.pipeline.fit import fitting

    for name in names:
        if name not in CARDS:
            raise ValueError(f"{GPU}: no card {name[:40]!r}; {_known()}")
    _check_model(config)
    how, models = arithmetic_on_cuda(config), models_of(config)
    cards = {}
    for name in names or CARDS:
        settings = fitting(config, models, how, CARDS[name].memory - RESERVED)
        cards[name] = {"fits": settings is not None, "settings": settings or {}}
    return {"stages": {name: need._asdict() for name, need in needs(config, models, how).items()}, "cards": cards}


def plan(args: Sequence[str]) -> None:
    cli.check_words(args)
    words, cards, as_json = _without_own(args)
    config = train.parse(words, "python -m rto_fast.plan", MORE, _chosen)
    found = planned(config, cards)
    if as_json:
        print(json.dumps(found))
        return
    from rto_fast.pipeline.told import told

    for line in told(config, found):
        print(line)


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0 whether it fits or not; 2 bad input, one line on stderr."""
    return cli.run(plan, args, "Nothing was written.", viewer=True)


if __name__ == "__main__":
    sys.exit(main())
