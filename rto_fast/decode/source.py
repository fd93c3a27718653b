"""What is decoded, from what, and how it is judged: taken from a finished run, or from paths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rto_fast import tasks
from rto_fast.data.corpus import held_out_rows, template_of
from rto_fast.data.encode import encode_prompts
from rto_fast.data.read import read_rows
from rto_fast.data.rows import Normalised, detect_kind, to_demonstrations, to_pairs, to_prompts
from rto_fast.data.template import Template
from rto_fast.decode.options import Options
from rto_fast.evaluate.policies import Evaluation, answer_logprobs
from rto_fast.model.language import LanguageModel
from rto_fast.rollout import Completion, Sampling, realign
from rto_fast.rollout.lane import check_prompts
from rto_fast.runs.open import Run, eos_token_ids, open_run

_NORMALISE: dict[str, Callable[..., Normalised[Any]]] = {
    "pairs": to_pairs,
    "demonstrations": to_demonstrations,
    "prompts": to_prompts,
}


@dataclass(frozen=True)
class Source:
    run: Run
    """Without one, how models that are given by their paths are loaded."""
    dpo: LanguageModel
    reference: LanguageModel
    policy: LanguageModel | None
    prompts: list[list[int]]
    eos_token_ids: tuple[int, ...]
    sampling: Sampling
    beta: float
    seed: int
    oracle: tasks.Oracle | None
    tokenizer: PreTrainedTokenizerBase

    @property
    def judge(self) -> str:
        return "implicit_reward" if self.oracle is None else "oracle_return"

    def texts(self, sequences: list[list[int]]) -> list[str]:
        """As people read them; special tokens are shown."""
        return self.tokenizer.batch_decode(sequences)

    def logprobs(self, answers: Sequence[Completion]) -> np.ndarray:
        """(2, answers) summed log-probs, under pi_dpo and under pi_ref."""
        scored = (answer_logprobs(m, answers, **self.run.limits) for m in (self.dpo, self.reference))
        return np.array([[x.sum() for x in logprobs] for logprobs in scored])

    def measure(self, answers: list[Completion], logprobs: np.ndarray, own: np.ndarray | None = None) -> Evaluation:
        """The answers' figures, from their `logprobs` and their summed log-probs under what they were sampled from."""
        dpo, reference = logprobs
        judge, kl = self.oracle, (dpo if own is None else own) - reference
        returns = None if judge is None else np.array([judge.answer_return(a.prompt, a.response) for a in answers])
        return Evaluation(answers, kl, self.beta * (dpo - reference), returns)


def open_source(options: Options) -> Source:
    """Load models and prompts. Raises ValueError or OSError, naming the flag."""
    run = open_run(options.run, device=options.device, template=options.template, trusted=options.trust_remote_code)
    config = run.config
    models, tokenizer = _load(options, run)
    template = template_of(config.data, tokenizer)
    prompts = _prompts(options, run, template)
    given = lambda flag, default: default if flag is None else flag  # noqa: E731
    new_tokens = given(options.max_new_tokens, config.max_new_tokens if options.run else 128)
    for model in models.values():  # before anything is decoded: do all fit together?
        check_prompts("prompts", [model.hf], prompts, new_tokens, options.max_batch)
        realign(model.hf, models["dpo"].hf, models["reference"].hf, 0.0)
    temperature, top_p = given(options.temperature, config.eval.temperature), given(options.top_p, config.eval.top_p)
    return Source(
        run=run,
        dpo=models["dpo"],
        reference=models["reference"],
        policy=models.get("policy"),
        prompts=prompts,
        eos_token_ids=eos_token_ids(template.eos_token_ids, models["dpo"]),
        sampling=Sampling(temperature, None, top_p, new_tokens),
        beta=given(options.beta, config.dpo.beta),
        seed=given(options.seed, config.seed),
        oracle=run.task.make_oracle(tokenizer) if run.task and not options.prompts else None,
        tokenizer=tokenizer,
    )


def _load(options: Options, run: Run) -> tuple[dict[str, LanguageModel], PreTrainedTokenizerBase]:
    """The models by their flags' names, and the tokenizer that they share. A flag gives a path, or a stage's name."""
    paths = {"dpo": run.stage_path("dpo"), "reference": run.stage_path("sft")}
    for name in ("dpo", "reference", "policy"):
        if given := getattr(options, name):
            stage = run.folder / given
            paths[name] = str(stage) if (stage / "config.json").is_file() else given
    loaded: dict[str, LanguageModel] = {}
    for name, path in paths.items():
        # a model that is named twice is one model, and runs once in a mixture
        if path not in loaded:
            loaded[path] = run.load(path, name)
    return {name: loaded[path] for name, path in paths.items()}, run.shared_tokenizer(paths)


def _prompts(options: Options, run: Run, template: Template) -> list[list[int]]:
    """The distinct prompts as token ids, in order: those of the flag's file, else those of the run's evaluation."""
    data, own = run.config.data, 0
    if options.prompts:
        raw = read_rows(options.prompts)
        rows = _NORMALISE[detect_kind(raw[0], data.columns)](raw, columns=data.columns).items
    else:
        rows, own = held_out_rows(data, run.config.seed), run.config.eval.prompts
    max_prompt = options.max_prompt or data.max_prompt
    encoded, _ = encode_prompts(rows, template, max_length=data.max_length, max_prompt=max_prompt)
    distinct = [list(p) for p in dict.fromkeys(map(tuple, encoded))]
    prompts = distinct[: options.num_prompts or own or None]
    if len(prompts) < 2:
        raise ValueError(f"prompts: needs at least 2 distinct prompts for an interval, got {len(prompts)}")
    return prompts
