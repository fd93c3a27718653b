"""What is decoded, from what, and how it is judged: taken from a finished run, or from paths."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from rto_fast import tasks
from rto_fast.config import Config
from rto_fast.config.recipe import load_recipe
from rto_fast.config.trust import check_tool
from rto_fast.data.encode import encode_prompts
from rto_fast.data.fingerprint import check_same_tokenizer
from rto_fast.data.held_out import split
from rto_fast.data.read import read_rows
from rto_fast.data.rows import detect_kind, to_demonstrations, to_pairs, to_prompts
from rto_fast.data.template import Template
from rto_fast.data.tokenizer import load_tokenizer
from rto_fast.decode.options import Options
from rto_fast.evaluate.policies import Evaluation, answer_logprobs
from rto_fast.model.language import LanguageModel
from rto_fast.model.load import DTYPES, load_language_model
from rto_fast.rollout import Completion, Hypothesis, Sampling, realign
from rto_fast.rollout.lane import check_prompts

_NORMALISE = {"pairs": to_pairs, "demonstrations": to_demonstrations, "prompts": to_prompts}
Answer = Completion | Hypothesis


@dataclass(frozen=True)
class Source:
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
    autocast: torch.dtype | None
    limits: dict[str, Any]

    @property
    def judge(self) -> str:
        return "implicit_reward" if self.oracle is None else "oracle_return"

    def precision(self) -> AbstractContextManager:
        """The arithmetic of every forward pass."""
        device = self.dpo.hf.device.type
        return torch.autocast(device, self.autocast, enabled=self.autocast is not None)

    def texts(self, sequences: Sequence[list[int]]) -> list[str]:
        """As people read them; special tokens are shown."""
        return [self.tokenizer.decode(ids) for ids in sequences]

    def logprobs(self, model: LanguageModel, answers: Sequence[Answer]) -> np.ndarray:
        """(answers,) summed log-probs."""
        return np.array([x.sum() for x in answer_logprobs(model, answers, **self.limits)])

    def measure(
        self, answers: Sequence[Answer], dpo: np.ndarray, reference: np.ndarray, own: np.ndarray | None = None
    ) -> Evaluation:
        """The answers' figures, from their summed log-probs under pi_dpo, pi_ref and what they were sampled from."""
        oracle = None
        if self.oracle is not None:
            oracle = np.array([self.oracle.answer_return(a.prompt, a.response) for a in answers])
        kl = (dpo if own is None else own) - reference
        return Evaluation(list(answers), kl, self.beta * (dpo - reference), oracle)


def open_source(options: Options) -> Source:
    """Load models and prompts. Raises ValueError or OSError, naming the flag."""
    folder = None if options.run is None else Path(options.run).expanduser()
    config = Config() if folder is None else load_recipe(str(folder / "config.toml"))
    check_tool(config, options.trust_remote_code, folder)
    task = tasks.named(config.data.path)
    if task is not None:
        config = tasks.pointed(config, folder / tasks.FOLDER)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device: {device!r} asked for, but torch sees no CUDA GPU; use --device cpu")
    models, tokenizer = _load(options, config, folder, device)
    template = Template(tokenizer, options.template or config.data.template, config.data.parse_special)
    prompts = _encode(options, config, folder, template)
    given = lambda flag, default: default if flag is None else flag  # noqa: E731
    new_tokens = given(options.max_new_tokens, config.max_new_tokens if folder else 128)
    for model in models.values():  # before anything is decoded: do all fit together?
        check_prompts("prompts", [model.hf], prompts, new_tokens, options.max_batch)
        realign(model.hf, models["dpo"].hf, models["reference"].hf, 0.0)
    temperature, top_p = given(options.temperature, config.eval.temperature), given(options.top_p, config.eval.top_p)
    with_autocast = config.model.dtype == "auto" and device.startswith("cuda")
    return Source(
        dpo=models["dpo"],
        reference=models["reference"],
        policy=models.get("policy"),
        prompts=prompts,
        eos_token_ids=_eos_token_ids(template, models["dpo"]),
        sampling=Sampling(temperature, None, top_p, new_tokens),
        beta=given(options.beta, config.dpo.beta),
        seed=given(options.seed, config.seed),
        oracle=task.make_oracle(tokenizer) if task and not options.prompts else None,
        tokenizer=tokenizer,
        autocast=torch.bfloat16 if with_autocast else None,
        limits={"microbatch_rows": config.microbatch_rows, "workspace_mb": config.workspace_mb},
    )


def _load(
    options: Options, config: Config, folder: Path | None, device: str
) -> tuple[dict[str, LanguageModel], PreTrainedTokenizerBase]:
    """The models by their flags' names, and the tokenizer that they share."""
    paths = {
        "dpo": _path(options.dpo, folder) or config.dpo.model or str(folder / "dpo"),
        "reference": _path(options.reference, folder) or config.sft.model or str(folder / "sft"),
        "policy": _path(options.policy, folder),
    }
    paths = {name: path for name, path in paths.items() if path}
    dtype = torch.float32 if config.model.dtype == "auto" else DTYPES[config.model.dtype]
    trust = options.trust_remote_code
    loaded: dict[str, LanguageModel] = {}
    for name, path in paths.items():
        # a model that is named twice is one model, and runs once in a mixture
        if path not in loaded:
            loaded[path] = load_language_model(path, dtype=dtype, device=device, field=name, trust_remote_code=trust)
    tokenizer = load_tokenizer(paths["dpo"], "dpo", trust)
    for name in paths:
        check_same_tokenizer(tokenizer, load_tokenizer(paths[name], name, trust), "dpo", name)
    return {name: loaded[path] for name, path in paths.items()}, tokenizer


def _path(given: str | None, folder: Path | None) -> str | None:
    """A stage of the run by its name, or the path as it is."""
    is_stage = given and folder is not None and (folder / given / "config.json").is_file()
    return str(folder / given) if is_stage else given


def _encode(options: Options, config: Config, folder: Path | None, template: Template) -> list[list[int]]:
    """The distinct prompts as token ids, in order."""
    max_prompt = options.max_prompt or config.data.max_prompt
    rows = _rows(options, config)
    encoded, _ = encode_prompts(rows, template, max_length=config.data.max_length, max_prompt=max_prompt)
    prompts = [list(p) for p in dict.fromkeys(map(tuple, encoded))]
    own = config.eval.prompts if folder and not options.prompts else 0
    count = options.num_prompts or own or len(prompts)
    if len(prompts[:count]) < 2:
        raise ValueError(f"prompts: needs at least 2 distinct prompts for an interval, got {len(prompts[:count])}")
    return prompts[:count]


def _rows(options: Options, config: Config) -> list:
    """Prompts as the data module knows them: those of the flag's file, else the run's evaluation's."""
    data = config.data
    file, columns = options.prompts or data.evaluation, data.columns
    if file:
        raw = read_rows(file)
        return _NORMALISE[detect_kind(raw[0], columns)](raw, columns=columns).items
    pairs = to_pairs(read_rows(data.path, subset=data.subset, split=data.split, limit=data.max_rows), columns=columns)
    return split(pairs.items, data.held_out, config.seed)[1]


def _eos_token_ids(template: Template, model: LanguageModel) -> tuple[int, ...]:
    """As in the run: the template's and the tokenizer's EOS, and those of the model's generation config."""
    extra = model.hf.generation_config.eos_token_id if model.hf.generation_config else None
    extra = extra if isinstance(extra, list) else [extra] if extra is not None else []
    return tuple(dict.fromkeys([template.eos_id, template.tokenizer.eos_token_id, *extra]))
