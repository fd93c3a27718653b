"""Every policy's answers to the same prompts, and what they measure by themselves."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from rto_fast import tasks
from rto_fast.data.corpus import template_of
from rto_fast.data.encode import encode_prompts
from rto_fast.data.fingerprint import fingerprint
from rto_fast.data.parse import Message
from rto_fast.data.rows import Prompt
from rto_fast.data.tokenizer import load_tokenizer
from rto_fast.evaluate.options import Options
from rto_fast.evaluate.policies import Evaluation, evaluate
from rto_fast.evaluate.saved import Saved
from rto_fast.evaluate.subject import Subject
from rto_fast.judges.reward_model import reward_judge
from rto_fast.model.language import LanguageModel
from rto_fast.rollout import Sampling
from rto_fast.runs.open import eos_token_ids
from rto_fast.training.progress import progress

PAPER_PROMPTS, PAPER_LLM_PROMPTS = 400, 100
"""Zhong et al. 2024, section 5.1."""


@dataclass(frozen=True)
class Prompts:
    """The same prompts as token ids for the policies and as conversations for judges that read text."""

    ids: list[list[int]]
    conversations: list[tuple[Message, ...]]
    eos_token_ids: tuple[int, ...]


def read_prompts(options: Options, about: Subject, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """Distinct prompts in their order, as the run's own evaluation has them."""
    template = template_of(about.run.config.data, tokenizer)
    rows = [Prompt(c) for c in about.conversations]
    most = options.max_prompt or about.run.config.data.max_prompt
    encoded, report = encode_prompts(rows, template, max_length=most + about.max_new_tokens, max_prompt=most)
    first: dict[tuple[int, ...], int] = {}
    for ids, row in zip(encoded, report.kept, strict=True):
        first.setdefault(tuple(ids), row)
    count = options.num_prompts or (PAPER_LLM_PROMPTS if about.judge == "llm" else PAPER_PROMPTS)
    chosen = list(first.items())[:count]
    if len(chosen) < 2:
        raise ValueError(f"prompts: at least 2 distinct ones are needed for an interval, got {len(chosen)}")
    conversations = [about.conversations[row] for _, row in chosen]
    prompts = Prompts([list(ids) for ids, _ in chosen], conversations, template.eos_token_ids)
    if about.judge == "oracle":
        oracle = _oracle(about, tokenizer)
        for ids in prompts.ids:
            try:
                oracle.answer_return(ids, [tokenizer.eos_token_id])
            except ValueError as error:
                text = tokenizer.decode(ids)
                raise ValueError(f"judge: the oracle cannot read the prompt {text!r} ({error})") from None
    return prompts


def _oracle(about: Subject, tokenizer: PreTrainedTokenizerBase) -> tasks.Oracle:
    """That of the run's task, else of the task whose language the policies speak."""
    known = tasks.names()
    for task in [about.run.task] if about.run.task else map(tasks.load, known):
        if fingerprint(task.build_tokenizer()).vocab == fingerprint(tokenizer).vocab:
            return task.make_oracle(tokenizer)
    raise ValueError(
        f"judge: the oracle knows the {' and the '.join(known)}'s language only, and these policies speak another; "
        "use --judge reward-model, implicit or llm"
    )


def measure(
    options: Options, about: Subject, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, sampling: Sampling
) -> dict[str, Evaluation]:
    """Every policy's answers and figures, from disk where the same was measured before.

    One policy at a time is in memory, beside the models that measure it.
    """
    run = about.run
    loaded: dict[str, LanguageModel] = {}

    def language_model(path: str, field: str) -> LanguageModel:
        if path not in loaded:
            loaded[path] = run.load(path, field)
        return loaded[path]

    judge = _judge(options, about, tokenizer, prompts)
    settings = {"prompts": prompts.ids, "sampling": asdict(sampling), "seed": options.seed, "beta": about.beta}
    settings |= {"batch_size": options.batch_size, "dtype": run.config.model.dtype, "device": run.device.type}
    if run.autocast is not None:  # earlier ones were drawn from logits that half precision had rounded
        settings["logits"] = "float32"
    saved = Saved(about.kept / "answers")
    evaluations: dict[str, Evaluation] = {}
    with progress(len(about.policies) * len(prompts.ids), "answer") as bar:
        for name, path in about.policies.items():
            bar.set_description(name, refresh=False)
            key = saved.key(settings, path, about.reference, about.dpo)
            evaluation = saved.load(key)
            if evaluation is None:
                policy = language_model(path, name)
                with run.precision():  # of one policy: autocast keeps what it has cast until the context ends
                    evaluation = evaluate(
                        policy,
                        reference=language_model(about.reference, "reference"),
                        dpo=None if about.dpo is None else language_model(about.dpo, "dpo"),
                        beta=about.beta,
                        prompts=prompts.ids,
                        sampling=sampling,
                        eos_token_ids=eos_token_ids(prompts.eos_token_ids, policy),
                        seed=options.seed,
                        batch_size=options.batch_size,
                        microbatch_rows=options.microbatch_rows,
                        workspace_mb=options.workspace_mb,
                        progress=bar.update,
                    )
                saved.store(key, evaluation)
                if path not in (about.reference, about.dpo):
                    del loaded[path], policy
            else:
                bar.update(len(prompts.ids))
            with run.precision():
                evaluations[name] = judge(evaluation)
    return evaluations


def _judge(
    options: Options, about: Subject, tokenizer: PreTrainedTokenizerBase, prompts: Prompts
) -> Callable[[Evaluation], Evaluation]:
    """A function that fills in what the judge of the options says of the answers."""
    if about.judge == "oracle":
        oracle = _oracle(about, tokenizer)
        return lambda e: replace(e, oracle=np.array([oracle.answer_return(a.prompt, a.response) for a in e.answers]))
    if about.judge != "reward-model":
        return lambda e: e
    assert about.reward_model is not None  # subject
    known = zip(map(tuple, prompts.ids), prompts.conversations, strict=True)
    score = reward_judge(
        about.run.load_scalar(about.reward_model, "reward_model"),
        load_tokenizer(about.reward_model, "reward_model", about.run.trusted),
        tokenizer,
        {} if about.run.config.data.template == "none" else dict(known),
        max_rows=options.microbatch_rows,
        field="reward_model",
    )
    return lambda e: replace(e, score=np.array(score(e.answers)))
