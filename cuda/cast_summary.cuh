#pragma once

// Step 5 of CAST (§7): the summary of a cluster,
//
//   R_inter = f(tau (K_g s) * softplus1(-phi_g))^T V_g, s the cluster's surrogate
//
// Method: one block per cluster; each warp takes 32 members at a time, of which each lane has the
// product of one. Rows that are read fast are read 16 bytes a lane, a few at once, all of them
// under way before the first one is waited for. A warp keeps a maximum, a sum and the values
// weighed so far; in the end those of all warps are joined in order. All in float32: one row is too
// little for tensor cores.

#include "cuda/cast_intra.cuh"
#include "cuda/cast_layout.cuh"
#include "cuda/primitives/stored_rows.cuh"

namespace cluster_attention::cuda {

template <bool kSplit, RowAccess kAccess>
class SummaryBlock {
 public:
  /// Of rows that are read fast: elements of 16 bytes, lanes of a row of 64, rows at once.
  static constexpr int kChunk = kAccess == RowAccess::copies ? 8 : 4;
  static constexpr int kLanes = kTile / kChunk;
  static constexpr int kRows = kWarp / kLanes;
  using Element = std::conditional_t<kAccess == RowAccess::copies, bfloat16, float>;
  /// Value columns of a lane: lane, lane + 32 and so on, or those of its chunk.
  static constexpr bool kSmall = kAccess != RowAccess::any;
  static constexpr int kColumns = kSmall ? kChunk : kRowValueTiles * kTile / kWarp;
  static constexpr int kBlockColumns = (kSmall ? 1 : kRowValueTiles) * kTile;

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
    const float sum = warp_sum(sum_);
    if (lane_index() == 0) {
      data_.maximum[warp_] = maximum_;
      data_.sum[warp_] = sum;
    }
    keep_values();
    __syncthreads();
    write();
    if (bad_) mark_non_finite(params_.flags);
  }

 private:
  /// For the other warps.
  __device__ void keep_values() {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      if constexpr (kSmall) {
        float sum = values_[i];
        for (int mask = kLanes; mask < kWarp; mask *= 2) sum += shuffle_xor(sum, mask);
        if (lane_index() < kLanes) data_.values[warp_][lane_index() * kChunk + i] = sum;
      } else {
        data_.values[warp_][lane_index() + i * kWarp] = values_[i];
      }
    }
  }

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
    const auto count = static_cast<int>(size_ - first < kWarp ? size_ - first : kWarp);
    if constexpr (kAccess != RowAccess::any) {
      add_small_members(first, count);
      return;
    }
    const bool real = lane_index() < count;
    const int32_t token = member(first + (real ? lane_index() : 0));
    const float weight = weight_of(finish_product(slow_product(token), token, real), real);
#pragma unroll 1
    for (int i = 0; i < count; ++i) add_value(shuffle(token, i), shuffle(weight, i));
  }

  /// The same of rows of at most 64 elements: lane l has chunk l % kLanes of the rows l / kLanes,
  /// l / kLanes + kRows and so on, and then the product of row (l % kLanes) kRows + l / kLanes.
  __device__ void add_small_members(int64_t first, int count) {
    const int chunk = lane_index() % kLanes;
    const int group = lane_index() / kLanes;
    const int mine = chunk * kRows + group;
    const bool real = mine < count;
    const int32_t token = member(first + (real ? mine : 0));
    uint4 keys[kLanes], values[kLanes];
    load_rows(params_.key, params_.dim, token, count, keys);
    constexpr bool kTogether = kLanes == 8;  // registers for keys and values
    if (kTogether) load_rows(params_.value, params_.value_dim, token, count, values);
    float surrogates[kChunk], products[kLanes];
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      const int d = chunk * kChunk + j;
      surrogates[j] = d < static_cast<int>(params_.dim) ? surrogate()[d] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      products[i] = 0.0f;
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        products[i] = fmaf(element(keys[i], j), surrogates[j], products[i]);
      }
    }
    const float product = join(products);
    if (!kTogether) load_rows(params_.value, params_.value_dim, token, count, values);
    const float weight = weight_of(finish_product(product, token, real), real);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const float row_weight = shuffle(weight, group * kLanes + i);
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        values_[j] = fmaf(row_weight, element(values[i], j), values_[j]);
      }
    }
  }

  /// This lane's chunks of its rows, zeros past their ends and past the last member.
  __device__ void load_rows(const Tensor& rows, int64_t width, int32_t token, int count,
                            uint4 (&words)[kLanes]) const {
    const int column = lane_index() % kLanes * kChunk;
    const int group = lane_index() / kLanes;
    const auto* from =
        reinterpret_cast<const Element*>(rows.data) + rows.offset(batch_, head_) + column;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const int32_t row = shuffle(token, group * kLanes + i);
      words[i] = make_uint4(0, 0, 0, 0);
      if (i * kRows + group < count && column < static_cast<int>(width)) {
        words[i] = *reinterpret_cast<const uint4*>(
            from + wide_product(row, static_cast<int32_t>(rows.row_stride)));
      }
    }
  }

  /// Of a chunk.
  __device__ static float element(const uint4& words, int j) {
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
    if constexpr (kChunk == 4) return __uint_as_float(word[j]);
    return j % 2 == 0 ? low_of(word[j / 2]) : high_of(word[j / 2]);
  }

  /// Sums each of kLanes numbers over kLanes lanes: a lane gets the sum of its own place.
  __device__ static float join(float (&x)[kLanes]) {
#pragma unroll
    for (int half = kLanes / 2; half > 0; half /= 2) {
      const bool upper = (lane_index() & half) != 0;
#pragma unroll
      for (int i = 0; i < half; ++i) {
        const float kept = upper ? x[i + half] : x[i];
        const float given = upper ? x[i] : x[i + half];
        x[i] = kept + shuffle_xor(given, half);
      }
    }
    return x[0];
  }

  __device__ int32_t member(int64_t slot) const {
    return params_.members[list_ * params_.cluster_size + slot];
  }

  /// What f is taken of, or under softmax the product that it is made of.
  __device__ float finish_product(float product, int32_t token, bool real) {
    product *= params_.key_factor[batch_ * params_.tokens + token];
    product *= params_.logit_factor(scale_);
    bad_ |= real && !is_number(product);
    return product;
  }

  /// The weight of this lane's member; under softmax values are brought to its base.
  __device__ float weight_of(float logit, bool real) {
    if (!softmax_) return real ? laplace(logit) : 0.0f;
    if (!real) logit = -INFINITY;
    const float exponent = positive(fabsf(scale_) * kLog2E);
    const float joint =
        fmaxf(maximum_, warp_reduce(logit, [](float a, float b) { return fmaxf(a, b); }));
    const float factor = rescale(maximum_, joint, exponent);
    const float weight = exp2_fast((logit - joint) * exponent);
    maximum_ = joint;
    sum_ = sum_ * factor + weight;
#pragma unroll
    for (float& value : values_) value *= factor;
    return weight;
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

  __device__ void add_value(int32_t token, float weight) {
    const int64_t row = row_of(params_.value, token) + first_value_;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int column = lane_index() + i * kWarp;
      if (first_value_ + column >= params_.value_dim) continue;
      values_[i] =
          fmaf(weight, load_element(params_.value.data, params_.value.storage, row + column),
               values_[i]);
    }
  }

  /// Joins the warps: a thread per column.
  __device__ void write() {
    const int column = static_cast<int>(threadIdx.x);
    const bool writes =
        threadIdx.y == 0 && column < kBlockColumns && first_value_ + column < params_.value_dim;
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
