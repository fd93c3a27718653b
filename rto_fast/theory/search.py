"""Proposition 3.2 of Zhong et al. (arXiv:2404.18922): finding the best of A^H answers from token or sentence rewards.

A learner names an answer y of H tokens out of A and is told either r_s = log pi*(y) or r_t = log pi*(y_h | y_<h) for
every h (eq. 3.6). Assumption 3.1: some answer has pi*(y) >= A^-xi. N holds the prefixes that fall below A^-xi first
(eq. 3.7). Each query meets exactly one node of N, or one of the n_H answers of at least A^-xi, and no later query
meets it again: the search ends after |N| + n_H queries, in whatever order it goes.

The proof claims |N| <= A^(xi+1). That holds level by level only: with n_h <= A^xi prefixes of length h at or above
A^-xi, N has A n_(h-1) - n_h nodes at depth h, and

    |N| + n_H = 1 + (A - 1) sum_(h < H) n_h <= 1 + (A - 1) sum_(h < H) min(A^h, floor(A^xi)) <= A^H.

So the proposition's A^min(xi+1, H) lacks a factor that grows with H, and no cleverer learner brings it back: needle()
is a family in which the best deterministic one needs (A - 1) H queries (best_worst_case plays the whole game), while
xi is close to 0. The separation from A^H stands.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rto_fast.theory.check import Check, generator, random_policy
from rto_fast.theory.token_tree import Conditionals, conditionals_of, prefixes, sequence_logprobs

TOLERANCE = 1e-9
"""Nats by which a prefix may lie under A^-xi through rounding alone."""
FIGURE_2 = (1 / 2, 1 / 4, 1 / 12, 1 / 24, 1 / 32, 1 / 32, 1 / 32, 1 / 32)
"""pi* of Figure 2's eight answers: the best has 1/2, its sibling 1/4, the stars and daggers are ours, below 1/8."""
GAMES = ((2, 2), (2, 3), (2, 4), (3, 2), (3, 3), (4, 2))
"""(A, H) of the needle games that are played out with token rewards."""
SENTENCE_GAMES = ((2, 2), (2, 3), (3, 2))

Ask = Callable[[tuple[int, ...]], Sequence[float]]
"""An answer of H tokens -> its H token rewards log pi*(y_h | y_<h)."""


def smallest_xi(best: Conditionals) -> float:
    """The smallest xi of Assumption 3.1: -log_A of the largest probability of an answer."""
    return max(0.0, -float(sequence_logprobs(best).max()) / math.log(best[0].shape[1]))


def printed_bound(vocab: int, depth: int, xi: float) -> float:
    """A^min(xi + 1, H), Proposition 3.2 as printed."""
    return vocab ** min(xi + 1, depth)


def level_bound(vocab: int, depth: int, xi: float) -> int:
    """1 + (A - 1) sum_(h < H) min(A^h, floor(A^xi)), what the proof's search needs at most."""
    width = math.floor(vocab**xi * (1 + TOLERANCE))
    return 1 + (vocab - 1) * sum(min(vocab**h, width) for h in range(depth))


def frontier(best: Conditionals, xi: float) -> tuple[int, int]:
    """|N| (eq. 3.7) and the number n_H of answers with pi*(y) >= A^-xi, counted on the whole tree."""
    threshold = -xi * math.log(best[0].shape[1]) - TOLERANCE
    light, reached = 0, best[0].new_zeros(1)
    for rows in best:
        children = reached[:, None] + rows
        light += int(((children < threshold) & (reached >= threshold)[:, None]).sum())
        reached = children.flatten()
    return light, int((reached >= threshold).sum())


def token_search(
    ask: Ask, vocab: int, depth: int, xi: float, g: torch.Generator | None = None
) -> tuple[tuple[int, ...] | None, int]:
    """(the best answer, queries) by the search in the proof of Proposition 3.2.

    Ask for any answer that is left, find where it falls below A^-xi, delete all answers through that prefix; an answer
    that does not fall is a candidate. `g` draws the answers at random, otherwise the first one left is asked for.
    None where no answer reaches A^-xi, against Assumption 3.1.
    """
    threshold = -xi * math.log(vocab) - TOLERANCE
    gone: set[tuple[int, ...]] = set()
    best, best_total, queries = None, -math.inf, 0
    while () not in gone:
        path: tuple[int, ...] = ()
        while len(path) < depth:
            left = [token for token in range(vocab) if (*path, token) not in gone]
            path += (left[int(torch.randint(len(left), (), generator=g))] if g else left[0],)
        queries += 1
        totals = list(itertools.accumulate(ask(path)))
        fallen = next((h for h, total in enumerate(totals, 1) if total < threshold), None)
        if fallen is None and totals[-1] > best_total:
            best, best_total = path, totals[-1]
        node = path[:fallen]
        gone.add(node)
        while node and all((*node[:-1], token) in gone for token in range(vocab)):
            node = node[:-1]
            gone.add(node)
    return best, queries


