#pragma once

// §6 Centroid attention with the softmax over the inputs for each centroid (cross-attention):
// blocks of 64 centroids go over the inputs of a part and keep the states of their softmaxes for
// merge_over_inputs.

#include "cuda/assignment.cuh"
#include "cuda/row_softmax.cuh"

namespace cluster_attention::cuda {

struct OverInputsLayout {
  int64_t columns;
  int64_t keys;
  int64_t values;
  int64_t query;
  int64_t bytes;
};

template <bool kSplit>
CA_HOST_DEVICE OverInputsLayout over_inputs_layout(int query_tiles) {
  SharedLayout parts;
  OverInputsLayout layout;
  layout.columns = parts.add<ColumnData>(1);
  layout.keys = parts.add<OperandTile<kSplit>>(1);
  layout.values = parts.add<OperandTile<kSplit>>(1);
  layout.query = parts.add<OperandTile<kSplit>>(query_tiles);
  layout.bytes = parts.bytes();
  return layout;
}

/// Positions, weights and scales of inputs [first, first + 64), by the first 64 threads.
__device__ inline void open_columns(ColumnData& data, const AssignmentParams& params, int64_t batch,
                                    int64_t first, int64_t end) {
  if (threadIdx.x >= kTile) return;
  const int64_t input = first + threadIdx.x;
  const float weight = input < end ? params.weight(batch, input) : 0.0f;
  data.weight[threadIdx.x] = weight;
  data.position[threadIdx.x] = weight != 0.0f ? static_cast<int32_t>(input) : kNoRow;
  data.scale[threadIdx.x] = params.column_scale != nullptr && input < end
                                ? params.column_scale[batch * params.inputs + input]
                                : 1.0f;
}

/// Products become scores. True if one that counts is not finite.
__device__ inline bool finish_scores(TileSums& scores, const ColumnData& data,
                                     const AssignmentParams& params, const float* row_bias,
                                     int64_t first_row, int64_t rows) {
  const TilePlace place;
  bool bad = false;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = first_row + place.row(half);
    const float bias = row_bias != nullptr && row < rows ? row_bias[row] : 0.0f;
#pragma unroll
    for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int column = place.column(n, side);
        float& score = scores[n][2 * half + side];
        if (params.column_scale != nullptr) score *= data.scale[column];
        score = params.sign * (score + bias);
        bad |= row < rows && data.position[column] >= 0 && !is_number(score);
      }
    }
  }
  return bad;
}

/// Sum of the first 64 threads' values in the order of the threads, in thread 0.
__device__ inline double sum_columns(ColumnData& data, double value) {
  if (threadIdx.x < kTile) data.objective[threadIdx.x] = value;
  __syncthreads();
  double total = 0.0;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kTile; ++i) total += data.objective[i];
  }
  return total;
}

struct OverInputsParams {
  AssignmentParams assignment;
  float* row_maximum = nullptr;      // (B*H,sum_rows): states of the parts
  float* row_sum = nullptr;          // (B*H,sum_rows)
  int32_t* active_counts = nullptr;  // (B*H,64): active inputs of each part
};

