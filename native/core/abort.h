#pragma once

// The flag by which the caller of an operation asks it to end: an int32 in memory of JavaScript,
// which writes it while threads of the pool read it. No other memory is handed over by it, so no
// order is asked for.

#include <cstdint>

namespace cluster_attention {

/// Whether the flag is raised; one that is null never is.
inline bool is_raised(const volatile int32_t* flag) {
#if defined(_MSC_VER)
  return flag != nullptr && *flag != 0;  // aligned and volatile: read at once
#else
  return flag != nullptr && __atomic_load_n(flag, __ATOMIC_RELAXED) != 0;
#endif
}

inline void raise_flag(volatile int32_t* flag) {
#if defined(_MSC_VER)
  *flag = 1;
#else
  __atomic_store_n(flag, 1, __ATOMIC_RELAXED);
#endif
}

}  // namespace cluster_attention
