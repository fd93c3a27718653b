"""A run whose stages are built by the product and trained by its loop, and the same run derived again.

The models are the same folders, read twice; both sides move the weights a little before they start, so that no
log-ratio and no value is 0. Answers and scores are made up, from everything that the product hands to the one who makes
them: what does not arrive there changes the numbers.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from rto_fast.config import Config, DataConfig, ModelConfig
from rto_fast.pipeline.build import Built, build
from rto_fast.pipeline.prepare import prepare
from rto_fast.rollout import Completion, Sampling
from rto_fast.runs.open import Context
from rto_fast.stages.rm import RewardModel
from rto_fast.training import loop
from rto_fast.training.metrics import WALL_CLOCK
from tests.derivation import supervised
from tests.derivation.cases import BASE, OPTIM, put
from tests.derivation.family import Family, Networks, Task, member
from tests.derivation.networks import Scalar
from tests.derivation.supervised import Derived
from tests.tiny_run import WORDS, write_model, write_pairs

SIZES = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
ENDS = frozenset({6, 9, 12, 15})


def write(folder: Path) -> None:
    """Models with biases and norms, each its own, and the data."""
    write_model(folder / "tokenizer")
    write_pairs(folder / "pairs.jsonl")
    config = LlamaConfig(vocab_size=len(WORDS), **SIZES, num_labels=1, attention_bias=True, mlp_bias=True)
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    for seed, name in enumerate(("start", "run/sft", "run/dpo", "run/rm", "sft2", "dpo2", "rm2")):
        torch.manual_seed(seed)
        kind = AutoModelForSequenceClassification if "rm" in name else AutoModelForCausalLM
        config.mean, config.std = (0.2 * seed, 0.5 + 0.1 * seed) if "rm" in name else (0.0, 1.0)
        model = kind.from_config(config)
        for p in model.parameters():
            p.data += 0.1 * torch.randn(p.shape)
        write_tokens(folder / "tokenizer", folder / name)
        model.save_pretrained(folder / name)


def write_tokens(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for file in source.glob("*token*"):
        (target / file.name).write_bytes(file.read_bytes())


def number(*what: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:6], "little")


def shake(parameters: Sequence[Tensor], seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in parameters:
            p += (size * torch.randn(p.shape, generator=generator)).to(p.dtype)


def made_up(
    prompts: Sequence[list[int]], sampling: Sampling, eos: Sequence[int], seed: int, max_batch: int
) -> list[Completion]:
    """Answers that hang on every argument; about a third are cut off at the limit."""
    generator = torch.Generator().manual_seed(number(sampling, sorted(eos), seed, max_batch))
    draw: Callable[[int, int], list[int]] = lambda n, high: torch.randint(high, (n,), generator=generator).tolist()  # noqa: E731
    answers = []
    for prompt in prompts:
        length, cut = 1 + draw(1, sampling.max_new_tokens)[0], draw(1, 3)[0] == 0
        response = [3 + x for x in draw(sampling.max_new_tokens if cut else length, len(WORDS) - 3)]
        response = response if cut else [*response[:-1], eos[0]]
        logprobs = (-6 * torch.rand(len(response), generator=generator)).tolist()
        answers.append(Completion(list(prompt), response, logprobs, "length" if cut else "eos"))
    return answers


def worth(source: object, texts: Sequence[tuple]) -> list[float]:
    """Scores in -14 ... 14 that hang on who is asked, by what settings, and on all that it is given."""
    return [number(source, *text) % 2801 / 100 - 14 for text in texts]


@dataclass
class Place:
    context: Context
    known: dict[tuple[str, str], Derived] = field(default_factory=dict)

    @staticmethod
    def at(folder: Path) -> "Place":
        write(folder)
        data = DataConfig(path=str(folder / "pairs.jsonl"), template="none", max_prompt=10, max_length=20, held_out=4)
        config = Config(
            output=str(folder / "new"), data=data, model=ModelConfig(path=str(folder / "start")), device="cpu"
        )
        context, _ = prepare(config, lambda line: None, folder)
        right = {tuple(p): f"right {i}" for i, p in enumerate(context.corpus.prompts) if i % 2}
        corpus = replace(context.corpus, sentence_end_ids=ENDS, references=right, prompts=context.corpus.prompts[:7])
        return Place(replace(context, folder=folder / "run", corpus=corpus))

    def setting(self, settings: dict[str, object]) -> Context:
        """The run with these settings; a folder's name stands for its path, FOLDER for that of them all."""
        folder = self.context.folder.parent
        config = replace(self.context.config, **{"microbatch_rows": 100, "stages": ("sft", "dpo", "rto"), **BASE})
        given = {}
        for name, value in settings.items():
            if name.endswith(".model") and value != "rm":
                value = str(folder / value.removeprefix("FOLDER/"))
            given[name] = value
        return replace(self.context, config=put(config, given))

    def product(self, stage: str, settings: dict[str, object]) -> Derived:
        """The stage built, its weights moved, and trained; as the derivation reports it."""
        built = build(self.setting(settings), stage)
        shake_product(built)
        steps: list[dict[str, float]] = []
        loop.train(built.stage, built.state, lambda step, metrics: steps.append(metrics))
        steps = [{n: x for n, x in metrics.items() if not n.startswith(WALL_CLOCK)} for metrics in steps]
        weights = [p.detach() for p in trained(built)]
        if isinstance(built.stage, RewardModel):
            built.stage.calibrate()
            weights += [torch.tensor(built.model.mean), torch.tensor(built.model.std)]
        return Derived(steps, weights)

    def derived(self, stage: str, settings: dict[str, object]) -> Derived:
        key = (stage, repr(sorted(settings.items())))
        if key not in self.known:
            self.known[key] = self._derive(stage, self.setting(settings))
        return self.known[key]

    def _derive(self, stage: str, context: Context) -> Derived:
        config, corpus = context.config, context.corpus
        folder, start = context.folder, config.model.path
        reference = config.sft.model or str(folder / "sft")
        if stage == "sft":
            model = language_model(start)
            shake(list(model.parameters()), 1, 0.05)
            return supervised.sft(model, corpus.demonstrations, config.sft, config.seed)
        if stage == "dpo":
            # the weights that it starts from are its reference
            model = language_model(reference)
            shake(list(model.parameters()), 1, 0.05)
            pi_ref = language_model(reference)
            shake(list(pi_ref.parameters()), 1, 0.05)
            return supervised.dpo(model, pi_ref, corpus.pairs, config.dpo, config.seed)
        if stage == "rm":
            base = language_model(reference).base_model
            model = Scalar(base, zero_head(base.config.hidden_size, bias=False))
            shake([*base.parameters(), *model.head.parameters()], 1, 0.05)
            return supervised.rm(model, corpus.pairs, config.rm, config.seed)
        return self._family(context, stage, reference)

    def _family(self, context: Context, stage: str, reference: str) -> Derived:
        config, rl = context.config, member(context.config.rto, stage)
        policy = language_model(reference)
        rm = config.rm.model or str(context.folder / "rm")
        dpo = language_model(config.dpo.model or str(context.folder / "dpo")) if rl.reward.beta_1 else None
        critic = None
        if rl.critic.kind == "shared":
            critic = Scalar(policy.base_model, zero_head(SIZES["hidden_size"]))
            shake([*policy.parameters(), *critic.head.parameters()], 1, 0.05)
        else:
            shake(list(policy.parameters()), 1, 0.05)
        if rl.critic.kind == "separate":
            critic = critic_of({None: None, "rm": rm}.get(rl.critic.model, rl.critic.model), reference)
            shake([*critic.backbone.parameters(), *critic.head.parameters()], 2, 0.05)
        sampling = Sampling(
            rl.sampling.temperature, rl.sampling.top_k, rl.sampling.top_p, rl.sampling.max_new_tokens or 20 - 10
        )
        task = Task(
            context.corpus.prompts,
            lambda prompts, seed: made_up(prompts, sampling, context.eos_token_ids, seed, rl.sampling.batch_size),
            self._judge(context, rl, rm),
            ENDS,
            config.seed,
        )
        return Family(Networks(policy, language_model(reference), dpo, critic), task, rl).run()

    def _judge(self, context: Context, rl, rm: str) -> Callable | None:
        """The source that pays; where none does, the run's reward model looks on."""
        if rl.reward.beta_3 and (rl.score.rule or rl.score.server):
            s = rl.score
            source = s.rule or (s.server, s.timeout, s.retries, s.batch)
            decode, right = context.tokenizer.decode, context.corpus.references

            def judge(answers: list[Completion]) -> list[float]:
                texts = ((decode(x, skip_special_tokens=True) for x in (a.prompt, a.response)) for a in answers)
                rest = [(a.finish == "eos", right.get(tuple(a.prompt))) for a in answers]
                return worth(source, [(*text, *more) for text, more in zip(texts, rest, strict=True)])

            return judge
        if not rl.reward.beta_3 and "rm" not in context.config.stages:
            return None
        model = critic_of(rm, None)
        return lambda answers: model.scores(answers).tolist()


