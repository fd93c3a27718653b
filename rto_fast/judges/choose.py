"""Who says how good an answer is: the sentence score that a stage is paid by, and the judge of its learning curve."""

from dataclasses import replace

from rto_fast.config import RTOConfig, ScoreConfig, member
from rto_fast.data.tokenizer import load_tokenizer
from rto_fast.files.text import one_line
from rto_fast.judges import Judge, as_texts
from rto_fast.judges.reward_model import reward_judge
from rto_fast.model.load import read_head
from rto_fast.rollout import Completion
from rto_fast.runs.open import Context


def scorer_of(context: Context, config: RTOConfig) -> Judge | None:
    """What beta_3 weighs: a rule, a server, or the reward model; None when it weighs nothing."""
    return _source(context, config.score) if config.reward.beta_3 else None


def _source(context: Context, score: ScoreConfig) -> Judge:
    if score.rule:
        from rto_fast.judges.rules import rule_scorer

        scorer = rule_scorer(score.rule)
    elif score.server:
        from rto_fast.judges.server import server_scorer

        scorer = server_scorer(score.server, timeout=score.timeout, retries=score.retries, batch=score.batch)
    else:
        return reward_model(context)
    corpus = context.corpus
    return lambda answers: scorer(as_texts(context.tokenizer, answers, corpus.conversations, corpus.references))


def check_sources(context: Context) -> tuple[str, str] | None:
    """What pays sentence scores, as it was measured, and what is wanted of it; None where nothing does.

    A rule or a server is asked for the score of one answer of the run's own data, a server once, within its timeout.
    ValueError or OSError before anything is trained where it gives none.
    """
    config = context.config
    if config.rm.model:
        load_tokenizer(config.rm.model, "rm.model", config.model.trust_remote_code)
        read_head(config.rm.model, "rm.model", config.model.trust_remote_code)
    paid = [rl for rl in (member(config.rto, stage) for stage in config.members) if rl.reward.beta_3]
    if not paid:
        return None
    asked = replace(paid[0].score, retries=0)  # the family shares one source
    source = asked.rule or asked.server
    if not source:
        return config.rm.model or "the stage rm", "a reward model"
    score = _source(context, asked)([_example(context)])[0]
    return f"{one_line(source, 200)} gave {score:.4g} for an example", "a finite number"


def _example(context: Context) -> Completion:
    """An answer that a policy could give: the first prompt, with the chosen answer where the data has any."""
    corpus = context.corpus
    prompt = corpus.prompts[0]
    answers = [response for _, response in corpus.examples(1)]
    known = corpus.references.get(tuple(prompt))
    if not answers and known is not None:
        answers = [context.tokenizer(known, add_special_tokens=False)["input_ids"]]
    return Completion(prompt, (answers or [prompt])[0], [], "eos")


def watch_of(context: Context, scorer: Judge | None) -> Judge | None:
    """What a learning curve shows: the oracle's return where there is one, else the score, else this run's reward
    model."""
    if (oracle := context.oracle) is not None:
        return lambda answers: [oracle.answer_return(a.prompt, a.response) for a in answers]
    return scorer or (reward_model(context) if "rm" in context.config.stages else None)


def reward_model(context: Context) -> Judge:
    """The run's reward model, or the one that the user gives, as a judge."""
    path = context.stage_path("rm")
    return reward_judge(
        context.load_scalar(path, "rm.model", device=context.resting).requires_grad_(False),
        load_tokenizer(path, "rm.model", context.trusted),
        context.tokenizer,
        context.corpus.conversations,
        max_rows=context.config.microbatch_rows,
        field="rm.model",
        device=context.device,
    )
