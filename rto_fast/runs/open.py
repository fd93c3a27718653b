"""A run's folder opened, to train in it or to look at it: its settings, its models, how they are loaded, its data."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rto_fast import tasks
from rto_fast.config import Config
from rto_fast.config.trust import check_tool
from rto_fast.data.corpus import Corpus
from rto_fast.data.fingerprint import check_same_tokenizer
from rto_fast.data.tokenizer import load_tokenizer
from rto_fast.files.digests import Damaged
from rto_fast.model.adapter_files import add_adapter, base_of, is_adapter
from rto_fast.model.checkpointing import checkpoint_layers
from rto_fast.model.language import LanguageModel
from rto_fast.model.load import (
    DTYPES,
    calibration,
    load_language_model,
    load_scalar_model,
    scalar_head,
    stored_dtype,
)
from rto_fast.model.scalar import ScalarModel
from rto_fast.runs.export import is_finished
from rto_fast.runs.settings import check_run, read_config


class PassLimits(TypedDict):
    """What bounds the memory of a forward pass."""

    microbatch_rows: int
    workspace_mb: int | None


class StageOptions(PassLimits):
    """What every stage takes by name."""

    seed: int
    device: torch.device


@dataclass(frozen=True)
class Run:
    """What a run says of itself, to everything that opens its folder."""

    config: Config
    """The files of an embedded task stand in the place of its name."""
    folder: Path
    device: torch.device
    dtype: torch.dtype
    """of the arithmetic; weights that are trained are float32"""
    autocast: torch.dtype | None
    """the same, where it is not float32"""
    task: tasks.Task | None
    """The embedded one that it is on."""

    @property
    def trusted(self) -> bool:
        """Whether Python code that comes with models may run."""
        return self.config.model.trust_remote_code

    @property
    def limits(self) -> PassLimits:
        return {"microbatch_rows": self.config.microbatch_rows, "workspace_mb": self.config.workspace_mb}

    def precision(self) -> torch.autocast:
        """The arithmetic of every forward pass, as a context."""
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)

    def stage_path(self, stage: str) -> str:
        """Where a stage's model is: given by the user, or made by this run. Without SFT the model is its own pi_ref."""
        made = self.folder / stage
        if stage == "sft" and "sft" not in self.config.stages and not is_finished(made):
            return self.config.given(stage) or self.config.model.path
        return self.config.given(stage) or str(made)

    def found(self, stage: str) -> str | None:
        """`stage_path`, or None where no such model is given and none is finished."""
        made, path = self.folder / stage, self.stage_path(stage)
        return path if path and (path != str(made) or is_finished(made)) else None

    @property
    def quantized(self) -> bool:
        """Whether adapters lie on 4 bits a number."""
        return self.config.adapter.quantize is not None

    def _of_4_bits(self, path: str, field: str) -> bool:
        """Whether the run computes with the model at `path`, or with what it is an adapter on, in 4 bits. Models that
        it knows nothing of, and merged ones, are looked at as they are."""
        config = self.config
        own = path in (self.stage_path("sft"), config.model.path, config.dpo.model)
        return self.quantized and (own or self.lies_on_sft(path, field))

    def lies_on_sft(self, path: str, field: str) -> bool:
        """Whether the model at `path` is an adapter on this run's pi_ref."""
        return is_adapter(path) and Path(base_of(path, field)).resolve() == Path(self.stage_path("sft")).resolve()

    @property
    def resting(self) -> torch.device:
        """Where frozen networks lie between two looks at them (offload.frozen)."""
        return torch.device("cpu") if self.config.offload.frozen else self.device

    def load(
        self, path: str, field: str = "model.path", trained: bool = False, device: torch.device | None = None
    ) -> LanguageModel:
        """A language model on the run's device, or moved from there to another, to be trained in float32, else frozen
        in the memory of the arithmetic's type, or quantised. ValueError, naming `field`, where it is none."""
        quantized = not trained and self._of_4_bits(path, field)
        if quantized and self.lies_on_sft(path, field):
            base = self.load(self.stage_path("sft"), field, device=device).share()
            add_adapter(base, "frozen", path, field)
            return LanguageModel(base.hf, base, "frozen")
        model = load_language_model(
            path,
            device=self.device,  # which decides about liger-kernel, wherever the model then waits
            field=field,
            trust_remote_code=self.trusted,
            liger=self.config.model.liger,
            autocast=None if trained else self.autocast,
            quantized=quantized,
        )
        self.checkpointed(model.hf)
        return model if device is None else model.to(device)

    def checkpointed(self, hf: PreTrainedModel, context_fn: Callable[[], Any] | None = None) -> None:
        """Keep fewer activations in training, where the run asks for it (model.gradient_checkpointing)."""
        if self.config.model.gradient_checkpointing:
            checkpoint_layers(hf, context_fn)

    def load_scalar(
        self, path: str, field: str, trained: bool = False, device: torch.device | None = None
    ) -> ScalarModel:
        """A reward model or a critic, as `load`; quantised is only the base of one that is an adapter on it."""
        if self.quantized and not trained and self.lies_on_sft(path, field):
            base = self.load(self.stage_path("sft"), field, device=device).share()
            weight = add_adapter(base, "frozen", path, field)
            return ScalarModel.on(base, "frozen", scalar_head(weight, path, field), *calibration(path, field))
        model = load_scalar_model(
            path,
            device=self.device,
            field=field,
            trust_remote_code=self.trusted,
            liger=self.config.model.liger,
            autocast=None if trained else self.autocast,
        )
        return model if device is None else model.to(device)

    def shared_tokenizer(self, models: Mapping[str, str]) -> PreTrainedTokenizerBase:
        """The one tokenizer of these models, name -> path. ValueError that names two models whose tokenizers differ."""
        (first, path), *others = models.items()
        tokenizer = load_tokenizer(path, first, self.trusted)
        for name, other in others:
            if other != path:
                check_same_tokenizer(tokenizer, load_tokenizer(other, name, self.trusted), first, name)
        return tokenizer


