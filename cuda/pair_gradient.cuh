#pragma once

// A tile of 64 inputs and 64 centroids in the backward of centroid attention, in registers: the
// scores s_ji and x_ji = factor_j g_j.v_i - offset_j become a_ji factor_j and dz_ji. The owner of
// the rows is either the inputs or the centroids; both see the same scores, bit for bit.

#include <type_traits>

#include "cuda/centroid_gradient_params.cuh"
#include "cuda/primitives/shared_memory.cuh"

namespace cluster_attention::cuda {

struct PairLayout {
  int64_t row_position;
  int64_t column_position;
  int64_t column_terms;
  int64_t row_first;
  int64_t row_second;
  int64_t column_first;
  int64_t column_second;
  int64_t bytes;
};

template <bool kSplit>
CA_HOST_DEVICE PairLayout pair_layout(int row_tiles) {  // 0: one for both operands
  SharedLayout parts;
  PairLayout layout;
  layout.row_position = parts.add<int32_t>(kTile);
  layout.column_position = parts.add<int32_t>(kTile);
  layout.column_terms = parts.add<InputTerms>(kTile);
  layout.row_first = parts.add<OperandTile<kSplit>>(row_tiles > 0 ? row_tiles : 1);
  layout.row_second = row_tiles > 0 ? parts.add<OperandTile<kSplit>>(row_tiles) : layout.row_first;
  layout.column_first = parts.add<OperandTile<kSplit>>(1);
  layout.column_second = parts.add<OperandTile<kSplit>>(1);
  layout.bytes = parts.bytes();
  return layout;
}

static_assert(sizeof(CentroidTerms) <= sizeof(InputTerms), "they share a place");

template <bool kSplit, bool kInputRows>
class PairTile {
 public:
  using RowTerms = std::conditional_t<kInputRows, InputTerms, CentroidTerms>;
  using ColumnTerms = std::conditional_t<kInputRows, CentroidTerms, InputTerms>;
  using Tile = OperandTile<kSplit>;

  const TilePlace place;
  TileSums share;   // scores, then a_ji factor_j
  TileSums change;  // x, then dz
  RowTerms row_terms[2];
  bool bad = false;  // a score or an x that counts was not finite

  __device__ explicit PairTile(const CentroidGradientParams& params) : params_(params) {
    const PairLayout layout = pair_layout<kSplit>(params.row_tiles);
    row_position_ = dynamic_shared<int32_t>(layout.row_position);
    column_position_ = dynamic_shared<int32_t>(layout.column_position);
    column_terms_ = dynamic_shared<ColumnTerms>(layout.column_terms);
    row_first_ = dynamic_shared<Tile>(layout.row_first);
    row_second_ = dynamic_shared<Tile>(layout.row_second);
    column_first_ = dynamic_shared<Tile>(layout.column_first);
    column_second_ = dynamic_shared<Tile>(layout.column_second);
  }

  __device__ void open_head(int64_t batch, int64_t head) {
    batch_ = batch;
    head_ = head;
  }

  /// terms(i) of the block's 64 rows, which multiply() will load.
  template <typename TermsOf>
  __device__ void open_rows(const TermsOf& terms) {
    if (threadIdx.x < kTile) row_position_[threadIdx.x] = terms(threadIdx.x).position;
    for (int half = 0; half < 2; ++half) row_terms[half] = terms(place.row(half));
    rows_loaded_ = false;
  }

  /// The next 64 columns: their terms(i), scores and x.
  template <typename TermsOf>
  __device__ void multiply(const TermsOf& terms) {
    __syncthreads();  // the tiles of the columns before are used up
    if (threadIdx.x < kTile) {
      column_terms_[threadIdx.x] = terms(threadIdx.x);
      column_position_[threadIdx.x] = column_terms_[threadIdx.x].position;
    }
    __syncthreads();
    clear(share);
    const bool both = params_.row_tiles > 0;  // operands have tiles
    const int row_tiles = both ? params_.row_tiles : 1;
    const bool load_rows = !rows_loaded_ || !both;
    multiply_rows<kSplit, kInputRows>(
        share, row_first_, row_tiles, load_rows, rows<kInputRows, false>(), row_position_,
        *column_first_, rows<!kInputRows, false>(), column_position_, params_.assignment.dim);
    if (params_.with_changes) {
      clear(change);
      if (!both) __syncthreads();
      multiply_rows(change, row_second_, row_tiles, load_rows, rows<kInputRows, true>(),
                    row_position_, *column_second_, rows<!kInputRows, true>(), column_position_,
                    params_.assignment.value_dim);
    }
    rows_loaded_ = true;
    finish_products();
  }

  /// Elements [first, first + 64) of the columns' first or second operand, for add_values(). All
  /// threads call it.
  template <bool kSecond>
  __device__ const Tile& column_values(int64_t first) {
    Tile& tile = kSecond ? *column_second_ : *column_first_;
    const int64_t dim = kSecond ? params_.assignment.value_dim : params_.assignment.dim;
    if (dim > kTile || (kSecond && !params_.with_changes)) {
      __syncthreads();
      load_tile(tile, rows<!kInputRows, kSecond>(), column_position_, first, dim);
      __syncthreads();
    }
    return tile;
  }

