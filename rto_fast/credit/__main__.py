"""`python -m rto_fast.credit --run runs/quickstart`: which tokens DPO rewards, and whether those are the right ones.

Shows the token rewards of preference pairs in the terminal, measures them where wrong tokens are known, and writes
heatmaps.json, credit.html (open it in a browser) and credit.json. A mistake is one line on stderr and exit code 2.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm import tqdm

from rto_fast import cli
from rto_fast.credit.page import page
from rto_fast.credit.terminal import terminal
from rto_fast.evaluate.heatmap import Heatmap, scale_of, to_json
from rto_fast.files.digests import write_recorded
from rto_fast.files.disk import write_whole

if TYPE_CHECKING:
    from rto_fast.credit.source import Source
    from rto_fast.credit.swaps import Ranking
    from rto_fast.evaluate.stats import Estimate
    from rto_fast.tasks import Oracle


@dataclass(frozen=True)
class Watch:
    """Show which tokens a DPO model credits and blames: beta log(pi_dpo/pi_ref) of every token of any pair.

    Give a run (--run runs/quickstart), or two models and a file (--dpo, --reference, --pairs). What DPO does to the
    likelihood of chosen and rejected answers: python -m rto_fast.credit.likelihood.
    """

    run: str | None = None
    """Folder of a finished run: its sft, dpo, data and beta."""
    dpo: str | None = None
    """DPO model: a Hugging Face folder or hub id."""
    reference: str | None = None
    """The model that DPO started from; it has the same tokenizer."""
    pairs: str | None = None
    """Preference pairs in any form that training reads. With columns chosen and corrupted (the chosen answer with some
    words replaced) the tokens that differ are known to be wrong. none = the run's pairs, those held out if any."""
    rows: tuple[int, ...] = (1, 2, 3)
    """Which pairs to show, by number from 1."""
    corrupted: int | None = None
    """Measure on so many corrupted answers. The quickstart makes its own (200) by swapping facts of right answers; for
    other texts give --pairs with a column corrupted (all rows). 0 = do not."""
    examples: int = 2
    """How many corrupted answers to show."""
    answers: int = 1000
    """Sampled answers on which the quickstart's oracle judges the token rewards; 0 = do not."""
    beta: float | None = None
    """Scale of the rewards. none = the run's dpo.beta, else 0.1."""
    template: Literal["auto", "chat", "plain", "none"] = "auto"
    """How a conversation becomes text, without a run."""
    seed: int | None = None
    """Chooses the corrupted answers. none = the run's seed, whose held-out questions they then ask."""
    device: str = "auto"
    """auto (cuda where there is one), cpu, cuda, cuda:1, ..."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model. Only for models you have read."""
    output: str | None = None
    """Folder for heatmaps.json, credit.html and credit.json. none = the run's folder, else ./credit."""


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 bad input, 130 interrupted."""
    return cli.run(
        lambda words: watch(cli.parse(Watch, words, "python -m rto_fast.credit")), args, "Nothing was written."
    )


def watch(options: Watch) -> dict[str, Any]:
    """Show, measure, write; returns what credit.json holds."""
    _check(options)
    source = _source(options)
    with source.run.precision():
        return _watch(options, source)


def _watch(options: Watch, source: "Source") -> dict[str, Any]:
    from rto_fast.evaluate.token_rewards import pair_heatmaps

    scorer, oracle = source.scorer, source.oracle
    print(f"reward = {scorer.beta:g} log(pi_dpo/pi_ref), dpo {source.dpo_path}, reference {source.reference_path}\n")
    ranking, cases, left_out = _corrupted(options, source)
    maps: list[Heatmap] = []
    if options.pairs is None or not cases:
        pairs = source.pairs(options.pairs)
        if beyond := [n for n in options.rows if n > len(pairs)]:
            raise ValueError(f"rows: there are {len(pairs)} pairs, got {beyond[0]}")
        shown = [pairs[n - 1] for n in options.rows]
        maps = pair_heatmaps(scorer, shown, names=[f"pair {n}" for n in options.rows], oracle=oracle)
    maps += cases
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    scale = scale_of(maps)
    for heatmap in maps:
        print(terminal(heatmap, width, scale=scale) + "\n")

    figures: dict[str, Any] = {"beta": scorer.beta, "dpo": source.dpo_path, "reference": source.reference_path}
    lines: list[tuple[str, str]] = []
    if oracle is not None and options.answers:
        figures["credit_auc"] = _oracle_auc(options, source, oracle, lines)
    if ranking is not None:
        figures["corrupted"] = _ranking(ranking, left_out, lines)
    for name, text in lines:
        print(f"{name}: {text}")
    folder = _folder(options)
    folder.mkdir(parents=True, exist_ok=True)
    write_recorded(folder / "heatmaps.json", to_json(maps))
    write_whole(folder / "credit.json", json.dumps(figures, indent=2, allow_nan=False) + "\n")
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in lines)
    models = f"<p>{scorer.beta:g} log(&pi;<sub>dpo</sub>/&pi;<sub>ref</sub>) of every token, in nats.</p>"
    html = page(maps, title="Which tokens DPO credits and blames", before=f"{models}<table>{rows}</table>")
    write_whole(folder / "credit.html", html)
    print(f"written: {folder / 'heatmaps.json'}, {folder / 'credit.html'}, {folder / 'credit.json'}")
    return figures


def _check(options: Watch) -> None:
    if options.run and (options.dpo or options.reference):
        raise ValueError("run: already names its models; give either --run, or --dpo and --reference")
    if not options.run and not (options.dpo and options.reference and options.pairs):
        raise ValueError("run: nothing to look at; give --run with a run's folder, or --dpo, --reference and --pairs")
    for name in ("corrupted", "answers", "examples"):
        if (getattr(options, name) or 0) < 0:
            raise ValueError(f"{name}: must be 0 or more, got {getattr(options, name)}")
    if options.answers == 1:
        raise ValueError("answers: an interval needs at least 2, got 1")
    if not all(n >= 1 for n in options.rows):
        raise ValueError(f"rows: pairs are numbered from 1, got {min(options.rows)}")


def _source(options: Watch) -> "Source":
    from rto_fast.credit.source import from_models, from_run

    device, beta, trusted = options.device, options.beta, options.trust_remote_code
    if options.run:
        return from_run(options.run, device=device, beta=beta, trusted=trusted)
    dpo, reference, template = options.dpo, options.reference, options.template
    assert dpo and reference  # _check
    return from_models(dpo, reference, device=device, beta=beta, template=template, trusted=trusted)


def _folder(options: Watch) -> Path:
    return Path(options.output or options.run or "credit").expanduser()


def _corrupted(options: Watch, source: "Source") -> tuple["Ranking | None", list[Heatmap], int]:
    """(ranking or None, maps of examples, answers left out)."""
    from rto_fast.credit.swaps import rank_corrupted
    from rto_fast.data.rows import to_pairs

    pairs = None
    if options.corrupted == 0:
        return None, [], 0
    if options.pairs is not None:
        pairs = source.corrupted(options.pairs, options.corrupted)
    elif source.run.task is not None:
        seed = source.run.config.seed if options.seed is None else options.seed
        rows = source.run.task.corrupted_rows(options.corrupted or 200, seed)
        pairs = source.encode(to_pairs(rows, columns={"rejected": "corrupted"}).items)
    if pairs is None:
        if options.corrupted:
            raise ValueError(
                "corrupted: only an embedded task can make corrupted answers; give --pairs with columns chosen and "
                "corrupted"
            )
        return None, [], 0
    return rank_corrupted(source.scorer, pairs, options.examples)


def _oracle_auc(options: Watch, source: "Source", oracle: "Oracle", lines: list[tuple[str, str]]) -> dict[str, float]:
    """AUC of the token rewards against the oracle's signs, on answers that the reference policy gives to held-out
    questions: the figure of results.json."""
    from rto_fast.evaluate.policies import interval
    from rto_fast.evaluate.stats import credit_auc
    from rto_fast.rollout import Sampling, rollout
    from rto_fast.training.seeds import derive

    config, scorer = source.run.config, source.scorer
    prompts = source.corpus.evaluation[: options.answers]
    with tqdm(desc="sampling", total=len(prompts), leave=False, disable=not sys.stderr.isatty()) as bar:
        answers = rollout(
            scorer.reference.hf,
            prompts,
            Sampling(config.eval.temperature, None, config.eval.top_p, config.max_new_tokens),
            source.eos_token_ids,
            seed=derive(config.seed, "evaluation"),
            max_batch=config.rto.sampling.batch_size,
            progress=bar.update,
        )
    signs = [np.array(oracle.answer_signs(a.prompt, a.response)) for a in answers]
    auc = credit_auc(scorer.rewards(answers), signs)
    wrong = sum(int((s < 0).sum()) for s in signs)
    tokens = f"{wrong} wrong tokens in {len(answers)} sampled answers"
    lines.append(("AUC against the oracle", f"{auc.value:.3f} [{auc.low:.3f}, {auc.high:.3f}], {tokens}"))
    return {**interval(auc), "answers": len(answers), "wrong_tokens": wrong}


def _ranking(ranking: "Ranking", left_out: int, lines: list[tuple[str, str]]) -> dict[str, Any]:
    from rto_fast.evaluate.policies import interval

    def shown(estimate: "Estimate", percent: bool = True) -> str:
        factor, digits = (100, 1) if percent else (1, 3)
        value, low, high = (f"{factor * x:.{digits}f}" for x in estimate)
        return f"{value}{' %' if percent else ''} [{low}, {high}]"

    lost = f"; {left_out} without some tokens of their own left out" if left_out else ""
    lines += [
        ("corrupted answers", f"{ranking.answers}, with {ranking.swapped} swapped tokens{lost}"),
        (
            "swapped tokens are the lowest",
            f"{shown(ranking.lowest)} of answers; by chance {100 * ranking.chance:.2g} %",
        ),
        ("swapped tokens among the lowest", f"{shown(ranking.tokens)} of tokens"),
        ("AUC of swapped against the rest", f"{shown(ranking.auc, False)}, means {ranking.gap:.3f} apart"),
    ]
    return {
        "answers": ranking.answers,
        "swapped": ranking.swapped,
        "lowest": {**interval(ranking.lowest), "low": ranking.lowest.low, "high": ranking.lowest.high},
        "tokens": interval(ranking.tokens),
        "chance": ranking.chance,
        "auc": interval(ranking.auc),
        "gap": ranking.gap,
    }


if __name__ == "__main__":
    sys.exit(main())
