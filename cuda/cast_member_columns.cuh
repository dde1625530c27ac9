#pragma once

// Steps 4 and 5 of CAST (§7) backwards, along the keys of a cluster. With p and dz of
// cast_member_rows.cuh, the summary being the last query,
//
//   by the key: tau sum over i of dz_ij q_i       by the value: sum over i of w_i p_ij g_i
//   by phi: -tau sigma(-phi_j) dz_j k_j.s of the summary alone
//
// Method: one block per 64 members and 64 columns of D and E, over tiles of 64 queries; maximum,
// sum and total of each query were kept, so that no softmax runs here.

#include "cuda/cast_gradient_tile.cuh"

namespace cluster_attention::cuda {

struct CastMemberColumnData {
  int32_t row_position[kTile];  // members whose keys and values are the rows
  int32_t position[kTile];      // members whose queries are the columns; kExtraRow: the surrogate
  float key_factor[kTile];      // softplus1(-phi) of the rows
  float maximum[kTile];         // of the columns
  float inverse[kTile];
  float total[kTile];
  float weight[kTile];  // w
};

/// Blocks of 64 columns of D and E, at least one.
CA_HOST_DEVICE inline int64_t member_column_blocks(const CastParams& forward) {
  const int64_t columns = forward.dim > forward.value_dim ? forward.dim : forward.value_dim;
  return columns > 0 ? tiles_of(columns) : 1;
}

template <bool kSplit>
class CastMemberColumns {
 public:
  /// Members [64 tile, 64 tile + 64) of a cluster of one sequence.
  __device__ CastMemberColumns(const CastGradientParams& params, int64_t sequence, int64_t cluster,
                               int64_t tile, int64_t column_block)
      : params_(params),
        forward_(params.forward),
        members_(params, sequence, cluster),
        first_row_(tile * kTile),
        first_column_(column_block * kTile),
        size_(members_.size),
        adds_keys_(params.key.data != nullptr && first_column_ < forward_.dim),
        adds_values_(params.value.data != nullptr && first_column_ < forward_.value_dim),
        layout_(cast_gradient_layout<CastMemberColumnData, kSplit>(params.head_tiles,
                                                                   params.value_tiles)),
        data_(dynamic_shared<CastMemberColumnData>(layout_.data)),
        function_(forward_, size_),
        products_(params, layout_),
        rows_(members_.keys(data_->row_position)),
        columns_(members_.queries(data_->position)) {}

  __device__ void run() {
    const bool adds_gate = params_.gate != nullptr && first_column_ == 0;
    if (first_row_ >= size_ || (!adds_keys_ && !adds_values_ && !adds_gate)) return;
    clear(key_sums_);
    clear(value_sums_);
    if (threadIdx.x < kTile) open_row();
    // The gate needs the summary alone.
    const int64_t begin = adds_keys_ || adds_values_ ? 0 : size_ / kTile * kTile;
    for (int64_t first = begin; first <= size_; first += kTile) {
      add_queries(first, first == begin);
    }
    if (adds_keys_) {
      write(key_sums_, function_.scale, params_.slot_key, forward_.dim);
    }
    if (adds_values_) {
      write(value_sums_, 1.0f, params_.slot_value, forward_.value_dim);
    }
    if (bad_) mark_non_finite(forward_.flags);
  }

 private:
  __device__ void open_row() const {
    members_.open_key(first_row_ + threadIdx.x, data_->row_position[threadIdx.x],
                      data_->key_factor[threadIdx.x]);
  }

  __device__ void open_column(int64_t column) const {
    data_->position[threadIdx.x] = kNoRow;
    if (column > size_) return;
    const int64_t place = members_.row_list * (forward_.cluster_size + 1) + column;
    data_->position[threadIdx.x] = column < size_ ? members_.token(column) : kExtraRow;
    data_->maximum[threadIdx.x] = params_.row_maximum[place];
    data_->inverse[threadIdx.x] = params_.row_inverse[place];
    data_->total[threadIdx.x] = params_.row_total[place];
    data_->weight[threadIdx.x] =
        column < size_ ? params_.slot_weight[members_.row_list * forward_.cluster_size + column]
                       : 1.0f;
  }

