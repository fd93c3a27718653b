// What the loader asks before it takes a function: the interface's number, and the best level that this CPU runs.
#include "native.h"

VISIBLE int32_t rto_fast_interface() { return RTO_FAST_INTERFACE; }

// 0 plain, 1 avx2, 2 avx512
VISIBLE int32_t rto_fast_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw"))
    return 2;
  if (__builtin_cpu_supports("avx2")) return 1;
#endif
  return 0;
}
