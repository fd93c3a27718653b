"""Scoring and updating with a real vocabulary never holds a tokens x vocabulary tensor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import copy, resource, sys, threading, time
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from rto_fast.config import OptimConfig, RewardConfig, RTOConfig
from rto_fast.model import attention
from rto_fast.model.language import LanguageModel
from rto_fast.model.scalar import critic_from
from rto_fast.rl.collect import Collector
from rto_fast.rl.score import Models
from rto_fast.stages.rto import RTO
from rto_fast.rollout import Completion
from rto_fast.training import loop

def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize() / 2**20

torch.manual_seed(0)
V, ANSWERS, PROMPT, RESPONSE = 50304, int(sys.argv[1]), 1, 128
config = LlamaConfig(vocab_size=V, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=True)
def model():
    return LanguageModel(AutoModelForCausalLM.from_config(config, attn_implementation=attention.register()))
policy = model()
reference, dpo, critic = copy.deepcopy(policy), model(), critic_from(policy)
state = loop.make_state(OptimConfig(), {"policy": policy, "critic": critic})
rto = RTOConfig(RewardConfig(), rollouts=ANSWERS, minibatch=ANSWERS)
collector = Collector(models=Models(policy, reference, dpo, critic), prompts=[[1]], config=rto, eos_token_ids=(),
                      max_new_tokens=RESPONSE, seed=0, microbatch_rows=2048, workspace_mb=64,
                      device=torch.device("cpu"))
stage = RTO(collector, state)
g = torch.Generator().manual_seed(0)
draw = lambda n: torch.randint(0, V, (n,), generator=g).tolist()
answers = [Completion(draw(PROMPT), draw(RESPONSE), [0.0] * RESPONSE, "length") for _ in range(ANSWERS)]
# what counts as the model's own: weights, and gradients of what is trained
for p in [*policy.parameters(), *critic.parameters()]:
    p.grad = torch.zeros_like(p)
before, peak, done = resident(), 0.0, False
def watch():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(0.002)
thread = threading.Thread(target=watch, daemon=True); thread.start()
experience, metrics = collector.experience(answers, 0.05)
stage.state.progress["iteration"] = 0
step = stage._step(experience, list(range(ANSWERS)), metrics)
for batch in step.batches:
    for loss, _ in stage.losses(batch, step.total):
        loss.backward()
done = True; thread.join()
print(int(step.total), len(step.batches), peak - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("answers", [16, 64], ids=["2048 rows", "8192 rows"])
def test_scoring_and_updating_rows_of_50304_words_stays_within_300_mib(answers):
    env = {**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "2"}
    words = [sys.executable, "-c", CODE, str(answers)]
    out = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert out.returncode == 0, out.stderr
    total, batches, extra = out.stdout.split()
    print(f"{extra} MiB above models and gradients")
    assert int(total) == answers and int(batches) == answers // 16
    assert float(extra) <= 300, out.stdout
