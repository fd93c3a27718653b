// ppo_head's work on a chunk of whole rows of logits: the native twin of kernels/ppo_head/rows.py and surrogate.py.
#include "rows.h"

namespace {

enum Kl { NONE, K1, K2, K3 };

}  // namespace

// z [c, n] raw logits become d loss / d raw logits where `gradient` is set, and are lost where it is not.
// entropies are null where nobody asks for them; clip_high and clip_low bound the ratio. d_logprobs is d loss / d
// logprob: where it is 0 and nothing else has a gradient, the row's are all 0, and none are written.
EXPORT(ppo_rows)(float* z, int64_t c, int64_t n, const float* bias, float temperature, float softcap,
                 const int64_t* target, const float* old_logprobs, const float* advantages, const float* weights,
                 const float* ref_logprobs, float clip_low, float clip_high, float entropy_coef, float kl_coef,
                 int32_t kl_kind, int32_t gradient, float* losses, float* logprobs, float* entropies,
                 float* d_logprobs, int32_t threads) {
  const Head head = {bias, temperature, softcap};
#pragma omp parallel for schedule(static) num_threads(threads) if (c * n > GRAIN)
  for (int64_t t = 0; t < c; ++t) {
    float* row = z + t * n;
    State state = EMPTY;
    if (entropies)
      fold_row<true>(state, row, n, head);
    else
      fold_row<false>(state, row, n, head);
    const float log_s = logf(state.s);
    const float logprob = (row[target[t]] - state.m) - log_s;
    const float entropy = entropies ? log_s - state.u / state.s : 0.0f;

    const float weight = weights[t], advantage = advantages[t];
    const float ratio = expf(logprob - old_logprobs[t]);
    const float bounded = ratio < clip_low ? clip_low : ratio > clip_high ? clip_high : ratio;
    const float free = -advantage * ratio, clipped = -advantage * bounded;
    // the clipped side is constant where it is the larger one; inside the clip range both are the same; NaN stays NaN
    const bool outside = free < clipped;
    float loss = outside ? clipped : free, d_logprob = outside ? 0.0f : free;
    if (kl_kind != NONE) {
      const float d = logprob - ref_logprobs[t];
      float kl = d, d_kl = 1.0f;
      if (kl_kind == K2) {
        kl = 0.5f * d * d;
        d_kl = d;
      } else if (kl_kind == K3) {
        // expm1 keeps the digits of a policy that is still close to the reference
        const float e = expm1f(-d);
        kl = e + d;
        d_kl = -e;
      }
      loss += kl_coef * kl;
      d_logprob += kl_coef * d_kl;
    }
    if (entropy_coef != 0.0f) loss -= entropy_coef * entropy;
    // a row of weight 0 adds nothing, whatever its numbers are
    losses[t] = weight != 0.0f ? weight * loss : 0.0f;
    logprobs[t] = logprob;
    if (entropies) entropies[t] = entropy;
    d_logprobs[t] = weight != 0.0f ? weight * d_logprob : 0.0f;
    if (!gradient || (d_logprobs[t] == 0.0f && entropy_coef == 0.0f)) continue;
    const Slopes slopes = {logprob, state.m, log_s, d_logprobs[t], entropy, -entropy_coef * weight};
    gradient_row(row, n, target[t], false, entropy_coef != 0.0f, slopes, head);
  }
}
