#include <cmath>

#include "cuda/assignment.h"
#include "cuda/assignment_statistics.cuh"
#include "cuda/centroid_attention.cuh"
#include "cuda/centroid_attention.h"
#include "cuda/centroid_neighbors.h"
#include "cuda/launch.h"
#include "cuda/over_inputs.cuh"
#include "native/core/softmax_state.h"

namespace cluster_attention::cuda {

AssignmentParams assignment_params(Session& session, const CentroidAttentionProblem& problem,
                                   const CentroidOperands& operands) {
  const AttentionInputs& inputs = problem.inputs;
  AssignmentParams params;
  params.sequences = inputs.shape.batch * inputs.shape.heads;
  params.heads = inputs.shape.heads;
  params.centroids = inputs.shape.query_length;
  params.inputs = inputs.shape.key_length;
  params.dim = inputs.shape.head_dim;
  params.value_dim = inputs.shape.value_dim;
  params.query = tensor_of(inputs.query, operands.query);
  params.key = tensor_of(inputs.key, operands.inputs);
  params.value = tensor_of(inputs.value, operands.inputs);
  params.key.round = params.value.round = operands.round_inputs;
  params.centroid_lengths = inputs.query_lengths;
  params.input_lengths = inputs.key_lengths;
  params.sign = inputs.scale < 0.0f ? -1.0f : 1.0f;
  params.exponent = std::fabs(inputs.scale) * kLog2E;
  params.weights = problem.weights;
  params.round_weights = operands.round_weights;
  params.label_scale = std::fabs(inputs.scale);
  params.labels = problem.labels;
  params.sum_rows = assignment_sum_rows(params.inputs, params.centroids);
  params.flags = session.flags();
  return params;
}

namespace {

CentroidMergeParams merge_params(const AssignmentParams& assignment,
                                 const CentroidAttentionProblem& problem,
                                 const CentroidOperands& operands) {
  CentroidMergeParams params;
  params.assignment = assignment;
  params.mean = problem.aggregate == Collect::mean;
  params.output = problem.output;
  params.storage = operands.output;
  params.masses = problem.masses;
  params.logsumexp = problem.logsumexp;
  return params;
}

int64_t merge_blocks(const AssignmentParams& params) {
  const int64_t elements = params.sequences * params.centroids * params.value_dim;
  return (elements + kMergeThreads - 1) / kMergeThreads;
}

Status launch_objective(Session& session, const AssignmentParams& assignment, const double* terms,
                        int64_t stride, int64_t count, double* objective) {
  // grid: one block per batch entry
  if (objective == nullptr || assignment.heads == 0) return Status::success();
  return launch(session, assignment.sequences / assignment.heads, kObjectiveThreads,
                32 * static_cast<int64_t>(sizeof(double)), sum_objective,
                ObjectiveParams{assignment, terms, stride, count, objective});
}

Status over_centroids(Session& session, const CentroidAttentionProblem& problem,
                      const CentroidOperands& operands) {
  AssignmentParams params = assignment_params(session, problem, operands);
  const bool with_masses = problem.masses != nullptr || problem.aggregate == Collect::mean;
  const bool with_statistics = params.centroids > kTile;
  const int64_t places = with_statistics ? params.sequences * params.inputs : 0;
  const int64_t sum_rows = params.sequences * params.sum_rows;
  params.objective_stride =
      tiles_of(params.inputs) > kMaximumInputParts ? tiles_of(params.inputs) : kMaximumInputParts;
  DeviceWorkspace::Scope scope(session.workspace());
  CA_RETURN_IF_ERROR(scope.allocate(&params.sums, checked_size(sum_rows, params.value_dim)));
  if (with_masses) CA_RETURN_IF_ERROR(scope.allocate(&params.masses, sum_rows));
  CA_RETURN_IF_ERROR(scope.allocate(&params.maximum, places));
  CA_RETURN_IF_ERROR(scope.allocate(&params.factor, places));
  if (problem.objective != nullptr) {
    CA_RETURN_IF_ERROR(
        scope.allocate(&params.objective, checked_size(params.sequences, params.objective_stride)));
  }
  CA_RETURN_IF_ERROR(launch_assignment(session, params, operands.split));
  // grid: 64 value columns x centroids x sequences
  CA_RETURN_IF_ERROR(
      launch(session, params.sequences * params.centroids * merge_column_blocks(params.value_dim),
             kMergeThreads, kMergeThreads * static_cast<int64_t>(sizeof(float)),
             merge_over_centroids, merge_params(params, problem, operands)));
  return launch_objective(session, params, params.objective, params.objective_stride, -1,
                          problem.objective);
}

template <bool kSplit>
Status launch_over_inputs(Session& session, OverInputsParams& params) {
  // grid: 128 value columns x tiles of centroids x parts of the inputs x sequences
  AssignmentParams& assignment = params.assignment;
  assignment.query_tiles = assignment_query_tiles<kSplit>(session, assignment.dim);
  const int64_t blocks = assignment.sequences * value_blocks_of(assignment.value_dim) *
                         assignment_blocks(assignment.inputs, assignment.centroids);
  return launch(session, blocks, kTileThreads,
                over_inputs_layout<kSplit>(assignment.query_tiles).bytes, over_inputs_pass<kSplit>,
                params);
}

template <bool kSplit>
Status launch_labels(Session& session, AssignmentParams params) {
  // grid: tiles of inputs x sequences
  params.query_tiles = assignment_query_tiles<kSplit>(session, params.dim);
  return launch(session, params.sequences * tiles_of(params.inputs), kTileThreads,
                statistics_layout<kSplit>(params.query_tiles).bytes, assignment_statistics<kSplit>,
                params);
}

Status over_inputs(Session& session, const CentroidAttentionProblem& problem,
                   const CentroidOperands& operands) {
  OverInputsParams params;
  params.assignment = assignment_params(session, problem, operands);
  AssignmentParams& assignment = params.assignment;
  const int64_t sum_rows = assignment.sequences * assignment.sum_rows;
  const int64_t rows = assignment.sequences * assignment.centroids;
  float* label_bias = nullptr;
  double* terms = nullptr;
  DeviceWorkspace::Scope scope(session.workspace());
  CA_RETURN_IF_ERROR(
      scope.allocate(&assignment.sums, checked_size(sum_rows, assignment.value_dim)));
  CA_RETURN_IF_ERROR(scope.allocate(&params.row_maximum, sum_rows));
  CA_RETURN_IF_ERROR(scope.allocate(&params.row_sum, sum_rows));
  CA_RETURN_IF_ERROR(
      scope.allocate(&params.active_counts, assignment.sequences * kMaximumInputParts));
  CA_RETURN_IF_ERROR(scope.allocate(&label_bias, rows));
  if (problem.objective != nullptr) CA_RETURN_IF_ERROR(scope.allocate(&terms, rows));

  CA_RETURN_IF_ERROR(operands.split ? launch_over_inputs<true>(session, params)
                                    : launch_over_inputs<false>(session, params));
  CentroidMergeParams merge = merge_params(assignment, problem, operands);
  merge.row_maximum = params.row_maximum;
  merge.row_sum = params.row_sum;
  merge.label_bias = label_bias;
  merge.objective = terms;
  CA_RETURN_IF_ERROR(
      launch(session, merge_blocks(assignment), kMergeThreads, 0, merge_over_inputs, merge));
  CA_RETURN_IF_ERROR(launch_objective(session, assignment, terms, assignment.centroids,
                                      assignment.centroids, problem.objective));
  if (problem.labels == nullptr) return Status::success();
  assignment.only_labels = true;
  assignment.label_bias = label_bias;
  assignment.active_counts = params.active_counts;
  return operands.split ? launch_labels<true>(session, assignment)
                        : launch_labels<false>(session, assignment);
}

template <bool kSplit>
Status launch_assignment_as(Session& session, AssignmentParams params) {
  params.query_tiles = assignment_query_tiles<kSplit>(session, params.dim);
  if (params.centroids > kTile) {
    // grid: tiles of inputs x sequences
    CA_RETURN_IF_ERROR(launch(session, params.sequences * tiles_of(params.inputs), kTileThreads,
                              statistics_layout<kSplit>(params.query_tiles).bytes,
                              assignment_statistics<kSplit>, params));
  }
  // grid: 128 value columns x tiles of centroids x parts of the inputs x sequences
  const int64_t blocks = params.sequences * value_blocks_of(params.value_dim) *
                         assignment_blocks(params.inputs, params.centroids);
  constexpr RowAccess kFast = kSplit ? RowAccess::vectors : RowAccess::copies;
  const bool fast = params.dim <= kTile && params.value_dim <= kTile && params.origin == nullptr &&
                    access_of(params.key, params.dim) == kFast &&
                    access_of(params.value, params.value_dim) == kFast;
  return launch(session, blocks, kTileThreads,
                assignment_layout<kSplit>(params.query_tiles, params.value_dim > 0).bytes,
                fast ? assignment_pass<kSplit, kFast> : assignment_pass<kSplit, RowAccess::any>,
                params);
}

}  // namespace

Status launch_assignment(Session& session, const AssignmentParams& params, bool split) {
  return split ? launch_assignment_as<true>(session, params)
               : launch_assignment_as<false>(session, params);
}

Status centroid_attention(Session& session, const CentroidAttentionProblem& problem,
                          const CentroidOperands& operands) {
  if (problem.neighbors != nullptr) return centroid_neighbor_attention(session, problem, operands);
  if (problem.normalize == Normalize::inputs) return over_inputs(session, problem, operands);
  return over_centroids(session, problem, operands);
}

Status centroid_attention(Session& session, const CentroidAttentionProblem& problem,
                          const Call& call) {
  const bool split = call.precision == Precision::float32;
  return centroid_attention(session, problem,
                            {call.storage, call.storage, call.storage, split, false, !split});
}

}  // namespace cluster_attention::cuda
