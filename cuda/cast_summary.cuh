#pragma once

// Step 5 of CAST (§7): the summary of a cluster,
//
//   R_inter = f(tau (K_g s) * softplus1(-phi_g))^T V_g, s the cluster's surrogate
//
// Method: one block per cluster; each warp takes 32 members at a time, of which each lane has the
// product of one. A warp keeps a maximum, a sum and the values weighed so far; in the end those of
// all warps are joined in order. All in float32: one row is too little for tensor cores.

#include "cuda/cast_intra.cuh"
#include "cuda/cast_layout.cuh"
#include "cuda/primitives/stored_rows.cuh"

namespace cluster_attention::cuda {

template <bool kSplit, RowAccess kAccess>
class SummaryBlock {
 public:
  /// Value columns of a lane: lane, lane + 32 and so on.
  static constexpr int kColumns = (kAccess == RowAccess::any ? kRowValueTiles : 1) * kTile / kWarp;

  __device__ SummaryBlock(const CastParams& params, int64_t sequence, int64_t cluster,
                          int64_t value_block)
      : params_(params),
        batch_(sequence / params.heads),
        head_(sequence % params.heads),
        cluster_(cluster),
        list_(batch_ * params.clusters + cluster),
        row_list_(sequence * params.clusters + cluster),
        value_block_(kAccess != RowAccess::any ? 0 : value_block),
        first_value_(value_block_ * kRowValueTiles * kTile),
        size_(params.counts[list_]),
        softmax_(params.activation == Activation::softmax),
        scale_(params.product_scale(size_)),
        warp_(static_cast<int>(threadIdx.y) * kTileWarps + warp_index()),
        warps_(static_cast<int>(blockDim.y) * kTileWarps),
        data_(*dynamic_shared<SummaryData>()) {}

  __device__ void run() {
    if (!kSplit && batch_ == 0 && value_block_ == 0) round_surrogate();
    for (int64_t first = warp_ * kWarp; first < size_; first += warps_ * kWarp) add_members(first);
    data_.maximum[warp_] = maximum_;
    const float sum = warp_sum(sum_);
    if (lane_index() == 0) data_.sum[warp_] = sum;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) data_.values[warp_][lane_index() + i * kWarp] = values_[i];
    __syncthreads();
    write();
    if (bad_) mark_non_finite(params_.flags);
  }

 private:
  /// For step 6, which reads it for every tile of tokens.
  __device__ void round_surrogate() {
    const int64_t target = (head_ * params_.clusters + cluster_) * params_.dim;
    for (int64_t d = threadIdx.x; threadIdx.y == 0 && d < params_.dim; d += kTileThreads) {
      store_element(params_.rounded_surrogates, Storage::bfloat16, target + d, surrogate()[d]);
    }
  }

  __device__ const float* surrogate() const {
    return params_.surrogates.data + params_.surrogates.offset(0, head_) +
           cluster_ * params_.surrogates.row_stride;
  }
  /// Where the row of a token begins.
  __device__ int64_t row_of(const Tensor& rows, int64_t token) const {
    return rows.offset(batch_, head_) + token * rows.row_stride;
  }

  /// Members [first, first + 32), of which this warp has at least one.
  __device__ void add_members(int64_t first) {
    const int64_t slot = first + lane_index();
    const bool real = slot < size_;
    const int32_t token = real ? params_.members[list_ * params_.cluster_size + slot]
                               : params_.members[list_ * params_.cluster_size + first];
    float weight = logit_of(token);
    if (softmax_) {
      if (!real) weight = -INFINITY;
      const float exponent = positive(fabsf(scale_) * kLog2E);
      const float joint =
          fmaxf(maximum_, warp_reduce(weight, [](float a, float b) { return fmaxf(a, b); }));
      const float factor = rescale(maximum_, joint, exponent);
      weight = exp2_fast((weight - joint) * exponent);
      maximum_ = joint;
      sum_ = sum_ * factor + weight;
#pragma unroll
      for (float& value : values_) value *= factor;
    } else {
      weight = real ? laplace(weight) : 0.0f;
    }
    const int count = static_cast<int>(size_ - first < kWarp ? size_ - first : kWarp);
    if (count == kWarp) {
#pragma unroll 8  // loads do not wait for each other
      for (int i = 0; i < kWarp; ++i) add_value(shuffle(token, i), shuffle(weight, i));
    } else {
#pragma unroll 1
      for (int i = 0; i < count; ++i) add_value(shuffle(token, i), shuffle(weight, i));
    }
  }

  /// What f is taken of, or under softmax the product that it is made of.
  __device__ float logit_of(int32_t token) {
    float product = kAccess == RowAccess::any ? slow_product(token) : fast_product(token);
    product *= params_.key_factor[batch_ * params_.tokens + token];
    product *= params_.logit_factor(scale_);
    bad_ |= !is_number(product);
    return product;
  }

