"""A whole RTO iteration against the padded, eager one: scoring, rewards, GAE, whitening, epochs of mini-batches.

    python -m pytest bench/bench_train_step.py -s

Both do the same mathematics on the same answers (`padded_rto`; losses and weights are compared first), in turns in one
process. The padded one runs with micro-batches of a whole mini-batch (what padding is for), of 4 answers (the authors'
scoring) and of 1 (the authors' update on each GPU, where nothing is padded any more); there is a ratio to each.
"answers given" starts from answers; "rollout included" has each sample its own, by `rollout` and by `model.generate`.
A token counts once an iteration, padding never.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.bench_rollout import generate
from bench.machine import describe
from bench.rto_case import Case, ragged_answers
from rto_fast.config import OptimConfig, RTOConfig
from rto_fast.config.recipe import load_recipe
from rto_fast.data.corpus import load_corpus
from rto_fast.data.tokenizer import load_tokenizer
from rto_fast.model import attention
from rto_fast.model.language import LanguageModel
from rto_fast.model.load import load_language_model
from rto_fast.rollout import Completion, Sampling
from rto_fast.tasks.quickstart.knowledge import vocabulary
from rto_fast.tasks.quickstart.task import llama_config

SHARED = Path(__file__).parents[2] / "shared" / "data"
OPTIM = OptimConfig(lr=1e-5, schedule="constant", warmup=0.0)
MINIBATCH = 16
MICROBATCHES = {"mini-batch": MINIBATCH, "4": 4, "1": 1}


def settings(recipe: str, answers: int) -> RTOConfig:
    return replace(load_recipe(recipe).rto, rollouts=answers, minibatch=MINIBATCH, iterations=1)


def quickstart(prompts: list[list[int]], answers: int) -> Case:
    """The quickstart's model with room for 512 tokens, freshly drawn: its answers end with chance 1/V at each token."""
    torch.manual_seed(0)
    config = llama_config(vocab_size=len(vocabulary()), max_position_embeddings=512)
    model = LanguageModel(AutoModelForCausalLM.from_config(config, attn_implementation=attention.register()))
    limits = dict(eos_token_ids=(2,), max_new_tokens=384, microbatch=MINIBATCH)
    return Case(model, prompts, settings("quickstart", answers), OPTIM, **limits)


def stories(answers: int) -> tuple[Case, list[Completion]]:
    """stories260K and the preferred answers to real prompts. Nobody has taught it EOS: its answers also end at BOS."""
    path, pairs = SHARED / "models" / "stories260K", SHARED / "hh-helpful" / "train.jsonl.gz"
    if not path.exists() or not pairs.exists():
        pytest.skip(f"needs {path} and {pairs}")
    tokenizer = load_tokenizer(str(path))
    data = replace(load_recipe("hh_small").data, path=str(pairs), held_out=0, max_rows=4 * answers)
    corpus = load_corpus(data, tokenizer, 0)
    chosen = [Completion(p.prompt, p.chosen, [0.0] * len(p.chosen), "eos") for p in corpus.pairs]
    prompts = corpus.prompts[:answers]
    eos = (*corpus.eos_token_ids, tokenizer.bos_token_id)
    limits = dict(eos_token_ids=eos, max_new_tokens=data.max_length - data.max_prompt, microbatch=MINIBATCH)
    case = Case(load_language_model(str(path)), prompts, settings("hh_small", answers), OPTIM, **limits)
    return case, chosen[:answers]


def uniform(low: int, high: int, count: int) -> list[int]:
    return torch.randint(low, high + 1, (count,), generator=torch.Generator().manual_seed(1)).tolist()


def generated(case: Case) -> list[Completion]:
    """What model.generate answers to the case's prompts."""
    collector, sampling = case.stage.collector, case.stage.config.sampling
    how = Sampling(sampling.temperature, sampling.top_k, sampling.top_p, collector.max_new_tokens)
    answers = generate(case.padded.policy.hf.eval(), collector.prompts, how, collector.eos_token_ids)
    case.padded.policy.hf.train()
    return [
        Completion(p, a, [], "eos" if a[-1] in collector.eos_token_ids else "length")
        for p, a in zip(collector.prompts, answers, strict=True)
    ]


