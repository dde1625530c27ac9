#pragma once

// Steps 4 and 5 of CAST (§7) backwards, along the queries of a cluster: the members, and the
// surrogate as one more, whose logits softplus1(-phi) weighs. For query i with weight w_i and
// gradient g_i by its output,
//
//   total_i = sum over j of p_ij g_i.v_j       dz_ij = w_i p_ij (g_i.v_j - total_i)
//   by the query: tau sum over j of dz_ij k_j
//
// Method: one block per 64 queries and 128 columns of D, twice over tiles of 64 members: first the
// softmax online with its total, then the gradients. Where the members fit in one tile, the
// products of the first time serve the second.

#include "cuda/cast_gradient_tile.cuh"

namespace cluster_attention::cuda {

struct CastMemberRowData {
  int32_t row_position[kTile];  // members whose queries are the rows; kExtraRow: the surrogate
  int32_t position[kTile];      // members whose keys and values are the columns
  float row_weight[kTile];      // w
  float key_factor[kTile];      // softplus1(-phi) of the columns
};

/// The online softmax of a thread's two rows, and the sum of weights times changes.
struct CastRowState {
  float maximum[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};  // of this thread's columns, until joined
  float total[2] = {0.0f, 0.0f};

  __device__ void move(int half, float joint, float exponent) {
    const float factor = rescale(maximum[half], joint, exponent);
    maximum[half] = joint;
    sum[half] *= factor;
    total[half] *= factor;
  }
  /// After the last column: sum becomes 1 / sum, total is divided by it.
  __device__ void join(bool softmax) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[half] = warp_sum(sum[half], 4);
      total[half] = warp_sum(total[half], 4);
      if (!softmax) continue;
      sum[half] = sum[half] == 0.0f ? 0.0f : 1.0f / sum[half];
      total[half] *= sum[half];
    }
  }
};

template <bool kSplit>
class CastMemberRows {
 public:
  /// Queries [64 tile, 64 tile + 64) of a cluster of one sequence.
  __device__ CastMemberRows(const CastGradientParams& params, int64_t sequence, int64_t cluster,
                            int64_t tile, int64_t column_block)
      : params_(params),
        forward_(params.forward),
        members_(params, sequence, cluster),
        first_row_(tile * kTile),
        column_block_(column_block),
        first_column_(column_block * kRowValueTiles * kTile),
        size_(members_.size),
        layout_(
            cast_gradient_layout<CastMemberRowData, kSplit>(params.head_tiles, params.value_tiles)),
        data_(dynamic_shared<CastMemberRowData>(layout_.data)),
        function_(forward_, size_),
        products_(params, layout_),
        rows_(members_.queries(data_->row_position)),
        columns_(members_.keys(data_->position)) {}

  __device__ void run() {
    if (first_row_ > size_) return;
    if (size_ == 0) {
      clear_summary();
      return;
    }
    if (threadIdx.x < kTile) open_row();
    for (int64_t first = 0; first < size_; first += kTile) {
      multiply(first, first == 0);
      observe();
    }
    state_.join(function_.softmax);
    if (column_block_ == 0) write_state();
    const bool has_summary = size_ - first_row_ < kTile;
    const bool wanted = params_.query.data != nullptr || (has_summary && params_.wants_weights());
    if (wanted) differentiate(has_summary);
    if (bad_) mark_non_finite(forward_.flags);
  }

 private:
  __device__ void open_row() const {
    const int64_t row = first_row_ + threadIdx.x;
    int32_t position = kNoRow;
    float weight = 0.0f;
    if (row < size_) {
      position = members_.token(row);
      weight = params_.slot_weight[members_.row_list * forward_.cluster_size + row];
    } else if (row == size_) {
      position = kExtraRow;
      weight = 1.0f;
    }
    data_->row_position[threadIdx.x] = position;
    data_->row_weight[threadIdx.x] = weight;
  }

  /// Products and changes with members [first, first + 64).
  __device__ void multiply(int64_t first, bool load_rows) {
    __syncthreads();  // the tiles and the data of the members before are used up
    if (threadIdx.x < kTile) {
      members_.open_key(first + threadIdx.x, data_->position[threadIdx.x],
                        data_->key_factor[threadIdx.x]);
    }
    __syncthreads();
    products_.multiply(product_, change_, params_.wants_scores(), rows_, columns_, load_rows);
  }

  __device__ bool counts(int row, int column) const {
    return first_row_ + row <= size_ && data_->position[column] >= 0;
  }
  __device__ float factor(int row, int column) const {
    return first_row_ + row == size_ ? data_->key_factor[column] : 1.0f;
  }

