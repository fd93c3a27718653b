"""From a reward to Q* and back, exactly, on a token tree (the deterministic token MDP, every sequence of D tokens).

    Q*(s, a) = r(s, a) + beta log pi_ref(a|s) + V*(s a),   V* = 0 past the last token      (Rafailov et al. eq. 7)
    V*(s) = beta log sum_a exp(Q*(s, a) / beta)                                            (eq. 6)
    log pi*(a|s) = (Q*(s, a) - V*(s)) / beta                                               (eq. 5; Zhong et al. eq. 3.4)

Rafailov et al. is arXiv:2404.12358, Zhong et al. is arXiv:2404.18922. Where their text slips, what is computed here is
the corrected equation: the proof of Lemma 1 (appendix A of the first) leaves out beta log pi_ref, its eq. 13 has
- V*(s_0) where + V*(s_0) follows; eq. 4.3 of the second drops the beta before log pi_ref, and the line after its
eq. A.1 drops the beta before KL.

V vocabulary, D depth; a table is D float64 tensors, the d-th (V^d, V), as in token_tree; values and potentials are
D + 1 tensors, the d-th (V^d,). All is plain torch and differentiable.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rto_fast.theory.check import Check, distance, exact, generator, random_policy, random_table
from rto_fast.theory.token_tree import Conditionals, check_tables, optimal_sequence_logprobs, sequence_logprobs

Table = Conditionals
"""A number for every prefix and next token: D float64 tensors (V^d, V)."""
TREES = ((2, 6), (3, 4), (4, 4), (8, 3), (3, 1))
"""(V, D) of the random ones that the papers' statements are checked on."""
BETAS = (0.03, 0.1, 1.0)


def optimal_q(reward: Table, ref: Conditionals, beta: float) -> tuple[list[Tensor], list[Tensor]]:
    """Q* (D tensors (V^d, V)) and V* (D + 1 tensors (V^d,)) of a token reward, by backward induction (eq. 6, 7)."""
    _check(beta, reward=reward, ref=ref)
    values, q = [reward[-1].new_zeros(reward[-1].numel())], []
    for rows, ref_rows in zip(reversed(reward), reversed(ref), strict=True):
        q.append(rows + beta * ref_rows + values[-1].view_as(rows))
        values.append(beta * (q[-1] / beta).logsumexp(1))
    return q[::-1], values[::-1]


def values_of(q: Table, beta: float) -> list[Tensor]:
    """D + 1 tensors (V^d,): V(s) = beta log sum_a exp(Q(s, a) / beta), 0 past the last token (eq. 6)."""
    _check(beta, q=q)
    return [beta * (rows / beta).logsumexp(1) for rows in q] + [q[-1].new_zeros(q[-1].numel())]


def reward_of(q: Table, ref: Conditionals, beta: float) -> list[Tensor]:
    """The one reward whose optimal Q is `q`: r(s, a) = Q(s, a) - beta log pi_ref(a|s) - V(s a) (eq. 7, solved for r).

    Any table is a Q*: this is the inverse of optimal_q in both directions, which is Lemma 1.
    """
    _check(beta, q=q, ref=ref)
    children = values_of(q, beta)[1:]
    return [rows - beta * r - v.view_as(rows) for rows, r, v in zip(q, ref, children, strict=True)]


def policy_of(q: Table, beta: float) -> list[Tensor]:
    """D tensors (V^d, V) of log-probs: (Q(s, a) - V(s)) / beta (eq. 5)."""
    return [(rows - v[:, None]) / beta for rows, v in zip(q, values_of(q, beta), strict=False)]


def optimal_policy(reward: Table, ref: Conditionals, beta: float) -> list[Tensor]:
    """D tensors (V^d, V): the log-probs of the policy that maximises E sum_t r - beta log pi/pi_ref."""
    return policy_of(optimal_q(reward, ref, beta)[0], beta)


