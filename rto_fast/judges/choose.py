"""Who says how good an answer is: the sentence score that a stage is paid by, and the judge of its learning curve."""

from dataclasses import replace

from rto_fast.config import RTOConfig, member
from rto_fast.data.fingerprint import fingerprint
from rto_fast.data.tokenizer import load_tokenizer
from rto_fast.files.text import one_line
from rto_fast.judges import Answer, Scorer
from rto_fast.model.load import check_scalar_folder, load_scalar_model
from rto_fast.model.logprobs import last_token_scores
from rto_fast.rollout import Completion
from rto_fast.runs.open import Context
from rto_fast.stages.rto import Judge


def scorer_of(context: Context, config: RTOConfig) -> Judge | None:
    """What beta_3 weighs: a rule, a server, or the reward model; None when it weighs nothing."""
    if not config.reward.beta_3:
        return None
    if config.score.rule:
        from rto_fast.judges.rules import rule_scorer

        return _of_texts(context, rule_scorer(config.score.rule))
    if config.score.server:
        from rto_fast.judges.server import server_scorer

        score = config.score
        return _of_texts(
            context, server_scorer(score.server, timeout=score.timeout, retries=score.retries, batch=score.batch)
        )
    return reward_model(context)


def check_sources(context: Context) -> tuple[str, str] | None:
    """What pays sentence scores, as it was measured, and what is wanted of it; None where nothing does.

    A rule or a server is asked for the score of one answer of the run's own data, a server once, within its timeout.
    ValueError or OSError before anything is trained where it gives none.
    """
    config = context.config
    if config.rm.model:
        load_tokenizer(config.rm.model, "rm.model", config.model.trust_remote_code)
        check_scalar_folder(config.rm.model, "rm.model", config.model.trust_remote_code)
    paid = [rl for rl in (member(config.rto, stage) for stage in config.members) if rl.reward.beta_3]
    if not paid:
        return None
    asked = replace(paid[0], score=replace(paid[0].score, retries=0))  # the family shares one source
    source = asked.score.rule or asked.score.server
    if not source:
        return config.rm.model or "the stage rm", "a reward model"
    score = scorer_of(context, asked)([_example(context)])[0]
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
    if context.oracle is not None:
        return lambda answers: [context.oracle.answer_return(a.prompt, a.response) for a in answers]
    return scorer or (reward_model(context) if "rm" in context.config.stages else None)


def reward_model(context: Context) -> Judge:
    """The reward model's calibrated scores, through the policy's tokens where it shares them, else through text."""
    path = context.stage_path("rm")
    model = load_scalar_model(
        path,
        dtype=context.dtype,
        device=context.device,
        field="rm.model",
        trust_remote_code=context.config.model.trust_remote_code,
    )
    model.eval().requires_grad_(False)
    trusted = context.config.model.trust_remote_code
    rows, tokenizer = context.config.microbatch_rows, load_tokenizer(path, "rm.model", trusted)
    if fingerprint(tokenizer) == fingerprint(context.tokenizer):
        return lambda answers: last_token_scores(model, [a.prompt + a.response for a in answers], rows).tolist()
    from rto_fast.judges.reward_model import text_scorer

    return _of_texts(context, text_scorer(model, tokenizer, max_rows=rows, device=context.device))


def _of_texts(context: Context, scorer: Scorer) -> Judge:
    """A judge of texts as a judge of tokens."""
    decode = context.tokenizer.decode

    def judge(answers: list[Completion]) -> list[float]:
        return scorer(
            [
                Answer(
                    prompt=decode(a.prompt, skip_special_tokens=True),
                    response=decode(a.response, skip_special_tokens=True),
                    finished=a.finish == "eos",
                    reference=context.corpus.references.get(tuple(a.prompt)),
                )
                for a in answers
            ]
        )

    return judge
