#pragma once

// A clustered attention problem from a case of the table, with all outputs.

#include "native/reference/clustered_attention.h"
#include "test/native/attention_arrays.h"

namespace cluster_attention::test {

struct ClusteredFixture : AttentionArrays {
  ClusteredAttentionProblem problem;
  float* planes;
  int32_t* given_labels;

  /// top_k < 0: the k of the case. Given labels are random; a few are -1.
  ClusteredFixture(const Case& which, Grouping grouping, int64_t top_k = -1,
                   Fill fill = Fill::gaussian);

  int64_t sequences() const { return inputs.shape.batch * inputs.shape.heads; }
  std::vector<float> result() const { return read_output(output, inputs.shape); }
  /// The choices that the kernel made.
  reference::ClusteredChoices choices() const;
  std::vector<int32_t> counts() const;
};

/// The problem of one (batch, head), with outputs in the same places.
ClusteredAttentionProblem one_sequence(ClusteredAttentionProblem problem, int64_t sequence);

}  // namespace cluster_attention::test