def asker(best: Conditionals) -> Ask:
    """Token rewards of a tabulated pi*."""
    tables = [rows.reshape([rows.shape[1]] * h) for h, rows in enumerate(best, 1)]
    return lambda path: [float(table[path[:h]]) for h, table in enumerate(tables, 1)]


def needle(vocab: int, depth: int, answer: int, rest: float = 0.01) -> Tensor:
    """(A^H,) log-probs: 1 - rest on one answer, the others equal. Sentence rewards then say hit or miss alone."""
    count = vocab**depth
    return torch.full((count,), math.log(rest / (count - 1)), dtype=torch.float64).index_fill(
        0, torch.tensor([answer]), math.log1p(-rest)
    )


def best_worst_case(feedback: Sequence[Sequence[object]]) -> int:
    """Queries that the best deterministic learner needs in the worst case until one instance is left, by playing out
    the whole game: feedback[query][instance] is what it is told. Exponential in the number of instances at worst.
    """

    @functools.cache
    def value(left: frozenset[int]) -> int:
        if len(left) == 1:
            return 0
        best = len(left)  # never more: naming one instance after the other
        for told in feedback:
            parts: dict[object, set[int]] = {}
            for instance in left:
                parts.setdefault(told[instance], set()).add(instance)
            if len(parts) > 1:
                best = min(best, 1 + max(value(frozenset(part)) for part in parts.values()))
        return best

    return value(frozenset(range(len(feedback[0]))))


def needle_game(vocab: int, depth: int, token_rewards: bool) -> int:
    """best_worst_case for the A^H needles: what the rewards of answer i say when the needle is answer j."""
    answers = range(vocab**depth)
    tables = [needle(vocab, depth, j) for j in answers]
    if not token_rewards:
        return best_worst_case([[round(float(tables[j][i]), 6) for j in answers] for i in answers])
    asks = [asker(conditionals_of(table, vocab)) for table in tables]
    paths = [tuple(path) for path in prefixes(vocab, depth).tolist()]
    return best_worst_case([[tuple(round(r, 6) for r in asks[j](path)) for j in answers] for path in paths])


def figure_2() -> Check:
    """A = 2, H = 3, xi = 1: the paper counts at most A^2 = 4 samples."""
    best = conditionals_of(torch.tensor(FIGURE_2, dtype=torch.float64).log(), 2)
    found, queries = zip(*(token_search(asker(best), 2, 3, 1.0, generator(seed)) for seed in range(10)), strict=True)
    bound = printed_bound(2, 3, 1.0)
    return Check(
        "Prop 3.2, the tree of Figure 2 (A 2, H 3, xi 1), 10 random orders",
        f"<= {bound:.0f}",
        str(max(queries)),
        set(found) == {(0, 0, 0)} and max(queries) <= bound,
    )


def random_trees(seed: int, count: int) -> list[Check]:
    """Random pi*, from nearly uniform to peaked, with the smallest xi; the answers are asked for in random order."""
    found = exact = within = 0
    over, worst, share = 0, 0.0, 0.0
    for i in range(count):
        g = generator(seed + i)
        vocab, depth = ((2, 4), (2, 6), (3, 4), (4, 3), (2, 8))[i % 5]
        best = random_policy(vocab, depth, g, scale=(1.0, 2.0, 4.0)[i % 3])
        xi = smallest_xi(best)
        answer, queries = token_search(asker(best), vocab, depth, xi, g)
        found += answer == tuple(prefixes(vocab, depth)[int(sequence_logprobs(best).argmax())].tolist())
        exact += queries == sum(frontier(best, xi))
        within += queries <= level_bound(vocab, depth, xi)
        ratio = queries / printed_bound(vocab, depth, xi)
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
    token = {size: needle_game(*size, token_rewards=True) for size in GAMES}
    sentence = {size: needle_game(*size, token_rewards=False) for size in SENTENCE_GAMES}
    xi = -math.log(0.99)
    over = [size for size, queries in token.items() if queries > printed_bound(*size, xi / math.log(size[0])) + 1e-9]
    hay = conditionals_of(needle(2, 10, 1023), 2)
    answer, queries = token_search(asker(hay), 2, 10, smallest_xi(hay))
    bound = level_bound(2, 10, smallest_xi(hay))
    return [
        Check(
            "needles, token rewards: the best learner asks (A-1) H, game played out",
            ", ".join(str((a - 1) * h) for a, h in GAMES),
            ", ".join(str(n) for n in token.values()),
            all(n == (a - 1) * h for (a, h), n in token.items()),
        ),
        Check(
            "Prop 3.2 as printed, for the best such learner (A 3, H 3, xi 0.009)",
            f"<= {printed_bound(3, 3, xi / math.log(3)):.2f}",
            f"{token[3, 3]} needed; over in {len(over)} of {len(GAMES)} sizes",
            (3, 3) in over,
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
