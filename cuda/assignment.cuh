#pragma once

// Assignments of inputs to centroids with the softmax over the centroids, for each input on its
// own, and the sums that they weigh:
//
//   a_ji = w_i exp(s_ji) / sum_j' exp(s_j'i)      values_j = sum_i a_ji v_i      masses_j = sum_i
//   a_ji
//
// or, hard, a_ji = 1 for the best j of i. What centroid attention, pooling and encoding share.
//
// Method: blocks of four warps, tiles of 64 centroids x 64 inputs (operand_tile.cuh). With at most
// 64 centroids one pass does it all: a tile of scores is normalised down its columns and multiplied
// with the values while it is in registers. With more, assignment_statistics first finds the
// maximum and the sum of each input's column, and every tile of centroids then makes one pass. The
// inputs of a sequence are cut into parts whose sums lie apart, for the next launch to add in
// order; the cut depends on the real sizes of the sequence alone. No (M,N) matrix exists.
//
// Precision: products as in operand_tile.cuh, the rest float32; the objective in double. Scores
// enter the exponential as differences to their maximum, so scales of any size are met.
// Layout: rows of any stride; padded inputs and those of weight 0 are never read. Any M, N, D, E.

#include "cuda/assignment_params.cuh"
#include "cuda/column_softmax.cuh"
#include "cuda/primitives/shared_memory.cuh"
#include "native/core/softmax_state.h"