@dataclass(frozen=True)
class Context(Run):
    """A run that is being made: what it learns from is read."""

    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: tuple[int, ...]
    corpus: Corpus
    say: Callable[[str], None]
    """Tells the user a line."""

    @property
    def oracle(self) -> tasks.Oracle | None:
        """The task's judge of answers."""
        return None if self.task is None else self.task.make_oracle(self.tokenizer)

    def load(
        self, path: str, field: str = "model.path", trained: bool = False, device: torch.device | None = None
    ) -> LanguageModel:
        try:
            return super().load(path, field, trained, device)
        except ValueError as error:
            if Path(path).parent != self.folder or isinstance(error, Damaged):
                raise
            raise ValueError(f"{error}; to make this stage anew, delete {path!r} and give the same command") from error

    def export_dtype(self, stage: str) -> torch.dtype:
        """Of the weights in a finished stage's folder (export.dtype)."""
        if self.config.export.dtype != "auto":
            return DTYPES[self.config.export.dtype]
        if stage in ("sft", "dpo", "rm"):
            return torch.float32
        stored = stored_dtype(self.config.model.path, self.trusted)
        # a wider type than the trained one would hold no more
        return stored if stored is not None and stored.itemsize < torch.float32.itemsize else torch.float32

    @property
    def stage_options(self) -> StageOptions:
        return {"seed": self.config.seed, "device": self.device, **self.limits}


def run_of(config: Config, folder: Path, device: str) -> Run:
    """A run with these settings. ValueError for a device that is none."""
    place = device_of(device)
    usual = torch.bfloat16 if place.type == "cuda" else torch.float32
    dtype = usual if config.model.dtype == "auto" else DTYPES[config.model.dtype]
    autocast = None if dtype == torch.float32 else dtype
    return Run(config, folder, place, dtype, autocast, tasks.named(config.data.path))


def open_run(
    folder: str | None,
    *,
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None,
    template: Literal["auto", "chat", "plain", "none"] | None = None,
    trusted: bool = False,
) -> Run:
    """A run to look at; without a folder the defaults, for models that are given by their paths.

    ValueError, one line, where the folder is none of a run's, or its settings are damaged.

    dtype, template  in the place of the run's
    trusted          Python code that comes with models may run; what the run's own settings say counts for nothing
    """
    place, config = Path(os.path.expanduser(folder or "")), Config()
    if folder is not None:
        check_run(place)
        config = read_config(place, "run")
        check_tool(config, trusted, place)
    data = replace(config.data, template=template or config.data.template)
    # another machine may have no GPU and no liger-kernel, and it makes nothing but time
    model = replace(config.model, dtype=dtype or config.model.dtype, liger=False, trust_remote_code=trusted)
    run = run_of(replace(config, data=data, model=model), place, device)
    return run if run.task is None else replace(run, config=tasks.pointed(run.config, place / tasks.FOLDER))


def device_of(name: str) -> torch.device:
    """auto, cpu, cuda, cuda:1 and so on as a device; ValueError for any other, and without a GPU for the latter."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (number.isascii() and number.isdigit() and len(number) < 4)):
        raise ValueError(f"device: must be auto, cpu, cuda, or cuda:1 and so on, got {name!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {name!r} asked for, but torch sees no CUDA GPU; use --device cpu")
    return torch.device(name)


def eos_token_ids(known: Iterable[int], model: LanguageModel) -> tuple[int, ...]:
    """What ends an answer: `known` (`Template.eos_token_ids`), and the EOS of the model's generation config."""
    extra = model.hf.generation_config.eos_token_id if model.hf.generation_config else None
    extra = extra if isinstance(extra, list) else [extra] if extra is not None else []
    return tuple(dict.fromkeys([*known, *extra]))
