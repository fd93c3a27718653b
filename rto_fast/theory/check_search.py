"""Proposition 3.2: queries counted on the paper's tree, on random trees and on the worst ones."""

import math

import torch

from rto_fast.theory import search
from rto_fast.theory.check import Check, generator, random_policy
from rto_fast.theory.token_tree import conditionals_of, prefixes, sequence_logprobs

FIGURE_2 = (1 / 2, 1 / 4, 1 / 12, 1 / 24, 1 / 32, 1 / 32, 1 / 32, 1 / 32)
"""pi* of Figure 2's eight answers: the best has 1/2, its sibling 1/4, the stars and daggers are ours, below 1/8."""
GAMES = ((2, 2), (2, 3), (2, 4), (3, 2), (3, 3), (4, 2))
"""(A, H) of the needle games that are played out with token rewards."""
SENTENCE_GAMES = ((2, 2), (2, 3), (3, 2))


def figure_2() -> Check:
    """A = 2, H = 3, xi = 1: the paper counts at most A^2 = 4 samples."""
    best = conditionals_of(torch.tensor(FIGURE_2, dtype=torch.float64).log(), 2)
    counts = [search.token_search(search.asker(best), 2, 3, 1.0, generator(seed)) for seed in range(10)]
    right = all(answer == (0, 0, 0) for answer, _ in counts)
    most = max(queries for _, queries in counts)
    bound = search.printed_bound(2, 3, 1.0)
    return Check(
        "Prop 3.2, the tree of Figure 2 (A 2, H 3, xi 1), 10 random orders",
        f"<= {bound:.0f}",
        str(most),
        right and most <= bound,
    )


def random_trees(seed: int, count: int) -> list[Check]:
    """Random pi*, from nearly uniform to peaked, with the smallest xi; the answers are asked for in random order."""
    found = exact = within = 0
    over, worst, share = 0, 0.0, 0.0
    for i in range(count):
        g = generator(seed + i)
        vocab, depth = ((2, 4), (2, 6), (3, 4), (4, 3), (2, 8))[i % 5]
        best = random_policy(vocab, depth, g, scale=(1.0, 2.0, 4.0)[i % 3])
        xi = search.smallest_xi(best)
        answer, queries = search.token_search(search.asker(best), vocab, depth, xi, g)
        found += answer == tuple(prefixes(vocab, depth)[int(sequence_logprobs(best).argmax())].tolist())
        exact += queries == sum(search.frontier(best, xi))
        within += queries <= search.level_bound(vocab, depth, xi)
        ratio = queries / search.printed_bound(vocab, depth, xi)
        over, worst, share = over + (ratio > 1 + 1e-9), max(worst, ratio), max(share, queries / vocab**depth)
    return [
        Check("random pi*: the search ends at the best answer", f"{count} of {count}", f"{found}", found == count),
        Check("random pi*: queries = |N| + answers above A^-xi", f"{count} of {count}", f"{exact}", exact == count),
        Check(
            "random pi*: queries <= 1 + (A-1) sum_h<H min(A^h, floor A^xi) <= A^H",
            f"{count} of {count}",
            f"{within}, at most {share:.2f} A^H",
            within == count and share <= 1,
        ),
        Check(
            "Prop 3.2 as printed: queries <= A^min(xi+1, H)",
            f"{count} of {count}",
            f"{count - over}, at worst {worst:.1f} times over",
            over > 0,
            printed=False,
        ),
    ]


def needles() -> list[Check]:
    """One answer has probability 0.99, the others share the rest evenly."""
    token = {size: search.needle_game(*size, token_rewards=True) for size in GAMES}
    sentence = {size: search.needle_game(*size, token_rewards=False) for size in SENTENCE_GAMES}
    xi = -math.log(0.99)
    over = [
        size for size, queries in token.items() if queries > search.printed_bound(*size, xi / math.log(size[0])) + 1e-9
    ]
    (vocab, depth), shown = (3, 3), token[3, 3]
    hay = conditionals_of(search.needle(2, 10, 1023), 2)
    answer, queries = search.token_search(search.asker(hay), 2, 10, search.smallest_xi(hay))
    bound = search.level_bound(2, 10, search.smallest_xi(hay))
    return [
        Check(
            "needles, token rewards: the best learner asks (A-1) H, game played out",
            ", ".join(str((a - 1) * h) for a, h in GAMES),
            ", ".join(str(n) for n in token.values()),
            all(n == (a - 1) * h for (a, h), n in token.items()),
        ),
        Check(
            "Prop 3.2 as printed, for the best such learner (A 3, H 3, xi 0.009)",
            f"<= {search.printed_bound(vocab, depth, xi / math.log(vocab)):.2f}",
            f"{shown} needed; over in {len(over)} of {len(GAMES)} sizes",
            (vocab, depth) in over,
            printed=False,
        ),
        Check(
            "needles, sentence rewards: A^H less the last, which is known unasked",
            ", ".join(f"{a}^{h}-1" for a, h in SENTENCE_GAMES),
            ", ".join(str(n) for n in sentence.values()),
            all(n == a**h - 1 for (a, h), n in sentence.items()),
        ),
        Check(
            "a needle, A 2, H 10, token rewards: the search, against A^H = 1024",
            f"<= {bound}",
            str(queries),
            answer == (1,) * 10 and queries <= bound,
        ),
    ]


def proposition_3_2(seed: int, count: int) -> list[Check]:
    return [figure_2(), *random_trees(seed, count), *needles()]
