"""RTO's objective and its best policy on a token tree: every sequence of D tokens out of V, enumerated in float64.

    J(pi) = E_{y ~ pi} sum_t beta_1 log pi_dpo/pi_ref (y_t | y_<t) - beta_2 log pi/pi_ref (y_t | y_<t)
    pi*(y) = pi_ref(y) (pi_dpo(y) / pi_ref(y))^(beta_1 / beta_2) / Z,      J* = J(pi*) = beta_2 log Z

The token rewards are those of Zhong et al. eq. 4.6 (arXiv:2404.18922). Their sum over a sequence is a function of the
whole sequence alone, so the best policy has a closed form over sequences, and soft value iteration (soft_q.py) finds
the same one token by token. Hence J* - J(pi) = beta_2 KL(pi || pi*).

V vocabulary, D depth, N = V^d prefixes of d tokens. A policy is a list of D tensors of conditional log-probs, the d-th
(V^d, V) float64: a row for every prefix, first token most significant, so that the children of prefix n are the
prefixes n V ... n V + V - 1. Every sequence has exactly D tokens; no token ends it early. pi_ref and pi_dpo must give
every token a positive probability, pi need not. All is differentiable, so the exact policy gradient is one backward.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Conditionals = Sequence[Tensor]


def prefixes(vocab: int, length: int) -> Tensor:
    """(V^d, d) int64: every prefix of d = `length` tokens, in the order that the rows of a policy have."""
    return torch.arange(vocab**length)[:, None] // vocab ** torch.arange(length - 1, -1, -1) % vocab


def conditional_logprobs(next_logprobs: Callable[[Tensor], Tensor], vocab: int, depth: int) -> list[Tensor]:
    """Tabulate a model: next_logprobs maps prefixes (N, d) int64, d = 0 ... D-1, to log-probs (N, V) of the next token.

    They are cast to float64 and normalised again, since float32 log-probs sum to 1 only to about 1e-6. A ValueError
    tells logits (a sum further than 1e-3 from 1) from log-probs.
    """
    if vocab < 1 or depth < 1:
        raise ValueError(f"conditional_logprobs: vocab and depth must be >= 1, got {vocab} and {depth}")
    policy = []
    for length in range(depth):
        given = prefixes(vocab, length)
        rows = next_logprobs(given).double()
        if rows.shape != (len(given), vocab):
            raise ValueError(
                f"conditional_logprobs: next_logprobs must return (N, V) = ({len(given)}, {vocab}) "
                f"for prefixes of {length} tokens, got {tuple(rows.shape)}"
            )
        excess = rows.logsumexp(1, keepdim=True)
        if not excess.abs().max() < 1e-3:
            raise ValueError(
                "conditional_logprobs: next_logprobs must return normalised log-probs, got rows whose probabilities "
                f"sum to as much as exp({excess.max().item():.3g}); apply log_softmax"
            )
        policy.append(rows - excess)
    return policy


def sequence_logprobs(policy: Conditionals) -> Tensor:
    """(V^D,) float64: log pi(y) of every sequence."""
    total = policy[0].new_zeros(1)
    for rows in policy:
        total = (total[:, None] + rows).flatten()
    return total


def conditionals_of(logprobs: Tensor, vocab: int) -> list[Tensor]:
    """The policy whose sequence_logprobs are `logprobs` (V^D,), found by summing out one last token after the other."""
    policy = []
    while len(logprobs) > 1:
        rows = logprobs.reshape(-1, vocab)
        logprobs = rows.logsumexp(1)
        policy.append(rows - logprobs[:, None])
    return policy[::-1]


def optimal_sequence_logprobs(ref: Conditionals, dpo: Conditionals, beta_1: float, beta_2: float) -> Tensor:
    """(V^D,) log pi*(y), by the closed form over whole sequences."""
    return _tilted(ref, dpo, beta_1, beta_2).log_softmax(0)


def optimal_objective(ref: Conditionals, dpo: Conditionals, beta_1: float, beta_2: float) -> Tensor:
    """() J* = beta_2 log Z: >= 0 where beta_1 >= beta_2, <= 0 where 0 <= beta_1 <= beta_2 (Hoelder)."""
    return beta_2 * _tilted(ref, dpo, beta_1, beta_2).logsumexp(0)


def objective(policy: Conditionals, ref: Conditionals, dpo: Conditionals, beta_1: float, beta_2: float) -> Tensor:
    """() J(pi), exactly: the expectation is taken token by token, from the leaves up."""
    _check(ref, dpo, beta_1, beta_2, policy=policy)
    value = ref[-1].new_zeros(ref[-1].numel())
    for rows, ref_rows, dpo_rows in zip(reversed(policy), reversed(ref), reversed(dpo), strict=True):
        finite = rows.masked_fill(rows == -math.inf, 0.0)  # p log p is 0 where p is 0
        reward = beta_1 * (dpo_rows - ref_rows) - beta_2 * (finite - ref_rows)
        value = (rows.exp() * (reward + value.view_as(rows))).sum(1)
    return value[0]


def regret(policy: Conditionals, ref: Conditionals, dpo: Conditionals, beta_1: float, beta_2: float) -> Tensor:
    """() (J* - J(pi)) / |J*|: 0 at pi*, positive elsewhere, 0.01 when one percent of the attainable is missed.

    J* is 0 where beta_1 = 0, beta_1 = beta_2 or pi_dpo = pi_ref; then no share of it can be missed, and below
    |J*| = 1e-12 a ValueError says so. J* - J(pi) = optimal_objective(...) - objective(...) is sound everywhere.
    """
    best = optimal_objective(ref, dpo, beta_1, beta_2)
    if best.abs() < 1e-12:
        raise ValueError(
            f"regret: J* must not be 0, got {best.item():.3g} with beta_1 = {beta_1}, beta_2 = {beta_2}; "
            "compare optimal_objective(...) - objective(...) with 0 instead"
        )
    return (best - objective(policy, ref, dpo, beta_1, beta_2)) / best.abs()


def _tilted(ref: Conditionals, dpo: Conditionals, beta_1: float, beta_2: float) -> Tensor:
    _check(ref, dpo, beta_1, beta_2)
    ref_logprobs = sequence_logprobs(ref)
    return ref_logprobs + (beta_1 / beta_2) * (sequence_logprobs(dpo) - ref_logprobs)


def _check(ref: Conditionals, dpo: Conditionals, beta_1: float, beta_2: float, **more: Conditionals) -> None:
    if not math.isfinite(beta_1):
        raise ValueError(f"token_tree: beta_1 must be finite, got {beta_1}")
    if not (math.isfinite(beta_2) and beta_2 > 0):
        raise ValueError(f"token_tree: beta_2 must be > 0, got {beta_2}; without a KL term the best policy is greedy")
    check_tables("token_tree", ref=ref, dpo=dpo, **more)
    for name, rows in (("ref", ref), ("dpo", dpo)):
        for d, r in enumerate(rows):
            if not r.isfinite().all():
                raise ValueError(f"token_tree: {name}[{d}] must be finite: every token needs a positive probability")


def check_tables(op: str, **tables: Conditionals) -> None:
    """ValueError unless all are D float64 tensors (V^d, V) of one V and one D."""
    first = next(iter(tables.values()))
    wanted = [(first[0].shape[-1] ** d, first[0].shape[-1]) for d in range(len(first))] if first else []
    for name, table in tables.items():
        if not table:
            raise ValueError(f"{op}: {name} must hold a tensor for each of D >= 1 depths, got none")
        got = [tuple(rows.shape) for rows in table]
        if got != wanted:
            raise ValueError(f"{op}: {name} must be (V^d, V) for d = 0 ... D-1 = {wanted}, got {got}")
        for d, rows in enumerate(table):
            if rows.dtype != torch.float64:
                raise ValueError(f"{op}: {name}[{d}] must be float64, got {rows.dtype}; see conditional_logprobs")


if __name__ == "__main__":
    from rto_fast.theory.experiment import main

    main()
