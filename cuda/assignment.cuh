#pragma once

// Assignments of inputs to centroids with the softmax over the centroids, for each input on its
// own, and the sums that they weigh:
//
//   a_ji = w_i exp(s_ji) / sum_j' exp(s_j'i)      values_j = sum_i a_ji v_i      masses_j = sum_i
//   a_ji
//
// or, hard, a_ji = 1 for the best j of i. What centroid attention, pooling and encoding share.
//
// Method: blocks of four warps, tiles of 64 inputs x 64 centroids (operand_tile.cuh). With at most
// 64 centroids one pass does it all: a warp normalises the rows of its 16 inputs in its registers
// and puts the assignments in the place of their keys in shared memory, whence the product with the
// values takes them transposed. With more centroids, assignment_statistics first finds the maximum
// and the sum of each input's row, and every tile of centroids then makes one pass. The inputs of a
// sequence are cut into parts whose sums lie apart, for the next launch to add in order; the cut
// depends on the real sizes of the sequence alone. No (M,N) matrix exists.
//
// Precision: products as in operand_tile.cuh, masses among them; the rest float32, the objective in
// double. Scores enter the exponential as differences to their maximum, so scales of any size are
// met. Layout: rows of any stride; padded inputs and those of weight 0 are never read. Any M, N, D,
// E.

#include "cuda/assignment_softmax.cuh"
#include "cuda/column_softmax.cuh"
#include "cuda/primitives/shared_memory.cuh"

namespace cluster_attention::cuda {

/// Without a split tiles are small: those of the next inputs are on their way while these are used.
template <bool kSplit>
constexpr int kAssignmentStages = kSplit ? 1 : 2;
struct AssignmentLayout {
  int64_t inputs;  // in the end, terms of the objective
  int64_t centroids;
  int64_t keys;
  int64_t values;
  int64_t query;
  int64_t bytes;
};

template <bool kSplit>
CA_HOST_DEVICE AssignmentLayout assignment_layout(int query_tiles, bool with_values) {
  constexpr int kStages = kAssignmentStages<kSplit>;
  SharedLayout parts;
  AssignmentLayout layout;
  layout.inputs = parts.add<InputTile>(kStages);
  layout.centroids = parts.add<CentroidTile>(1);
  layout.keys = parts.add<OperandTile<kSplit>>(kStages);
  layout.values = parts.add<OperandTile<kSplit>>(with_values ? kStages : 0);
  layout.query = parts.add<OperandTile<kSplit>>(query_tiles);
  layout.bytes = parts.bytes();
  return layout;
}

/// Values of one part of the inputs summed over the assignments to 64 centroids, for up to 128
/// columns of the values.
template <bool kSplit, RowAccess kAccess>
class AssignmentPass {
 public:
  /// One tile has all elements of a key, another one those of a value.
  static constexpr bool kSmall = kAccess != RowAccess::any;
  static constexpr int kValueTiles = kSmall ? 1 : 2;

  __device__ AssignmentPass(const AssignmentParams& params, int64_t sequence, int64_t value_block)
      : params_(params),
        sequence_(sequence),
        batch_(sequence / params.heads),
        inputs_(params.real_inputs(batch_)),
        centroids_(params.real_centroids(batch_)),
        fused_(centroids_ <= kTile),
        first_value_(value_block * kValueColumns),
        exponent_(positive(params.exponent)) {
    const AssignmentLayout layout =
        assignment_layout<kSplit>(params.query_tiles, params.value_dim > 0);
    data_ = dynamic_shared<InputTile>(layout.inputs);
    centroid_data_ = dynamic_shared<CentroidTile>(layout.centroids);
    exchange_ = dynamic_shared<double>(layout.inputs);
    query_tiles_ = dynamic_shared<OperandTile<kSplit>>(layout.query);
    key_tiles_ = dynamic_shared<OperandTile<kSplit>>(layout.keys);
    value_tiles_ = dynamic_shared<OperandTile<kSplit>>(layout.values);
  }

  static constexpr int kStages = kAssignmentStages<kSplit>;
  static constexpr int64_t kValueColumns = 2 * kTile;

