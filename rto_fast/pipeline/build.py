"""Every stage's models, optimizer and stage object, from the run's context."""

import gc
from typing import Any, NamedTuple, TypedDict

from rto_fast.config import Config, RTOConfig, member
from rto_fast.judges.choose import scorer_of, watch_of
from rto_fast.model.language import LanguageModel
from rto_fast.model.scalar import ScalarModel
from rto_fast.pipeline.networks import adapted, critic_of, frozen_on, scalar_on
from rto_fast.rl.collect import Collector
from rto_fast.rl.score import Models
from rto_fast.runs.open import Context
from rto_fast.stages.dpo import DPO
from rto_fast.stages.rm import RewardModel
from rto_fast.stages.rto import RTO
from rto_fast.stages.sft import SFT
from rto_fast.training import loop


class Moments(TypedDict):
    """Where Adam's moments are, and how wide."""

    on_host: bool
    bits: int


class Built(NamedTuple):
    model: LanguageModel | ScalarModel
    """What the stage trains and leaves."""
    stage: loop.Stage[Any]
    state: loop.TrainState


def build(context: Context, stage: str) -> Built:
    """The named stage at its first step."""
    config, pairs, whole = context.config, context.corpus.pairs, context.config.adapter.rank is None
    moments = _moments(config)
    if stage not in ("sft", "dpo", "rm"):
        return build_rl(context, member(config.rto, stage))
    if stage == "sft":
        model = context.load(config.model.path, trained=whole or config.adapter.full_sft)
        if not config.adapter.full_sft:
            model = adapted(context, model, "sft")
        state = loop.make_state(config.sft.optim, {"policy": model}, **moments)
        return Built(
            model, SFT(model, context.corpus.demonstrations, config.sft, state, **context.stage_options), state
        )
    model = context.load(context.stage_path("sft"), "sft.model", trained=whole)
    if stage == "dpo":
        model = adapted(context, model, "dpo")
        state = loop.make_state(config.dpo.optim, {"policy": model}, **moments)
        return Built(model, DPO(model, pairs, config.dpo, state, **context.stage_options), state)
    # a head's bias would cancel in every pair, and drift on rounding errors alone
    rm = scalar_on(context, model, "rm", bias=False)
    del model
    gc.collect()  # models hold themselves in circles, and this one would be in memory beside its copy
    state = loop.make_state(config.rm.optim, {"policy": rm}, **moments)
    rows, device = config.microbatch_rows, context.device
    trainer = RewardModel(rm, pairs, config.rm, state, seed=config.seed, microbatch_rows=rows, device=device)
    return Built(rm, trainer, state)


def _moments(config: Config) -> Moments:
    return {"on_host": config.offload.optimizer, "bits": config.adam_bits}


def build_rl(context: Context, config: RTOConfig) -> Built:
    """PPO on the reward that `config` describes."""
    resting = context.resting if context.config.adapter.rank is None else context.device
    reference = context.load(context.stage_path("sft"), "sft.model", device=resting)
    if context.config.adapter.rank is None:
        policy = context.load(context.stage_path("sft"), "sft.model", trained=True)
    else:
        policy = adapted(context, reference, "policy")
    dpo = frozen_on(context, reference, context.stage_path("dpo"), "dpo.model", "dpo") if config.reward.beta_1 else None
    critic = _critic(context, config, policy, reference)
    networks = {"policy": policy, "critic": critic}
    state = loop.make_state(config.optim, networks, **_moments(context.config), critic=config.critic.lr)
    scorer = scorer_of(context, config)
    collector = Collector(
        models=Models(policy, reference, dpo, critic),
        prompts=context.corpus.prompts,
        config=config,
        eos_token_ids=context.eos_token_ids,
        max_new_tokens=context.config.max_new_tokens,
        guards=context.config.guards,
        scorer=scorer,
        watch=watch_of(context, scorer),
        sentence_end_ids=context.corpus.sentence_end_ids,
        **context.stage_options,
    )
    return Built(policy, RTO(collector, state), state)


def _critic(context: Context, config: RTOConfig, policy: LanguageModel, reference: LanguageModel) -> ScalarModel | None:
    if config.critic.kind == "shared":
        policy.add_value_head()
    if config.critic.kind != "separate":
        return None
    if not config.critic.model:
        # a critic of its own starts from the policy's float32 weights, which are pi_ref's still
        return scalar_on(context, policy if context.config.adapter.rank is None else reference, "critic")
    path = context.stage_path("rm") if config.critic.model == "rm" else config.critic.model
    return critic_of(context, reference, path, "rto.critic.model")
