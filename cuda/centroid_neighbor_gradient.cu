#include <algorithm>
#include <limits>

#include "cuda/centroid_gradient_passes.h"
#include "cuda/centroid_neighbor_gradient.cuh"
#include "cuda/centroid_neighbor_gradient.h"
#include "cuda/counting_sort.h"
#include "cuda/launch.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

namespace {

Status allocate(DeviceWorkspace::Scope& scope, NeighborGradientParams& params, bool with_weights) {
  CentroidGradientParams& gradient = params.gradient;
  const int64_t sequences = gradient.assignment.sequences;
  const int64_t rows = checked_size(sequences, params.centroids);
  const int64_t slots = checked_size(params.centroids, params.slots);
  CA_RETURN_IF_ERROR(scope.allocate(&gradient.output_factor, rows));
  CA_RETURN_IF_ERROR(scope.allocate(&gradient.output_offset, rows));
  CA_RETURN_IF_ERROR(scope.allocate(&params.lists, checked_size(params.batch, slots)));
  CA_RETURN_IF_ERROR(
      scope.allocate(&params.offsets, checked_size(params.batch, params.inputs + 1)));
  CA_RETURN_IF_ERROR(scope.allocate(&params.order, checked_size(params.batch, slots)));
  CA_RETURN_IF_ERROR(scope.allocate(&params.share, checked_size(sequences, slots)));
  CA_RETURN_IF_ERROR(scope.allocate(&params.change, checked_size(sequences, slots)));
  if (!with_weights) return Status::success();
  return scope.allocate(&gradient.weight_terms, checked_size(sequences, params.inputs));
}

/// Which slots list each input.
Status sort_slots(Session& session, const NeighborGradientParams& params) {
  SortProblem sort;
  sort.sequences = params.batch;
  sort.length = checked_size(params.centroids, params.slots);
  if (sort.length < 0 || sort.length > std::numeric_limits<int32_t>::max()) {
    return {StatusCode::unsupported, "neighbors", -1};
  }
  sort.clusters = params.inputs;
  sort.labels = params.lists;
  sort.part_rows = std::max(sort_part_rows(0), round_up(sort.clusters, kWarp));
  sort.offsets = params.offsets;
  sort.order = params.order;
  return sort_by_label(session, sort);
}

}  // namespace

Status centroid_neighbor_gradient(Session& session, const CentroidAttentionGradientProblem& problem,
                                  const OutputTermsParams& terms) {
  OutputTermsParams outputs = terms;
  NeighborGradientParams params;
  params.gradient = terms.gradient;
  const AttentionShape& shape = problem.forward.inputs.shape;
  params.batch = shape.batch;
  params.heads = shape.heads;
  params.centroids = shape.query_length;
  params.inputs = shape.key_length;
  params.slots = problem.forward.neighbor_count;
  params.neighbors = problem.forward.neighbors;
  params.flags = session.flags();
  DeviceWorkspace::Scope scope(session.workspace());
  CA_RETURN_IF_ERROR(allocate(scope, params, problem.weights != nullptr));
  outputs.gradient = params.gradient;

  // grids: one warp per list of a batch entry; per list, and per input, of a sequence
  const int64_t sequences = shape.batch * shape.heads;
  const int64_t list_blocks = divide_up(sequences * params.centroids, kListsPerBlock);
  CA_RETURN_IF_ERROR(launch(session, divide_up(params.batch * params.centroids, kListsPerBlock),
                            kNeighborThreads, 0, clean_neighbor_lists, params));
  CA_RETURN_IF_ERROR(sort_slots(session, params));
  CA_RETURN_IF_ERROR(launch_output_terms(session, outputs));
  CA_RETURN_IF_ERROR(
      launch(session, list_blocks, kNeighborThreads, 0, score_neighbor_pairs, params));
  CA_RETURN_IF_ERROR(launch(session, divide_up(sequences * params.inputs, kListsPerBlock),
                            kNeighborThreads, 0, finish_listed_inputs, params));
  if (params.gradient.with_query) {
    CA_RETURN_IF_ERROR(
        launch(session, list_blocks, kNeighborThreads, 0, finish_neighbor_centroids, params));
  }
  if (problem.weights == nullptr) return Status::success();
  return launch_weight_sums(session, problem, params.gradient.weight_terms);
}

}  // namespace cluster_attention::cuda
