#pragma once

// What assignment.cuh needs to know of each input before its passes where there is more than one
// tile of centroids, and labels on their own.

#include "cuda/assignment.cuh"

namespace cluster_attention::cuda {

struct StatisticsLayout {
  int64_t inputs;
  int64_t centroids;
  int64_t exchange;
  int64_t queries;
  int64_t keys;
  int64_t bytes;
};

template <bool kSplit>
CA_HOST_DEVICE StatisticsLayout statistics_layout(int key_tiles) {
  SharedLayout parts;
  StatisticsLayout layout;
  layout.inputs = parts.add<InputTile>(1);
  layout.centroids = parts.add<CentroidTile>(1);
  layout.exchange = parts.add<double>(8 * kTileWarps);
  layout.queries = parts.add<OperandTile<kSplit>>(1);
  layout.keys = parts.add<OperandTile<kSplit>>(key_tiles);
  layout.bytes = parts.bytes();
  return layout;
}

/// Whether the label of every input is 0: one input is active in all.
__device__ inline bool is_single_input(const AssignmentParams& params, int64_t sequence) {
  if (params.active_counts == nullptr) return false;
  int64_t active = 0;
  for (int64_t part = 0; part < kMaximumInputParts; ++part) {
    active += params.active_counts[sequence * kMaximumInputParts + part];
  }
  return active == 1;
}

/// Keeps maximum and factor, or the best centroid, of a thread's two rows.
__device__ inline void store_statistics(const AssignmentParams& params, int64_t sequence,
                                        int64_t first, int64_t end, const InputTile& data,
                                        const InputSums& sums, const BestCentroid& best) {
  const TilePlace place;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t input = first + place.row(half);
    if (place.pair != 0 || input >= end) continue;
    const int64_t target = sequence * params.inputs + input;
    if (params.hard) {
      params.best[target] = best.centroid[half];
    } else {
      params.maximum[target] = sums.maximum[half];
      params.factor[target] = data.weight[place.row(half)] / sums.sum[half];
    }
  }
}

/// Maximum, factor, best centroid, label and objective of each input, where there is more than one
/// tile of centroids (params.only_labels: labels alone, everywhere).
template <bool kSplit>
__global__ void __launch_bounds__(kTileThreads, 4)
    assignment_statistics(const AssignmentParams params) {
  // query: (M,D), key: (64 of N,D) -> maximum, factor, best, labels: (64 of N)
  const int64_t tile = blockIdx.x % tiles_of(params.inputs);
  const int64_t sequence = blockIdx.x / tiles_of(params.inputs);
  const int64_t batch = sequence / params.heads;
  const int64_t inputs = params.real_inputs(batch);
  const int64_t centroids = params.real_centroids(batch);
  if (!params.only_labels && centroids <= kTile) return;
  const StatisticsLayout layout = statistics_layout<kSplit>(params.query_tiles);
  InputTile& data = *dynamic_shared<InputTile>(layout.inputs);
  CentroidTile& centroid_data = *dynamic_shared<CentroidTile>(layout.centroids);
  OperandTile<kSplit>* key_tiles = dynamic_shared<OperandTile<kSplit>>(layout.keys);
  OperandTile<kSplit>& query_tile = *dynamic_shared<OperandTile<kSplit>>(layout.queries);
  const int64_t head = sequence % params.heads;
  const Rows query(params.query, batch, head);
  const Rows key(params.key, batch, head,
                 params.origin != nullptr ? params.origin + batch * params.dim : nullptr);
  const int64_t first_input = tile * kTile;
  open_inputs(data, params, batch, first_input, centroids > 0 ? inputs : 0);
  const float exponent = positive(params.exponent);
  InputSums sums;
  BestCentroid best;
  bool bad = false;
  for (int64_t first = 0; first < centroids && first_input < inputs; first += kTile) {
    __syncthreads();  // the tile of the queries before is used up
    bad |= open_centroids(centroid_data, params, sequence, first, centroids);
    __syncthreads();
    TileSums scores;
    clear(scores);
    multiply_rows(scores, key_tiles, params.query_tiles, first == 0, key, data.position, query_tile,
                  query, centroid_data.position, params.dim);
    bad |= finish_input_scores(scores, data, centroid_data, params.sign);
    if (params.hard || params.labels != nullptr) {
      best.add(scores, centroid_data, params.label_scale, first);
    }
    if (!params.hard && !params.only_labels) sums.add(scores, exponent);
  }
  __syncthreads();
  best.join();
  sums.join(exponent);
  const double objective = close_inputs(data, params, sequence, first_input, params.inputs, sums,
                                        best, is_single_input(params, sequence));
  if (!params.only_labels) {
    store_statistics(params, sequence, first_input, inputs, data, sums, best);
    if (params.objective != nullptr) {
      const double total = sum_inputs(dynamic_shared<double>(layout.exchange), objective);
      if (threadIdx.x == 0) params.objective[sequence * params.objective_stride + tile] = total;
    }
  }
  if (bad) mark_non_finite(params.flags);
}

}  // namespace cluster_attention::cuda