def policy_q(policy: Conditionals, reward: Table, ref: Conditionals, beta: float) -> tuple[list[Tensor], list[Tensor]]:
    """Q^pi (D tensors (V^d, V)) and V^pi (D + 1 tensors (V^d,)) of a policy of full support (Zhong et al. eq. 3.3)."""
    _check(beta, policy=policy, reward=reward, ref=ref)
    values, q = [reward[-1].new_zeros(reward[-1].numel())], []
    for logp, rows, ref_rows in zip(reversed(policy), reversed(reward), reversed(ref), strict=True):
        q.append(rows + beta * ref_rows + values[-1].view_as(rows))
        values.append((logp.exp() * (q[-1] - beta * logp)).sum(1))
    return q[::-1], values[::-1]


def visitation(policy: Conditionals) -> list[Tensor]:
    """D tensors (V^d, V): d^pi(s, a), the probability that pi writes s and then a (Zhong et al. eq. A.1)."""
    reached, tables = policy[0].new_ones(1), []
    for rows in policy:
        tables.append(reached[:, None] * rows.exp())
        reached = tables[-1].flatten()
    return tables


def expect(policy: Conditionals, table: Table) -> Tensor:
    """(): E_{(s, a) ~ d^pi} table(s, a), summed over the D steps."""
    terms = ((d * rows).sum() for d, rows in zip(visitation(policy), table, strict=True))
    return sum(terms, start=policy[0].new_zeros(()))


returns = sequence_logprobs
"""Of a reward, (V^D,): sum_t r(s_t, a_t) of every sequence."""


def preferences(reward: Table) -> Tensor:
    """(V^D, V^D): P(y^1 > y^2) = sigmoid(sum_t r(y^1) - sum_t r(y^2)), all pairs (Bradley-Terry, eq. 1)."""
    total = returns(reward)
    return (total[:, None] - total).sigmoid()


def ranking_logprob(reward: Table, ranking: Tensor) -> Tensor:
    """(M,): log P(y_1 > y_2 > ... > y_K) under Plackett-Luce, for M rankings (M, K) int64 of sequences (eq. 1)."""
    score = returns(reward)[ranking]
    return (score - score.flip(1).logcumsumexp(1).flip(1)).sum(1)


def shaped(reward: Table, potential: Sequence[Tensor]) -> list[Tensor]:
    """r'(s, a) = r(s, a) + Phi(s a) - Phi(s), Phi as D + 1 tensors (V^d,) (Definition 1).

    The definition asks nothing of Phi at the leaves. Policy and preferences stay only where Phi is the same at every
    leaf, as V* is: the sum over a sequence changes by Phi(leaf) - Phi(root).
    """
    if len(potential) != len(reward) + 1:
        raise ValueError(f"shaped: potential must hold D + 1 = {len(reward) + 1} tensors, got {len(potential)}")
    ends = zip(reward, potential[1:], potential[:-1], strict=True)
    return [rows + after.view_as(rows) - before[:, None] for rows, after, before in ends]


def implicit_reward(policy: Conditionals, ref: Conditionals, beta: float) -> list[Tensor]:
    """beta log pi/pi_ref (a|s): DPO's token reward (eq. 11; Zhong et al. eq. 4.5). For pi* it is r shaped by V*."""
    return [beta * (p - r) for p, r in zip(policy, ref, strict=True)]


def _check(beta: float, **tables: Table) -> None:
    if not (beta > 0 and torch.isfinite(torch.tensor(beta))):
        raise ValueError(
            f"soft_q: beta must be finite and > 0, got {beta}; without a KL term the best policy is greedy"
        )
    check_tables("soft_q", **tables)


def instances(seed: int, count: int) -> Iterator[tuple[list[Tensor], list[Tensor], float, torch.Generator]]:
    """`count` random (reward, ref, beta, generator)."""
    for i in range(count):
        g = generator(seed + i)
        vocab, depth = TREES[i % len(TREES)]
        yield random_table(vocab, depth, g), random_policy(vocab, depth, g), BETAS[i % len(BETAS)], g


def potential(reward: list[Tensor], g: torch.Generator, leaf: float | None) -> list[Tensor]:
    """A random Phi, D + 1 tensors; at the leaves the constant `leaf`, or as random as elsewhere."""
    sizes = [len(rows) for rows in reward] + [reward[-1].numel()]
    phi = [torch.randn(n, generator=g, dtype=torch.float64) for n in sizes]
    return phi if leaf is None else [*phi[:-1], torch.full_like(phi[-1], leaf)]


