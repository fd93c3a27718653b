// A row of logits: its transform, its online log-sum-exp and its gradient. Used by linear_logprob and ppo_head.
#pragma once
#include "native.h"

namespace {

// z = softcap(raw + bias) / temperature
struct Head {
  const float* bias;  // of the row's first column, or null
  float temperature;
  float softcap;  // 0: none

  bool trivial() const { return !bias && softcap == 0.0f && temperature == 1.0f; }
};

// n raw logits, the first of them in column `first` of the bias, become logits in place
INLINE void transform(float* z, int64_t n, int64_t first, const Head& head) {
  const vec cap = splat(head.softcap), inverse = splat(1.0f / head.temperature);
  const auto one = [&](vec x, vec bias) INLINED {
    x = x + bias;
    if (head.softcap != 0.0f) x = tanh(x / cap) * cap;
    return x * inverse;
  };
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES)
    store(z + i, one(load(z + i), head.bias ? load(head.bias + first + i) : splat(0.0f)));
  if (i < n) {
    const vec bias = head.bias ? load_tail(head.bias + first + i, n - i, 0.0f) : splat(0.0f);
    store_tail(z + i, n - i, one(load_tail(z + i, n - i, 0.0f), bias));
  }
}

// of the logits seen so far: m their maximum, s = sum exp(z - m), u = sum exp(z - m) (z - m)
struct State {
  float m, s, u;
};

// the lowest finite number stands for -inf, so that -inf columns alone leave no -inf - -inf behind
constexpr State EMPTY = {-3.40282346638528859812e38f, 0.0f, 0.0f};

template <bool ENTROPY>
INLINE void fold_block(State& state, const float* z, int64_t n) {
  const int64_t whole = n - n % LANES;
  vec top = splat(state.m), top2 = top;
  int64_t i = 0;
  for (; i + 2 * LANES <= whole; i += 2 * LANES) {
    top = max(top, load(z + i));
    top2 = max(top2, load(z + i + LANES));
  }
  if (i < whole) top = max(top, load(z + i));
  if (whole < n) top2 = max(top2, load_tail(z + whole, n - whole, -INFINITY));
  const float m = largest(max(top, top2));

  const vec shift = splat(m);
  vec s = splat(0.0f), u = splat(0.0f);
  const auto add = [&](vec x) INLINED {
    x = x - shift;
    const vec e = exp(x);
    s = s + e;
    if (ENTROPY) u = u + e * max(x, splat(NO_LOGIT));
  };
  for (i = 0; i < whole; i += LANES) add(load(z + i));
  if (whole < n) add(load_tail(z + whole, n - whole, -INFINITY));

  const float gap = state.m - m, decay = expf(gap);
  if (ENTROPY) state.u = (state.u + gap * state.s) * decay + total(u);
  state.s = state.s * decay + total(s);
  state.m = m;
}

// Folds n raw logits into the state; they are transformed in place.
template <bool ENTROPY>
INLINE void fold_row(State& state, float* z, int64_t n, const Head& head) {
  for (int64_t i = 0; i < n; i += BLOCK) {
    const int64_t size = n - i < BLOCK ? n - i : BLOCK;
    if (!head.trivial()) transform(z + i, size, i, head);
    fold_block<ENTROPY>(state, z + i, size);
  }
}

// what the gradient of a row is made of
struct Slopes {
  float logprob, m, log_s, d_logprob, entropy, d_entropy;
};

// n logits become the gradient of their raw logits in place:
//   d z_j = d_logprob ([j = y] - p_j) - d_entropy p_j (log p_j + entropy),  times the transform's slope
template <bool ENTROPY>
INLINE void gradient_block(float* z, int64_t n, const Slopes& g, const Head& head) {
  const vec m = splat(g.m), log_s = splat(g.log_s), rest = splat(-g.d_logprob), d_entropy = splat(g.d_entropy);
  const vec entropy = splat(g.entropy), inverse = splat(1.0f / head.temperature), floor = splat(NO_LOGIT);
  const vec to_tanh = splat(head.softcap != 0.0f ? head.temperature / head.softcap : 0.0f);
  const auto one = [&](vec z) INLINED {
    const vec x = (z - m) - log_s;
    vec factor = rest;
    if (ENTROPY) factor = factor - d_entropy * (max(x, floor) + entropy);
    vec slope = inverse;
    if (head.softcap != 0.0f) {
      const vec t = z * to_tanh;
      slope = slope * (splat(1.0f) - t * t);
    }
    return factor * exp(x) * slope;
  };
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) store(z + i, one(load(z + i)));
  if (i < n) store_tail(z + i, n - i, one(load_tail(z + i, n - i, 0.0f)));
}

// The same for a whole row whose target lies in `column` (outside of [0, n): in none). `raw` logits are transformed first.
INLINE void gradient_row(float* z, int64_t n, int64_t column, bool raw, bool entropy, const Slopes& g, const Head& head) {
  float target = 0.0f;
  for (int64_t i = 0; i < n; i += BLOCK) {
    const int64_t size = n - i < BLOCK ? n - i : BLOCK;
    if (raw && !head.trivial()) transform(z + i, size, i, head);
    if (column >= i && column < i + size) target = z[column];
    if (entropy)
      gradient_block<true>(z + i, size, g, head);
    else
      gradient_block<false>(z + i, size, g, head);
  }
  if (column < 0 || column >= n) return;
  // p - 1 as expm1(log p), which keeps its digits when p is almost 1
  float d = -g.d_logprob * expm1f(g.logprob);
  if (entropy) {
    const float logprob = g.logprob < NO_LOGIT ? NO_LOGIT : g.logprob;
    d -= g.d_entropy * expf(g.logprob) * (logprob + g.entropy);
  }
  const float t = head.softcap != 0.0f ? target * (head.temperature / head.softcap) : 0.0f;
  z[column] = d * ((1.0f - t * t) * (1.0f / head.temperature));
}

}  // namespace