namespace cluster_attention::cuda {

struct AssignmentLayout {
  int64_t columns;
  int64_t keys;
  int64_t values;
  int64_t query;
  int64_t bytes;
};

template <bool kSplit>
CA_HOST_DEVICE AssignmentLayout assignment_layout(int query_tiles, bool with_values) {
  SharedLayout parts;
  AssignmentLayout layout;
  layout.columns = parts.add<ColumnData>(1);
  layout.keys = parts.add<OperandTile<kSplit>>(1);
  layout.values = parts.add<OperandTile<kSplit>>(with_values ? 1 : 0);
  layout.query = parts.add<OperandTile<kSplit>>(query_tiles);
  layout.bytes = parts.bytes();
  return layout;
}

/// Positions, weights and scales of inputs [first, first + 64), likewise.
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

/// Natural log of sum_j exp of the scores, given their maximum and the sum relative to it.
__device__ inline double log_sum_exp(float maximum, float exponent, float sum) {
  return (static_cast<double>(maximum) * exponent + log2(static_cast<double>(sum))) * kLn2;
}

/// Labels, and the term of the objective, of the input of this thread (the first 64).
__device__ inline double close_column(ColumnData& data, const AssignmentParams& params,
                                      int64_t sequence, int64_t input, int64_t end,
                                      bool is_single) {
  const int column = static_cast<int>(threadIdx.x);
  const bool active = data.position[column] >= 0;
  if (params.labels != nullptr && input < end) {
    params.labels[sequence * params.inputs + input] =
        active ? (is_single ? 0 : data.best[column]) : -1;
  }
  if (params.objective == nullptr || !active) return 0.0;
  return data.weight[column] *
         log_sum_exp(data.maximum[column], params.exponent, data.factor[column]);
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

/// Maximum, factor, best centroid, label and objective of each input, where there is more than one
/// tile of centroids (params.only_labels: labels alone, everywhere).
template <bool kSplit>
__global__ void __launch_bounds__(kTileThreads)
    assignment_statistics(const AssignmentParams params) {
  // query: (M,D), key: (64 of N,D) -> maximum, factor, best, labels: (64 of N)
  const int64_t tile = blockIdx.x % tiles_of(params.inputs);
  const int64_t sequence = blockIdx.x / tiles_of(params.inputs);
  const int64_t batch = sequence / params.heads;
  const int64_t inputs = params.real_inputs(batch);
  const int64_t centroids = params.real_centroids(batch);
  if (!params.only_labels && centroids <= kTile) return;
  const AssignmentLayout layout = assignment_layout<kSplit>(params.query_tiles, false);
  ColumnData& data = *dynamic_shared<ColumnData>(layout.columns);
  OperandTile<kSplit>* query_tiles = dynamic_shared<OperandTile<kSplit>>(layout.query);
  OperandTile<kSplit>& key_tile = *dynamic_shared<OperandTile<kSplit>>(layout.keys);
  const int64_t head = sequence % params.heads;
  const Rows query(params.query, batch, head);
  const Rows key(params.key, batch, head,
                 params.origin != nullptr ? params.origin + batch * params.dim : nullptr);
  const float* row_bias =
      params.row_bias != nullptr ? params.row_bias + sequence * params.centroids : nullptr;
  const float* label_bias =
      params.label_bias != nullptr ? params.label_bias + sequence * params.centroids : nullptr;
  const bool with_sums = !params.hard && !params.only_labels;
  const bool with_best = params.hard || params.labels != nullptr;

  const int64_t first_input = tile * kTile;
  open_columns(data, params, batch, first_input, centroids > 0 ? inputs : 0);
  ColumnState state;
  bool bad = false;
  for (int64_t first = 0; first < centroids && first_input < inputs; first += kTile) {
    __syncthreads();
    open_rows(data.row_position, first, centroids);
    __syncthreads();
    TileSums scores;
    clear(scores);
    multiply_rows(scores, query_tiles, params.query_tiles, true, query, data.row_position, key_tile,
                  key, data.position, params.dim);
    bad |= finish_scores(scores, data, params, row_bias, first, centroids);
    state.add(scores, params.exponent, params.label_scale, label_bias, first, centroids, with_sums,
              with_best);
  }
  __syncthreads();
  state.join(data, params.exponent, with_sums, with_best);

  double objective = 0.0;
  if (threadIdx.x < kTile) {
    const int64_t input = first_input + threadIdx.x;
    bool is_single = false;
    if (params.active_counts != nullptr) {
      int64_t active = 0;
      for (int64_t part = 0; part < kMaximumInputParts; ++part) {
        active += params.active_counts[sequence * kMaximumInputParts + part];
      }
      is_single = active == 1;
    }
    objective = close_column(data, params, sequence, input, params.inputs, is_single);
    if (input < inputs && !params.only_labels) {
      const int64_t place = sequence * params.inputs + input;
      if (params.hard) {
        params.best[place] = data.best[threadIdx.x];
      } else {
        params.maximum[place] = data.maximum[threadIdx.x];
        params.factor[place] = data.weight[threadIdx.x] / data.factor[threadIdx.x];
      }
    }
  }
  if (params.objective != nullptr && !params.only_labels) {
    const double total = sum_columns(data, objective);
    if (threadIdx.x == 0) params.objective[sequence * params.objective_stride + tile] = total;
  }
  if (bad) mark_non_finite(params.flags);
}

/// Values of one part of the inputs summed over the assignments to 64 centroids, for 128 columns of
/// the values.
template <bool kSplit>
class AssignmentPass {
 public:
  __device__ AssignmentPass(const AssignmentParams& params, int64_t sequence, int64_t value_block)
      : params_(params),
        sequence_(sequence),
        batch_(sequence / params.heads),
        inputs_(params.real_inputs(batch_)),
        centroids_(params.real_centroids(batch_)),
        fused_(centroids_ <= kTile),
        first_value_(value_block * kValueColumns),
        query_(params.query, batch_, sequence % params.heads),
        key_(params.key, batch_, sequence % params.heads,
             params.origin != nullptr ? params.origin + batch_ * params.dim : nullptr),
        value_(params.value, batch_, sequence % params.heads),
        row_bias_(params.row_bias != nullptr ? params.row_bias + sequence * params.centroids
                                             : nullptr) {
    const AssignmentLayout layout =
        assignment_layout<kSplit>(params.query_tiles, params.value_dim > 0);
    data_ = dynamic_shared<ColumnData>(layout.columns);
    query_tiles_ = dynamic_shared<OperandTile<kSplit>>(layout.query);
    key_tile_ = dynamic_shared<OperandTile<kSplit>>(layout.keys);
    value_tile_ = dynamic_shared<OperandTile<kSplit>>(layout.values);
  }

  static constexpr int kValueTiles = 2;
  static constexpr int64_t kValueColumns = kValueTiles * kTile;

  /// Block `index` of the sequence's.
  __device__ void run(int64_t index) {
    if (index == 0 && first_value_ == 0 && fused_ && params_.labels != nullptr) clear_labels();
    if (inputs_ == 0 || centroids_ == 0) return;
    const int64_t tiles = tiles_of(centroids_);
    const int64_t parts = assignment_parts(inputs_, centroids_);
    const int64_t part = index / tiles;
    if (part >= parts) return;
    first_row_ = index % tiles * kTile;
    for (int t = 0; t < kValueTiles; ++t) clear(output_[t]);
    mass_[0] = mass_[1] = 0.0f;
    open_rows(data_->row_position, first_row_, centroids_);
    const InputRange range = assignment_part(inputs_, parts, part);
    for (int64_t first = range.begin; first < range.end; first += kTile) {
      add_inputs(first, range);
    }
    write(part);
    if (fused_ && first_value_ == 0 && params_.objective != nullptr) {
      const double total = sum_columns(*data_, objective_);
      if (threadIdx.x == 0) {
        params_.objective[sequence_ * params_.objective_stride + part] = total;
      }
    }
    if (bad_) mark_non_finite(params_.flags);
  }

 private:
  /// Labels of the inputs that no tile meets.
  __device__ void clear_labels() {
    const int64_t first = centroids_ > 0 ? inputs_ : 0;
    for (int64_t i = first + threadIdx.x; i < params_.inputs; i += kTileThreads) {
      params_.labels[sequence_ * params_.inputs + i] = -1;
    }
  }

  __device__ void add_inputs(int64_t first, const InputRange& range) {
    __syncthreads();  // the tiles of the inputs before are used up
    open_columns(*data_, params_, batch_, first, range.end);
    __syncthreads();
    TileSums scores;
    clear(scores);
    if (params_.value_dim > 0) {
      load_tile(*value_tile_, value_, data_->position, first_value_, params_.value_dim);
    }
    multiply_rows(scores, query_tiles_, params_.query_tiles, first == range.begin, query_,
                  data_->row_position, *key_tile_, key_, data_->position, params_.dim);
    bad_ |= finish_scores(scores, *data_, params_, row_bias_, first_row_, centroids_);
    normalize(scores, first, range.end);
    assign(scores);
    if (params_.value_dim == 0) return;
    add_values(output_[0], scores, *value_tile_, params_.value_dim - first_value_);
#pragma unroll
    for (int t = 1; t < kValueTiles; ++t) {
      const int64_t column = first_value_ + t * kTile;
      if (column >= params_.value_dim) break;
      __syncthreads();
      load_tile(*value_tile_, value_, data_->position, column, params_.value_dim);
      __syncthreads();
      add_values(output_[t], scores, *value_tile_, params_.value_dim - column);
    }
  }

  /// Finds or fetches what the columns of this tile are normalised by.
  __device__ void normalize(const TileSums& scores, int64_t first, int64_t end) {
    const int64_t input = first + threadIdx.x;
    if (fused_) {
      const bool with_best = params_.hard || params_.labels != nullptr;
      ColumnState state;
      state.add(scores, params_.exponent, params_.label_scale, nullptr, 0, centroids_,
                !params_.hard, with_best);
      state.join(*data_, params_.exponent, !params_.hard, with_best);
      if (threadIdx.x < kTile) {
        if (first_value_ == 0) {
          objective_ += close_column(*data_, params_, sequence_, input, end, false);
        }
        data_->factor[threadIdx.x] = data_->weight[threadIdx.x] / data_->factor[threadIdx.x];
      }
    } else if (threadIdx.x < kTile && input < end) {
      const int64_t place = sequence_ * params_.inputs + input;
      if (params_.hard) {
        data_->best[threadIdx.x] = params_.best[place];
      } else {
        data_->maximum[threadIdx.x] = params_.maximum[place];
        data_->factor[threadIdx.x] = params_.factor[place];
      }
    }
    __syncthreads();
  }

  /// Scores become assignments.
  __device__ void assign(TileSums& scores) {
    const TilePlace place;
#pragma unroll
    for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = place.column(n, i % 2);
        const int64_t row = first_row_ + place.row(i / 2);
        float assignment = 0.0f;
        if (row < centroids_ && data_->position[column] >= 0) {
          assignment = params_.hard
                           ? (data_->best[column] == row ? data_->weight[column] : 0.0f)
                           : exp2f((scores[n][i] - data_->maximum[column]) * params_.exponent) *
                                 data_->factor[column];
        }
        scores[n][i] = assignment;
        mass_[i / 2] += assignment;
      }
    }
  }

