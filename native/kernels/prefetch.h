#pragma once

#include <cstdint>

namespace cluster_attention::kernels {

/// Asks the memory for a row that is read or written soon: for scattered rows of arrays larger than
/// the caches. Into the second-level cache, which takes twice as many lines at a time from the
/// memory (AMD Zen 4: 13 GB/s of scattered rows; into the first level 7.8, not asked 7.2). GCC
/// takes a function that does nothing but prefetch for one without effect and drops calls of it:
/// this one, and callers that do nothing else, must be inlined.
[[gnu::always_inline]] inline void prefetch_row(const float* row, int64_t size) {
#if defined(__GNUC__)
  constexpr int kSecondLevel = 2;
  for (int64_t i = 0; i < size; i += 16) __builtin_prefetch(row + i, 0, kSecondLevel);
#else
  static_cast<void>(row);
  static_cast<void>(size);
#endif
}

/// Reads a row for nothing but to have it in the cache: unlike a request, the loads cannot be
/// dropped and draw the hardware's own prefetching along.
inline void read_row(const float* row, int64_t size) {
  const volatile float* first = row;
  for (int64_t i = 0; i < size; i += 16) static_cast<void>(first[i]);
}

/// How many entries of a list of rows the memory is asked ahead.
constexpr int64_t kPrefetchRows = 8;

/// Asks for the row that a list of `count` entries names kPrefetchRows after entry t; -1 is none.
[[gnu::always_inline]] inline void prefetch_listed(const float* rows, int64_t row_stride,
                                                   int64_t dim, const int32_t* list, int64_t count,
                                                   int64_t t) {
  if (t + kPrefetchRows >= count || list[t + kPrefetchRows] < 0) return;
  prefetch_row(rows + list[t + kPrefetchRows] * row_stride, dim);
}

}  // namespace cluster_attention::kernels
