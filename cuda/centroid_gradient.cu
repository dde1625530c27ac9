#include <cmath>

#include "cuda/assignment.h"
#include "cuda/centroid_gradient.cuh"
#include "cuda/centroid_gradient.h"
#include "cuda/centroid_gradient_passes.h"
#include "cuda/centroid_gradient_sums.cuh"
#include "cuda/centroid_neighbor_gradient.h"
#include "cuda/launch.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

namespace {

template <bool kSplit>
Status launch_passes(Session& session, CentroidGradientParams params) {
  const AssignmentParams& assignment = params.assignment;
  const int64_t wider =
      assignment.dim > assignment.value_dim ? assignment.dim : assignment.value_dim;
  params.row_tiles =
      resident_tiles(session, wider, [](int tiles) { return pair_layout<kSplit>(tiles).bytes; });
  if (pair_layout<kSplit>(params.row_tiles).bytes > session.shared_bytes()) params.row_tiles = 0;
  const int64_t bytes = pair_layout<kSplit>(params.row_tiles).bytes;
  const int64_t tiles = tiles_of(assignment.inputs);
  const bool inputs_wanted =
      params.key.wanted() || params.value.wanted() || params.weight_terms != nullptr;
  // Heads in one block find their statistics only where these are a single tile's.
  params.all_statistics = !inputs_wanted;
  if (!params.over_inputs && (assignment.centroids > kTile || params.all_statistics)) {
    // grid: tiles of inputs x sequences
    CA_RETURN_IF_ERROR(launch(session, assignment.sequences * tiles, kTileThreads, bytes,
                              input_statistics<kSplit>, params));
  }
  if (inputs_wanted) {
    // grid: 64 columns of the gradients x tiles of inputs x sequences (batch entries)
    const int64_t blocks = assignment.sequences / params.group * tiles * launched_chunks(params);
    CA_RETURN_IF_ERROR(launch(session, blocks, kTileThreads, bytes, input_pass<kSplit>, params));
  }
  if (!params.with_query) return Status::success();
  // grid: 128 columns of dq x tiles of centroids x parts of the inputs x sequences
  const int64_t blocks = assignment.sequences * value_blocks_of(assignment.dim) *
                         assignment_blocks(assignment.inputs, assignment.centroids);
  return launch(session, blocks, kTileThreads, bytes, centroid_pass<kSplit>, params);
}

OutputTermsParams terms_of(Session& session, const CentroidAttentionGradientProblem& problem,
                           const CentroidGradientOperands& operands) {
  const CentroidAttentionProblem& forward = problem.forward;
  const AttentionInputs& inputs = forward.inputs;
  OutputTermsParams params;
  params.output = tensor_of({forward.output.data, forward.output.batch_stride,
                             forward.output.head_stride, forward.output.row_stride},
                            operands.output);
  params.masses = forward.masses;
  params.mean = forward.aggregate == Collect::mean;
  CentroidGradientParams& gradient = params.gradient;
  gradient.assignment = assignment_params(session, forward, operands);
  gradient.assignment.labels = nullptr;  // they are the forward's results
  gradient.output_gradient = tensor_of(problem.output_gradient, operands.output);
  // Products round the rows of g; its own product with the output must see the same.
  gradient.output_gradient.round = !operands.split;
  gradient.over_inputs = forward.normalize == Normalize::inputs;
  gradient.scale = inputs.scale;
  const bool shared = inputs.key.head_stride == 0 && inputs.value.head_stride == 0;
  gradient.group = shared && inputs.shape.heads > 1 ? inputs.shape.heads : 1;
  gradient.logsumexp = forward.logsumexp;
  gradient.query = {problem.gradients.query, operands.gradients};
  gradient.key = {problem.gradients.key, operands.gradients};
  gradient.value = {problem.gradients.value, operands.gradients};
  gradient.with_query = gradient.query.wanted();
  gradient.with_changes =
      gradient.with_query || gradient.key.wanted() || problem.weights != nullptr;
  gradient.accumulate = operands.accumulate;
  return params;
}

}  // namespace

