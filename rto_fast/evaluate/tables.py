"""Who beats whom: outcomes per prompt, and the matrices of results.json and of the terminal."""

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import numpy as np

from rto_fast.evaluate.policies import Evaluation, interval
from rto_fast.evaluate.stats import Estimate, length_controlled, mean_estimate, win_rate, wins
from rto_fast.files.text import in_columns

COLUMNS = {
    "oracle_return": "oracle return",
    "score": "score",
    "implicit_reward": "DPO reward",
    "kl": "KL to sft",
    "length": "tokens",
}
Outcomes = Mapping[tuple[str, str], np.ndarray]
"""For a pair of policies (prompts,): 1 the first's answer is better, 0 the second's, 0.5 a tie, NaN nobody knows."""


def outcomes(evaluations: Mapping[str, Evaluation]) -> dict[tuple[str, str], np.ndarray]:
    """By what each answer is worth (`Evaluation.judged`), prompt by prompt."""
    return {(a, b): wins(evaluations[a].judged, evaluations[b].judged) for a, b in combinations(evaluations, 2)}


def share_won(found: Outcomes, evaluations: Mapping[str, Evaluation]) -> dict[str, np.ndarray]:
    """(prompts,) for each policy: the mean of what its answer got against the others', NaN without any verdict."""
    out = {}
    for name, evaluation in evaluations.items():
        rows = [w if a == name else 1 - w for (a, b), w in found.items() if name in (a, b)]
        rows.append(np.full(len(evaluation.answers), np.nan))  # what is known of one policy alone
        with np.errstate(invalid="ignore"):
            out[name] = np.nansum(rows, axis=0) / np.isfinite(rows).sum(0)
    return out


def matrices(found: Outcomes, evaluations: Mapping[str, Evaluation]) -> dict[str, dict[str, dict[str, Any]]]:
    """{"win_rate", "length_controlled"}[a][b] = {"mean", "ci95", "low", "high"}; a pair without a verdict is left out.

    Comparisons are paired: both answers are to the same prompt. The intervals, Wilson's (`stats.win_rate`) and the
    regression's (`length_controlled`), are not symmetric near 0 and 1: low and high are their ends, ci95 half their
    width.
    """
    out: dict[str, dict[str, dict[str, Any]]] = {
        kind: {name: {} for name in evaluations} for kind in ("win_rate", "length_controlled")
    }
    lengths = {name: np.array([len(a.response) for a in e.answers], float) for name, e in evaluations.items()}
    for (a, b), points in found.items():
        known = np.isfinite(points)
        for one, other, won in ((a, b, points[known]), (b, a, 1 - points[known])):
            if won.size:
                out["win_rate"][one][other] = _ends(win_rate(won, np.full(won.size, 0.5)))
                out["length_controlled"][one][other] = _ends(
                    length_controlled(won, lengths[one][known], lengths[other][known])
                )
    return out


def _ends(estimate: Estimate) -> dict[str, float]:
    return {**interval(estimate), "low": estimate.low, "high": estimate.high}


def differences(evaluations: Mapping[str, Evaluation]) -> dict[str, dict[str, Any]]:
    """[a][b] = {"mean", "ci95"} of what a's answer is worth more than b's to the same prompt (paired)."""
    return {
        a: {b: interval(mean_estimate(evaluations[a].judged - evaluations[b].judged)) for b in evaluations if b != a}
        for a in evaluations
    }


def figure(value: dict[str, float], ends: bool = False) -> str:
    """mean +- half-width; with `ends` the lowest and the highest seed too."""
    seeds = f" ({value['low']:.3f} to {value['high']:.3f})" if ends else ""
    return f"{value['mean']:.3f} +- {value['ci95']:.3f}{seeds}"


def print_table(results: dict[str, Any], say: Callable[[str], None]) -> None:
    """Every policy's figures with 95 % intervals, and who wins against whom.

    Figures pooled over seeds (`report.pool`) have the judge's lowest and highest seed beside them.
    """
    policies, some = results["policies"], next(iter(results["policies"].values()))
    columns = [c for c in COLUMNS if all(c in p for p in policies.values())]
    judge = f"; wins judged by {results['judge'].replace('_', ' ')}" if results["judge"] else ""
    seeds = some["length"].get("seeds", 1)
    say(f"\n{some['answers']} held-out prompts, mean +- 95 % interval{judge}")
    if seeds > 1:
        say(f"  +- covers training and prompts ({seeds} seeds); in brackets the lowest and the highest seed")
    else:
        say("  +- covers the prompts, given these trained models: another seed can differ by more (--compare.seeds)")
    rivals = policies if judge and len(policies) > 1 else ()
    rows = [["", *(COLUMNS[c] for c in columns), "stops", *(f"beats {name}" for name in rivals)]]
    for name, policy in policies.items():
        wins = results["win_rate"].get(name, {})
        beats = [f"{100 * wins[other]['mean']:.0f} %" if other in wins else "" for other in rivals]
        figures = [figure(policy[c], ends=seeds > 1 and c == results["judge"]) for c in columns]
        rows.append([name, *figures, f"{100 * policy['eos_rate']:.0f} %", *beats])
    for line in in_columns(rows):
        say(line)
    if "preference_accuracy" in results:
        say(f"  DPO's reward agrees with {figure(results['preference_accuracy'])} of the held-out labels")
    if "credit_auc" in results:
        say(f"  DPO's token reward tells right tokens from wrong ones with AUC {figure(results['credit_auc'])}")
    say("")


def print_sweep(rows: list[dict[str, Any]], say: Callable[[str], None]) -> None:
    """Return and KL over b1/b2 and c: a return that falls while the KL grows is over-optimisation."""
    columns = [c for c in COLUMNS if all(c in row for row in rows)]
    say("Over-optimisation: short RTO runs over b1/b2 and the clip c, one training each")
    lines = [["b1/b2", "c", *(COLUMNS[c] for c in columns), "stops"]]
    for row in rows:
        clip = "none" if row["clip"] is None else f"{row['clip']:g}"
        lines.append([f"{row['ratio']:g}", clip, *(figure(row[c]) for c in columns), f"{100 * row['eos_rate']:.0f} %"])
    for line in [*in_columns(lines), ""]:
        say(line)


def print_results(results: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Figures of each policy, then the matrices, each with 95 % intervals."""
    policies = results["policies"]
    figures = [c for c in COLUMNS if all(c in p for p in policies.values())]
    titles = {**COLUMNS, "score": "reward model", "kl": "KL to reference"}
    rows = [["", *(titles[c] for c in figures), "distinct-1", "distinct-2", "stops"]]
    for name, policy in policies.items():
        share = [f"{policy['distinct_1']:.3f}", f"{policy['distinct_2']:.3f}", f"{100 * policy['eos_rate']:.0f} %"]
        rows.append([name, *(figure(policy[c]) for c in figures), *share])
    lines = ["", *in_columns(rows)]
    kinds = {"win_rate": "Win rate of the row over the column, % (95 % interval)"}
    kinds["length_controlled"] = "The same at equal length"
    for kind, title in kinds.items() if len(policies) > 1 else ():
        rows = [["", *policies], *([a, *(_percent(results[kind][a].get(b)) for b in policies)] for a in policies)]
        lines += [f"\n{title}", *in_columns(rows)]
    for line in [*lines, ""]:
        say(line)


def _percent(cell: Mapping[str, float] | None) -> str:
    return f"{100 * cell['mean']:.1f} ({100 * cell['low']:.1f} to {100 * cell['high']:.1f})" if cell else ""
