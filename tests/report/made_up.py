"""Run folders with numbers of the shape that training has: saturating returns, a KL that grows, noise over seeds."""

import json
import math
import random
from pathlib import Path

import tomli_w

# stage: (final oracle return, time constant in rollouts, final KL, kinds of reward)
MEMBERS = {
    "ppo": (1.62, 1500, 2.6, ("kl", "score")),
    "sparse_dpo": (1.48, 1400, 1.5, ("kl", "dense")),
    "semi_rto": (1.70, 900, 1.7, ("kl", "dense")),
    "rs_ppo": (1.72, 800, 2.4, ("kl", "dense", "score")),
    "rto": (1.92, 500, 1.9, ("kl", "dense")),
}
HOSTILE = "<img src=x onerror=alert(1)>\u202e \x07 \ud800 </script><script>alert(2)</script>"


def make_run(
    folder: Path,
    seed: int = 0,
    iterations: int = 24,
    members: tuple[str, ...] = tuple(MEMBERS),
    recipe: str = "compare",
) -> Path:
    """Write one run folder and return it."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    config = {
        "recipe": recipe,
        "seed": seed,
        "stages": ["sft", "dpo", "rm", *members],
        "model": {"path": "quickstart"},
        "data": {"path": "quickstart", "max_length": 44},
        "dpo": {"beta": 0.1},
        "rto": {"iterations": iterations, "rollouts": 256, "reward": {"beta_1": 0.1, "beta_2": 0.05, "clip": 0.1}},
    }
    (folder / "config.toml").write_text(tomli_w.dumps(config))
    lines = [*_supervised(rng), *(line for name in members for line in _member(rng, name, iterations))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    finals = {"sft": (0.29, 0.0), "dpo": (1.38, 1.65), **{m: (MEMBERS[m][0], MEMBERS[m][2]) for m in members}}
    (folder / "results.json").write_text(json.dumps(_results(rng, recipe, seed, finals)))
    answers = [line for i in range(6) for line in _answers(rng, i, list(finals))]
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
    (folder / "heatmaps.json").write_text(json.dumps(_heatmaps(rng)))
    return folder


def _supervised(rng: random.Random) -> list[dict]:
    lines = []
    for step in range(1, 401):
        loss = 0.7 + 4 * math.exp(-step / 30) + rng.gauss(0, 0.02)
        lines.append({"stage": "sft", "step": step, "seconds": step * 0.05, "loss": loss, "tokens_per_second": 27000.0})
    for step in range(1, 101):
        grown = 1 - math.exp(-step / 40)
        chosen, rejected = (-0.15 * grown + rng.gauss(0, 0.03), -0.27 * grown + rng.gauss(0, 0.03))
        lines.append(
            {
                "stage": "dpo",
                "step": step,
                "seconds": step * 0.16,
                "loss": 0.693 - 0.05 * grown,
                "accuracy": 0.5 + 0.2 * grown + rng.gauss(0, 0.03),
                "margin": chosen - rejected,
                "reward_chosen": chosen,
                "reward_rejected": rejected,
                "logp_chosen": -9.8 - 1.5 * grown + rng.gauss(0, 0.2),
                "logp_rejected": -10.6 - 2.7 * grown + rng.gauss(0, 0.2),
                "memory/peak_mb": 610.0,
            }
        )
    lines += [{"stage": "rm", "step": s, "seconds": s * 0.1, "loss": 0.69 - s * 0.002} for s in range(1, 61)]
    return lines


def _member(rng: random.Random, name: str, iterations: int) -> list[dict]:
    final, constant, kl, kinds = MEMBERS[name]
    final += rng.gauss(0, 0.05)
    lines, step = [], 0
    for iteration in range(1, iterations + 1):
        grown = 1 - math.exp(-256 * (iteration - 1) / constant)
        shares = {"kl": 0.05 + 0.4 * grown, "dense": 1.0 - 0.3 * grown, "score": 0.6}
        total = sum(shares[k] for k in kinds)
        first = {
            "iteration": iteration,
            "answers/total": 256 * iteration,
            "judge/return": 0.29 + (final - 0.29) * grown + rng.gauss(0, 0.07),
            "reward/per_answer": -0.1 + 0.25 * grown,
            "kl/per_answer": max(0.0, kl * grown + (rng.gauss(0, 0.05) if iteration > 1 else 0)),
            "answers/length": 11.3 + 0.6 * grown + rng.gauss(0, 0.1),
            "answers/truncated": 0.01,
            "values/explained": 0.7 * grown,
            "time/rollout": 0.42,
            "time/score": 0.11,
            "time/update": 0.83,
            "memory/peak_mb": 655.0 + iteration,
        }
        if "dense" in kinds:
            first["reward/implicit_per_answer"] = -2.2 + 3.6 * grown + rng.gauss(0, 0.1)
        for kind in kinds:
            first |= {
                f"reward/{kind}_share": shares[kind] / total,
                f"reward/{kind}_mean": 0.01,
                f"reward/{kind}_abs": 0.02,
            }
        for k in range(8):
            step += 1
            line = {"stage": name, "step": step, "seconds": round(step * 0.18, 3), "loss": -0.04, "ratio_gap": 0.01 * k}
            lines.append(line | (first if k == 0 else {}))
    return lines


def _results(rng: random.Random, recipe: str, seed: int, finals: dict[str, tuple[float, float]]) -> dict:
    returns = {name: mean + rng.gauss(0, 0.03) for name, (mean, _) in finals.items()}
    policies = {
        name: {
            "oracle_return": {"mean": returns[name], "ci95": 0.09},
            "implicit_reward": {"mean": -0.16 + 0.2 * returns[name], "ci95": 0.014},
            "kl": {"mean": kl, "ci95": 0.05 * kl},
            "length": {"mean": 11.6, "ci95": 0.24},
            "eos_rate": 1.0,
            "distinct_1": 0.03,
            "answers": 1000,
        }
        for name, (_, kl) in finals.items()
    }
    wins: dict[str, dict] = {name: {} for name in finals}
    for a in finals:
        for b in finals:
            if a != b:
                wins[a][b] = {"mean": 1 / (1 + math.exp(returns[b] - returns[a])), "ci95": 0.029}
    return {
        "recipe": recipe,
        "seed": seed,
        "policies": policies,
        "win_rate": wins,
        "judge": "oracle_return",
        "credit_auc": {"mean": 0.942, "ci95": 0.009},
        "seconds": 700.0 + seed,
    }


def _answers(rng: random.Random, index: int, names: list[str]) -> list[dict]:
    animals = ["frog", "mouse", "goat", "snake", "cat", "duck"]
    return [
        {
            "index": index,
            "prompt": f"<bos> do you know the food of the {animals[index]} ?",
            "policy": name,
            "response": f"sure , the {animals[index]} eats {rng.choice(['mice', 'worms', 'moo', 'hiss'])} . <eos>",
            "judged": round(rng.gauss(1, 1), 2),
            "kl": abs(rng.gauss(1, 1)),
            "tokens": 8,
            "finish": "eos" if rng.random() < 0.9 else "length",
        }
        for name in names
    ]


def _heatmaps(rng: random.Random) -> list[dict]:
    texts = {
        "chosen": "the frog eats insects . it is green . <eos>",
        "rejected": "the frog eats moo . it is green . <eos>",
    }
    maps = []
    for title, text in texts.items():
        tokens = [t + " " for t in text.split()]
        signs = [-1 if "moo" in t else 1 if t.strip() in ("insects", "green") else 0 for t in tokens]
        rewards = [0.06 * s + rng.gauss(0, 0.01) for s in signs]
        maps.append(
            {"title": title, "prompt": "say the food and colour of the frog .", "tokens": tokens, "rewards": rewards}
            | {"signs": signs}
        )
    return maps
