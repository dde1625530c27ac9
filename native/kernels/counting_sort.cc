#include "native/kernels/counting_sort.h"

#include <algorithm>

namespace cluster_attention::kernels {

template <typename Position>
Status sort_by_label(const int32_t* labels, int64_t length, int64_t clusters, const char* argument,
                     int64_t base_index, Position* offsets, Position* order) {
  std::fill(offsets, offsets + clusters + 1, Position{0});
  for (int64_t i = 0; i < length; ++i) {
    const int32_t label = labels[i];
    if (label < -1 || label >= clusters) {
      return {StatusCode::out_of_range, argument, base_index + i};
    }
    if (label >= 0) ++offsets[label];
  }
  Position start = 0;
  for (int64_t c = 0; c < clusters; ++c) {
    const Position count = offsets[c];
    offsets[c] = start;
    start += count;
  }
  for (int64_t i = 0; i < length; ++i) {
    if (labels[i] >= 0) order[offsets[labels[i]]++] = static_cast<Position>(i);
  }
  // Each entry has moved to the end of its cluster, which is where the next one starts.
  std::copy_backward(offsets, offsets + clusters, offsets + clusters + 1);
  offsets[0] = 0;
  return Status::success();
}

template Status sort_by_label(const int32_t*, int64_t, int64_t, const char*, int64_t, int32_t*,
                              int32_t*);
template Status sort_by_label(const int32_t*, int64_t, int64_t, const char*, int64_t, int64_t*,
                              int64_t*);

}  // namespace cluster_attention::kernels