  __device__ const InputTerms& input(int n, int i) const {
    if constexpr (kInputRows) {
      return row_terms[i / 2];
    } else {
      return column_terms_[place.column(n, i % 2)];
    }
  }
  __device__ const CentroidTerms& centroid(int n, int i) const {
    if constexpr (kInputRows) {
      return column_terms_[place.column(n, i % 2)];
    } else {
      return row_terms[i / 2];
    }
  }
  __device__ bool is_real(int n, int i) const {
    return input(n, i).position >= 0 && centroid(n, i).position >= 0;
  }

  /// From scores and x to a_ji factor_j and dz_ji; note(half, p_ji x_ji) sees each pair.
  template <typename Note>
  __device__ void differentiate(const Note& note) {
    const float exponent = params_.assignment.exponent;
#pragma unroll
    for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const InputTerms& x = input(n, i);
        const CentroidTerms& u = centroid(n, i);
        const bool real = is_real(n, i);
        float p = 0.0f;
        if (real && params_.over_inputs) {
          p = exp2f(share[n][i] * exponent - u.logsumexp);
        } else if (real) {
          // Not above 0, whatever the rounding; NaN stays.
          const float logit = (share[n][i] - x.maximum) * exponent;
          p = exp2f(logit > 0.0f ? 0.0f : logit) * x.inverse_sum;
        }
        const float a = x.weight * p;
        share[n][i] = real ? a * u.factor : 0.0f;
        if (!params_.with_changes) continue;
        if (real) note(i / 2, p * change[n][i]);
        const float centre = params_.over_inputs ? 0.0f : x.total;
        change[n][i] = real ? a * (change[n][i] - centre) : 0.0f;
      }
    }
  }

 private:
  /// Made where they are used: kept, they would take the registers of the sums.
  template <bool kOfInputs, bool kSecond>
  __device__ Rows rows() const {
    const AssignmentParams& a = params_.assignment;
    if constexpr (!kOfInputs) {
      return Rows(kSecond ? params_.output_gradient : a.query, batch_, head_);
    } else if constexpr (kSecond) {
      const float* origin = params_.value_origin;
      return Rows(a.value, batch_, head_,
                  origin != nullptr ? origin + batch_ * a.value_dim : nullptr);
    } else {
      return Rows(a.key, batch_, head_, a.origin != nullptr ? a.origin + batch_ * a.dim : nullptr);
    }
  }

  __device__ void finish_products() {
    const AssignmentParams& a = params_.assignment;
#pragma unroll
    for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const CentroidTerms& u = centroid(n, i);
        float& score = share[n][i];
        if (a.column_scale != nullptr) score *= input(n, i).scale;
        score = a.sign * (score + u.bias);
        const bool real = is_real(n, i);
        bad |= real && !is_number(score);
        if (!params_.with_changes) continue;
        change[n][i] = change[n][i] * u.factor - u.offset;
        bad |= real && !is_number(change[n][i]);
      }
    }
  }

  const CentroidGradientParams& params_;
  int32_t* row_position_;
  int32_t* column_position_;
  ColumnTerms* column_terms_;
  Tile* row_first_;
  Tile* row_second_;
  Tile* column_first_;
  Tile* column_second_;
  int64_t batch_ = 0;
  int64_t head_ = 0;
  bool rows_loaded_ = false;
};

/// The softmax of inputs, one in each row, over any number of tiles of centroids.
struct InputSoftmax {
  float maximum[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};      // of this thread's columns; finish() joins them
  float product[2] = {0.0f, 0.0f};  // sum of p x, likewise

  template <bool kSplit>
  __device__ void add(const PairTile<kSplit, true>& pair, float exponent, bool with_changes) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float joint = maximum[half];
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const int i = 2 * half + side;
          if (pair.is_real(n, i)) joint = fmaxf(joint, pair.share[n][i]);
        }
      }
      joint = warp_reduce(
          joint, [](float a, float b) { return fmaxf(a, b); }, 4);
      const float factor = rescale(maximum[half], joint, exponent);
      maximum[half] = joint;
      sum[half] *= factor;
      product[half] *= factor;
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const int i = 2 * half + side;
          if (!pair.is_real(n, i)) continue;
          const float term = exp2f((pair.share[n][i] - joint) * exponent);
          sum[half] += term;
          if (with_changes) product[half] += term * pair.change[n][i];
        }
      }
    }
  }

  /// Into the terms of the rows; all lanes call it.
  __device__ void finish(InputTerms (&terms)[2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      terms[half].maximum = maximum[half];
      terms[half].inverse_sum = 1.0f / warp_sum(sum[half], 4);
      terms[half].total = warp_sum(product[half], 4) * terms[half].inverse_sum;
    }
  }
};

}  // namespace cluster_attention::cuda
