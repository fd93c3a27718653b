// linear_logprob's work on a tile of logits between its GEMMs: the native twin of kernels/common/rows.py.
//
// A tile z is [c, n] float32 with contiguous rows, `first` the vocabulary column it starts at; it is consumed. A row is
// one thread's alone and summed in one order: results depend neither on the number of threads nor on other rows.
#include "rows.h"

// Folds a tile into the state of its rows: m, s, zy (the target's logit) and u, which may be null.
EXPORT(fold)(float* z, int64_t c, int64_t n, const float* bias, float temperature, float softcap,
             const int64_t* target, int64_t first, float* m, float* s, float* zy, float* u, int32_t threads) {
  const Head head = {bias, temperature, softcap};
#pragma omp parallel for schedule(static) num_threads(threads) if (c * n > GRAIN)
  for (int64_t t = 0; t < c; ++t) {
    float* row = z + t * n;
    State state = {m[t], s[t], u ? u[t] : 0.0f};
    if (u)
      fold_row<true>(state, row, n, head);
    else
      fold_row<false>(state, row, n, head);
    m[t] = state.m;
    s[t] = state.s;
    if (u) u[t] = state.u;
    const int64_t column = target[t] - first;
    if (column >= 0 && column < n) zy[t] = row[column];
  }
}

// Log-probs, log s and entropies (null: none) of T rows whose tiles are all folded.
EXPORT(finish)(int64_t T, const float* m, const float* s, const float* zy, const float* u, float* logprobs, float* log_s,
               float* entropies) {
  for (int64_t t = 0; t < T; ++t) {
    log_s[t] = logf(s[t]);
    logprobs[t] = (zy[t] - m[t]) - log_s[t];
    if (entropies) entropies[t] = log_s[t] - u[t] / s[t];
  }
}

// Turns a tile of raw logits into its gradient; entropy and d_entropy are null where the entropy has none.
EXPORT(d_logits)(float* z, int64_t c, int64_t n, const float* bias, float temperature, float softcap,
                 const int64_t* target, int64_t first, const float* logprob, const float* m, const float* log_s,
                 const float* d_logprob, const float* entropy, const float* d_entropy, int32_t threads) {
  const Head head = {bias, temperature, softcap};
#pragma omp parallel for schedule(static) num_threads(threads) if (c * n > GRAIN)
  for (int64_t t = 0; t < c; ++t) {
    const bool with_entropy = d_entropy != nullptr;
    const Slopes slopes = {logprob[t],   m[t], log_s[t], d_logprob[t], with_entropy ? entropy[t] : 0.0f,
                           with_entropy ? d_entropy[t] : 0.0f};
    gradient_row(z + t * n, n, target[t] - first, true, with_entropy, slopes, head);
  }
}
