#pragma once

#include <cstdint>

#include "native/core/context.h"

namespace cluster_attention::kernels {

/// The inputs of each batch entry that take part in centroid attention: the real ones whose weight
/// is not 0. The others are never read, so kernels see only positions from here.
class ActiveInputs {
 public:
  /// lengths (batch) and weights (batch,length) may be null: all real, all 1.
  Status find(int64_t batch, int64_t length, const int32_t* lengths, const float* weights,
              Context& context);

  int64_t count(int64_t batch) const { return counts_[batch]; }
  /// Positions of the active inputs, ascending; null: the first count(batch).
  const int32_t* index(int64_t batch) const {
    return counts_[batch] == lengths_[batch] ? nullptr : index_ + batch * length_;
  }
  /// Weights of the active inputs, in the order of index(); null: all 1.
  const float* weights(int64_t batch) const {
    if (weights_ == nullptr) return nullptr;
    const float* all = counts_[batch] == lengths_[batch] ? weights_ : active_weights_;
    return all + batch * length_;
  }

  bool contains(int64_t batch, int64_t position) const {
    return position < lengths_[batch] && weight(batch, position) != 0.0f;
  }
  /// Weight of the input at `position`.
  float weight(int64_t batch, int64_t position) const {
    return weights_ != nullptr ? weights_[batch * length_ + position] : 1.0f;
  }

 private:
  void compact(int64_t batch);

  int64_t length_ = 0;
  const float* weights_ = nullptr;   // (batch,length)
  int64_t* lengths_ = nullptr;       // (batch), real inputs
  int64_t* counts_ = nullptr;        // (batch), active inputs
  int32_t* index_ = nullptr;         // (batch,length), filled where some real input is not active
  float* active_weights_ = nullptr;  // (batch,length), likewise
};

}  // namespace cluster_attention::kernels