template <bool kSplit>
__global__ void __launch_bounds__(kTileThreads) over_inputs_pass(const OverInputsParams all) {
  // query: (64 of M,D), key: (part of N,D), value: (part of N,E) -> sums: (64 of M,E), states: (64)
  const AssignmentParams& params = all.assignment;
  const int64_t value_blocks = value_blocks_of(params.value_dim);
  const int64_t blocks = assignment_blocks(params.inputs, params.centroids);
  const int64_t first_value = blockIdx.x % value_blocks * (kRowValueTiles * kTile);
  const int64_t index = blockIdx.x / value_blocks % blocks;
  const int64_t sequence = blockIdx.x / value_blocks / blocks;
  const int64_t batch = sequence / params.heads;
  const int64_t head = sequence % params.heads;
  const int64_t inputs = params.real_inputs(batch);
  const int64_t centroids = params.real_centroids(batch);
  int32_t* counts = all.active_counts + sequence * kMaximumInputParts;
  const bool counts_here = index == 0 && first_value == 0;
  const int64_t used_parts = inputs > 0 && centroids > 0 ? assignment_parts(inputs, centroids) : 0;
  if (counts_here && threadIdx.x < kMaximumInputParts && threadIdx.x >= used_parts) {
    counts[threadIdx.x] = 0;
  }
  const int64_t tiles = tiles_of(centroids);
  if (used_parts == 0 || index / tiles >= used_parts) return;
  const int64_t part = index / tiles;
  const int64_t first_row = index % tiles * kTile;

  const OverInputsLayout layout = over_inputs_layout<kSplit>(params.query_tiles);
  ColumnData& data = *dynamic_shared<ColumnData>(layout.columns);
  OperandTile<kSplit>* query_tiles = dynamic_shared<OperandTile<kSplit>>(layout.query);
  OperandTile<kSplit>& key_tile = *dynamic_shared<OperandTile<kSplit>>(layout.keys);
  OperandTile<kSplit>& value_tile = *dynamic_shared<OperandTile<kSplit>>(layout.values);
  const Rows query(params.query, batch, head);
  const Rows key(params.key, batch, head);
  const Rows value(params.value, batch, head);

  RowSoftmax softmax;
  RowOutput output;
#pragma unroll
  for (int t = 0; t < kRowValueTiles; ++t) clear(output[t]);
  int32_t active = 0;
  bool bad = false;
  open_rows(data.row_position, first_row, centroids);
  const InputRange range = assignment_part(inputs, used_parts, part);
  for (int64_t first = range.begin; first < range.end; first += kTile) {
    __syncthreads();  // the tiles of the inputs before are used up
    open_columns(data, params, batch, first, range.end);
    if (threadIdx.x < kTile && data.position[threadIdx.x] >= 0) ++active;
    __syncthreads();
    TileSums scores;
    clear(scores);
    fetch_tile(value_tile, value, data.position, first_value, params.value_dim);
    multiply_rows(scores, query_tiles, params.query_tiles, first == range.begin, query,
                  data.row_position, key_tile, key, data.position, params.dim);
    bad |= finish_scores(scores, data, params, nullptr, first_row, centroids);
    softmax.weigh(scores, output, params.exponent, [&data](int column) {
      return data.position[column] >= 0 ? data.weight[column] : 0.0f;
    });
    add_values(output[0], scores, value_tile, params.value_dim - first_value);
#pragma unroll
    for (int t = 1; t < kRowValueTiles; ++t) {
      const int64_t column = first_value + t * kTile;
      if (column >= params.value_dim) break;
      __syncthreads();
      load_tile(value_tile, value, data.position, column, params.value_dim);
      __syncthreads();
      add_values(output[t], scores, value_tile, params.value_dim - column);
    }
  }

  const TilePlace place;
  const int64_t first_sum = sequence * params.sum_rows + part * centroids + first_row;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float sum = softmax.total(half);
    if (first_row + place.row(half) >= centroids) continue;
    const int64_t row = first_sum + place.row(half);
    if (first_value == 0 && place.pair == 0) {
      all.row_maximum[row] = softmax.maximum[half];
      all.row_sum[row] = sum;
    }
#pragma unroll
    for (int t = 0; t < kRowValueTiles; ++t) {
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const int64_t column = first_value + t * kTile + place.column(n, side);
          if (column < params.value_dim) {
            params.sums[row * params.value_dim + column] = output[t][n][2 * half + side];
          }
        }
      }
    }
  }
  if (first_row == 0 && first_value == 0) {
    const double total = sum_columns(data, active);
    if (threadIdx.x == 0) counts[part] = static_cast<int32_t>(total);
  }
  if (bad) mark_non_finite(params.flags);
}

}  // namespace cluster_attention::cuda
