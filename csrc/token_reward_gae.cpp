// token_reward_gae: the native twin of kernels/token_reward_gae/reference.py, which says what is computed.
//
// A sequence is one thread's alone and every sum runs in an order that its own rows fix, so that neighbours in the pack
// and the number of threads change no bit of it.
#include "native.h"

namespace {

enum Granularity { TOKEN, SENTENCE, RESPONSE };

struct Rows {
  const float *old, *ref, *dpo, *values;  // dpo: null without a dense reward
  const uint8_t* sentence_ends;
  float *rewards, *advantages, *returns;
};

struct Numbers {
  float beta_1, beta_2, clip, gamma, decay;
  int32_t granularity, shaping_only;
};

// clamps that a NaN gets through
INLINE float clamp(float x, float bound) { return x < -bound ? -bound : x > bound ? bound : x; }

// Sums of f(i) over 0 <= i < n, in eight lanes that are added in the end.
template <class F>
INLINE double lane_sum(int64_t n, F f) {
  double lane[8] = {0.0};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int k = 0; k < 8; ++k) lane[k] += f(i + k);
  for (int k = 0; i < n; ++i, ++k) lane[k] += f(i);
  return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

// The dense rewards of n rows, each where it is paid.
INLINE void pay(const Rows& r, int64_t n, const Numbers& x) {
  const float *__restrict dpo = r.dpo, *__restrict ref = r.ref;
  float* __restrict rewards = r.rewards;
  const bool spread = dpo && !(x.shaping_only && x.granularity == RESPONSE);
  if (!spread) {
    for (int64_t t = 0; t < n; ++t) rewards[t] = 0.0f;
    return;
  }
  for (int64_t t = 0; t < n; ++t) rewards[t] = clamp(x.beta_1 * (dpo[t] - ref[t]), x.clip);
  if (x.granularity != TOKEN) {
    double unpaid = 0.0;
    for (int64_t t = 0; t < n; ++t) {
      unpaid += rewards[t];
      const bool due = t == n - 1 || (x.granularity == SENTENCE && r.sentence_ends[t]);
      rewards[t] = due ? (float)unpaid : 0.0f;
      if (due) unpaid = 0.0;
    }
  }
  if (x.shaping_only) rewards[n - 1] = (float)-lane_sum(n - 1, [&](int64_t t) INLINED { return (double)rewards[t]; });
}

// Rewards, advantages and returns of one sequence of n > 0 rows.
INLINE void one_sequence(const Rows& r, int64_t n, const Numbers& x, float score, bool scored, float terminal) {
  pay(r, n, x);
  const float *__restrict old = r.old, *__restrict ref = r.ref, *__restrict values = r.values;
  float *__restrict rewards = r.rewards, *__restrict advantages = r.advantages, *__restrict returns = r.returns;
  if (x.beta_2 != 0.0f)
    for (int64_t t = 0; t < n; ++t) rewards[t] -= x.beta_2 * (old[t] - ref[t]);
  if (scored) rewards[n - 1] += score;
  rewards[n - 1] += terminal;

  for (int64_t t = 0; t < n - 1; ++t) advantages[t] = (rewards[t] + x.gamma * values[t + 1]) - values[t];
  advantages[n - 1] = rewards[n - 1] - values[n - 1];
  float carry = 0.0f;
  for (int64_t t = n - 1; t >= 0; --t) advantages[t] = carry = advantages[t] + x.decay * carry;
  for (int64_t t = 0; t < n; ++t) returns[t] = advantages[t] + values[t];
}

}  // namespace

// scores, terminal, counted (S,) and sentence_ends (R,) may be null; booleans are bytes. moments is (S, 3).
EXPORT(token_reward_gae)(const float* old_logprobs, const float* ref_logprobs, const float* dpo_logprobs,
                         const float* values, const int32_t* cu_seqlens, int64_t num_sequences, const float* scores,
                         const float* terminal, const uint8_t* sentence_ends, const uint8_t* counted, float beta_1,
                         float beta_2, float clip, float beta_3, float score_clip, float gamma, float decay,
                         int32_t granularity, int32_t shaping_only, float* rewards, float* advantages, float* returns,
                         float* moments, int32_t threads) {
  const Numbers numbers = {beta_1, beta_2, clip, gamma, decay, granularity, shaping_only};
  // a row costs as much as a few dozen elements of a tile of logits
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) if (cu_seqlens[num_sequences] > GRAIN / 8)
  for (int64_t s = 0; s < num_sequences; ++s) {
    const int64_t begin = cu_seqlens[s], n = cu_seqlens[s + 1] - begin;
    float* moment = moments + 3 * s;
    moment[0] = moment[1] = moment[2] = 0.0f;
    if (n == 0) continue;
    const Rows rows = {old_logprobs + begin,
                       ref_logprobs + begin,
                       dpo_logprobs ? dpo_logprobs + begin : nullptr,
                       values + begin,
                       sentence_ends ? sentence_ends + begin : nullptr,
                       rewards + begin,
                       advantages + begin,
                       returns + begin};
    const float score = scores ? beta_3 * clamp(scores[s], score_clip) : 0.0f;
    one_sequence(rows, n, numbers, score, scores != nullptr, terminal ? terminal[s] : 0.0f);
    if (counted && !counted[s]) continue;
    const float* own = rows.advantages;
    const double mean = lane_sum(n, [&](int64_t t) INLINED { return (double)own[t]; }) / (double)n;
    moment[0] = (float)n;
    moment[1] = (float)mean;
    moment[2] = (float)lane_sum(n, [&](int64_t t) INLINED { return (own[t] - mean) * (own[t] - mean); });
  }
}
