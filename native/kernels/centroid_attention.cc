#include "native/kernels/centroid_attention.h"

#include <algorithm>

namespace cluster_attention::kernels {

Status centroid_attention(const CentroidAttentionProblem& problem, Context& context) {
  CentroidAttention attention;
  CA_RETURN_IF_ERROR(attention.prepare(problem, context));
  return attention.run(context);
}

Status CentroidAttention::prepare(const CentroidAttentionProblem& problem, Context& context) {
  problem_ = &problem;
  const AttentionShape& shape = problem.inputs.shape;
  CA_RETURN_IF_ERROR(active_.find(shape.batch, shape.key_length, problem.inputs.key_lengths,
                                  problem.weights, problem.normalize == Normalize::inputs,
                                  context));
  if (problem.neighbors != nullptr) return over_neighbors_.prepare(problem, active_, context);
  if (problem.normalize == Normalize::inputs) {
    return over_inputs_.prepare(problem, active_, context);
  }
  return over_centroids_.prepare(problem, active_, context);
}

Status CentroidAttention::run(Context& context) {
  if (problem_->labels != nullptr) {
    // Only inputs that some centroid may take get another label.
    const AttentionShape& shape = problem_->inputs.shape;
    CA_RETURN_IF_ERROR(context.parallel(shape.batch * shape.heads, [&](int64_t sequence, int) {
      int32_t* labels = problem_->labels + sequence * shape.key_length;
      std::fill(labels, labels + shape.key_length, -1);
    }));
  }
  if (problem_->neighbors != nullptr) return over_neighbors_.run(context);
  if (problem_->normalize == Normalize::inputs) return over_inputs_.run(context);
  return over_centroids_.run(context);
}

}  // namespace cluster_attention::kernels