  /// Block `index` of the sequence's.
  __device__ void run(int64_t index) {
    if (index == 0 && first_value_ == 0 && fused_ && params_.labels != nullptr) clear_labels();
    if (inputs_ == 0 || centroids_ == 0) return;
    const int64_t tiles = tiles_of(centroids_);
    const int64_t parts = assignment_parts(inputs_, centroids_);
    const int64_t part = index / tiles;
    if (part >= parts) return;
    first_centroid_ = index % tiles * kTile;
    range_ = assignment_part(inputs_, parts, part);
    for (int t = 0; t < kValueTiles; ++t) clear(output_[t]);
    for (float& mass : mass_) mass = 0.0f;
    open();
    const int count = static_cast<int>(tiles_of(range_.end - range_.begin));
    for (int step = 0; step < count; ++step) add_inputs(step, count);
    write(part);
    if (fused_ && first_value_ == 0 && params_.objective != nullptr) {
      __syncthreads();  // the inputs give way
      const double total = sum_inputs(exchange_, objective_);
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

  __device__ int64_t first_input(int step) const { return range_.begin + step * kTile; }
  __device__ InputTile& data(int step) { return data_[step % kStages]; }
  /// Whether all of the queries stay in shared memory.
  __device__ bool resident() const {
    return kSmall || static_cast<int64_t>(params_.query_tiles) * kTile >= params_.dim;
  }

  // Made where they are read: kept, they would take a third of the registers.
  __device__ Rows query() const { return {params_.query, batch_, sequence_ % params_.heads}; }
  __device__ Rows key() const {
    return {params_.key, batch_, sequence_ % params_.heads,
            params_.origin != nullptr ? params_.origin + batch_ * params_.dim : nullptr};
  }
  __device__ Rows value() const { return {params_.value, batch_, sequence_ % params_.heads}; }

  __device__ void open() {
    bad_ = open_centroids(*centroid_data_, params_, sequence_, first_centroid_, centroids_);
    for (int step = 0; step < kStages; ++step) {
      open_inputs(data(step), params_, batch_, first_input(step), range_.end);
    }
    __syncthreads();
    for (int t = 0; resident() && t < params_.query_tiles; ++t) {
      fetch_tile(query_tiles_[t], query(), centroid_data_->position, t * kTile, params_.dim);
    }
    if (kStages > 1) fetch(0);
  }

  __device__ void fetch(int step) {
    const int32_t* position = data(step).position;
    if (params_.value_dim > 0) {
      fetch_tiles<kAccess>(key_tiles_[step % kStages], key(), 0, params_.dim,
                           value_tiles_[step % kStages], value(), first_value_, params_.value_dim,
                           position);
    } else {
      fetch_tile<kAccess>(key_tiles_[step % kStages], key(), position, 0, params_.dim);
    }
  }

  __device__ void add_inputs(int step, int count) {
    if (kStages == 1) {
      if (step > 0) __syncthreads();  // the tiles of the inputs before are used up
      fetch(step);
    }
    tiles_arrive();
    __syncthreads();
    if (kStages > 1 && step + 1 < count) fetch(step + 1);
    TileSums scores;
    clear(scores);
    multiply(scores, step);
    bad_ |= finish_input_scores(scores, data(step), *centroid_data_, params_.sign);
    if (fused_) {
      normalize(scores, step);
    } else {
      fetch_assignments(scores, step);
    }
    // A warp has read the keys of its own rows alone: they give way to its assignments.
    OperandTile<kSplit>& weights = key_tiles_[step % kStages];
    OperandTile<kSplit>& values = value_tiles_[step % kStages];
    __syncwarp();
    store_tile(weights, scores);
    __syncthreads();
    add_transposed(output_[0], &mass_, weights, values, params_.value_dim - first_value_);
#pragma unroll
    for (int t = 1; t < kValueTiles; ++t) {
      const int64_t column = first_value_ + t * kTile;
      if (column >= params_.value_dim) break;
      __syncthreads();
      load_tile(values, value(), data(step).position, column, params_.value_dim);
      __syncthreads();
      add_transposed(output_[t], nullptr, weights, values, params_.value_dim - column);
    }
    open_inputs(data(step + kStages), params_, batch_, first_input(step + kStages), range_.end);
  }

  /// Keys, of which the first 64 elements are there, times queries.
  __device__ void multiply(TileSums& scores, int step) {
    OperandTile<kSplit>& keys = key_tiles_[step % kStages];
    if constexpr (kSmall) {
      add_scores(scores, keys, query_tiles_[0], params_.dim);
    } else {
      for (int64_t first = 0; first < params_.dim; first += kTile) {
        if (first > 0) {
          __syncthreads();  // the tiles are used up
          fetch_tile(keys, key(), data(step).position, first, params_.dim);
        }
        if (!resident()) {
          fetch_tile(query_tiles_[0], query(), centroid_data_->position, first, params_.dim);
        }
        if (first > 0 || !resident()) {
          tiles_arrive();
          __syncthreads();
        }
        add_scores(scores, keys, query_tiles_[resident() ? first / kTile : 0], params_.dim - first);
      }
    }
  }

  /// Scores of all centroids become assignments.
  __device__ void normalize(TileSums& scores, int step) {
    const TilePlace place;
    const InputTile& inputs = data(step);
    BestCentroid best;
    InputSums sums;
    if (params_.hard || params_.labels != nullptr) {
      best.add(scores, *centroid_data_, params_.label_scale, 0);
      best.join();
    }
    if (!params_.hard) sums.exponentiate(scores, exponent_);
    if (first_value_ == 0) {
      objective_ += close_inputs(inputs, params_, sequence_, first_input(step), range_.end, sums,
                                 best, false);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = place.row(half);
      if (params_.hard) {
        assign(scores, half, best.centroid[half], inputs.weight[row]);
        continue;
      }
      const bool active = inputs.position[row] >= 0;
      const float factor = active ? inputs.weight[row] / sums.sum[half] : 0.0f;
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
        scores[n][2 * half] *= factor;
        scores[n][2 * half + 1] *= factor;
      }
    }
  }

  /// The same with what assignment_statistics has found.
  __device__ void fetch_assignments(TileSums& scores, int step) {
    const TilePlace place;
    const InputTile& inputs = data(step);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = place.row(half);
      const bool active = inputs.position[row] >= 0;
      const int64_t source = sequence_ * params_.inputs + first_input(step) + row;
      if (params_.hard) {
        assign(scores, half, active ? params_.best[source] - first_centroid_ : -1,
               inputs.weight[row]);
        continue;
      }
      const float maximum = active ? params_.maximum[source] : 0.0f;
      const float factor = active ? params_.factor[source] : 0.0f;
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          float& score = scores[n][2 * half + side];
          score = exp2_fast((score - maximum) * exponent_) * factor;
        }
      }
    }
  }

  /// All of a row to one of the 64 centroids, or none.
  __device__ void assign(TileSums& scores, int half, int64_t centroid, float weight) {
    const TilePlace place;
#pragma unroll
    for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const bool mine = place.column(n, side) == centroid;
        scores[n][2 * half + side] = mine ? weight : 0.0f;
      }
    }
  }

  __device__ void write(int64_t part) {
    const TilePlace place;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t centroid = first_centroid_ + place.row(half);
      if (centroid >= centroids_) continue;
      const int64_t sum = sequence_ * params_.sum_rows + part * centroids_ + centroid;
      if (params_.masses != nullptr && first_value_ == 0 && place.pair == 0) {
        params_.masses[sum] = mass_[2 * half];
      }
#pragma unroll
      for (int t = 0; t < kValueTiles; ++t) {
        const int64_t column = first_value_ + t * kTile;
        write_row(params_.sums + sum * params_.value_dim + column, params_.value_dim - column,
                  output_[t], half);
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
  const float exponent_;
  InputTile* data_;
  CentroidTile* centroid_data_;
  double* exchange_;
  OperandTile<kSplit>* query_tiles_;
  OperandTile<kSplit>* key_tiles_;
  OperandTile<kSplit>* value_tiles_;
  int64_t first_centroid_ = 0;
  InputRange range_ = {0, 0};
  TileSums output_[kValueTiles];
  FragmentD mass_;  // the same in all columns
  double objective_ = 0.0;
  bool bad_ = false;
};

/// Blocks of 128 value columns; at least one.
CA_HOST_DEVICE inline int64_t value_blocks_of(int64_t value_dim) {
  const int64_t blocks = (value_dim + 2 * kTile - 1) / (2 * kTile);
  return blocks < 1 ? 1 : blocks;
}

/// kAccess: how keys and values are read where dim and value_dim are at most 64, else `any`.
template <bool kSplit, RowAccess kAccess>
__global__ void __launch_bounds__(kTileThreads, kAccess == RowAccess::any ? 3 : 4)
    assignment_pass(const AssignmentParams params) {
  // query: (64 of M,D), key: (part of N,D), value: (part of N,E) -> sums: (64 of M,E)
  const int64_t value_blocks = value_blocks_of(params.value_dim);
  const int64_t blocks = assignment_blocks(params.inputs, params.centroids);
  const int64_t rest = blockIdx.x / value_blocks;
  AssignmentPass<kSplit, kAccess> pass(params, rest / blocks, blockIdx.x % value_blocks);
  pass.run(rest % blocks);
}

/// Sum over the parts of one row, in order.
__device__ inline float total_of_parts(const float* values, int64_t parts, int64_t stride) {
  float total = 0.0f;
#pragma unroll 16  // loads do not wait for the sum
  for (int64_t part = 0; part < parts; ++part) total += values[part * stride];
  return total;
}

}  // namespace cluster_attention::cuda
