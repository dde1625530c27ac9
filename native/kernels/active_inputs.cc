#include "native/kernels/active_inputs.h"

#include "native/core/tensor.h"

namespace cluster_attention::kernels {

Status ActiveInputs::find(int64_t batch, int64_t length, const int32_t* lengths,
                          const float* weights, Context& context) {
  length_ = length;
  weights_ = weights;
  lengths_ = context.workspace().allocate<int64_t>(batch);
  counts_ = context.workspace().allocate<int64_t>(batch);
  if (lengths_ == nullptr || counts_ == nullptr) return Status::out_of_memory();
  for (int64_t b = 0; b < batch; ++b) counts_[b] = lengths_[b] = real_length(lengths, b, length);
  if (weights == nullptr) return Status::success();

  index_ = context.workspace().allocate<int32_t>(batch * length);
  active_weights_ = context.workspace().allocate<float>(batch * length);
  if (index_ == nullptr || active_weights_ == nullptr) return Status::out_of_memory();
  return context.parallel(batch, [this](int64_t b, int) { compact(b); });
}

void ActiveInputs::compact(int64_t batch) {
  const float* weights = weights_ + batch * length_;
  int32_t* index = index_ + batch * length_;
  float* active_weights = active_weights_ + batch * length_;
  int64_t count = 0;
  for (int64_t i = 0; i < lengths_[batch]; ++i) {
    index[count] = static_cast<int32_t>(i);
    active_weights[count] = weights[i];
    count += weights[i] != 0.0f ? 1 : 0;
  }
  counts_[batch] = count;
}

}  // namespace cluster_attention::kernels
