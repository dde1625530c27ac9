#include "native/kernels/counting_sort.h"

#include <algorithm>

namespace cluster_attention::kernels {

Status sort_by_label(const int32_t* labels, int64_t length, int64_t clusters, const char* argument,
                     int64_t base_index, int32_t* offsets, int32_t* order) {
  std::fill(offsets, offsets + clusters + 1, 0);
  for (int64_t i = 0; i < length; ++i) {
    const int32_t label = labels[i];
    if (label < -1 || label >= clusters) {
      return {StatusCode::out_of_range, argument, base_index + i};
    }
    if (label >= 0) ++offsets[label];
  }
  int32_t start = 0;
  for (int64_t c = 0; c < clusters; ++c) {
    const int32_t count = offsets[c];
    offsets[c] = start;
    start += count;
  }
  for (int64_t i = 0; i < length; ++i) {
    if (labels[i] >= 0) order[offsets[labels[i]]++] = static_cast<int32_t>(i);
  }
  // Each entry has moved to the end of its cluster, which is where the next one starts.
  std::copy_backward(offsets, offsets + clusters, offsets + clusters + 1);
  offsets[0] = 0;
  return Status::success();
}

}  // namespace cluster_attention::kernels
