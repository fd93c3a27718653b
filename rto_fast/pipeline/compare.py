"""The same run with several seeds, and what they say together."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rto_fast.config import CompareConfig, Config
from rto_fast.evaluate.tables import print_table
from rto_fast.files.digests import write_recorded
from rto_fast.pipeline.run import run
from rto_fast.report import summarise, write_report
from rto_fast.runs.folder import alone, check, claim
from rto_fast.training import mesh
from rto_fast.training.interrupt import signals_stop


def compare(config: Config, say: Callable[[str], None] = print, take_from: str | None = None) -> dict[str, Any]:
    """Run every seed in <output>/seed-N, then pool: results.json, a table, report.html.

    A seed that is finished is evaluated again and not trained again; a running one goes on where it stood. Of a
    comparison `take_from` each seed takes over what the same one has finished.
    """
    folder, seeds = check(config), config.compare.seeds
    if mesh.asked() > 1:
        raise ValueError(
            f"compare.seeds: several seeds take one process, got {mesh.asked()}; run each with --seed and an --output "
            "of its own, then python -m rto_fast.report on all of them"
        )
    folders = [folder / f"seed-{seed}" for seed in seeds]
    with alone(folder), signals_stop():
        claim(config)
        for number, (seed, place) in enumerate(zip(seeds, folders, strict=True), 1):
            say(f"\nSeed {seed} ({number} of {len(seeds)})")
            inside = Path(take_from or "", place.name)
            other = str(inside) if take_from and inside.is_dir() else take_from
            run(replace(config, seed=seed, output=str(place), compare=CompareConfig()), say, take_from=other)
        results = _pooled(summarise(folders)) | {"recipe": config.recipe, "seeds": list(seeds)}
        write_recorded(folder / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
        say(f"\nAll {len(seeds)} seeds together")
        if results["policies"]:
            print_table(results, say)
        for row in results["rollouts_to_reach"]:
            if row["rival"] == "ppo":
                say(_reach(row))
        say(f"\nReport: {write_report(folders, folder / 'report.html')}")
    return results


def _pooled(summary: dict[str, Any]) -> dict[str, Any]:
    """What results.json of one run holds, over all seeds."""
    group = summary["groups"][0]
    policies = {
        name: {
            **figures,
            "eos_rate": figures["eos_rate"]["mean"],
            "answers": round(figures["answers"]["mean"] * figures["answers"]["seeds"]),
        }
        for name, figures in group["policies"].items()
    }
    kept = {key: group[key] for key in ("win_rate", "judge", "credit_auc", "preference_accuracy") if key in group}
    return {"policies": policies, **kept, "rollouts_to_reach": summary["rollouts_to_reach"]}


def _reach(row: dict[str, Any]) -> str:
    if row["rollouts"] is None:
        return f"  {row['policy']} does not reach {row['rival']}'s final return, {row['target']:.3f}"
    return (
        f"  {row['policy']} reaches {row['rival']}'s final return, {row['target']:.3f}, after {row['rollouts']:.0f} of "
        f"{row['rival_rollouts']:.0f} rollouts ({100 * row['share']:.0f} %)"
    )