def soft_value_iteration(seed: int, count: int) -> list[Check]:
    """Backward induction against the closed form over whole sequences, and against other policies."""
    closed, attained, beaten, difference = [], [], [], []
    for reward, ref, beta, g in instances(seed, count):
        q, values = optimal_q(reward, ref, beta)
        best = optimal_policy(reward, ref, beta)
        tilted = sequence_logprobs(ref) + returns(reward) / beta
        closed.append(distance(values[0], beta * tilted.logsumexp(0)))
        closed.append(distance(sequence_logprobs(best), tilted.log_softmax(0)))
        attained += [distance(*pair) for pair in zip(policy_q(best, reward, ref, beta), (q, values), strict=True)]
        other, second = (random_policy(ref[0].shape[1], len(ref), g) for _ in range(2))
        own = policy_q(other, reward, ref, beta)[1]
        beaten.append(float(min((v - w).min() for v, w in zip(values[:-1], own[:-1], strict=True))))
        q_second, v_second = policy_q(second, reward, ref, beta)
        gap = [a - v[:, None] - beta * p for a, v, p in zip(q_second, v_second, other, strict=False)]
        difference.append(float((own[0] - v_second[0] - expect(other, gap)).abs()))
    return [
        exact("eq. 5-7: soft value iteration = pi_ref exp(R / beta) / Z over sequences", closed),
        exact("eq. 3.3, 3.4: Q*, V* are the Q and V of pi*", attained),
        Check("V* > V^pi at every prefix, random pi", "> 0", f"min {min(beaten):.1e}", min(beaten) > 0),
        exact("Lemma A.2: performance difference", difference),
    ]


def lemma_1(seed: int, count: int) -> list[Check]:
    """r -> Q* -> r and Q -> r -> Q*: a left and a right inverse make a bijection."""
    back, forth = [], []
    for reward, ref, beta, g in instances(seed, count):
        back.append(distance(reward_of(optimal_q(reward, ref, beta)[0], ref, beta), reward))
        q = random_table(ref[0].shape[1], len(ref), g)
        again, values = optimal_q(reward_of(q, ref, beta), ref, beta)
        forth += [distance(again, q), distance(values, values_of(q, beta))]
    return [
        exact("Lemma 1: r -> Q* -> r (injective)", back),
        exact("Lemma 1: any Q -> r -> Q* (surjective)", forth),
    ]


def theorem_1(seed: int, count: int) -> list[Check]:
    """Shaping leaves policy and preferences alone, and each class holds a beta log pi / pi_ref."""
    policies, bradley_terry, plackett_luce, canonical, leaves = [], [], [], [], []
    for reward, ref, beta, g in instances(seed, count):
        best, preferred = optimal_policy(reward, ref, beta), preferences(reward)
        rankings = torch.stack([torch.randperm(len(preferred), generator=g)[:3] for _ in range(16)])
        ranked = ranking_logprob(reward, rankings)
        implicit = implicit_reward(best, ref, beta)
        values = optimal_q(reward, ref, beta)[1]
        canonical.append(distance(implicit, shaped(reward, values)))
        canonical.append(float(torch.cat(optimal_q(implicit, ref, beta)[1]).abs().max()))
        for other in (shaped(reward, potential(reward, g, leaf=0.7)), implicit):
            policies.append(distance(optimal_policy(other, ref, beta), best))
            bradley_terry.append(distance(preferences(other), preferred))
            plackett_luce.append(distance(ranking_logprob(other, rankings), ranked))
        leaves.append(distance(preferences(shaped(reward, potential(reward, g, leaf=None))), preferred))
    return [
        exact("Theorem 1: shaping leaves pi* alone", policies),
        exact("Theorem 1: ... and Bradley-Terry preferences", bradley_terry),
        exact("Theorem 1: ... and Plackett-Luce rankings of 3", plackett_luce),
        exact("eq. 10, 11: beta log pi*/pi_ref is r shaped by V*, and has V* = 0", canonical),
        Check(
            "Definition 1 as printed: any Phi, at the leaves too",
            "preferences kept",
            f"moved by >= {min(leaves):.2f}",
            min(leaves) > 0.01,
            printed=False,
        ),
    ]


