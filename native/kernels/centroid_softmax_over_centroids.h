#pragma once

// Centroid attention with the softmax over the centroids, for each input on its own (Wu, Liu and
// Liu 2021, equation 6): a_ji = w_i exp(tau q_j.k_i) / sum_j' exp(tau q_j'.k_i), output_j =
// sum_i a_ji v_i. One pass over the inputs, see assignment.h.

#include "native/kernels/assignment.h"
#include "native/kernels/centroid_sequence.h"

namespace cluster_attention::kernels {

class SoftmaxOverCentroids {
 public:
  /// Takes all the memory that run() needs. Both arguments must outlive this object.
  Status prepare(const CentroidAttentionProblem& problem, const ActiveInputs& active,
                 Context& context);
  /// May run any number of times on changing contents.
  Status run(Context& context);

 private:
  void pass(int64_t group, int64_t part, AssignmentTile& tile, Context& context);
  double assign_tile(int64_t sequence, int64_t first, int64_t columns, AssignmentTile& tile,
                     Context& context) const;
  double tile_objective(const CentroidSequence& sequence, int64_t first, int64_t columns,
                        const AssignmentTile& tile) const;
  void merge(int64_t sequence, int64_t first_centroid, Context& context) const;

  const CentroidAttentionProblem* problem_ = nullptr;
  const ActiveInputs* active_ = nullptr;
  int64_t parts_ = 0;       // of the longest sequence
  int64_t group_size_ = 1;  // sequences that share their inputs: the heads, or one
  bool with_masses_ = false;
  AssignmentTile* tiles_ = nullptr;  // (workers)
  AssignmentSumsArray sums_;         // (B*H*parts)
  double* objective_ = nullptr;      // (B*H*parts)
};

}  // namespace cluster_attention::kernels
