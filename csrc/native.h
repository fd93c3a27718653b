// Shared by every operator: vectors of 16 floats, exp, tanh, and how a function reaches Python.
//
// Each .cpp is compiled once per LEVEL (plain, avx2, avx512: see setup.py) and its functions carry the level in their
// names; library.cpp tells the loader which level this CPU runs. A vector has 16 lanes at every level and the compiler
// may not contract a product and a sum (-ffp-contract=off), so that all levels give the same bits. No value is assumed
// finite: a NaN stays a NaN, exp(-inf) is 0. Only C headers: an inline function of the C++ library, compiled for one
// level, could be the linker's choice for another.
#pragma once
#include <math.h>
#include <stdint.h>

// what Python and this library agree on; raise it with INTERFACE in kernels/common/native.py when a signature changes
#define RTO_FAST_INTERFACE 2

#define JOIN2(a, b) a##_##b
#define JOIN(a, b) JOIN2(a, b)
#define VISIBLE extern "C" __attribute__((visibility("default")))
#define EXPORT(name) VISIBLE void JOIN(name, LEVEL)
#define INLINE static inline __attribute__((always_inline))
// after a lambda's arguments; a call would pass vectors through memory
#define INLINED __attribute__((always_inline))

#if defined(__AVX512F__)
#define WIDTH 16
#elif defined(__AVX2__)
#define WIDTH 8
#else
#define WIDTH 4
#endif

namespace {

constexpr int LANES = 16;
constexpr int PARTS = LANES / WIDTH;
// columns that stay in the first-level cache from one pass over them to the next
constexpr int64_t BLOCK = 2048;
// elements below which waking a second thread costs more than it brings
constexpr int64_t GRAIN = 32768;
// exp(-1e4) is 0, and 0 * -1e4 is 0 where 0 * -inf would be NaN
constexpr float NO_LOGIT = -1e4f;

typedef float part __attribute__((vector_size(4 * WIDTH)));
// the same anywhere in memory
typedef float loose __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t bits __attribute__((vector_size(4 * WIDTH)));

struct vec {
  part p[PARTS];
};

#define EACH for (int k = 0; k < PARTS; ++k)

INLINE vec splat(float x) {
  vec v;
  EACH v.p[k] = x - part{};
  return v;
}
INLINE vec load(const float* x) {
  vec v;
  EACH v.p[k] = *(const loose*)(x + k * WIDTH);
  return v;
}
INLINE void store(float* x, vec v) { EACH *(loose*)(x + k * WIDTH) = v.p[k]; }

// the last n < LANES numbers of a row, `rest` in the other lanes
INLINE vec load_tail(const float* x, int64_t n, float rest) {
  float lane[LANES];
  for (int i = 0; i < LANES; ++i) lane[i] = i < n ? x[i] : rest;
  return load(lane);
}
INLINE void store_tail(float* x, int64_t n, vec v) {
  float lane[LANES];
  store(lane, v);
  for (int i = 0; i < n; ++i) x[i] = lane[i];
}

INLINE vec operator+(vec a, vec b) { EACH a.p[k] += b.p[k]; return a; }
INLINE vec operator-(vec a, vec b) { EACH a.p[k] -= b.p[k]; return a; }
INLINE vec operator*(vec a, vec b) { EACH a.p[k] *= b.p[k]; return a; }
INLINE vec operator/(vec a, vec b) { EACH a.p[k] /= b.p[k]; return a; }
// the first argument where neither is larger, and so where it is NaN
INLINE vec max(vec a, vec b) { EACH a.p[k] = a.p[k] < b.p[k] ? b.p[k] : a.p[k]; return a; }

// sums in one order at every level
INLINE float total(vec v) {
  float lane[LANES];
  store(lane, v);
  for (int w = LANES / 2; w; w /= 2)
    for (int i = 0; i < w; ++i) lane[i] += lane[i + w];
  return lane[0];
}
INLINE float largest(vec v) {
  float lane[LANES];
  store(lane, v);
  for (int i = 1; i < LANES; ++i) lane[0] = lane[0] < lane[i] ? lane[i] : lane[0];
  return lane[0];
}

// exp(x) = 2^n exp(r), |r| <= ln(2) / 2, for x <= 88: returns exp(r) - 1 and 2^n. Taylor to r^7 is off by 5e-9.
INLINE void exp_parts(part x, part& q, part& scale) {
  // adding 1.5 * 2^23 rounds to an integer, which is left in the low bits
  const part shifted = x * 1.44269504088896341f + 12582912.0f;
  const part n = shifted - 12582912.0f;
  // ln 2 in two parts: n times the first is exact
  const part r = (x - n * 0.693359375f) - n * -2.12194440054690583e-4f;
  part p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  q = p * (r * r) + r;
  scale = (part)(((bits)shifted << 23) + 0x3f800000);
}

// exp(x) for x <= 88; 0 below the normal numbers
INLINE vec exp(vec x) {
  EACH {
    part q, scale;
    exp_parts(x.p[k], q, scale);
    x.p[k] = x.p[k] < -87.33654f ? part{} : (q + 1.0f) * scale;
  }
  return x;
}

// tanh(x) from exp(-2|x|) - 1, which keeps its digits where x is small
INLINE vec tanh(vec x) {
  EACH {
    const part a = x.p[k] < 0.0f ? x.p[k] : -x.p[k];
    // beyond 10 tanh is 1 to the last digit
    const part y = a < -10.0f ? a * 0.0f - 20.0f : a + a;
    part q, scale;
    exp_parts(y, q, scale);
    const part e = q * scale + (scale - 1.0f);
    const part t = -e / (e + 2.0f);
    x.p[k] = x.p[k] < 0.0f ? -t : t;
  }
  return x;
}

#undef EACH

}  // namespace
