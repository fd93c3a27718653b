"""Words, colours and dashes of algorithms and figures."""

from rto_fast.report.html import text

ALGORITHMS = {
    "sft": "supervised fine-tuning: the reference of all others",
    "dpo": "direct preference optimization; its log-ratio to sft is the token reward",
    "rm": "Bradley-Terry reward model",
    "rto": "PPO on DPO's reward for every token",
    "semi_rto": "DPO's reward, paid at the ends of sentences",
    "sparse_dpo": "DPO's reward, all of it paid at the last token (the paper's DPPO)",
    "rs_ppo": "token rewards as shaping only: an answer's return is its sentence reward",
    "ppo": "a reward model's score, paid at the last token",
    "grpo": "advantages normalised within groups of answers to a prompt, no critic",
}
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "1 4")
_OWN_DASH = {"rto": 0, "ppo": 0, "semi_rto": 2, "rs_ppo": 3, "grpo": 4}
FIGURES = {
    "oracle_return": "oracle return",
    "score": "reward-model score",
    "implicit_reward": "DPO reward",
    "kl": "KL to sft, nats",
    "length": "tokens",
    "eos_rate": "stops by itself",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "answers": "answers",
}
METRICS = {
    "judge/return": ("Return", "the judge's mean return of a batch of rollouts"),
    "implicit_reward": ("DPO’s reward of an answer", "β log(π<sub>dpo</sub>/π<sub>ref</sub>), batch mean"),
    "reward/per_answer": ("Reward that was optimised", "all of an answer's tokens, KL included, batch mean"),
    "kl/per_answer": ("KL to the reference", "nats per answer, batch mean"),
    "answers/length": ("Answer length", "tokens, batch mean"),
    "answers/truncated": ("Answers cut off at the limit", "share of the batch"),
}


def judge_words(judge: str | None) -> str:
    return "an LLM judge" if judge == "llm" else text(FIGURES.get(judge or "", judge or "no judge"), 60)


def colours(names: list[str]) -> dict[str, str]:
    """A palette key per name: known algorithms keep theirs, others take numbers 1 to 6 in turn."""
    unknown = [name for name in dict.fromkeys(names) if name not in ALGORITHMS]
    return {name: name if name in ALGORITHMS else str(unknown.index(name) % 6 + 1) for name in names}


def dash(stage: str, group: int) -> str:
    """Lines differ in more than colour; an algorithm's lines from several groups differ in their dashes alone."""
    return _DASHES[(_OWN_DASH.get(stage, 1) + group) % len(_DASHES)]
