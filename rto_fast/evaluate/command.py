"""The whole of `python -m rto_fast.evaluate`: load, answer, judge, tell."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils.logging import disable_progress_bar

from rto_fast.evaluate.answers import answer_text, write_answers, write_samples
from rto_fast.evaluate.measure import measure, read_prompts
from rto_fast.evaluate.options import Options
from rto_fast.evaluate.policies import Evaluation
from rto_fast.evaluate.subject import Subject, subject
from rto_fast.evaluate.tables import differences, matrices, outcomes, print_results, share_won
from rto_fast.files.digests import write_recorded
from rto_fast.judges.llm.client import Client
from rto_fast.judges.llm.compare import Judgement, ask_judge, try_judge
from rto_fast.judges.llm.prompts import query_text
from rto_fast.rollout import Sampling

JUDGES = {"oracle": "oracle_return", "reward-model": "score", "implicit": "implicit_reward", "llm": "llm"}
"""As results.json names them."""


def run(options: Options, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure the policies, print the tables, write the folder, and return what results.json holds.

    ValueError or OSError, one line, for what is missing or does not fit; answers and judgements made so far are kept.
    """
    started = time.perf_counter()
    disable_progress_bar()  # one bar per file that transformers reads hides ours
    about = subject(options)
    # a judge that cannot be asked is better known of before the policies have answered
    client = Client(options.llm) if about.judge == "llm" else None
    paths = {**about.policies, "the reference": about.reference, "the DPO model": about.dpo}
    tokenizer = about.run.shared_tokenizer({name: path for name, path in paths.items() if path})
    prompts = read_prompts(options, about, tokenizer)
    sampling = Sampling(options.temperature, None, options.top_p, about.max_new_tokens)
    about.folder.mkdir(parents=True, exist_ok=True)
    say(
        f"Policies: {', '.join(about.policies)}; {len(prompts.ids)} held-out prompts, at most {about.max_new_tokens} "
        f"new tokens, temperature {options.temperature:g}, top-p {options.top_p:g}; judge: {about.judge}"
    )
    queries = [query_text(c) for c in prompts.conversations]
    cache = Path(options.llm.cache).expanduser() if options.llm.cache else about.kept / "judge.sqlite"
    if client is not None:
        try_judge(client, queries[0], cache=cache, say=say)
    evaluations = measure(options, about, tokenizer, prompts, sampling)
    judged: dict[str, np.ndarray] = {}
    if client is None:
        judgement = Judgement(outcomes(evaluations))
    else:
        judgement = ask_judge(
            client,
            queries,
            {name: [answer_text(tokenizer, a) for a in e.answers] for name, e in evaluations.items()},
            cache=cache,
            seed=options.seed,
            say=say,
        )
        judged = share_won(judgement.outcomes, evaluations)
    results = _results(options, about, evaluations, judgement, client.model if client else None)
    results["seconds"] = round(time.perf_counter() - started, 1)
    text = json.dumps(results, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_recorded(about.folder / "results.json", text)
    if judgement.records:
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in judgement.records)
        write_recorded(about.folder / "judgements.jsonl", "".join(lines))
    write_answers(about.folder / "answers.jsonl", tokenizer, evaluations, len(prompts.ids), judged)
    write_samples(about.folder / "samples.md", tokenizer, evaluations, options.samples, judged)
    print_results(results, say)
    say(f"Finished in {results['seconds']:.0f} s. results.json, answers.jsonl and samples.md are in {about.folder}")
    return results


def _results(
    options: Options, about: Subject, evaluations: dict[str, Evaluation], judgement: Judgement, model: str | None
) -> dict[str, Any]:
    policies = {name: e.summary() for name, e in evaluations.items()}
    results: dict[str, Any] = {"recipe": "evaluate", "seed": options.seed, "policies": policies}
    results |= {**matrices(judgement.outcomes, evaluations), "judge": JUDGES[about.judge]}
    if model:
        results["judgements"] = {"model": model, "prompt": options.llm.prompt, **judgement.counts}
    else:
        results["difference"] = differences(evaluations)
    results["models"] = {**about.policies, "reference": about.reference, "dpo": about.dpo}
    if about.judge == "reward-model":
        results["models"]["reward_model"] = about.reward_model
    sampling = {"temperature": options.temperature, "top_p": options.top_p, "max_new_tokens": about.max_new_tokens}
    return {**results, "sampling": sampling}