  __device__ void add_queries(int64_t first, bool load_rows) {
    __syncthreads();  // the tiles and the data of the queries before are used up
    if (threadIdx.x < kTile) open_column(first + threadIdx.x);
    __syncthreads();
    TileSums weights, slopes;
    products_.multiply(weights, slopes, params_.wants_scores(), rows_, columns_, load_rows);
    for_each_sum([&](int n, int i, int row, int column) {
      weigh(weights[n][i], slopes[n][i], row, column, first);
    });
    if (adds_keys_) products_.add_head_rows(key_sums_, slopes, columns_, first_column_);
    if (adds_values_) products_.add_value_rows(value_sums_, weights, columns_, first_column_);
  }

  /// A product becomes the weight of g, a change the gradient by the product, up to the scale.
  __device__ void weigh(float& weight, float& slope, int row, int column, int64_t first) {
    const float product = weight;
    const float change = slope;
    weight = slope = 0.0f;
    if (first_row_ + row >= size_ || first + column > size_) return;
    const bool is_summary = first + column == size_;
    const float factor = is_summary ? data_->key_factor[row] : 1.0f;
    const float score = function_.score(product, factor);
    bad_ |= !is_number(score);
    const float share = function_.weight(score, data_->maximum[column], data_->inverse[column]);
    const float gradient =
        data_->weight[column] * function_.slope(score, share, change, data_->total[column]);
    weight = data_->weight[column] * share;
    slope = gradient * factor;
    if (!is_summary || params_.gate == nullptr || first_column_ != 0) return;
    // The derivative of softplus1(-phi) is -sigma(-phi).
    const float phi = forward_.gate_logit(members_.batch, data_->row_position[row]);
    params_.slot_gate[members_.row_list * forward_.cluster_size + first_row_ + row] =
        -function_.scale * sigmoid(-phi) * gradient * product;
  }

  __device__ void write(const TileSums& sums, float scale, float* rows, int64_t width) const {
    for_each_sum([&](int n, int i, int tile_row, int tile_column) {
      const int64_t row = first_row_ + tile_row;
      const int64_t column = first_column_ + tile_column;
      if (row >= size_ || column >= width) return;
      rows[(members_.row_list * forward_.cluster_size + row) * width + column] = sums[n][i] * scale;
    });
  }

  const CastGradientParams& params_;
  const CastParams& forward_;
  const CastClusterMembers members_;
  const int64_t first_row_;
  const int64_t first_column_;
  const int64_t size_;
  const bool adds_keys_;
  const bool adds_values_;
  const CastGradientLayout layout_;
  CastMemberColumnData* data_;
  const CastFunction function_;
  CastProducts<kSplit> products_;
  const CastSide rows_;
  const CastSide columns_;
  TileSums key_sums_;
  TileSums value_sums_;
  bool bad_ = false;
};

template <bool kSplit>
__global__ void __launch_bounds__(kTileThreads)
    cast_member_columns(const CastGradientParams params) {
  // key: (64 of kappa,D), value: (64 of kappa,E), query: (kappa + 1,D), output_gradient: (kappa +
  // 1,E) -> slot_key: (64 of kappa,64 of D), slot_value: (64 of kappa,64 of E), slot_gate
  const int64_t column_blocks = member_column_blocks(params.forward);
  const int64_t tiles = tiles_of(params.forward.cluster_size);
  const ClusterTile at(blockIdx.x, column_blocks, tiles, params.forward.clusters);
  CastMemberColumns<kSplit>(params, at.sequence, at.cluster, at.tile, at.column_block).run();
}

}  // namespace cluster_attention::cuda
