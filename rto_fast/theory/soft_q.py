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

from collections.abc import Sequence

import torch
from torch import Tensor

from rto_fast.theory.token_tree import Conditionals, check_tables, sequence_logprobs

Table = Conditionals
"""A number for every prefix and next token: D float64 tensors (V^d, V)."""


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


def returns(reward: Table) -> Tensor:
    """(V^D,): sum_t r(s_t, a_t) of every sequence."""
    return sequence_logprobs(reward)


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