  /// Of rows of any width, however they lie in memory.
  __device__ float slow_product(int32_t token) const {
    StoredRows keys, surrogates;
    keys.data = params_.key.data;
    keys.is_bfloat16 = params_.key.storage == Storage::bfloat16;
    surrogates.data = surrogate();
    const int64_t row = row_of(params_.key, token);
    const auto dim = static_cast<int>(params_.dim);
    float product = 0.0f;
    for (int first = 0; first < dim; first += 8) {
      float x[8], y[8];
      load_eight(keys, row + first, dim - first, x);
      load_eight(surrogates, first, dim - first, y);
#pragma unroll
      for (int i = 0; i < 8; ++i) product = fmaf(x[i], y[i], product);
    }
    return product;
  }

  /// All of a row of at most 64 elements is under way before it is waited for.
  __device__ float fast_product(int32_t token) const {
    constexpr int kChunks = kTile / 8;
    const int64_t row = row_of(params_.key, token);
    const auto dim = static_cast<int>(params_.dim);
    float key[kChunks][8];
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      if (8 * i < dim) load_chunk(row + 8 * i, dim - 8 * i, key[i]);
    }
    float product = 0.0f;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      if (8 * i >= dim) break;
      for (int j = 0; j < 8; ++j) {
        if (8 * i + j < dim) product = fmaf(key[i][j], surrogate()[8 * i + j], product);
      }
    }
    return product;
  }
  /// Eight elements of a key, or four at the end of a row of floats.
  __device__ void load_chunk(int64_t at, int count, float (&x)[8]) const {
    if constexpr (kAccess == RowAccess::copies) {
      load_eight_bfloat16(reinterpret_cast<const bfloat16*>(params_.key.data) + at, x);
    } else {
      const auto* floats = reinterpret_cast<const float4*>(params_.key.data + at);
      const float4 first = floats[0];
      const float4 second = count > 4 ? floats[1] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      x[0] = first.x, x[1] = first.y, x[2] = first.z, x[3] = first.w;
      x[4] = second.x, x[5] = second.y, x[6] = second.z, x[7] = second.w;
    }
  }

  __device__ void add_value(int32_t token, float weight) {
    constexpr Storage kKnown = kAccess == RowAccess::copies ? Storage::bfloat16 : Storage::float32;
    const Storage storage = kAccess == RowAccess::any ? params_.value.storage : kKnown;
    const int64_t row = row_of(params_.value, token) + first_value_;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int column = lane_index() + i * kWarp;
      if (first_value_ + column >= params_.value_dim) continue;
      values_[i] =
          fmaf(weight, load_element(params_.value.data, storage, row + column), values_[i]);
    }
  }

  /// Joins the warps: a thread per column.
  __device__ void write() {
    const int column = static_cast<int>(threadIdx.x);
    const bool writes =
        threadIdx.y == 0 && column < kColumns * kWarp && first_value_ + column < params_.value_dim;
    const float exponent = positive(fabsf(scale_) * kLog2E);
    float maximum = -INFINITY;
    for (int w = 0; w < warps_; ++w) maximum = fmaxf(maximum, data_.maximum[w]);
    float sum = 0.0f;
    float value = 0.0f;
    for (int w = 0; writes && w < warps_; ++w) {
      const float factor = softmax_ ? rescale(data_.maximum[w], maximum, exponent) : 1.0f;
      sum += factor * data_.sum[w];
      value += factor * data_.values[w][column];
    }
    if (softmax_) value *= sum == 0.0f ? 0.0f : 1.0f / sum;
    const bool bad = writes && !is_number(value);
    bad_ |= bad;
    if (writes) {
      const int tile = column / kTile;
      IntraRow<kSplit>(params_, row_list_, params_.cluster_size, first_value_ + tile * kTile)
          .store(column % kTile, value);
      store_element(params_.inter, IntraRow<kSplit>::kStorage,
                    row_list_ * params_.value_dim + first_value_ + column, value);
    }
    const int any_bad = __syncthreads_or(bad ? 1 : 0);
    if (threadIdx.x != 0 || threadIdx.y != 0) return;
    const int64_t lists = params_.batch * params_.heads * params_.clusters;
    params_.inter_not_finite[value_block_ * lists + row_list_] = any_bad != 0 ? 1 : 0;
  }

  const CastParams& params_;
  const int64_t batch_;
  const int64_t head_;
  const int64_t cluster_;
  const int64_t list_;      // (batch, cluster)
  const int64_t row_list_;  // (sequence, cluster)
  const int64_t value_block_;
  const int64_t first_value_;
  const int64_t size_;
  const bool softmax_;
  const float scale_;
  const int warp_;
  const int warps_;
  SummaryData& data_;
  float maximum_ = -INFINITY;
  float sum_ = 0.0f;  // of this lane's members
  float values_[kColumns] = {};
  bool bad_ = false;
};

}  // namespace cluster_attention::cuda
