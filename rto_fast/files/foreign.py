"""What comes from others: model folders are looked at before a library opens them, and errors become one sentence.

Nothing here trusts a size, a name or a type that a file states.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel
from transformers.utils import logging

from rto_fast.files.regular import irregular, read_regular
from rto_fast.files.text import one_line

MAX_JSON_BYTES = 256 * 2**20
MAX_LAYERS = 1_000
MAX_SIZE = 2**28
"""Of a width, a vocabulary or a context."""

_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_SIZES = (
    *("hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "ffn_dim", "vocab_size", "head_dim"),
    *("num_attention_heads", "n_head", "num_key_value_heads", "max_position_embeddings", "n_positions"),
)
_READ_WHOLE = ("*config*.json", "*token*", "vocab*", "merges*", "*.jinja", "chat_template*", "*.index.json", "*.model")
_MAY_BE_NULL = ("n_inner", "intermediate_size", "num_key_value_heads", "head_dim", "ffn_dim")
_REMOTE = (
    "brings Python code of its own; read it, then allow it with --model.trust-remote-code True (rto_fast.train) or "
    "--trust-remote-code (evaluate, credit, decode)"
)


def no_duplicates(pairs: list[tuple[str, Any]], hide: Callable[[str], str] = str) -> dict[str, Any]:
    """A JSON object, as json's object_pairs_hook; ValueError for a key given twice, as `hide` leaves it."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"key {one_line(hide(name), 100)!r} appears twice in one object")
        found[name] = value
    return found


def read_object(file: Path, field: str) -> dict[str, Any]:
    """A JSON file that must hold an object. Raises ValueError that begins with `field` for one that is too large, not
    UTF-8, no JSON or another value."""
    name = f"{field}: {str(file)!r}"
    try:
        found = json.loads(read_regular(file, MAX_JSON_BYTES).decode("utf-8"), object_pairs_hook=no_duplicates)
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror or error})") from None
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{name} is no JSON file ({one_line(error, 200)})") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{name} must hold a JSON object, got {type(found).__name__}")
    return found


@contextmanager
def opening(field: str, path: object, what: str) -> Iterator[None]:
    """Whatever a library raises while it opens somebody's files becomes a ValueError, one sentence with the field.

    transformers is silent meanwhile: what it would warn of is an error here, or of no importance.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    try:
        yield
    # tokenizers raises a bare Exception, others their own kinds: there is no smaller set that holds them all
    except Exception as error:
        said = str(error).strip() or type(error).__name__
        if "trust_remote_code" in said or "custom code" in said:
            raise ValueError(f"{field}: {str(path)!r} {_REMOTE}") from error
        remote = any(words in said for words in ("couldn't connect", "is not a local folder", "offline mode"))
        fix = "give a local folder, or a hub id that can be reached" if remote else "give an undamaged copy"
        raise ValueError(
            f"{field}: no {what} can be loaded from {str(path)!r} ({one_line(said, 400)}); {fix}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def check_files(folder: Path, field: str) -> None:
    """All that a library might open in a folder is a regular file, and no larger than such files are.

    Raises ValueError with `field` for a pipe, a device or a socket, whatever its name, and for settings and
    vocabularies above 256 MiB. The folders inside, but for one of chat templates, are opened by no library.
    """
    for file in (*folder.glob("*"), *folder.glob("additional_chat_templates/*")):
        if (found := irregular(file)) not in (None, "a folder"):
            raise ValueError(f"{field}: {str(file)!r} is {found}, not a regular file; remove it")
        if found is None and any(map(file.match, _READ_WHOLE)) and file.is_file():
            if file.stat().st_size > MAX_JSON_BYTES:
                raise ValueError(f"{field}: {str(file)!r} is larger than {MAX_JSON_BYTES // 2**20} MiB")


def check_model_folder(folder: Path, field: str, trusted: bool = False) -> None:
    """Look at a local model folder: its configuration's sizes, where its index leads, what its weights are.

    Raises ValueError, one line with `field` and the file, for all that would crash, hang, exhaust the memory, lead out
    of the folder or train something else than what the folder says. `trusted`: its Python code may run.
    """
    check_files(folder, field)
    check_config(folder, field, trusted)
    if (folder / "generation_config.json").exists():
        check_end_token(read_object(folder / "generation_config.json", field), f"{field}: generation_config.json")
    stored = sum(_check_weights(file, field) for file in weight_files(folder, field))
    if trusted:
        return
    # else a configuration could have transformers make up any amount of absent weights
    with opening(field, folder, "model"), torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
        wanted = sum(p.numel() for p in model.parameters())
    if wanted > 2 * stored + 1e6:
        raise ValueError(
            f"{field}: {str(folder / 'config.json')!r} asks for {wanted / 1e6:.4g} M weights, {stored / 1e6:.4g} M are "
            "there; the two do not belong together"
        )


def check_config(folder: Path, field: str, trusted: bool = False) -> None:
    """The part of `check_model_folder` that needs config.json alone."""
    file = folder / "config.json"
    config, where = read_object(file, field), f"{field}: {str(file)!r}"
    kind = config.get("model_type")
    if not isinstance(kind, str) or not re.fullmatch(r"[\w.-]{1,64}", kind):
        raise ValueError(f"{where} needs a model_type, such as 'llama', got {one_line(repr(kind), 100)}")
    if kind not in CONFIG_MAPPING and not trusted:
        if "auto_map" in config:
            raise ValueError(f"{field}: {str(folder)!r} {_REMOTE}")
        raise ValueError(f"{where} has model_type {kind!r}, which this release of transformers does not know")
    if config.get("transformers_weights") is not None:
        raise ValueError(
            f"{where} names a file of weights, transformers_weights; remove that, only model.safetensors or "
            "what its index names is read"
        )
    if config.get("quantization_config"):
        raise ValueError(
            f"{field}: {str(folder)!r} holds quantised weights, which cannot be trained; give the original"
        )
    check_end_token(config, where)
    _check_sizes(config, where)
    # the library divides by some of these, and calls what others name
    with opening(field, file, "configuration"):
        AutoConfig.from_pretrained(folder, trust_remote_code=trusted)


def check_end_token(config: dict[str, Any], where: str) -> None:
    """eos_token_id must be a token id, a list of them, or absent."""
    ids = config.get("eos_token_id")
    ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        got = one_line(repr(config["eos_token_id"]), 100)
        raise ValueError(f"{where}: eos_token_id must be a token id or a list of them, got {got}")


def _check_sizes(config: dict[str, Any], where: str) -> None:
    for name, value in config.items():
        if isinstance(value, dict):
            _check_sizes(value, where)
        bound = MAX_LAYERS if name in _LAYERS else MAX_SIZE if name in _SIZES else None
        if bound is None or (value is None and name in _MAY_BE_NULL):
            continue
        sizes = value if isinstance(value, list) and name not in _LAYERS and value else [value]
        if not all(isinstance(x, int) and not isinstance(x, bool) and 1 <= x <= bound for x in sizes):
            got = one_line(repr(value), 100)
            raise ValueError(f"{where}: {name} must be a whole number from 1 to {bound}, got {got}")


def weight_files(folder: Path, field: str) -> list[Path]:
    """The files that a model folder's weights are read from: one, or those that its index names."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    if not index.exists():
        raise ValueError(f"{field}: {str(folder)!r} holds no model.safetensors; pickled weights are never loaded")
    places = read_object(index, field).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{field}: {str(index)!r} needs a weight_map of tensor names and file names")
    for name in set(places.values()):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(
                f"{field}: {str(index)!r} leads outside its folder or to no .safetensors, {one_line(name, 100)!r}; "
                "only .safetensors files beside it are read"
            )
        if not (folder / name).is_file():
            raise ValueError(f"{field}: {str(index)!r} names {one_line(name, 100)!r}, which is not there")
    return [folder / name for name in sorted(set(places.values()))]


