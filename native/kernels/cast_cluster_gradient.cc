#include "native/kernels/cast_cluster_gradient.h"

#include <algorithm>

#include "native/core/shape.h"
#include "native/kernels/cast_activation.h"
#include "native/kernels/finite.h"
#include "native/kernels/prefetch.h"

namespace cluster_attention::kernels {

namespace {

/// Rows of one tile of queries, and what is made of them.
struct QueryTile {
  float* query;     // (lanes, head columns)
  float* gradient;  // (lanes, value columns): by the outputs of the tile
  float* packed;    // (max(D,E), lanes): either of them, then the gradient by query or R_inter
  float weight[kMaximumLanes];  // by which the gradients count
  float total[kMaximumLanes];
  int64_t columns;
};

/// Copies a row and fills it up with zeros.
void copy_padded(const float* row, int64_t dim, int64_t columns, float* target) {
  std::copy_n(row, dim, target);
  std::fill(target + dim, target + columns, 0.0f);
}

/// One cluster of one (sequence, head) pair.
class ClusterGradient {
 public:
  ClusterGradient(const CastGradientState& state, int64_t first_pair, int64_t pair, int64_t cluster,
                  int worker)
      : state_(state),
        simd_(state.forward.simd),
        shape_(state.given.inputs.shape),
        sequence_(state.forward.sequences[(first_pair + pair) / shape_.heads]),
        head_((first_pair + pair) % shape_.heads),
        pair_(pair),
        cluster_(cluster),
        size_(sequence_.counts[cluster]),
        members_(sequence_.members + cluster * state.given.cluster_size),
        scale_(size_ > 0 ? state.forward.product_scale(size_) : 0.0f),
        slots_(state.slots(pair)) {
    const int64_t first = cluster * state.given.cluster_size;
    slots_.query += first * state.head_columns;
    slots_.key += first * state.head_columns;
    slots_.value += first * state.value_columns;
    slots_.weight += first;
    slots_.total += first;
    slots_.gate += first;
    float* memory = state.forward.scratch(worker);
    const auto take = [&memory](int64_t count) {
      float* part = memory;
      memory += count;
      return part;
    };
    key_ = take(size_ * state.head_columns);
    value_ = take(size_ * state.value_columns);
    score_ = take(size_ * simd_.lanes);
    change_ = take(size_ * simd_.lanes);
    key_factor_ = take(size_);
    product_ = take(size_);
    tile_.query = take(simd_.lanes * state.head_columns);
    tile_.gradient = take(simd_.lanes * state.value_columns);
    tile_.packed = take(simd_.lanes * std::max(shape_.head_dim, shape_.value_dim));
  }

  void run() {
    // query, key: (size, D), value, gradient: (size, E)
    const int64_t row = pair_ * state_.given.clusters + cluster_;
    float* summary = state_.forward.inter + row * shape_.value_dim;
    float* surrogate_gradient = state_.surrogates + row * shape_.head_dim;
    if (size_ == 0) {
      std::fill_n(summary, shape_.value_dim, 0.0f);
      std::fill_n(surrogate_gradient, shape_.head_dim, 0.0f);
      return;
    }
    gather();
    differentiate_summary(summary, surrogate_gradient);
    for (int64_t first = 0; first < size_ && !state_.forward.context.cancelled();
         first += simd_.lanes) {
      differentiate_members(first);
    }
    for (int64_t i = 0; i < size_ * state_.head_columns; ++i) slots_.key[i] *= scale_;
  }

 private:
  void gather() const {
    const AttentionInputs& inputs = state_.given.inputs;
    constexpr int64_t kAhead = 8;  // the rows lie scattered
    for (int64_t i = 0; i < size_; ++i) {
      const int64_t token = members_[i];
      if (i + kAhead < size_) {
        const int64_t ahead = members_[i + kAhead];
        prefetch_row(inputs.key.row(sequence_.batch, head_, ahead), shape_.head_dim);
        prefetch_row(inputs.value.row(sequence_.batch, head_, ahead), shape_.value_dim);
      }
      copy_padded(inputs.key.row(sequence_.batch, head_, token), shape_.head_dim,
                  state_.head_columns, key_ + i * state_.head_columns);
      copy_padded(inputs.value.row(sequence_.batch, head_, token), shape_.value_dim,
                  state_.value_columns, value_ + i * state_.value_columns);
      key_factor_[i] = sequence_.key_factor[token];
    }
  }

  /// score = K q for the tile, change = V g.
  void multiply_tile() {
    const int64_t lanes = simd_.lanes;
    simd_.pack(tile_.query, state_.head_columns, nullptr, tile_.columns, shape_.head_dim,
               tile_.packed);
    simd_.multiply(key_, state_.head_columns, 1, size_, shape_.head_dim, tile_.packed, lanes,
                   tile_.columns, score_, lanes, false);
    simd_.pack(tile_.gradient, state_.value_columns, nullptr, tile_.columns, shape_.value_dim,
               tile_.packed);
    simd_.multiply(value_, state_.value_columns, 1, size_, shape_.value_dim, tile_.packed, lanes,
                   tile_.columns, change_, lanes, false);
  }