def check_parity(case: Case, answers: list[Completion]) -> None:
    """One iteration of both on a few answers: AdamW is far from its start only where a gradient is not nearly 0."""
    for optimizer in (case.state.optimizer, case.padded.optimizer):
        for group in optimizer.param_groups:
            group["eps"] = 1e-4
    loss, weight = case.gaps(answers)
    assert loss < 2e-5 and weight < 2e-2, (loss, weight)


def race(benchmark, rivals: dict[str, Callable[[], int]], rounds: int, **about: object) -> None:
    """Time all in turns, ours by the benchmark. Each returns the tokens of its iteration."""
    seen: dict[str, list[float]] = {name: [] for name in rivals}

    def timed(name: str) -> None:
        start = time.perf_counter()
        tokens = rivals[name]()
        seen[name].append(tokens / (time.perf_counter() - start))

    def others() -> None:
        for name in list(rivals)[1:]:
            timed(name)

    ours = next(iter(rivals))
    benchmark.pedantic(lambda: timed(ours), setup=others, rounds=rounds, warmup_rounds=1)
    seen = {name: speeds[1:] for name, speeds in seen.items()}  # without the warm-up
    speeds = {f"tokens/s, {name}": round(statistics.median(x)) for name, x in seen.items()}
    ratios = {
        f"ratio to {name}": round(statistics.median(a / b for a, b in zip(seen[ours], x, strict=True)), 2)
        for name, x in list(seen.items())[1:]
    }
    benchmark.extra_info.update(
        speeds,
        rival="rto_fast",
        shape=", ".join(f"{name} {value}" for name, value in about.items()),
        device="cpu",
        tokens_per_s=speeds[f"tokens/s, {ours}"],
        against=", ".join(f"{ratio} x {name.removeprefix('ratio to ')}" for name, ratio in ratios.items()),
        machine=describe(),
    )
    print(f"\n{about}: {speeds | ratios}")


def rows(answers: list[Completion]) -> int:
    return sum(len(a.prompt) + len(a.response) - 1 for a in answers)


def padded(case: Case, microbatch: int, answers: Callable[[], list[Completion]]) -> Callable[[], int]:
    def run() -> int:
        case.padded.microbatch = microbatch
        given = answers()
        case.padded.iteration(given)
        return rows(given)

    return run


def ours(case: Case, answers: list[Completion] | None) -> Callable[[], int]:
    sampled: list[Completion] = []
    sample = case.stage.collector.answer

    def run() -> int:
        case.ours(answers)
        return rows(answers or sampled)

    def keep(iteration: int, note: Callable[[str], None]) -> list[Completion]:
        sampled[:] = sample(iteration, note)
        return sampled

    case.stage.collector.answer = keep
    return run


@pytest.mark.parametrize("which", ["quickstart", "stories260K"])
def test_answers_given(benchmark, which):
    if which == "quickstart":
        lengths = uniform(16, 512, 32)
        case, answers = quickstart([[1]], len(lengths)), ragged_answers(lengths, len(vocabulary()))
    else:
        case, answers = stories(32)
    check_parity(case, answers[:MINIBATCH])
    rivals = {"ours": ours(case, answers)}
    rivals |= {f"padded {name}": padded(case, size, lambda: answers) for name, size in MICROBATCHES.items()}
    race(benchmark, rivals, 5, model=which, answers=len(answers), rows=rows(answers))


@pytest.mark.parametrize("which", ["quickstart", "stories260K"])
def test_rollout_included(benchmark, which):
    count = 64
    if which == "quickstart":
        prompts = [a.prompt for a in ragged_answers([4 * n for n in uniform(16, 128, count)], len(vocabulary()))]
        case, given = quickstart(prompts, count), ragged_answers(uniform(16, 128, MINIBATCH), len(vocabulary()))
    else:
        case, given = stories(count)
    sample = case.stage.collector.answer
    check_parity(case, given[:MINIBATCH])
    case.stage.collector.answer = sample
    rivals = {"ours": ours(case, None)}
    rivals |= {
        f"generate + padded {name}": padded(case, size, lambda: generated(case))
        for name, size in list(MICROBATCHES.items())[:2]
    }
    race(benchmark, rivals, 3, model=which, answers=count, rollout="included")