  __device__ void observe() {
    float joint[2] = {state_.maximum[0], state_.maximum[1]};
    for_each_sum([&](int n, int i, int row, int column) {
      if (!counts(row, column)) return;
      const float score = function_.score(product_[n][i], factor(row, column));
      bad_ |= !is_number(score);
      joint[i / 2] = fmaxf(joint[i / 2], score);
    });
    if (function_.softmax) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        joint[half] = warp_reduce(
            joint[half], [](float a, float b) { return fmaxf(a, b); }, 4);
        state_.move(half, joint[half], function_.exponent);
      }
    }
    for_each_sum([&](int n, int i, int row, int column) {
      if (!counts(row, column)) return;
      const float score = function_.score(product_[n][i], factor(row, column));
      const float weight = function_.weight(score, joint[i / 2], 1.0f);
      state_.sum[i / 2] += weight;
      state_.total[i / 2] = fmaf(weight, change_[n][i], state_.total[i / 2]);
    });
  }

  __device__ void write_state() const {
    const TilePlace place;
    if (place.pair != 0) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first_row_ + place.row(half);
      if (row > size_) continue;
      const int64_t target = members_.row_list * (forward_.cluster_size + 1) + row;
      params_.row_maximum[target] = state_.maximum[half];
      params_.row_inverse[target] = state_.sum[half];
      params_.row_total[target] = state_.total[half];
    }
  }

  __device__ void differentiate(bool has_summary) {
#pragma unroll
    for (int t = 0; t < kRowValueTiles; ++t) clear(output_[t]);
    const bool one_tile = size_ <= kTile;
    for (int64_t first = 0; first < size_; first += kTile) {
      if (!one_tile) multiply(first, false);
      find_slopes(first);
#pragma unroll
      for (int t = 0; t < kRowValueTiles; ++t) {
        const int64_t column = first_column_ + t * kTile;
        if (column >= forward_.dim) break;
        products_.add_head_rows(output_[t], product_, columns_, column);
      }
    }
    write();
    if (has_summary && column_block_ == 0) summarize();
  }

  /// Products become gradients by them, up to the scale.
  __device__ void find_slopes(int64_t first) {
    for_each_sum([&](int n, int i, int row, int column) {
      float& product = product_[n][i];
      if (!counts(row, column)) {
        product = 0.0f;
        return;
      }
      const float score = function_.score(product, factor(row, column));
      const float weight = function_.weight(score, state_.maximum[i / 2], state_.sum[i / 2]);
      product = data_->row_weight[row] * factor(row, column) *
                function_.slope(score, weight, change_[n][i], state_.total[i / 2]);
      if (first_row_ + row == size_ && column_block_ == 0) {
        params_.summary_weight[members_.row_list * forward_.cluster_size + first + column] = weight;
      }
    });
  }

  __device__ void write() const {
#pragma unroll
    for (int t = 0; t < kRowValueTiles; ++t) {
      for_each_sum([&](int n, int i, int tile_row, int tile_column) {
        const int64_t row = first_row_ + tile_row;
        const int64_t column = first_column_ + t * kTile + tile_column;
        if (row > size_ || column >= forward_.dim) return;
        const float value = output_[t][n][i] * function_.scale;
        if (row == size_) {
          params_.surrogate_terms[members_.row_list * forward_.dim + column] = value;
        } else if (params_.query.data != nullptr) {
          params_.slot_query[(members_.row_list * forward_.cluster_size + row) * forward_.dim +
                             column] = value;
        }
      });
    }
  }

  /// R_inter, a column per thread, members in order.
  __device__ void summarize() const {
    __syncthreads();  // the weights of all threads are there
    const float* weights = params_.summary_weight + members_.row_list * forward_.cluster_size;
    for (int64_t e = threadIdx.x; e < forward_.value_dim; e += kTileThreads) {
      float sum = 0.0f;
#pragma unroll 4
      for (int64_t slot = 0; slot < size_; ++slot) {
        const float value = columns_.value.element(members_.token(slot), e);
        sum = fmaf(weights[slot], kSplit ? value : round_to_bfloat16(value), sum);
      }
      params_.inter[members_.row_list * forward_.value_dim + e] = sum;
    }
  }

  /// A cluster without members has a summary of zeros, whose surrogate does not matter.
  __device__ void clear_summary() const {
    if (column_block_ != 0 || !params_.wants_weights()) return;
    for (int64_t e = threadIdx.x; e < forward_.value_dim; e += kTileThreads) {
      params_.inter[members_.row_list * forward_.value_dim + e] = 0.0f;
    }
    for (int64_t d = threadIdx.x; d < forward_.dim; d += kTileThreads) {
      params_.surrogate_terms[members_.row_list * forward_.dim + d] = 0.0f;
    }
  }

  const CastGradientParams& params_;
  const CastParams& forward_;
  const CastClusterMembers members_;
  const int64_t first_row_;
  const int64_t column_block_;
  const int64_t first_column_;
  const int64_t size_;
  const CastGradientLayout layout_;
  CastMemberRowData* data_;
  const CastFunction function_;
  CastProducts<kSplit> products_;
  const CastSide rows_;
  const CastSide columns_;
  CastRowState state_;
  TileSums product_;
  TileSums change_;
  RowOutput output_;
  bool bad_ = false;
};

template <bool kSplit>
__global__ void __launch_bounds__(kTileThreads) cast_member_rows(const CastGradientParams params) {
  // query: (64 of kappa + 1,D), output_gradient: (64 of kappa + 1,E), key: (kappa,D), value:
  // (kappa,E) -> row_maximum, row_inverse, row_total: (64 of kappa + 1), slot_query: (64 of
  // kappa,D), inter: (E), surrogate_terms: (D)
  const int64_t column_blocks = params.wants_weights() ? value_blocks_of(params.forward.dim) : 1;
  const int64_t tiles = member_tiles(params.forward.cluster_size);
  const ClusterTile at(blockIdx.x, column_blocks, tiles, params.forward.clusters);
  CastMemberRows<kSplit>(params, at.sequence, at.cluster, at.tile, at.column_block).run();
}

}  // namespace cluster_attention::cuda
