#include "native/kernels/active_inputs.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "native/core/tensor.h"

namespace cluster_attention::kernels {

namespace {

/// 1 while the largest weight leaves room for its products on both sides, else what makes it 1 (or
/// as much of that as float32 can hold); 1 also where that would take the smallest near 0, as some
/// list of neighbors may hold no other.
float scale_for(float smallest, float largest) {
  const bool extreme = largest > 0.0f && (largest < 0x1p-64f || largest > 0x1p64f);
  if (!extreme || std::isinf(largest)) return 1.0f;
  const float scale = std::ldexp(1.0f, std::clamp(-std::ilogb(largest), -126, 126));
  return smallest * scale < 0x1p-64f ? 1.0f : scale;
}

}  // namespace

Status ActiveInputs::find(int64_t batch, int64_t length, const int32_t* lengths,
                          const float* weights, bool relative, Context& context) {
  length_ = length;
  weights_ = weights;
  lengths_ = context.workspace().allocate<int64_t>(batch);
  counts_ = context.workspace().allocate<int64_t>(batch);
  if (lengths_ == nullptr || counts_ == nullptr) return Status::out_of_memory();
  for (int64_t b = 0; b < batch; ++b) counts_[b] = lengths_[b] = real_length(lengths, b, length);
  if (weights == nullptr) return Status::success();

  index_ = context.workspace().allocate<int32_t>(batch * length);
  active_weights_ = context.workspace().allocate<float>(batch * length);
  scales_ = context.workspace().allocate<float>(batch);
  if (index_ == nullptr || active_weights_ == nullptr || scales_ == nullptr) {
    return Status::out_of_memory();
  }
  return context.parallel(batch, [this, relative](int64_t b, int) { compact(b, relative); });
}

void ActiveInputs::compact(int64_t batch, bool relative) {
  const float* weights = weights_ + batch * length_;
  int32_t* index = index_ + batch * length_;
  float* active_weights = active_weights_ + batch * length_;
  int64_t count = 0;
  float smallest = std::numeric_limits<float>::infinity();
  float largest = 0.0f;
  for (int64_t i = 0; i < lengths_[batch]; ++i) {
    index[count] = static_cast<int32_t>(i);
    active_weights[count] = weights[i];
    count += weights[i] != 0.0f ? 1 : 0;
    if (weights[i] > 0.0f) smallest = std::min(smallest, weights[i]);
    largest = std::max(largest, weights[i]);
  }
  counts_[batch] = count;
  scales_[batch] = relative ? scale_for(smallest, largest) : 1.0f;
  if (scales_[batch] == 1.0f) return;
  for (int64_t i = 0; i < count; ++i) active_weights[i] *= scales_[batch];
}

}  // namespace cluster_attention::kernels
