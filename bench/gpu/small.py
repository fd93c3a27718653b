"""Every Triton kernel once, forward and backward, at a small ragged shape: what compute-sanitizer watches."""

import torch

from bench.shapes import Shape, decisions, head_inputs, offsets
from rto_fast.kernels.linear_logprob import linear_logprob
from rto_fast.kernels.ppo_head import ppo_head
from rto_fast.kernels.preference_head import preference_head
from rto_fast.kernels.rto_score import FactoredLogits, rto_score


def main() -> None:
    rows, vocab = 13, 5003
    hidden, weight, target = head_inputs(Shape("small", 40, vocab), rows, "cuda")
    hidden.requires_grad_()
    bias = torch.randn(vocab, device="cuda", dtype=hidden.dtype)
    out = linear_logprob(hidden, weight, target, bias=bias, softcap=30.0, return_stats=True)
    (out.logprobs.sum() + out.entropy.sum()).backward()
    given = decisions(out.logprobs.detach())
    ppo = ppo_head(hidden, weight, target, *given, entropy_coef=0.1, kl_coef=0.1, ref_logprobs=given.old_logprobs)
    ppo.loss.backward()
    cu_seqlens = offsets(rows, 4, "cuda")
    preference_head(hidden, weight, target, cu_seqlens, torch.zeros(4, device="cuda")).loss.backward()
    logits = [FactoredLogits(hidden, weight)] * 3
    ends = torch.arange(rows, device="cuda") % 3 == 0
    for granularity in ("token", "sentence", "response"):
        options = dict(beta_1=0.5, beta_2=0.1, granularity=granularity, sentence_ends=ends, shaping_only=True)
        rto_score(*logits, target, given.advantages, cu_seqlens, **options)
    torch.cuda.synchronize()
    print("all kernels ran")


if __name__ == "__main__":
    main()
