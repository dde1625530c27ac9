#pragma once

#include <cstdint>

#include "native/core/context.h"

namespace cluster_attention::kernels {

/// The inputs of each batch entry that take part in centroid attention: the real ones whose weight
/// is not 0. The others are never read, so kernels see only positions from here.
class ActiveInputs {
 public:
  /// lengths (batch) and weights (batch,length) may be null: all real, all 1. `relative`: a common
  /// factor of the weights of a batch entry makes no difference, so that those of extreme size are
  /// brought near 1 by scale(): their products with exponentials and values stay in float32.
  Status find(int64_t batch, int64_t length, const int32_t* lengths, const float* weights,
              bool relative, Context& context);

  int64_t count(int64_t batch) const { return counts_[batch]; }
  /// Positions of the active inputs, ascending; null: the first count(batch).
  const int32_t* index(int64_t batch) const {
    return counts_[batch] == lengths_[batch] ? nullptr : index_ + batch * length_;
  }
  /// Weights of the active inputs, in the order of index(); null: all 1.
  const float* weights(int64_t batch) const {
    if (weights_ == nullptr) return nullptr;
    const bool as_given = counts_[batch] == lengths_[batch] && scales_[batch] == 1.0f;
    return (as_given ? weights_ : active_weights_) + batch * length_;
  }
  /// The power of two by which weights() and weight() are multiplied; 1 unless they are extreme.
  float scale(int64_t batch) const { return weights_ != nullptr ? scales_[batch] : 1.0f; }

  bool contains(int64_t batch, int64_t position) const {
    return position < lengths_[batch] &&
           (weights_ == nullptr || weights_[batch * length_ + position] != 0.0f);
  }
  /// Weight of the input at `position`.
  float weight(int64_t batch, int64_t position) const {
    return weights_ != nullptr ? weights_[batch * length_ + position] * scales_[batch] : 1.0f;
  }

 private:
  void compact(int64_t batch, bool relative);

  int64_t length_ = 0;
  const float* weights_ = nullptr;   // (batch,length)
  int64_t* lengths_ = nullptr;       // (batch), real inputs
  int64_t* counts_ = nullptr;        // (batch), active inputs
  int32_t* index_ = nullptr;         // (batch,length), filled where some real input is not active
  float* active_weights_ = nullptr;  // (batch,length), likewise, and where there is a scale
  float* scales_ = nullptr;          // (batch)
};

}  // namespace cluster_attention::kernels
