"""Malformed models: weights and configurations."""

import json
import os
import pickle
import shutil
import struct

import torch
from safetensors.torch import load_file, save

from tests.fuzz.place import Case, Place

WEIGHTS = "model.safetensors"


def _weights(name: str, change, *says: str) -> Case:
    """A model whose weights' file holds other bytes: change(bytes of the good one)."""

    def make(place: Place) -> list[str]:
        good = (place.shared / "model" / WEIGHTS).read_bytes()
        return place.model(model__safetensors=change(good))

    return Case(f"weights: {name}", make, ("model.path", *says))


def _tensors(name: str, change, *says: str) -> Case:
    """A model whose tensors are changed in place by change(tensors)."""

    def make(place: Place) -> list[str]:
        tensors = load_file(place.shared / "model" / WEIGHTS)
        change(tensors)
        return place.model(model__safetensors=save(tensors, {"format": "pt"}))

    return Case(f"weights: {name}", make, ("model.path", *says))


def _header(good: bytes, change) -> bytes:
    """The same file with its JSON header changed."""
    size = struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8 : 8 + size])
    text = change(header)
    data = (text if isinstance(text, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(data)) + data + good[8 + size :]


PIPES = [
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "vocab.json", "merges.txt", "adapter_config.json", WEIGHTS),
    *("model.safetensors.index.json", "model-00001-of-00002.safetensors"),
]
NORM, DOWN = "model.norm.weight", "model.layers.0.mlp.down_proj.weight"


