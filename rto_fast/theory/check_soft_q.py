"""Lemma 1, Theorem 1 and the identities behind the token reward, on random token trees."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from rto_fast.theory import soft_q
from rto_fast.theory.check import Check, distance, exact, generator, random_policy, random_table
from rto_fast.theory.token_tree import optimal_sequence_logprobs, sequence_logprobs

SIZES = ((2, 6), (3, 4), (4, 4), (8, 3), (3, 1))
"""(V, D) of the trees."""
BETAS = (0.03, 0.1, 1.0)


def instances(seed: int, count: int) -> Iterator[tuple[list[Tensor], list[Tensor], float, torch.Generator]]:
    """`count` random (reward, ref, beta, generator)."""
    for i in range(count):
        g = generator(seed + i)
        vocab, depth = SIZES[i % len(SIZES)]
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
        total, base = soft_q.returns(reward), sequence_logprobs(ref)
        q, values = soft_q.optimal_q(reward, ref, beta)
        best = soft_q.optimal_policy(reward, ref, beta)
        tilted = base + total / beta
        closed.append(float((values[0][0] - beta * tilted.logsumexp(0)).abs()))
        closed.append(float((sequence_logprobs(best) - tilted.log_softmax(0)).abs().max()))
        attained.append(distance(soft_q.policy_q(best, reward, ref, beta)[1], values))
        attained.append(distance(soft_q.policy_q(best, reward, ref, beta)[0], q))
        other, second = (random_policy(ref[0].shape[1], len(ref), g) for _ in range(2))
        own = soft_q.policy_q(other, reward, ref, beta)[1]
        beaten.append(float(min((v - w).min() for v, w in zip(values[:-1], own[:-1], strict=True))))
        q_second, v_second = soft_q.policy_q(second, reward, ref, beta)
        gap = [a - v[:, None] - beta * p for a, v, p in zip(q_second, v_second, other, strict=False)]
        difference.append(float((own[0] - v_second[0] - soft_q.expect(other, gap)).abs()))
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
        back.append(distance(soft_q.reward_of(soft_q.optimal_q(reward, ref, beta)[0], ref, beta), reward))
        q = random_table(ref[0].shape[1], len(ref), g)
        again, values = soft_q.optimal_q(soft_q.reward_of(q, ref, beta), ref, beta)
        forth += [distance(again, q), distance(values, soft_q.values_of(q, beta))]
    return [
        exact("Lemma 1: r -> Q* -> r (injective)", back),
        exact("Lemma 1: any Q -> r -> Q* (surjective)", forth),
    ]


def theorem_1(seed: int, count: int) -> list[Check]:
    """Shaping leaves policy and preferences alone, and each class holds a beta log pi / pi_ref."""
    policies, bradley_terry, plackett_luce, canonical, leaves = [], [], [], [], []
    for reward, ref, beta, g in instances(seed, count):
        best, preferred = soft_q.optimal_policy(reward, ref, beta), soft_q.preferences(reward)
        rankings = torch.stack([torch.randperm(len(preferred), generator=g)[:3] for _ in range(16)])
        ranked = soft_q.ranking_logprob(reward, rankings)
        implicit = soft_q.implicit_reward(best, ref, beta)
        values = soft_q.optimal_q(reward, ref, beta)[1]
        canonical.append(distance(implicit, soft_q.shaped(reward, values)))
        canonical.append(float(torch.cat([v.abs() for v in soft_q.optimal_q(implicit, ref, beta)[1]]).max()))
        for other in (soft_q.shaped(reward, potential(reward, g, leaf=0.7)), implicit):
            policies.append(distance(soft_q.optimal_policy(other, ref, beta), best))
            bradley_terry.append(float((soft_q.preferences(other) - preferred).abs().max()))
            plackett_luce.append(float((soft_q.ranking_logprob(other, rankings) - ranked).abs().max()))
        loose = soft_q.shaped(reward, potential(reward, g, leaf=None))
        leaves.append(float((soft_q.preferences(loose) - preferred).abs().max()))
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
        q, values = soft_q.optimal_q(reward, ref, beta)
        implicit = soft_q.implicit_reward(soft_q.optimal_policy(reward, ref, beta), ref, beta)
        right.append(float((soft_q.returns(implicit) - soft_q.returns(reward) + values[0]).abs().max()))
        pairs.append(float((soft_q.preferences(implicit) - soft_q.preferences(reward)).abs().max()))
        if beta != 1:
            terms = [a - v[:, None] - r for a, v, r in zip(q, values, ref, strict=False)]
            printed.append(float((soft_q.returns(implicit) - soft_q.returns(terms)).abs().max()))
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
        values, best = soft_q.optimal_q(reward, ref, beta)[1], soft_q.optimal_policy(reward, ref, beta)
        for k in range(1, len(ref) + 1):
            searched = soft_q.returns(reward[:k]) + beta * soft_q.returns(ref[:k]) + values[k]
            likely = beta * soft_q.returns(best[:k])
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
        dense = soft_q.implicit_reward(dpo, ref, beta_1)
        sparse = [torch.zeros_like(rows) for rows in dense]
        sparse[-1] = soft_q.returns(dense).view_as(sparse[-1])
        want = optimal_sequence_logprobs(ref, dpo, beta_1, beta_2)
        for reward in (dense, sparse):
            got = sequence_logprobs(soft_q.optimal_policy(reward, ref, beta_2))
            optimum.append(float((got - want).abs().max()))
        own = soft_q.implicit_reward(pi, ref, beta_1)
        last = [*(torch.zeros_like(rows) for rows in own[:-1]), soft_q.returns(own).view_as(own[-1])]
        kl = (sequence_logprobs(pi).exp() * (sequence_logprobs(pi) - sequence_logprobs(ref))).sum()
        printed.append(float((soft_q.policy_q(pi, last, ref, beta_2)[1][0] - (beta_1 - beta_2) * kl).abs()))
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