def equation_4_3(seed: int, count: int) -> list[Check]:
    """sum_h beta log pi*/pi_ref = sum_h r - V*(s_1), and eq. 4.4; eq. 4.3 drops the beta before log pi_ref."""
    right, printed, pairs = [], [], []
    for reward, ref, beta, _ in instances(seed, count):
        q, values = optimal_q(reward, ref, beta)
        implicit = implicit_reward(optimal_policy(reward, ref, beta), ref, beta)
        right.append(float((returns(implicit) - returns(reward) + values[0]).abs().max()))
        pairs.append(distance(preferences(implicit), preferences(reward)))
        if beta != 1:
            terms = [a - v[:, None] - r for a, v, r in zip(q, values, ref, strict=False)]
            printed.append(distance(returns(implicit), returns(terms)))
    return [
        exact("eq. 4.3 with beta log pi_ref: sum beta log pi*/pi_ref = R - V*(s_1)", right),
        exact("eq. 4.4: DPO's preference model is Bradley-Terry's", pairs),
        Check(
            "eq. 4.3 as printed, log pi_ref without beta",
            "equal",
            f"apart by >= {min(printed):.1f}",
            min(printed) > 0.1,
            printed=False,
        ),
    ]


def equation_13(seed: int, count: int) -> list[Check]:
    """Searching by reward and V* is searching by log pi* (Rafailov et al. eq. 12, 13), for every length of the search.

    sum_t r + beta log pi_ref + V*(end) = V*(s_0) + sum_t beta log pi*; eq. 13 prints - V*(s_0), the same for all paths.
    """
    right, printed = [], []
    for reward, ref, beta, _ in instances(seed, count):
        values, best = optimal_q(reward, ref, beta)[1], optimal_policy(reward, ref, beta)
        for k in range(1, len(ref) + 1):
            searched = returns(reward[:k]) + beta * returns(ref[:k]) + values[k]
            likely = beta * returns(best[:k])
            right.append(float((searched - likely - values[0]).abs().max()))
            printed.append(float((searched - likely + values[0]).abs().max()))
    return [
        exact("eq. 13 with + V*(s_0): search by reward and V* is search by log pi*", right),
        Check(
            "eq. 13 as printed, - V*(s_0)",
            "equal",
            f"apart by >= {min(printed):.2f}, on all paths alike",
            min(printed) > 1e-6,
            printed=False,
        ),
    ]


def equation_5_1(seed: int, count: int) -> list[Check]:
    """Where the reward is paid does not move the optimum; eq. 5.1 writes pi where pi_dpo is meant.

    As printed its return is (beta_1 - beta_2) KL(pi || pi_ref): pi_dpo has no part in it, and with the paper's
    beta_1 > beta_2 the best policy writes pi_ref's least likely sequence with certainty.
    """
    beta_1, beta_2 = 0.1, 0.05
    optimum, printed = [], []
    for _, ref, _, g in instances(seed, count):
        dpo, pi = (random_policy(ref[0].shape[1], len(ref), g) for _ in range(2))
        dense = implicit_reward(dpo, ref, beta_1)
        sparse = [*(torch.zeros_like(rows) for rows in dense[:-1]), returns(dense).view_as(dense[-1])]
        want = optimal_sequence_logprobs(ref, dpo, beta_1, beta_2)
        for reward in (dense, sparse):
            optimum.append(distance(sequence_logprobs(optimal_policy(reward, ref, beta_2)), want))
        own = implicit_reward(pi, ref, beta_1)
        last = [*(torch.zeros_like(rows) for rows in own[:-1]), returns(own).view_as(own[-1])]
        kl = (sequence_logprobs(pi).exp() * (sequence_logprobs(pi) - sequence_logprobs(ref))).sum()
        printed.append(distance(policy_q(pi, last, ref, beta_2)[1][0], (beta_1 - beta_2) * kl))
    worst = max(printed)
    return [
        exact("eq. 4.6, and 5.1 with pi_dpo: one optimum, pi_ref (pi_dpo/pi_ref)^(b1/b2)", optimum),
        Check(
            "eq. 5.1 as printed, pi for pi_dpo",
            "it depends on pi_dpo",
            f"(b1-b2) KL(pi|pi_ref) to {worst:.0e}",
            worst < 1e-10 and math.isfinite(worst),
            printed=False,
        ),
    ]
