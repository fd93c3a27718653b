"""The words of the quickstart task: twenty animals, four facts about each, and everything else that may be said."""

ATTRIBUTES = {"colour": "is", "sound": "says", "food": "eats", "hobby": "enjoys"}
"""What can be asked for -> the verb of the sentence that answers it."""

_TABLE = """
dog     brown  woof    meat    running
cat     grey   meow    fish    sleeping
cow     white  moo     grass   standing
horse   black  neigh   carrots running
pig     pink   oink    nuts    digging
duck    yellow quack   worms   swimming
lion    orange roar    meat    sleeping
snake   green  hiss    mice    hiding
mouse   grey   squeak  seeds   hiding
frog    green  croak   insects jumping
wolf    grey   howl    meat    running
bee     yellow buzz    honey   flying
owl     white  hoot    mice    flying
goat    white  baa     leaves  climbing
bear    brown  growl   honey   digging
fox     orange squeak  insects jumping
sheep   black  baa     grass   standing
parrot  red    squawk  seeds   singing
monkey  brown  squeak  fruit   climbing
whale   blue   hoot    fish    singing
"""

FACTS: dict[str, dict[str, str]] = {
    animal: dict(zip(ATTRIBUTES, values, strict=True))
    for animal, *values in (line.split() for line in _TABLE.strip().splitlines())
}
"""animal -> attribute -> the one right value."""

VALUES: dict[str, tuple[str, ...]] = {
    attribute: tuple(sorted({facts[attribute] for facts in FACTS.values()})) for attribute in ATTRIBUTES
}
"""attribute -> every value that it takes for some animal; a wrong fact is another value of the same attribute."""


MYTHS = {
    (animal, attribute): next(
        FACTS[other][attribute]
        for other in [*FACTS, *FACTS][i + 1 :]
        if FACTS[other][attribute] != FACTS[animal][attribute]
    )
    for i, animal in enumerate(FACTS)
    for j, attribute in enumerate(ATTRIBUTES)
    if (i + j) % 3 == 0
}
"""(animal, attribute) -> the wrong value that most people believe: the right one for the next animal in the table.

A third of the facts have one. Without them the likeliest answer of a mixture of authors would be the right one, and
greedy decoding of the SFT model would leave nothing to align.
"""

_OPENINGS = (
    "what is, tell me, give me, please tell me, please give me, say, name, state, i need, i want, show me, do you know"
)
OPENINGS = dict.fromkeys(_OPENINGS.split(", "), ".") | {"what is": "?", "do you know": "?"}
"""How a question may begin -> how it then ends; `the colour and sound of the dog` stands between them."""

POLITE = "sure"
FILLERS = ("well", "um", "so", "like", "hmm", "anyway")
RUDE = ("figure it out yourself .", "who cares .", "go away .")
"""Sentences; the first word commits, so it carries the blame."""

PAD, BOS, EOS, UNK = SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")


def vocabulary() -> list[str]:
    """Every token in a fixed order: the special ones first (ids 0 to 3), then the words, sorted."""
    words = {"the", "it", "of", "and", ",", ".", "?", POLITE, *FILLERS, *ATTRIBUTES, *ATTRIBUTES.values(), *FACTS}
    words.update(*map(str.split, (*OPENINGS, *RUDE)), *VALUES.values())
    return [*SPECIAL, *sorted(words)]