  /// Adds the tile's part to the gradients of the members' keys and values, and writes those of its
  /// queries.
  void add_tile(bool accumulate, float* query_rows, int64_t query_stride) {
    const int64_t lanes = simd_.lanes;
    simd_.multiply(score_, lanes, 1, size_, tile_.columns, tile_.gradient, state_.value_columns,
                   shape_.value_dim, slots_.value, state_.value_columns, accumulate);
    simd_.multiply(change_, lanes, 1, size_, tile_.columns, tile_.query, state_.head_columns,
                   shape_.head_dim, slots_.key, state_.head_columns, accumulate);
    add_weighted_rows(key_, state_.head_columns, size_, shape_.head_dim, change_, tile_.columns,
                      false, tile_.packed);
    float scale[kMaximumLanes];
    std::fill_n(scale, tile_.columns, scale_);
    simd_.unpack(tile_.packed, tile_.columns, shape_.head_dim, scale, query_rows, query_stride,
                 nullptr);
  }

  void differentiate_summary(float* summary, float* surrogate_gradient) {
    const int64_t lanes = simd_.lanes;
    tile_.columns = 1;
    const int64_t surrogate = head_ * state_.given.clusters + cluster_;
    copy_padded(state_.given.surrogates + surrogate * shape_.head_dim, shape_.head_dim,
                state_.head_columns, tile_.query);
    state_.summary_sums.total_values(pair_ * state_.maximum_parts, state_.parts(sequence_),
                                     cluster_, tile_.gradient);
    multiply_tile();
    for (int64_t j = 0; j < size_; ++j) product_[j] = score_[j * lanes];
    differentiate_rows(simd_, state_.given.activation, score_, change_, size_, 1, scale_,
                       key_factor_, nullptr, tile_.total);
    add_weighted_rows(value_, state_.value_columns, size_, shape_.value_dim, score_, 1, false,
                      tile_.packed);
    simd_.unpack(tile_.packed, 1, shape_.value_dim, nullptr, summary, shape_.value_dim, nullptr);
    for (int64_t j = 0; j < size_; ++j) {
      float& change = change_[j * lanes];
      // The derivative of softplus1(-phi) is -sigma(-phi).
      slots_.gate[j] = -scale_ * sequence_.key_gate[members_[j]] * change * product_[j];
      change *= key_factor_[j];
    }
    add_tile(false, surrogate_gradient, shape_.head_dim);
  }

  void differentiate_members(int64_t first) {
    const int64_t lanes = simd_.lanes;
    tile_.columns = std::min(lanes, size_ - first);
    const InputRows& query = state_.given.inputs.query;
    const InputRows& gradient = state_.problem.output_gradient;
    std::fill_n(tile_.weight, lanes, 0.0f);
    std::copy_n(slots_.weight + first, tile_.columns, tile_.weight);
    for (int64_t i = 0; i < tile_.columns; ++i) {
      const int64_t token = members_[first + i];
      copy_padded(query.row(sequence_.batch, head_, token), shape_.head_dim, state_.head_columns,
                  tile_.query + i * state_.head_columns);
      copy_padded(gradient.row(sequence_.batch, head_, token), shape_.value_dim,
                  state_.value_columns, tile_.gradient + i * state_.value_columns);
    }
    multiply_tile();
    differentiate_rows(simd_, state_.given.activation, score_, change_, size_, tile_.columns,
                       scale_, nullptr, tile_.weight, tile_.total);
    std::copy_n(tile_.total, tile_.columns, slots_.total + first);
    add_tile(true, slots_.query + first * state_.head_columns, state_.head_columns);
  }

  const CastGradientState& state_;
  const Simd& simd_;
  const AttentionShape& shape_;
  const CastSequence& sequence_;
  const int64_t head_;
  const int64_t pair_;  // of the wave
  const int64_t cluster_;
  const int64_t size_;
  const int32_t* members_;
  const float scale_;
  CastSlots slots_;  // of this cluster

  float* key_;         // (size, head columns)
  float* value_;       // (size, value columns)
  float* score_;       // (size, lanes): products, then f
  float* change_;      // (size, lanes)
  float* key_factor_;  // (size): softplus1(-phi)
  float* product_;     // (size): of the surrogate and each key
  QueryTile tile_;
};

}  // namespace

int64_t cluster_gradient_scratch(const CastGradientState& state) {
  const AttentionShape& shape = state.given.inputs.shape;
  const int64_t lanes = state.forward.simd.lanes;
  const int64_t columns = state.head_columns + state.value_columns;
  return state.given.cluster_size * (columns + 2 * lanes + 2) +
         lanes * (columns + std::max(shape.head_dim, shape.value_dim));
}

Status differentiate_clusters(const CastGradientState& state, int64_t first, int64_t count) {
  // tasks: (pair, cluster)
  const AttentionShape& shape = state.given.inputs.shape;
  const int64_t clusters = state.given.clusters;
  const double products = static_cast<double>(count * clusters * state.given.cluster_size) *
                          static_cast<double>(state.given.cluster_size);
  return state.forward.context.parallel(
      count * clusters,
      [&](int64_t task, int worker) {
        ClusterGradient(state, first, task / clusters, task % clusters, worker).run();
      },
      5.0 * products * static_cast<double>(shape.head_dim + shape.value_dim));
}

}  // namespace cluster_attention::kernels
