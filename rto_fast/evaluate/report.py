"""What a run says at its end: a table on the terminal, samples.md and answers.jsonl in its folder."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rto_fast.evaluate.answers import answer_text, prompt_text
from rto_fast.evaluate.policies import Evaluation
from rto_fast.files.digests import write_recorded
from rto_fast.files.disk import write_whole
from rto_fast.files.text import in_columns, valid

COLUMNS = {
    "oracle_return": "oracle return",
    "score": "score",
    "implicit_reward": "DPO reward",
    "kl": "KL to sft",
    "length": "tokens",
}


def figure(value: dict[str, float], ends: bool = False) -> str:
    """mean +- half-width; with `ends` the lowest and the highest seed too."""
    seeds = f" ({value['low']:.3f} to {value['high']:.3f})" if ends else ""
    return f"{value['mean']:.3f} +- {value['ci95']:.3f}{seeds}"


def print_table(results: dict[str, Any], say: Callable[[str], None]) -> None:
    """Every policy's figures with 95 % intervals, and who wins against whom.

    Figures pooled over seeds (`report.pool`) have the judge's lowest and highest seed beside them.
    """
    policies = results["policies"]
    columns = [c for c in COLUMNS if all(c in p for p in policies.values())]
    count = next(iter(policies.values()))["answers"]
    judge = f"; wins judged by {results['judge'].replace('_', ' ')}" if results["judge"] else ""
    seeds = next(iter(policies.values()))["length"].get("seeds", 1)
    say(f"\n{count} held-out prompts, mean +- 95 % interval{judge}")
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


def write_samples(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    evaluations: dict[str, Evaluation],
    count: int,
    judged: Mapping[str, np.ndarray] | None = None,
) -> None:
    """samples.md: the first `count` prompts and every policy's answer to them, with what decides comparisons."""
    judged = {name: e.judged for name, e in evaluations.items()} if judged is None else judged
    lines = ["# Samples", "", "Answers to held-out prompts; special tokens are shown.", ""]
    some = next(iter(evaluations.values()))
    for i in range(min(count, len(some.answers))):
        lines += [f"## {i + 1}", "", *_quote(str(tokenizer.decode(some.answers[i].prompt))), ""]
        for name, evaluation in evaluations.items():
            worth = "" if np.isnan(judged[name][i]) else f" ({judged[name][i]:+.3f})"
            said = str(tokenizer.decode(evaluation.answers[i].response))
            lines += [f"**{name}**{worth}", "", *_quote(said), ""]
    write_whole(path, "\n".join(lines))


def _quote(text: str) -> list[str]:
    """Indented as code, so that whatever a model wrote stays text."""
    return ["    " + line for line in valid(text).splitlines()] or ["    "]


def write_answers(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    evaluations: Mapping[str, Evaluation],
    count: int,
    judged: Mapping[str, np.ndarray] | None = None,
) -> None:
    """answers.jsonl: one line per prompt and policy, for the first `count` prompts.

    {"index", "prompt", "policy", "response", "judged", "kl", "tokens", "finish"}; judged is what decides comparisons
    (`Evaluation.judged`, or the given (answers,) array of each policy; null where that is NaN), kl is
    log pi/pi_ref of the answer in nats, tokens counts EOS.
    """
    judged = {name: e.judged for name, e in evaluations.items()} if judged is None else judged
    lines = []
    for i in range(min(count, *(len(e.answers) for e in evaluations.values()))):
        for name, evaluation in evaluations.items():
            answer = evaluation.answers[i]
            row = {
                "index": i,
                "prompt": prompt_text(tokenizer, answer),
                "policy": name,
                "response": answer_text(tokenizer, answer),
                "judged": None if np.isnan(judged[name][i]) else float(judged[name][i]),
                "kl": float(evaluation.kl[i]),
                "tokens": len(answer.response),
                "finish": answer.finish,
            }
            lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    write_recorded(path, "".join(lines))