Status allocate_centroid_gradient(DeviceWorkspace::Scope& scope, CentroidGradientParams& params) {
  AssignmentParams& assignment = params.assignment;
  const int64_t rows = checked_size(assignment.sequences, assignment.centroids);
  const int64_t places =
      params.over_inputs ? 0 : checked_size(assignment.sequences, assignment.inputs);
  const int64_t sums =
      params.with_query ? checked_size(assignment.sequences, assignment.sum_rows) : 0;
  CA_RETURN_IF_ERROR(scope.allocate(&params.output_factor, rows));
  CA_RETURN_IF_ERROR(scope.allocate(&params.output_offset, rows));
  CA_RETURN_IF_ERROR(scope.allocate(&assignment.maximum, places));
  CA_RETURN_IF_ERROR(scope.allocate(&assignment.factor, places));
  CA_RETURN_IF_ERROR(scope.allocate(&params.total, places));
  if (assignment.sums != nullptr) return Status::success();
  return scope.allocate(&assignment.sums, checked_size(sums, assignment.dim));
}

Status launch_output_terms(Session& session, const OutputTermsParams& params) {
  // grid: one warp per centroid
  const AssignmentParams& assignment = params.gradient.assignment;
  return launch(session,
                divide_up(assignment.sequences * assignment.centroids, kCentroidGradientWarps),
                kCentroidGradientThreads, 0, find_output_terms, params);
}

Status launch_centroid_gradient(Session& session, const OutputTermsParams& params, bool split) {
  CA_RETURN_IF_ERROR(launch_output_terms(session, params));
  return split ? launch_passes<true>(session, params.gradient)
               : launch_passes<false>(session, params.gradient);
}

Status centroid_attention_gradient(Session& session,
                                   const CentroidAttentionGradientProblem& problem,
                                   const CentroidGradientOperands& operands) {
  OutputTermsParams params = terms_of(session, problem, operands);
  CentroidGradientParams& gradient = params.gradient;
  if (!gradient.with_changes && !gradient.value.wanted()) return Status::success();
  if (problem.forward.neighbors != nullptr) {
    // Gathered rows pass no tile that would round them.
    AssignmentParams& rows = gradient.assignment;
    rows.query.round = !operands.split;
    rows.key.round = rows.value.round = operands.round_inputs || !operands.split;
    return centroid_neighbor_gradient(session, problem, params);
  }
  const AssignmentParams& assignment = gradient.assignment;
  DeviceWorkspace::Scope scope(session.workspace());
  CA_RETURN_IF_ERROR(allocate_centroid_gradient(scope, gradient));
  if (problem.weights != nullptr) {
    CA_RETURN_IF_ERROR(scope.allocate(&gradient.weight_terms,
                                      checked_size(assignment.sequences, assignment.inputs)));
  }
  CA_RETURN_IF_ERROR(launch_centroid_gradient(session, params, operands.split));
  if (gradient.query.wanted()) {
    // grid: one thread per element
    const int64_t elements = assignment.sequences * assignment.centroids * assignment.dim;
    CA_RETURN_IF_ERROR(launch(session, divide_up(elements, kCentroidGradientThreads),
                              kCentroidGradientThreads, 0, merge_query_parts, gradient));
  }
  if (problem.weights == nullptr) return Status::success();
  return launch_weight_sums(session, problem, gradient.weight_terms);
}

Status launch_weight_sums(Session& session, const CentroidAttentionGradientProblem& problem,
                          const float* terms) {
  // grid: one thread per input
  const AttentionShape& shape = problem.forward.inputs.shape;
  return launch(session, divide_up(shape.batch * shape.key_length, kCentroidGradientThreads),
                kCentroidGradientThreads, 0, sum_weight_terms,
                WeightSumParams{shape.batch, shape.heads, shape.key_length, terms, problem.weights,
                                session.flags()});
}

Status centroid_attention_gradient(Session& session,
                                   const CentroidAttentionGradientProblem& problem,
                                   const Call& call) {
  CentroidGradientOperands operands;
  operands.query = operands.inputs = operands.output = operands.gradients = call.storage;
  operands.split = call.precision == Precision::float32;
  operands.round_weights = !operands.split;
  return centroid_attention_gradient(session, problem, operands);
}

}  // namespace cluster_attention::cuda