@cache
def read(kind: type, path: str) -> nn.Module:
    return kind.from_pretrained(path, dtype=torch.float64, attn_implementation="eager")


def language_model(path: str) -> nn.Module:
    return copy.deepcopy(read(AutoModelForCausalLM, path))


def zero_head(hidden: int, bias: bool = True) -> nn.Linear:
    head = nn.Linear(hidden, 1, bias=bias, dtype=torch.float64)
    for p in head.parameters():
        nn.init.zeros_(p)
    return head


def critic_of(path: str | None, reference: str) -> Scalar:
    """A reward model with its head and calibration, else pi_ref's backbone with a head of zeros."""
    if path is None:
        base = language_model(reference).base_model
        return Scalar(base, zero_head(base.config.hidden_size))
    model = copy.deepcopy(read(AutoModelForSequenceClassification, path))
    head = zero_head(model.config.hidden_size)
    with torch.no_grad():
        head.weight.copy_(model.score.weight)
    return Scalar(model.base_model, head, model.config.mean, model.config.std)


def trained(built: Built) -> list[Tensor]:
    critic = getattr(built.stage, "critic", None)
    return [*built.model.parameters(), *(critic.parameters() if critic is not None else [])]


def shake_product(built: Built) -> None:
    shake(list(built.model.parameters()), 1, 0.05)
    critic = getattr(built.stage, "critic", None)
    if critic is not None:
        shake(list(critic.parameters()), 2, 0.05)


def distance(a: Derived, b: Derived) -> float:
    """How far two runs are apart, in units of what float32 may make of the same run: below 1 = the same."""
    if len(a.steps) != len(b.steps) or any(x.keys() != y.keys() for x, y in zip(a.steps, b.steps, strict=True)):
        return math.inf
    if len(a.weights) != len(b.weights):
        return math.inf
    logged = [abs(x[n] - y[n]) / (1e-5 + 1e-4 * abs(y[n])) for x, y in zip(a.steps, b.steps, strict=True) for n in y]
    # AdamW moves a weight by about the learning rate, so a share of that says how alike the gradients were
    moved = [float((x - y).detach().abs().max()) / (1e-3 * OPTIM.lr) for x, y in zip(a.weights, b.weights, strict=True)]
    return max(*logged, *moved)
