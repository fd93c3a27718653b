"""Proposition C.2 on the paper's MDP, and where it has no counterpart: in deterministic MDPs."""

from rto_fast.theory.check import Check, exact, generator
from rto_fast.theory.planning import autoregressive_value, paper_instance, predetermined_value, random_instance


def proposition_c_2(seed: int, count: int) -> list[Check]:
    best, fixed = autoregressive_value(*paper_instance()), predetermined_value(*paper_instance())
    deterministic, gaps = [], []
    for i in range(count):
        known = random_instance(4, 2 + i % 2, 4, True, generator(seed + i))
        deterministic.append(abs(autoregressive_value(*known) - predetermined_value(*known)))
        chance = random_instance(4, 2 + i % 2, 4, False, generator(seed + i))
        gaps.append(autoregressive_value(*chance) - predetermined_value(*chance))
    return [
        Check(
            "Prop C.2: predetermined policies lose at least 0.5",
            ">= 0.5",
            f"{best:.3f} - {fixed:.3f} = {best - fixed:.3f}",
            best - fixed >= 0.5 - 1e-12,
        ),
        exact("deterministic MDPs: the two are equal", deterministic),
        Check(
            "random stochastic MDPs: autoregressive is never worse",
            ">= 0",
            f"{min(gaps):.2f} to {max(gaps):.2f}",
            min(gaps) >= -1e-12,
        ),
    ]
