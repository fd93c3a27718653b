"""Watching credit: which tokens a DPO model rewards, whether those are the right ones, and what DPO does to answers.

`evaluate.token_rewards` gives every token its reward, `swaps` measures it on answers with known wrong tokens,
`likelihood` follows implicit rewards and likelihoods while DPO trains. `python -m rto_fast.credit` shows the first two,
`python -m rto_fast.credit.likelihood` the third.
"""
