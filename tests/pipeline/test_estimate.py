"""What a run is said to need is what it takes: real stages are measured, large ones reckoned by hand."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, MixtralConfig, PretrainedConfig

from rto_fast.config import AdapterConfig, Config, CriticConfig, RewardConfig, RMConfig
from rto_fast.pipeline import footprint
from rto_fast.pipeline.cards import Card, step_flops, tokens_per_second
from rto_fast.pipeline.estimate import Models, needs
from rto_fast.pipeline.footprint import Arithmetic, Sizes
from rto_fast.pipeline.sizes import sizes_of
from tests.tiny_run import write_model

ROOT = Path(__file__).parents[2]
VOCABULARY, HIDDEN, LAYERS = 4096, 256, 4
"""5 M parameters: 80 MB to train, and as many bytes of activations for 1,024 rows."""
SETTINGS = """
[data]
template = "none"
max_prompt = 3
max_length = 65
held_out = 0
[sft]
batch_size = 16
[dpo]
epochs = 0.5
batch_size = 8
[rm]
epochs = 0.5
batch_size = 8
[rto]
iterations = 1
rollouts = 16
minibatch = 16
[rto.sampling]
batch_size = 16
[eval]
prompts = 0
"""
CHECKPOINTING = ("--model.gradient-checkpointing", "True")
ADAPTERS = ("--adapter.rank", "16")
SHARED = ("--rto.critic.kind", "shared")
CASES = [
    ("sft", "llama"),
    ("sft", "gpt_neox", *CHECKPOINTING),
    ("sft", "llama", *ADAPTERS, *CHECKPOINTING),
    ("dpo", "gpt_neox"),
    ("dpo", "llama", *ADAPTERS),
    ("rm", "llama", "--microbatch-rows", "520"),  # its rows are one more each
    ("rto", "llama"),
    ("rto", "gpt_neox", *CHECKPOINTING),
    ("rto", "gpt_neox", *SHARED),
    ("rto", "llama", *ADAPTERS),
    ("rto", "gpt_neox", *ADAPTERS, *SHARED),
    ("sft", "mixtral"),
    ("rto", "mixtral", *SHARED),
]
ROWS = ("--microbatch-rows", "512")
PAID = RewardConfig(beta_3=1.0)


def shape(architecture: str) -> PretrainedConfig:
    made = {"llama": LlamaConfig, "gpt_neox": GPTNeoXConfig, "mixtral": MixtralConfig}[architecture]
    sizes = dict(hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4, vocab_size=VOCABULARY)
    own = {} if architecture == "gpt_neox" else dict(num_key_value_heads=2)
    if architecture == "mixtral":
        own |= dict(num_local_experts=4, num_experts_per_tok=2)
    ids = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    width = {"llama": 704, "gpt_neox": 4 * HIDDEN, "mixtral": 352}[architecture]
    return made(**sizes, **own, **ids, intermediate_size=width, max_position_embeddings=128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimate")
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"w{i}" for i in range(VOCABULARY - 4))]
    for architecture in ("llama", "gpt_neox", "mixtral"):
        write_model(folder / architecture, words)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(shape(architecture)).save_pretrained(folder / architecture)
    # 64 rows each, all but two of them an answer's: micro-batches are full
    answer = " ".join(words[10:71])
    rows = [{"prompt": f"w{i} w{i + 1}", "chosen": answer, "rejected": " ".join(words[100:161])} for i in range(32)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "small.toml").write_text(SETTINGS)
    return folder


def words(folder: Path, stage: str, architecture: str, *more: str) -> list[str]:
    model = str(folder / architecture)
    given = [] if stage == "sft" else ["--sft.model", model]
    given += ["--dpo.model", model] if stage == "rto" else []
    paths = ["--model.path", model, "--data.path", str(folder / "pairs.jsonl"), "--output", str(folder / "none")]
    return [
        stage,
        "--recipe",
        str(folder / "small.toml"),
        *paths,
        *given,
        "--device",
        "cpu",
        "--stages",
        stage,
        *ROWS,
        *more,
    ]


@pytest.fixture(scope="module")
def measured(folder, request) -> dict[int, dict[str, int]]:
    """Of the cases that are run today; of all where none is asked for by itself."""
    asked_for = [x for x in request.session.items if x.name.startswith("test_a_run_takes_what_is_said[")]
    numbers = [item.callspec.params["number"] for item in asked_for] or list(range(len(CASES)))
    asked = json.dumps([words(folder, *CASES[number]) for number in numbers])
    done = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.peak"],
        input=asked,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return dict(zip(numbers, found, strict=True))


@pytest.mark.parametrize("number", range(len(CASES)), ids=[" ".join(case) for case in CASES])
def test_a_run_takes_what_is_said(measured, number):
    found = measured[number]
    assert found["steps"] == 2
    assert abs(found["peak"] - found["measured"]) <= 0.1 * found["measured"], found


def test_a_wrong_estimate_would_be_seen(measured):
    """Weights counted twice in every stage, activations twice where they are no small part, or left out."""

    def seen(part: str) -> list[bool]:
        return [abs(x["peak"] + x[part] - x["measured"]) > 0.1 * x["measured"] for x in measured.values()]

    assert measured and all(seen("weights"))
    assert sum(seen("activations")) >= 0.6 * len(measured), seen("activations")
    left_out = [x["measured"] - (x["peak"] - x["activations"]) > 0.1 * x["measured"] for x in measured.values()]
    assert any(left_out)


def meta(config: PretrainedConfig) -> Sizes:
    with torch.device("meta"):
        return sizes_of(AutoModelForCausalLM.from_config(config))


def pythia() -> Sizes:
    """EleutherAI/pythia-2.8b"""
    sizes = dict(hidden_size=2560, intermediate_size=10240, num_hidden_layers=32, num_attention_heads=32)
    return meta(GPTNeoXConfig(**sizes, vocab_size=50304))


def llama(large: bool = False) -> Sizes:
    """meta-llama/Meta-Llama-3-8B, -70B"""
    sizes = dict(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64)
    if not large:
        sizes = dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32)
    return meta(LlamaConfig(**sizes, num_key_value_heads=8, vocab_size=128256))


CUDA = Arithmetic(4, half=True, cpu=False)


def test_parameters_are_those_of_the_real_models():
    # 32 layers of 12 H^2 + 13 H, a last norm of 2 H, two embeddings of 50304 H
    assert pythia().parameters == 32 * (12 * 2560**2 + 13 * 2560) + 2 * 2560 + 2 * 50304 * 2560 == 2_775_208_960
    assert llama().parameters == 8_030_261_248 and llama(large=True).parameters == 70_553_706_496
    # rank 16 on all linear layers; a layer of the small one: q 8192, k and v 5120 each, o 8192, the MLP 3 * 18432
    assert footprint.adapter(llama(), 16) == 16 * 32 * 81_920 == 41_943_040
    assert footprint.adapter(llama(large=True), 16) == 16 * 80 * 161_792 == 207_093_760
    # qkv 4 H, out 2 H, the MLP 5 H each way
    assert footprint.adapter(pythia(), 16) == 16 * 32 * 16 * 2560


def test_adapters_on_some_layers_alone():
    chosen = Config(adapter=AdapterConfig(rank=8, targets=("q_proj", "mlp.up_proj")))
    found = needs(chosen, Models(llama()), CUDA)["dpo"]
    # q 8192 and up 18432, in each of 32 layers
    assert found.gradients == 4 * 8 * 32 * (8192 + 18432)
    everywhere = needs(Config(adapter=AdapterConfig(rank=8)), Models(llama()), CUDA)["dpo"]
    assert found.activations == everywhere.activations - 2 * 8 * 5 * 32 * 16384


def test_saved_activations_by_hand():
    # bytes a row: the stream 4 H; two norms' outputs in bfloat16 4 H; qkv 6 H, whose values are used; turned queries
    # and keys 4 H; attention's output 2 H; the MLP's 4 H wide map and its activation 16 H
    assert footprint.saved(pythia(), CUDA, full=True, rank=None) == 36 * 2560
    # two norms, each its input and what it multiplies, in float32: 16 H; five casts of their outputs: 10 H; q, k, v
    # and attention's output 2 (2 H + 2 * 1024); gate, its silu, up and their product: 8 I
    assert (
        footprint.saved(llama(), CUDA, full=True, rank=None) == 26 * 4096 + 2 * (2 * 4096 + 2048) + 8 * 14336 == 241_664
    )
    # a frozen norm's weight needs nothing; each of seven adapters keeps rank numbers
    frozen = footprint.saved(llama(), CUDA, full=False, rank=16)
    assert frozen == 241_664 - 8 * 4096 + 2 * 7 * 16
    large = footprint.saved(llama(large=True), CUDA, full=True, rank=None)
    assert large == 26 * 8192 + 2 * (2 * 8192 + 2048) + 8 * 28672 == 479_232
    # in float32 on a CPU: 4 (9 H + 2 * 1024 + 4 I), attention's output twice
    assert footprint.saved(llama(), Arithmetic(), full=True, rank=None) == 4 * (9 * 4096 + 2 * 1024 + 4 * 14336)


def test_a_rollouts_bound_by_hand():
    """A step reads every weight of the layers and the head, and of 256 rows the keys and values, 2 bytes each."""
    card = Card(10**11, 1e12, 1e15)
    weights = 2 * (32 * 12 * 2560**2 + 50304 * 2560)
    rows = 256 * (256 + 128) * 32 * 2560 * 2 * 2
    found = tokens_per_second(Config(), Models(pythia()), CUDA, card)
    assert found == pytest.approx(256 * 1e12 / (weights + rows))


def test_a_mixtures_work_is_that_of_the_experts_a_token_is_given_to():
    """mistralai/Mixtral-8x7B: 46.7 B parameters, of which a token meets 12.9 B (arXiv:2401.04088, section 2.1)."""
    sizes = dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32)
    s = meta(MixtralConfig(**sizes, num_key_value_heads=8, vocab_size=32000))
    maps, experts = 32 * (2 * 4096**2 + 2 * 4096 * 1024), 32 * 8 * 3 * 4096 * 14336
    assert s.parameters == 46_702_792_704 and round((s.parameters - s.idle) / 1e8) == 129
    assert (s.matrices, s.idle, s.mlp, s.chosen) == (maps + experts, experts * 6 // 8, 2 * 14336, 2)
    # of sft: 32 sequences of 512 tokens learn
    assert step_flops(Config(), Models(s), "sft") == 32 * 512 * 6 * (maps + experts // 4 + 32000 * 4096)
    # adapters lie on attention alone
    assert {name for name, _ in s.sides} == {f"self_attn.{x}_proj" for x in "qkvo"}


def test_a_cache_grows_by_halves():
    # up to 256 + 256 positions, the last token apart; keys and values of 2 bytes; a copy of one tensor while it grows
    half = CUDA._replace(cpu=True)
    bytes_, copy = footprint.cached(pythia(), half, 256, 256, 256)
    assert bytes_ == 511 * 256 * 2560 * 32 * 4 == 42_865_786_880 and copy == 511 * 256 * 2560 * 2
    # short answers fit from the start, and on a GPU all
    assert footprint.cached(llama(), half, 8, 1024, 64) == (1087 * 8 * 1024 * 32 * 4, 0)
    assert footprint.cached(pythia(), CUDA, 256, 256, 256) == (bytes_, 0)


def test_static_memory_of_the_presets_by_hand():
    s, n = pythia(), 2_775_208_960
    body = n - 50304 * 2560
    found = needs(Config(), Models(s), CUDA)
    assert list(found) == ["sft", "dpo", "rto"]
    assert found["sft"].weights + found["sft"].gradients + found["sft"].states == 16 * n  # 44.4 GB
    rto = found["rto"]
    # policy and critic are trained, pi_ref and pi_dpo are not: 44.4 + 42.3 + 11.6 GB
    maps = 32 * 12 * 2560**2 + 50304 * 2560
    fixed = 2 * maps + 4 * (n - maps)
    assert rto.weights + rto.gradients + rto.states == 16 * (n + body) + 2 * fixed
    shared = Config(rto=replace(Config().rto, critic=CriticConfig(kind="shared")))
    assert needs(shared, Models(s), CUDA)["rto"].weights == 4 * n + 2 * fixed
    # adapters: one base, and adapters of pi_dpo, policy and critic
    tuned = needs(Config(adapter=AdapterConfig(rank=16)), Models(llama()), CUDA)["rto"]
    # bfloat16 but for the embedding and 65 norms of 4096
    base = 2 * 8_030_261_248 + 2 * (128256 * 4096 + 65 * 4096)
    assert tuned.weights == base + 4 * 3 * 41_943_040
    assert tuned.gradients == 4 * 2 * 41_943_040 and tuned.states == 2 * tuned.gradients
    # a whole pi_dpo lies beside the base; a reward model has no language head
    scored = Config(
        stages=("rto",), adapter=AdapterConfig(rank=16), rm=RMConfig(model="x"), rto=replace(Config().rto, reward=PAID)
    )
    models = Models(llama(), score=llama(), dpo_is_adapter=False)
    whole = needs(scored, models, CUDA)["rto"].weights
    assert whole == 2 * base + (base - 2 * 128256 * 4096) + 4 * 2 * 41_943_040
    # 70 B with adapters: 141 GB for the base's linear maps, 2 GB more for its embedding in float32
    large = needs(Config(adapter=AdapterConfig(rank=16)), Models(llama(large=True)), CUDA)["rto"].weights
    assert 143e9 < large - 4 * 3 * 207_093_760 < 144e9


def test_checkpointing_keeps_the_layers_inputs():
    s, rows = pythia(), 1000
    kept = footprint.graph(s, CUDA, rows, checkpointing=True, rank=None, full=True)
    # 32 inputs of 4 H, one layer of 36 H, the last norm's input 4 H; trained weights' copies stay to the forward's end
    assert kept == rows * 2560 * (32 * 4 + 36 + 4) + 2 * 32 * 12 * 2560**2
    frozen = footprint.graph(s, CUDA, rows, checkpointing=True, rank=16, full=False)
    assert frozen == rows * (2560 * (32 * 4 + 36 + 4) + 2 * 4 * 16)
