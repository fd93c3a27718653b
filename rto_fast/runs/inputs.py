"""What a run starts and learns from, to the byte: inputs.json, written when it starts, compared whenever it goes on.

    {"inputs": {"model.path": {"model.safetensors": "sha256 ...", ...}, "data.path": {"pairs.jsonl": "24 rows, ..."}},
     "learns_from": {"sft": "...", "dpo": "...", "rm": "...", "rto": "..."},
     "made_with": {"threads": 1, "microbatch_rows": 4096, "workspace_mb": null, "asked_rows": 16384}}

Content counts, not dates. Of a given model (a folder, or what a hub id leads to) it is weights, configuration and
tokenizer, with its Python code where that may run; of data it is the rows that were read, in their order, and, for
another run that would take a stage over, the token ids that became of them.
"""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from rto_fast.config import Config
from rto_fast.data.corpus import Corpus
from rto_fast.files.digests import sha256
from rto_fast.files.disk import write_whole
from rto_fast.files.foreign import opening, read_object, weight_files
from rto_fast.files.text import in_words
from rto_fast.model.adapter_files import CONFIG, WEIGHTS, base_of, is_adapter
from rto_fast.runs.open import Context

INPUTS = "inputs.json"
LARGE = 4 * 2**30
"""Bytes of models that take long enough to say so."""
_SETTINGS = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken", "chat_template.json"),
    *("chat_template.jinja", "additional_chat_templates/*.jinja"),
)
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")

Digests = dict[str, dict[str, str]]
"""By field and file."""


def of_models(config: Config, say: Callable[[str], None]) -> Digests:
    """The digest of every file of every model that is given. A hub id's files are fetched where they are not there.

    A file is read once by a process, however many fields name it. Costs 0.6 s per GB on one core where the processor
    has instructions for sha256 (2 to 3 s where not), or what the disk takes to read it, which the model's loading is
    then spared.
    """
    given = {f"{stage}.model": config.given(stage) for stage in ("sft", "dpo", "rm")}
    critic = None if config.rto.critic.model == "rm" else config.rto.critic.model
    given = {"model.path": config.model.path, **given, "rto.critic.model": critic}
    found = {field: files_of(path, field, config.model.trust_remote_code) for field, path in given.items() if path}
    size = sum(file.stat().st_size for file in {file.resolve() for files in found.values() for file in files.values()})
    if size > LARGE:
        say(f"Reading {in_words(size)} of given models once, to know them again by their content")
    return {field: digests(files) for field, files in found.items()}


def digests(files: dict[str, Path]) -> dict[str, str]:
    return {name: f"sha256 {sha256(file)}" for name, file in files.items()}


def files_of(path: str, field: str, trusted: bool) -> dict[str, Path]:
    """By name, the files that the model and its tokenizer are loaded from."""
    patterns = (*_SETTINGS, "*.py") if trusted else _SETTINGS
    folder = Path(path).expanduser()
    if not folder.is_dir():
        with opening(field, path, "model"):
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(path, allow_patterns=[*patterns, *_WEIGHTS]))
    if is_adapter(folder):
        own = {name: folder / name for name in (CONFIG, WEIGHTS, "tokenizer.json", "tokenizer_config.json")}
        base = files_of(base_of(str(folder), field), field, trusted)
        return {name: file for name, file in own.items() if file.is_file()} | {f"base/{n}": f for n, f in base.items()}
    files = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    files |= {*weight_files(folder, field), *(folder / name for name in _WEIGHTS[1:2] if (folder / name).is_file())}
    return {file.relative_to(folder).as_posix(): file for file in sorted(files)}


def learns_from(corpus: Corpus, *what_ends: Any) -> dict[str, str]:
    """The digest of the token ids that each stage learns from; `what_ends` an answer counts where answers are sampled.

    Costs about 1 s per 100 million tokens.
    """
    pairs = _of_ids(part for p in corpus.pairs for part in (p.prompt, p.chosen, p.rejected))
    known = sorted((list(prompt), answer) for prompt, answer in corpus.references.items())
    sampled = json.dumps([_of_ids(corpus.prompts), sorted(corpus.sentence_end_ids), known, *what_ends])
    return {
        "sft": _of_ids(part for d in corpus.demonstrations for part in (d.prompt, d.response)),
        "dpo": pairs,
        "rm": pairs,
        "rto": hashlib.sha256(sampled.encode()).hexdigest(),
    }


def _of_ids(lists: Iterable[list[int]]) -> str:
    digest = hashlib.sha256()
    for ids in lists:
        digest.update(array("q", [len(ids), *ids]).tobytes())
    return digest.hexdigest()


def read(folder: Path, field: str = "output") -> dict[str, Any] | None:
    """What the folder's inputs.json holds; None without one, and where nothing is trained yet, so that all may still
    change. ValueError when it is damaged."""
    file = folder / INPUTS
    if not file.is_file() or not _trained(folder):
        return None
    where = f"{field}: {file}"
    found = read_object(file, where)
    parts = [found.get(name) for name in ("inputs", "learns_from", "made_with")]
    if not all(isinstance(part, dict) for part in parts) or not _is_digests(parts[0]):
        raise ValueError(f"{where} is damaged; delete it, and what the run reads now counts as what it began with")
    return found


def _trained(folder: Path) -> bool:
    return any((*folder.glob("*/stage.json"), *folder.glob("*.checkpoints")))


def _is_digests(value: Any) -> bool:
    return all(isinstance(file, dict) and all(isinstance(x, str) for x in file.values()) for file in value.values())


def check(began: dict[str, Any] | None, now: Digests) -> None:
    """ValueError that names the first file that is not what the run began with. Without a record all passes."""
    for field, files in now.items():
        before = began["inputs"].get(field, {}) if began else files
        for name in [*before, *files]:
            was, is_now = (_short(x.get(name)) for x in (before, files))
            if before.get(name) != files.get(name):
                raise ValueError(
                    f"{field}: {name} is not what this run began with ({was} then, {is_now} now); put the former back, "
                    "or name another folder with --output"
                )


def _short(digest: str | None) -> str:
    """A digest as people compare it."""
    return "no such file" if digest is None else digest[:-52]


def remember(
    context: Context, began: dict[str, Any] | None, inputs: Digests, learns: dict[str, str], asked_rows: int
) -> None:
    """Write inputs.json where there is none, and say when from now on sums are made in another order.

    asked_rows  microbatch_rows as the settings say them, of which memory = auto may have made fewer
    """
    folder, say = context.folder, context.say
    made_with = {"threads": torch.get_num_threads(), **context.limits}
    if began is None and _trained(folder):
        say(f"{folder} holds no {INPUTS}: an older version began it, and what it reads now counts as its inputs")
    before = began["made_with"] if began else made_with
    if changed := [f"{name} {before.get(name)}, now {x}" for name, x in made_with.items() if before.get(name) != x]:
        say(
            f"Until now this run was made with {'; '.join(changed)}: sums are rounded in another order, so the last "
            "bits of its numbers will not be those of an undisturbed run"
        )
    made_with["asked_rows"] = asked_rows
    record = {"inputs": inputs, "learns_from": learns, "made_with": made_with}
    if record != began:
        write_whole(folder / INPUTS, json.dumps(record, indent=1) + "\n")
