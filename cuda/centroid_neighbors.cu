#include "cuda/centroid_neighbors.cuh"
#include "cuda/centroid_neighbors.h"
#include "cuda/launch.h"
#include "cuda/session.h"
#include "native/core/softmax_state.h"

namespace cluster_attention::cuda {

namespace {

int64_t blocks_of(int64_t count, int64_t per_block) { return (count + per_block - 1) / per_block; }

NeighborParams neighbor_params(Session& session, const CentroidAttentionProblem& problem,
                               const CentroidOperands& operands) {
  const AttentionInputs& inputs = problem.inputs;
  NeighborParams params;
  params.batch = inputs.shape.batch;
  params.heads = inputs.shape.heads;
  params.centroids = inputs.shape.query_length;
  params.inputs = inputs.shape.key_length;
  params.slots = problem.neighbor_count;
  params.dim = inputs.shape.head_dim;
  params.value_dim = inputs.shape.value_dim;
  params.query = tensor_of(inputs.query, operands.query);
  params.key = tensor_of(inputs.key, operands.inputs);
  params.value = tensor_of(inputs.value, operands.inputs);
  params.query.round = !operands.split;
  params.key.round = params.value.round = operands.round_inputs || !operands.split;
  params.centroid_lengths = inputs.query_lengths;
  params.input_lengths = inputs.key_lengths;
  params.weights = problem.weights;
  params.round_weights = operands.round_weights;
  params.neighbors = problem.neighbors;
  params.scale = inputs.scale * kLog2E;
  params.over_inputs = problem.normalize == Normalize::inputs;
  params.mean = problem.aggregate == Collect::mean;
  params.output = problem.output;
  params.storage = operands.output;
  params.labels = problem.labels;
  params.masses = problem.masses;
  params.logsumexp = problem.logsumexp;
  params.flags = session.flags();
  return params;
}

/// The sums hold terms of at most 1 in units of 2^-40.
constexpr int64_t kMostCentroids = int64_t{1} << 23;

}  // namespace

Status centroid_neighbor_attention(Session& session, const CentroidAttentionProblem& problem,
                                   const CentroidOperands& operands) {
  NeighborParams params = neighbor_params(session, problem, operands);
  if (params.centroids > kMostCentroids) return {StatusCode::unsupported, "query", -1};
  const int64_t sequences = params.batch * params.heads;
  const int64_t lists = params.batch * params.centroids;
  const int64_t places = sequences * params.inputs;
  const int64_t terms = params.over_inputs ? params.centroids : params.inputs;
  DeviceWorkspace::Scope scope(session.workspace());
  CA_RETURN_IF_ERROR(scope.allocate(&params.lists, lists * params.slots));
  CA_RETURN_IF_ERROR(scope.allocate(&params.scores, sequences * params.centroids * params.slots));
  CA_RETURN_IF_ERROR(scope.allocate(&params.maximum, places));
  CA_RETURN_IF_ERROR(scope.allocate(&params.sums, places));
  CA_RETURN_IF_ERROR(scope.allocate(&params.best, places));
  if (problem.objective != nullptr) {
    CA_RETURN_IF_ERROR(scope.allocate(&params.terms, sequences * terms));
  }

  // grids: one warp per list of a batch entry; per list of a sequence; one thread per place
  const int64_t list_blocks = blocks_of(sequences * params.centroids, kListsPerBlock);
  const int64_t prepare_blocks = lists > 0 || places == 0 ? blocks_of(lists, kListsPerBlock) : 1;
  CA_RETURN_IF_ERROR(
      launch(session, prepare_blocks, kNeighborThreads, 0, prepare_neighbors, params));
  CA_RETURN_IF_ERROR(launch(session, list_blocks, kNeighborThreads, 0, score_neighbors, params));
  if (!params.over_inputs) {
    CA_RETURN_IF_ERROR(
        launch(session, blocks_of(sequences * params.centroids * params.slots, kNeighborThreads),
               kNeighborThreads, 0, sum_neighbors, params));
    CA_RETURN_IF_ERROR(launch(session, list_blocks, kNeighborThreads, 0, weigh_neighbors, params));
  }
  if (params.labels != nullptr || (params.terms != nullptr && !params.over_inputs)) {
    CA_RETURN_IF_ERROR(launch(session, blocks_of(places, kNeighborThreads), kNeighborThreads, 0,
                              close_neighbors, params));
  }
  if (problem.objective == nullptr) return Status::success();
  return launch(session, params.batch, kNeighborThreads,
                kWarp * static_cast<int64_t>(sizeof(double)), sum_neighbor_objective,
                NeighborObjectiveParams{params.heads * terms, params.terms, problem.objective});
}

}  // namespace cluster_attention::cuda