  __device__ void write(int64_t part) {
    const TilePlace place;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float mass = warp_sum(mass_[half], 4);
      const int64_t row = first_row_ + place.row(half);
      if (row >= centroids_) continue;
      const int64_t sum = sequence_ * params_.sum_rows + part * centroids_ + row;
      if (params_.masses != nullptr && first_value_ == 0 && place.pair == 0) {
        params_.masses[sum] = mass;
      }
#pragma unroll
      for (int t = 0; t < kValueTiles; ++t) {
#pragma unroll
        for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
          for (int side = 0; side < 2; ++side) {
            const int64_t column = first_value_ + t * kTile + place.column(n, side);
            if (column < params_.value_dim) {
              params_.sums[sum * params_.value_dim + column] = output_[t][n][2 * half + side];
            }
          }
        }
      }
    }
  }

  const AssignmentParams& params_;
  const int64_t sequence_;
  const int64_t batch_;
  const int64_t inputs_;
  const int64_t centroids_;
  const bool fused_;
  const int64_t first_value_;
  const Rows query_;
  const Rows key_;
  const Rows value_;
  const float* row_bias_;
  ColumnData* data_;
  OperandTile<kSplit>* query_tiles_;
  OperandTile<kSplit>* key_tile_;
  OperandTile<kSplit>* value_tile_;
  int64_t first_row_ = 0;
  TileSums output_[kValueTiles];
  float mass_[2];
  double objective_ = 0.0;
  bool bad_ = false;
};

/// Blocks of 128 value columns; at least one.
CA_HOST_DEVICE inline int64_t value_blocks_of(int64_t value_dim) {
  const int64_t blocks = (value_dim + 2 * kTile - 1) / (2 * kTile);
  return blocks < 1 ? 1 : blocks;
}

template <bool kSplit>
__global__ void __launch_bounds__(kTileThreads) assignment_pass(const AssignmentParams params) {
  // query: (64 of M,D), key: (part of N,D), value: (part of N,E) -> sums: (64 of M,E)
  const int64_t value_blocks = value_blocks_of(params.value_dim);
  const int64_t blocks = assignment_blocks(params.inputs, params.centroids);
  const int64_t rest = blockIdx.x / value_blocks;
  AssignmentPass<kSplit> pass(params, rest / blocks, blockIdx.x % value_blocks);
  pass.run(rest % blocks);
}

/// Sum over the parts of one row, in order.
__device__ inline float total_of_parts(const float* values, int64_t parts, int64_t stride) {
  float total = 0.0f;
  for (int64_t part = 0; part < parts; ++part) total += values[part * stride];
  return total;
}

}  // namespace cluster_attention::cuda
