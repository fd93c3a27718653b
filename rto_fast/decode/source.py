"""What is decoded, from what, and how it is judged: taken from a finished run, or from paths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from rto_fast import tasks
from rto_fast.config import Config
from rto_fast.data.corpus import held_out_rows, template_of
from rto_fast.data.encode import Asks, encode_prompts
from rto_fast.data.read import read_rows
from rto_fast.data.rows import (
    Demonstration,
    Normalised,
    Pair,
    Prompt,
    detect_kind,
    to_demonstrations,
    to_pairs,
    to_prompts,
)
from rto_fast.data.template import Template
from rto_fast.decode.options import Options
from rto_fast.evaluate.policies import Evaluation, answer_logprobs
from rto_fast.model.language import LanguageModel
from rto_fast.rollout import Completion, Sampling, realign
from rto_fast.rollout.lane import check_prompts
from rto_fast.runs.open import Run, eos_token_ids, open_run

_NORMALISE: dict[str, Callable[..., Normalised[Pair] | Normalised[Demonstration] | Normalised[Prompt]]] = {
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

    def logprobs(self, model: LanguageModel, answers: Sequence[Completion]) -> np.ndarray:
        """(answers,) summed log-probs."""
        return np.array([x.sum() for x in answer_logprobs(model, answers, **self.run.limits)])

    def measure(
        self, answers: list[Completion], dpo: np.ndarray, reference: np.ndarray, own: np.ndarray | None = None
    ) -> Evaluation:
        """The answers' figures, from their summed log-probs under pi_dpo, pi_ref and what they were sampled from."""
        oracle = None
        if self.oracle is not None:
            oracle = np.array([self.oracle.answer_return(a.prompt, a.response) for a in answers])
        kl = (dpo if own is None else own) - reference
        return Evaluation(answers, kl, self.beta * (dpo - reference), oracle)


def open_source(options: Options) -> Source:
    """Load models and prompts. Raises ValueError or OSError, naming the flag."""
    run = open_run(options.run, device=options.device, template=options.template, trusted=options.trust_remote_code)
    config = run.config
    models, tokenizer = _load(options, run)
    template = template_of(config.data, tokenizer)
    prompts = _encode(options, config, template)
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
    """The models by their flags' names, and the tokenizer that they share."""
    paths = {
        "dpo": _path(options.dpo, run) or run.stage_path("dpo"),
        "reference": _path(options.reference, run) or run.stage_path("sft"),
    }
    if policy := _path(options.policy, run):
        paths["policy"] = policy
    loaded: dict[str, LanguageModel] = {}
    for name, path in paths.items():
        # a model that is named twice is one model, and runs once in a mixture
        if path not in loaded:
            loaded[path] = run.load(path, name)
    return {name: loaded[path] for name, path in paths.items()}, run.shared_tokenizer(paths)


def _path(given: str | None, run: Run) -> str | None:
    """A stage of the run by its name, or the path as it is."""
    if given and (run.folder / given / "config.json").is_file():
        return str(run.folder / given)
    return given


def _encode(options: Options, config: Config, template: Template) -> list[list[int]]:
    """The distinct prompts as token ids, in order: those of the flag's file, else those of the run's evaluation."""
    max_prompt = options.max_prompt or config.data.max_prompt
    rows = _rows(options.prompts, config) if options.prompts else held_out_rows(config.data, config.seed)
    encoded, _ = encode_prompts(rows, template, max_length=config.data.max_length, max_prompt=max_prompt)
    prompts = [list(p) for p in dict.fromkeys(map(tuple, encoded))]
    own = config.eval.prompts if options.run and not options.prompts else 0
    count = options.num_prompts or own or len(prompts)
    if len(prompts[:count]) < 2:
        raise ValueError(f"prompts: needs at least 2 distinct prompts for an interval, got {len(prompts[:count])}")
    return prompts[:count]


def _rows(file: str, config: Config) -> Sequence[Asks]:
    """A file's prompts as the data module knows them."""
    raw, columns = read_rows(file), config.data.columns
    return _NORMALISE[detect_kind(raw[0], columns)](raw, columns=columns).items