def files() -> list[Case]:
    def entry(**values):
        return lambda good: _header(good, lambda header: header[NORM].update(values))

    deep = '{"a":' * 50_000
    cases = [
        _weights("empty file", lambda good: b"", "safetensors"),
        _weights("cut in the middle", lambda good: good[: len(good) // 2], "safetensors"),
        _weights("one byte short", lambda good: good[:-1], "safetensors"),
        _weights("one byte long", lambda good: good + b"\0", "safetensors"),
        _weights("cut in the header", lambda good: good[:40], "safetensors"),
        _weights("four bytes", lambda good: good[:4], "safetensors"),
        _weights("header of 2^63 bytes", lambda good: struct.pack("<Q", 2**63) + good[8:], "safetensors"),
        _weights("header of 2^64 - 1 bytes", lambda good: b"\xff" * 8 + good[8:], "safetensors"),
        _weights("header of 1 TB", lambda good: struct.pack("<Q", 10**12) + good[8:], "safetensors"),
        _weights("header of no bytes", lambda good: struct.pack("<Q", 0) + good[8:], "safetensors"),
        _weights("header that is no JSON", lambda good: struct.pack("<Q", 8) + b"no JSON!" + good, "safetensors"),
        _weights("header that is a list", lambda good: _header(good, lambda h: "[]"), "safetensors"),
        _weights("header that is nested", lambda good: _header(good, lambda h: deep), "safetensors"),
        _weights("header that is not UTF-8", lambda good: good[:8] + b"\xff" * 9 + good[17:], "safetensors"),
        _weights("offsets beyond the end", entry(data_offsets=[0, 10**15]), "safetensors"),
        _weights("offsets backwards", entry(data_offsets=[192, 0]), "safetensors"),
        _weights("offsets that overlap", entry(data_offsets=[0, 192]), "safetensors"),
        _weights("negative offsets", entry(data_offsets=[-192, 0]), "safetensors"),
        _weights("shape that is larger than its bytes", entry(shape=[4800]), "safetensors"),
        _weights("shape whose product overflows", entry(shape=[2**40, 2**40]), "safetensors"),
        _weights("negative shape", entry(shape=[-48]), "safetensors"),
        _weights("unknown dtype", entry(dtype="EVIL"), "safetensors"),
        _weights("another dtype of the same size", entry(dtype="I32"), "I32"),
        _weights("pickle", lambda good: pickle.dumps({"a": [1, 2]}), "safetensors"),
        _weights("torch.save", _torch_save, "safetensors"),
        _weights("zip", lambda good: b"PK\x03\x04" + b"\0" * 400, "safetensors"),
        _weights("HTML", lambda good: b"<!doctype html><title>404</title>" * 20, "safetensors"),
        _weights("pointer of git lfs", lambda good: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    ]
    return cases


def _torch_save(good: bytes) -> bytes:
    import io

    out = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, out)
    return out.getvalue()


def tensors() -> list[Case]:
    def fill(name: str, value: float):
        return lambda tensors: tensors[name].fill_(value)

    def replace(name: str, tensor):
        return lambda tensors: tensors.update({name: tensor})

    embedding = "model.embed_tokens.weight"
    return [
        _tensors("NaN in a matrix", fill(DOWN, float("nan")), "not finite, " + DOWN, "nan"),
        _tensors("inf in a matrix", fill(DOWN, float("inf")), "not finite, " + DOWN),
        _tensors("inf in a norm", fill(NORM, float("-inf")), "not finite, " + NORM),
        _tensors("a NaN in the embedding", lambda t: t[embedding][5].fill_(float("nan")), "not finite, " + embedding),
        _tensors("beyond float32", fill(NORM, 3e38), "log-probs of LlamaForCausalLM are not finite (nan)"),
        _tensors("a matrix of another shape", replace(DOWN, torch.zeros(48, 95)), DOWN, "shape"),
        _tensors("a matrix transposed", replace(DOWN, torch.zeros(96, 48)), DOWN, "shape"),
        _tensors("a matrix as a list", replace(DOWN, torch.zeros(48 * 96)), DOWN, "shape"),
        _tensors("an empty matrix", replace(DOWN, torch.zeros(0, 96)), DOWN, "shape"),
        _tensors("a scalar for a norm", replace(NORM, torch.zeros(())), NORM, "shape"),
        _tensors("embedding of fewer words", replace(embedding, torch.zeros(9, 48)), embedding, "shape"),
        _tensors("whole numbers", lambda t: t.update({k: x.long() for k, x in t.items()}), "I64"),
        _tensors("truth values", replace(NORM, torch.ones(48, dtype=torch.bool)), NORM),
        _tensors("complex numbers", replace(NORM, torch.ones(48, dtype=torch.complex64)), NORM),
        _tensors("a missing matrix", lambda t: t.pop(DOWN), DOWN, "missing"),
        _tensors("a missing embedding", lambda t: t.pop(embedding), "lm_head.weight", "missing"),
        _tensors("no tensor at all", lambda t: t.clear(), "missing"),
        _tensors("a tensor too many", replace("model.layers.7.backdoor.weight", torch.ones(3)), "backdoor"),
        _tensors("a layer too many", replace("model.layers.2.mlp.down_proj.weight", torch.ones(3)), "model.layers.2"),
        _tensors("other names", lambda t: [t.update({"x." + k: t.pop(k)}) for k in list(t)], "missing"),
    ]


def folders() -> list[Case]:
    """Model folders whose files are missing, links, or of another kind."""

    def change(name: str, act, *says: str) -> Case:
        def make(place: Place) -> list[str]:
            flags = place.model()
            act(place.own / "model")
            return flags

        return Case(f"model folder: {name}", make, ("model.path", *says))

    def pickled(name: str):
        def act(folder):
            os.remove(folder / WEIGHTS)
            (folder / name).write_bytes(pickle.dumps({"model.norm.weight": [1.0]}))

        return act

    def index(content):
        def act(folder):
            os.rename(folder / WEIGHTS, folder.parent / WEIGHTS)
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / "model.safetensors.index.json").write_text(text)

        return act

    def link(folder):
        os.remove(folder / WEIGHTS)
        os.symlink(folder / WEIGHTS, folder / WEIGHTS)

    def directory(folder):
        os.remove(folder / WEIGHTS)
        (folder / WEIGHTS).mkdir()

    def emptied(folder):
        shutil.rmtree(folder)
        folder.mkdir()

    def outside(folder):
        names = list(load_file(folder / WEIGHTS))
        index({"metadata": {}, "weight_map": dict.fromkeys(names, "../" + WEIGHTS)})(folder)

    def absolute(folder):
        names = list(load_file(folder / WEIGHTS))
        index({"metadata": {}, "weight_map": dict.fromkeys(names, str(folder.parent / WEIGHTS))})(folder)

    def special(name: str, to: str | None = None) -> Case:
        """A file of the folder is a pipe, or a link to an endless device."""

        def act(folder):
            (folder / name).unlink(missing_ok=True)
            os.symlink(to, folder / name) if to else os.mkfifo(folder / name)

        return change(f"{name} {'that links to ' + to if to else 'a pipe'}", act, name, "a device" if to else "a pipe")

    absent = dict.fromkeys([NORM, DOWN], "model-00001-of-00002.safetensors")
    return [
        change("no weights", lambda folder: os.remove(folder / WEIGHTS), "safetensors"),
        change("a pickle alone", pickled("pytorch_model.bin"), "safetensors"),
        change("a .pt alone", pickled("model.pt"), "safetensors"),
        change("a .ckpt alone", pickled("model.ckpt.index"), "safetensors"),
        change("a .msgpack alone", pickled("flax_model.msgpack"), "safetensors"),
        change("weights that are a folder", directory, "safetensors"),
        change("weights that link to themselves", link, "safetensors"),
        change("empty", emptied, "holds no tokenizer"),
        change("no config.json", lambda folder: os.remove(folder / "config.json"), "no config.json"),
        change("index that is no JSON", index("{"), "model.safetensors.index.json"),
        change("index that is a list", index("[]"), "model.safetensors.index.json"),
        change("index without a map", index({}), "model.safetensors.index.json"),
        change("index with a map of numbers", index({"weight_map": {NORM: 5}}), "model.safetensors.index.json"),
        change("index of absent files", index({"metadata": {}, "weight_map": absent}), "model-00001-of-00002"),
        change("index that leads outside", outside, "model.safetensors.index.json", "outside"),
        change("index with absolute paths", absolute, "model.safetensors.index.json", "outside"),
        change("index of a pickle", index({"weight_map": {NORM: "x.bin"}}), "model.safetensors.index.json"),
        *map(special, PIPES),
        special("config.json", "/dev/zero"),
        special("tokenizer.json", "/dev/zero"),
        special(WEIGHTS, "/dev/zero"),
        Case("model folder: a file", lambda p: ["--model.path", str(p.file("m", "x"))], ("model.path", "no folder")),
        Case("model folder: absent", lambda p: ["--model.path", "./nowhere"], ("model.path", "./nowhere")),
        Case("model folder: not given", lambda p: ["--model.path", ""], ("model.path: no model given",)),
        Case("model folder: NUL", lambda p: ["--model.path", "/a\0b"], ("model.path",)),
        Case("model folder: a name no hub would take", lambda p: ["--model.path", "a b/c d"], ("model.path",)),
        Case("model folder: URL", lambda p: ["--model.path", "https://example.org/x"], ("model.path", "no folder")),
    ]


def configurations() -> list[Case]:
    def config(name: str, values: dict, *says: str) -> Case:
        def make(place: Place) -> list[str]:
            changed = place.changed("config.json", **values)
            return place.model(config__json={k: v for k, v in changed.items() if v != "absent"})

        return Case(f"config.json: {name}", make, ("model.path", *says))

    def text(name: str, content, *says: str) -> Case:
        return Case(f"config.json: {name}", lambda p: p.model(config__json=content), ("model.path", *says))

    code = {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"},
    }

    def remote(place: Place) -> list[str]:
        touch = "from pathlib import Path\nPath(__file__).with_name('OWNED').touch()\nPath('OWNED').touch()\n"
        return place.model(config__json=place.changed("config.json", **code), evil__py=touch)

    return [
        text("empty", "", "config.json"),
        text("cut", '{"model_type": "llama", ', "config.json"),
        text("a list", "[]", "config.json"),
        text("a string", '"llama"', "config.json"),
        text("null", "null", "config.json"),
        text("empty object", "{}", "config.json"),
        text("UTF-16", json.dumps({"model_type": "llama"}).encode("utf-16"), "config.json"),
        text("nested", '{"a":' * 100_000, "config.json"),
        text("number of 10,000 digits", '{"a": ' + "9" * 10_000 + "}", "config.json"),
        text("duplicate keys", '{"model_type": "llama", "model_type": "gpt2"}', "config.json"),
        config("NaN", {"rms_norm_eps": float("nan")}, "nan"),
        config("no model type", {"model_type": "absent"}, "config.json"),
        config("weights of another name", {"transformers_weights": "pytorch_model.bin"}, "transformers_weights"),
        config("unknown model type", {"model_type": "no_such_model"}, "no_such_model"),
        config("model type with a path", {"model_type": "../../../etc/passwd"}, "config.json"),
        config("model type of a number", {"model_type": 5}, "config.json"),
        config("model type of a list", {"model_type": ["llama"]}, "config.json"),
        config("model type of 10,000 letters", {"model_type": "x" * 10_000}, "config.json"),
        config("model type with escapes", {"model_type": "\x1b[2Jx"}, "\\x1b"),
        config("a model that is no language model", {"model_type": "vit"}),
        config("an encoder and decoder", {"model_type": "t5"}),
        Case("config.json: code of its own", remote, ("model.path", "--model.trust-remote-code")),
        config(
            "code of another repository",
            {**code, "auto_map": {"AutoConfig": "evil/repo--evil.C"}},
            "--model.trust-remote-code",
        ),
        config("layers negative", {"num_hidden_layers": -1}, "num_hidden_layers"),
        config("a billion layers", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        config("layers of a string", {"num_hidden_layers": "2"}, "num_hidden_layers"),
        config("layers of a list", {"num_hidden_layers": [2]}, "num_hidden_layers"),
        config("layers null", {"num_hidden_layers": None}, "num_hidden_layers"),
        config("hidden size 0", {"hidden_size": 0}, "hidden_size"),
        config("hidden size negative", {"hidden_size": -48}, "hidden_size"),
        config("hidden size 10^12", {"hidden_size": 10**12}, "hidden_size"),
        config("hidden size 10^30", {"hidden_size": 10**30}, "hidden_size"),
        config("hidden size a fraction", {"hidden_size": 48.5}, "hidden_size"),
        config("vocabulary negative", {"vocab_size": -5}, "vocab_size"),
        config("vocabulary of 10^15 words", {"vocab_size": 10**15}, "vocab_size"),
        config("vocabulary of a string", {"vocab_size": "many"}, "vocab_size"),
        config("heads 0", {"num_attention_heads": 0}, "num_attention_heads"),
        config("heads that do not divide", {"num_attention_heads": 7, "num_key_value_heads": 7}, "config.json"),
        config("key-value heads that do not divide", {"num_key_value_heads": 3}),
        config("intermediate size negative", {"intermediate_size": -96}, "intermediate_size"),
        config("another size than the weights", {"intermediate_size": 128}, "shape"),
        config("more layers than weights", {"num_hidden_layers": 3}, "missing"),
        config("fewer layers than weights", {"num_hidden_layers": 1}, "model.layers.1"),
        config("context of a string", {"max_position_embeddings": "long"}, "max_position_embeddings"),
        config("context negative", {"max_position_embeddings": -1}, "max_position_embeddings"),
        config("unknown activation", {"hidden_act": "os.system"}, "os.system"),
        config("activation of a number", {"hidden_act": 5}, "config.json"),
        config("norm's epsilon a string", {"rms_norm_eps": "small"}, "config.json"),
        config("rotary settings of a list", {"rope_parameters": [1]}, "config.json"),
        config("rotary type unknown", {"rope_parameters": {"rope_type": "evil", "rope_theta": 1e4}}, "evil"),
        config("quantised by a stranger", {"quantization_config": {"quant_method": "evil"}}, "quantised"),
        config("dtype unknown", {"dtype": "float99"}, "config.json"),
        config("end token of a string", {"eos_token_id": "end"}, "eos_token_id"),
    ]


def context() -> list[Case]:
    def make(place: Place) -> list[str]:
        return place.model(config__json=place.changed("config.json", max_position_embeddings=1))

    return [Case("config.json: context of one token", make, ("data.max_length", "context is 1"))]


def others() -> list[Case]:
    """Further models of a run."""

    def rest(place: Place) -> dict:
        return load_file(place.shared / "model" / WEIGHTS)

    def reward_model(field: str, shape, bias=None):
        def make(place: Place) -> list[str]:
            tensors = rest(place)
            if shape is not None:
                tensors["score.weight"] = torch.zeros(shape)
            if bias is not None:
                tensors["score.bias"] = torch.zeros(bias)
            data = save(tensors, {"format": "pt"})
            return [*place.model(field, model__safetensors=data), "--rto.reward.beta-3", "1"]

        return make

    def cut(field: str, *more: str):
        def make(place: Place) -> list[str]:
            good = (place.shared / "model" / WEIGHTS).read_bytes()
            return [*place.model(field, model__safetensors=good[:-4]), *more]

        return make

    weighed = ("--rto.reward.beta-3", "1")
    return [
        Case("sft.model: cut", cut("sft.model"), ("sft.model", "safetensors")),
        Case("dpo.model: cut", cut("dpo.model"), ("dpo.model", "safetensors")),
        Case("sft.model: absent", lambda p: ["--sft.model", "./no"], ("sft.model", "./no")),
        Case("dpo.model: absent", lambda p: ["--dpo.model", "./no"], ("dpo.model", "./no")),
        Case("reward model: absent", lambda p: ["--rm.model", "./no", *weighed], ("rm.model", "./no")),
        Case("reward model: not given", lambda p: list(weighed), ("rto.score", "--rm.model")),
    ]


def cases() -> list[Case]:
    return files() + tensors() + folders() + configurations() + context() + others()
