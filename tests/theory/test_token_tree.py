"""The closed form, soft value iteration and the exact objective agree on small token trees."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rto_fast.theory import soft_q
from rto_fast.theory.token_tree import (
    conditional_logprobs,
    conditionals_of,
    objective,
    optimal_objective,
    optimal_sequence_logprobs,
    prefixes,
    regret,
    sequence_logprobs,
)

BETAS = (0.1, 0.03)


def tree(seed, vocab=3, depth=4, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    shapes = [(vocab**d, vocab) for d in range(depth)]
    return [(scale * torch.randn(shape, generator=g, dtype=torch.float64)).log_softmax(1) for shape in shapes]


def soft_value_iteration(ref, dpo, beta_1, beta_2):
    """(pi*, V*) by backward induction, which never looks at a whole sequence."""
    q, values = soft_q.optimal_q(soft_q.implicit_reward(dpo, ref, beta_1), ref, beta_2)
    return soft_q.policy_of(q, beta_2), values


def close(got, want, atol=1e-12):
    torch.testing.assert_close(got, torch.as_tensor(want, dtype=torch.float64), rtol=1e-10, atol=atol)


instances = given(
    seed=st.integers(0, 10**6),
    vocab=st.integers(1, 4),
    depth=st.integers(1, 4),
    beta_1=st.sampled_from([-0.05, 0.0, 0.02, 0.1, 1.0]),
    beta_2=st.sampled_from([0.03, 0.3]),
)


def test_prefixes_are_counted_with_the_first_token_most_significant():
    assert prefixes(3, 0).shape == (1, 0)
    assert prefixes(2, 2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_a_model_is_tabulated_prefix_by_prefix():
    def next_logprobs(given):
        favourite = given.sum(1) % 3
        return (2.0 * torch.nn.functional.one_hot(favourite, 3).double()).log_softmax(1)

    policy = conditional_logprobs(next_logprobs, vocab=3, depth=3)
    assert [p.shape for p in policy] == [(1, 3), (3, 3), (9, 3)] and all(p.dtype == torch.float64 for p in policy)
    own = math.log(math.exp(2) / (math.exp(2) + 2))
    # the sequence 1, 1, 0: token 0 was the favourite at first, then 1, then 1 + 1 = 2
    close(sequence_logprobs(policy)[9 + 3 + 0], 3 * own - 4)
    close(sequence_logprobs(policy).exp().sum(), 1.0)


@settings(max_examples=40, deadline=None)
@instances
def test_the_closed_form_is_soft_value_iteration(seed, vocab, depth, beta_1, beta_2):
    ref, dpo = tree(seed, vocab, depth), tree(seed + 1, vocab, depth)
    policy, values = soft_value_iteration(ref, dpo, beta_1, beta_2)
    closed = optimal_sequence_logprobs(ref, dpo, beta_1, beta_2)
    close(sequence_logprobs(policy), closed, atol=1e-10)
    close(values[0][0], optimal_objective(ref, dpo, beta_1, beta_2))
    if vocab > 1:
        for by_induction, enumerated in zip(policy, conditionals_of(closed, vocab), strict=True):
            close(by_induction, enumerated, atol=1e-10)


@settings(max_examples=40, deadline=None)
@instances
def test_the_gap_to_the_best_is_a_kl_divergence_to_it(seed, vocab, depth, beta_1, beta_2):
    ref, dpo, policy = (tree(seed + i, vocab, depth) for i in range(3))
    best, logprobs = optimal_sequence_logprobs(ref, dpo, beta_1, beta_2), sequence_logprobs(policy)
    gap = optimal_objective(ref, dpo, beta_1, beta_2) - objective(policy, ref, dpo, beta_1, beta_2)
    close(gap, beta_2 * (logprobs.exp() * (logprobs - best)).sum(), atol=1e-10)
    assert gap > -1e-12


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), beta_1=st.sampled_from([-0.05, 0.01, 0.1, 0.5]))
def test_regret_is_never_negative_and_zero_at_the_best(seed, beta_1):
    ref, dpo, policy = (tree(seed + i) for i in range(3))
    assert regret(policy, ref, dpo, beta_1, 0.03) > 0
    close(regret(soft_value_iteration(ref, dpo, beta_1, 0.03)[0], ref, dpo, beta_1, 0.03), 0.0, atol=1e-10)


def test_regret_is_the_missing_share_of_the_best():
    ref, dpo, policy = (tree(seed) for seed in range(3))
    for betas in (BETAS, (0.02, 0.03)):  # the best is positive, then negative
        best = optimal_objective(ref, dpo, *betas)
        close(regret(policy, ref, dpo, *betas), (best - objective(policy, ref, dpo, *betas)) / abs(best))


def test_the_objective_is_the_sum_over_all_sequences():
    ref, dpo, policy = tree(0), tree(1), tree(2)
    p, r, d = sequence_logprobs(policy), sequence_logprobs(ref), sequence_logprobs(dpo)
    close(objective(policy, ref, dpo, *BETAS), (p.exp() * (0.1 * (d - r) - 0.03 * (p - r))).sum())


def test_the_best_policy_attains_j_star_and_any_perturbation_loses():
    ref, dpo = tree(0), tree(1)
    best, _ = soft_value_iteration(ref, dpo, *BETAS)
    top = optimal_objective(ref, dpo, *BETAS)
    r, d = sequence_logprobs(ref), sequence_logprobs(dpo)
    close(top, 0.03 * (r + 0.1 / 0.03 * (d - r)).logsumexp(0))
    close(objective(best, ref, dpo, *BETAS), top)
    for seed in range(20):
        for size in (1e-3, 0.1, 3.0):
            noise = tree(seed, scale=1.0)
            perturbed = [(b + size * n).log_softmax(1) for b, n in zip(best, noise, strict=True)]
            assert objective(perturbed, ref, dpo, *BETAS) < top


def test_the_exact_policy_gradient_vanishes_at_the_best_policy_alone():
    ref, dpo = tree(0), tree(1)
    best, _ = soft_value_iteration(ref, dpo, *BETAS)
    for start, vanishes in ((best, True), (ref, False)):
        logits = [rows.clone().requires_grad_() for rows in start]
        objective([z.log_softmax(1) for z in logits], ref, dpo, *BETAS).backward()
        assert (max(z.grad.abs().max() for z in logits) < 1e-14) == vanishes


def test_without_beta_1_the_best_is_the_reference_and_with_equal_betas_the_dpo_policy():
    ref, dpo = tree(0), tree(1)
    close(optimal_sequence_logprobs(ref, dpo, 0.0, 0.03), sequence_logprobs(ref))
    close(optimal_sequence_logprobs(ref, dpo, 0.03, 0.03), sequence_logprobs(dpo))
    for beta_1 in (0.0, 0.03):
        close(optimal_objective(ref, dpo, beta_1, 0.03), 0.0)
        with pytest.raises(ValueError, match=r"regret: J\* must not be 0"):
            regret(ref, ref, dpo, beta_1, 0.03)


def test_j_star_changes_sign_where_the_betas_meet():
    ref, dpo = tree(0), tree(1)
    assert optimal_objective(ref, dpo, 0.02, 0.03) < 0 < optimal_objective(ref, dpo, 0.04, 0.03)


def test_a_policy_may_exclude_tokens():
    ref, dpo = tree(0), tree(1)
    greedy = [torch.full_like(r, -math.inf).scatter(1, r.argmax(1, keepdim=True), 0.0) for r in ref]
    y = sequence_logprobs(greedy).argmax()
    r, d = sequence_logprobs(ref)[y], sequence_logprobs(dpo)[y]
    close(objective(greedy, ref, dpo, *BETAS), 0.1 * (d - r) + 0.03 * r)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: objective(tree(0), tree(1), tree(2), 0.1, 0.0), "beta_2 must be > 0, got 0.0"),
        (lambda: objective(tree(0), tree(1), tree(2), math.nan, 0.1), "beta_1 must be finite, got nan"),
        (lambda: objective(tree(0, depth=2), tree(1), tree(2), 0.1, 0.1), r"policy must be \(V\^d, V\)"),
        (lambda: optimal_objective(tree(0), [r.float() for r in tree(1)], 0.1, 0.1), r"dpo\[0\] must be float64"),
        (lambda: optimal_objective([r * math.inf for r in tree(0)], tree(1), 0.1, 0.1), r"ref\[0\] must be finite"),
        (lambda: optimal_objective([], [], 0.1, 0.1), "ref must hold a tensor for each"),
        (lambda: conditional_logprobs(lambda p: torch.zeros(len(p), 3), 3, 2), "normalised log-probs.*log_softmax"),
        (lambda: conditional_logprobs(lambda p: torch.zeros(3), 3, 2), r"\(N, V\) = \(1, 3\).*got \(3,\)"),
        (lambda: conditional_logprobs(lambda p: p, 3, 0), "depth must be >= 1"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
