// preference_head's stage over pairs: the native twin of kernels/preference_head/kernel.py.
#include "native.h"

namespace {

INLINE float segment_sum(const float* x, int64_t begin, int64_t end) {
  double lane[4] = {0.0, 0.0, 0.0, 0.0};
  int64_t i = begin;
  for (; i + 4 <= end; i += 4)
    for (int k = 0; k < 4; ++k) lane[k] += x[i + k];
  for (; i < end; ++i) lane[0] += x[i];
  return (float)((lane[0] + lane[1]) + (lane[2] + lane[3]));
}

INLINE float log_sigmoid(float x) { return (x < 0.0f ? x : 0.0f) - log1pf(expf(-fabsf(x))); }

}  // namespace

// Sums (2B,), margins, losses and d loss / d margin (B,) of B pairs; pair_weights may be null.
EXPORT(pairs)(const float* rows, const int32_t* cu_seqlens, const float* ref_logprobs, const float* pair_weights,
              int64_t num_pairs, float beta, float smoothing, int32_t ipo, float* losses, float* sums, float* margins,
              float* d_margins) {
  for (int64_t i = 0; i < num_pairs; ++i) {
    const int64_t j = i + num_pairs;
    const float chosen = segment_sum(rows, cu_seqlens[i], cu_seqlens[i + 1]);
    const float rejected = segment_sum(rows, cu_seqlens[j], cu_seqlens[j + 1]);
    const float margin = beta * ((chosen - ref_logprobs[i]) - (rejected - ref_logprobs[j]));
    float loss, d_margin;
    if (ipo) {
      const float gap = margin / beta - 0.5f / beta;
      loss = gap * gap;
      d_margin = 2.0f * gap / beta;
    } else {
      loss = -(1.0f - smoothing) * log_sigmoid(margin) - smoothing * log_sigmoid(-margin);
      d_margin = smoothing - expf(log_sigmoid(-margin));
    }
    const float weight = pair_weights ? pair_weights[i] : 1.0f;
    sums[i] = chosen;
    sums[j] = rejected;
    margins[i] = margin;
    losses[i] = loss * weight;
    d_margins[i] = d_margin * weight;
  }
}