def _check_weights(file: Path, field: str) -> int:
    """The number of weights: every header entry is sound (the library says so), and each weight is a real number."""
    try:
        with safe_open(file, framework="pt") as weights:
            entries = {key: weights.get_slice(key) for key in weights.keys()}
            kinds = {key: entry.get_dtype() for key, entry in entries.items()}
            count = sum(math.prod(entry.get_shape()) for entry in entries.values())
    except (SafetensorError, OSError) as error:
        said = one_line(error, 200)
        raise ValueError(f"{field}: {str(file)!r} is no whole safetensors file ({said}); copy it again") from None
    for key, kind in kinds.items():
        if key.endswith(".weight") and not kind.startswith(("F", "BF")):
            raise ValueError(
                f"{field}: {str(file)!r} holds {kind} in {one_line(key, 100)}; give floating-point weights"
            )
    return count


def check_loaded(info: dict[str, Any], field: str, path: str) -> None:
    """`info`: what transformers says about a load. Raises ValueError when a weight would be made up or has no place."""
    if wrong := info["mismatched_keys"]:
        name, found, wanted = sorted(wrong)[0]
        raise ValueError(
            f"{field}: {path!r}: {len(wrong)} weights do not have the shape that config.json asks for; {name} is "
            f"{tuple(found)}, wanted {tuple(wanted)}"
        )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{field}: {path!r}: {len(missing)} weights that config.json asks for are missing, {missing[0]} among "
            "them; give the whole model"
        )
    # other unexpected weights are heads or buffers that this use has no need of
    if surplus := sorted(k for k in info["unexpected_keys"] if re.search(r"\.\d+\..*weight$", k)):
        raise ValueError(
            f"{field}: {path!r}: config.json has no place for {len(surplus)} weights of layers, {surplus[0]} among "
            "them; give the config.json that belongs to the weights"
        )


def check_finite(model: torch.nn.Module, field: str, path: str) -> None:
    """Raises ValueError that names the first weight which holds nan or an infinity. One pass over the weights."""
    for name, weight in model.named_parameters():
        if weight.numel() and not torch.stack(torch.aminmax(weight.detach())).isfinite().all():
            raise ValueError(
                f"{field}: {path!r}: the weights are not finite, {name} is the first that holds nan or an infinity; "
                "give an undamaged copy"
            )
