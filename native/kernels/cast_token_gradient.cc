#include "native/kernels/cast_token_gradient.h"

#include <algorithm>

#include "native/core/shape.h"
#include "native/kernels/cast_activation.h"
#include "native/kernels/cast_combination.h"
#include "native/kernels/finite.h"
#include "native/kernels/prefetch.h"

namespace cluster_attention::kernels {

namespace {

/// One part of the tokens of one (sequence, head) pair.
class TokenGradient {
 public:
  TokenGradient(const CastGradientState& state, int64_t first_pair, int64_t pair, int64_t part,
                int worker)
      : state_(state),
        simd_(state.forward.simd),
        problem_(state.given),
        shape_(state.given.inputs.shape),
        sequence_(state.forward.sequences[(first_pair + pair) / shape_.heads]),
        head_((first_pair + pair) % shape_.heads),
        pair_(pair),
        part_(part),
        slots_(state.slots(pair)) {
    const int64_t lanes = simd_.lanes;
    packed_ = state.forward.scratch(worker);
    score_ = packed_ + std::max(shape_.head_dim, shape_.value_dim) * lanes;
    change_ = score_ + problem_.clusters * lanes;
    rows_ = change_ + problem_.clusters * lanes;
  }

  void find_summary_gradients() {
    for_each_tile([this](bool first_tile) { add_summaries(first_tile); });
  }

  void differentiate() {
    for_each_tile([this](bool first_tile) { differentiate_tile(first_tile); });
    if (part_ == 0) clear_padding();
  }

 private:
  /// Calls body(whether this is the first tile) with first_ and columns_ set.
  template <typename Body>
  void for_each_tile(Body body) {
    if (part_ >= state_.parts(sequence_)) return;
    const Range range = split(sequence_.tokens, state_.parts(sequence_), part_);
    for (first_ = range.begin; first_ < range.end; first_ += simd_.lanes) {
      if (state_.forward.context.cancelled()) return;
      columns_ = std::min(simd_.lanes, range.end - first_);
      body(first_ == range.begin);
    }
  }

  template <typename Visit>
  void for_each_slot(int64_t i, Visit visit) const {
    const CastSlot* end = sequence_.end_slots(first_ + i);
    for (const CastSlot* place = sequence_.begin_slots(first_ + i); place != end; ++place) {
      visit(place->cluster, place->cluster * problem_.cluster_size + place->slot);
    }
  }

  /// The tile's rows of a view, times factor[i] (null: 1), into rows_.
  void copy_rows(const InputRows& view, int64_t dim, int64_t stride, const float* factor) const {
    for (int64_t i = 0; i < columns_; ++i) {
      const float* row = view.row(sequence_.batch, head_, first_ + i);
      const float times = factor != nullptr ? factor[i] : 1.0f;
      for (int64_t d = 0; d < dim; ++d) rows_[i * stride + d] = row[d] * times;
      std::fill(rows_ + i * stride + dim, rows_ + (i + 1) * stride, 0.0f);
    }
  }

  void add_summaries(bool first_tile) {
    // query: (columns, D), surrogates: (C, D), gradient: (columns, E)
    const int64_t lanes = simd_.lanes;
    const float scale =
        score_clusters(state_.forward, sequence_, head_, first_, columns_, packed_, score_);
    activate_rows(simd_, problem_.activation, score_, problem_.clusters, columns_, scale);
    for (int64_t i = 0; i < columns_; ++i) {
      for_each_slot(i, [&](int64_t cluster, int64_t slot) {
        float& share = score_[cluster * lanes + i];
        slots_.weight[slot] = share;
        share = 0.0f;  // no summary of an own cluster
      });
    }
    copy_rows(state_.problem.output_gradient, shape_.value_dim, state_.value_columns, nullptr);
    const uint64_t apart = take_non_finite_rows();
    const AssignmentSums sums = state_.summary_sums.at(pair_ * state_.maximum_parts + part_);
    simd_.multiply(score_, lanes, 1, problem_.clusters, columns_, rows_, state_.value_columns,
                   shape_.value_dim, sums.values, state_.value_columns, !first_tile);
    for (int64_t i = 0; i < columns_; ++i) {
      if ((apart >> i & 1) != 0) add_to_other_summaries(i, sums.values);
    }
  }

  /// Which of the tile's rows of the output's gradient, copied to rows_, are not finite; zeros
  /// there: by a product with weight 0 they would reach the summaries of their own clusters.
  uint64_t take_non_finite_rows() const {
    static_assert(kMaximumLanes <= 64);
    uint64_t rows = 0;
    for (int64_t i = 0; i < columns_; ++i) {
      float* row = rows_ + i * state_.value_columns;
      if (all_finite(row, shape_.value_dim)) continue;
      rows |= uint64_t{1} << i;
      std::fill_n(row, shape_.value_dim, 0.0f);
    }
    return rows;
  }

  void add_to_other_summaries(int64_t i, float* sums) const {
    const float* row = state_.problem.output_gradient.row(sequence_.batch, head_, first_ + i);
    const CastSlot* place = sequence_.begin_slots(first_ + i);
    for (int64_t c = 0; c < problem_.clusters; ++c) {
      if (place != sequence_.end_slots(first_ + i) && place->cluster == c) {
        ++place;
        continue;
      }
      const float share = score_[c * simd_.lanes + i];
      float* sum = sums + c * state_.value_columns;
      for (int64_t e = 0; e < shape_.value_dim; ++e) sum[e] += share * row[e];
    }
  }

  void differentiate_tile(bool first_tile) {
    // query: (columns, D), surrogates: (C, D), gradient: (columns, E), inter: (C, E)
    const int64_t lanes = simd_.lanes;
    const int64_t clusters = problem_.clusters;
    prefetch_slots();
    const float scale =
        score_clusters(state_.forward, sequence_, head_, first_, columns_, packed_, score_);
    const InputRows& gradient = state_.problem.output_gradient;
    simd_.pack(gradient.row(sequence_.batch, head_, first_), gradient.row_stride, nullptr, columns_,
               shape_.value_dim, packed_);
    simd_.multiply(state_.forward.inter + pair_ * clusters * shape_.value_dim, shape_.value_dim, 1,
                   clusters, shape_.value_dim, packed_, lanes, columns_, change_, lanes, false);
    for (int64_t i = 0; i < columns_; ++i) {
      for_each_slot(i, [&](int64_t cluster, int64_t slot) {
        change_[cluster * lanes + i] = slots_.total[slot];
      });
    }
    alignas(64) float total[kMaximumLanes];
    differentiate_rows(simd_, problem_.activation, score_, change_, clusters, columns_, scale,
                       nullptr, nullptr, total);
    if (state_.problem.surrogates != nullptr) add_surrogates(first_tile);
    write_rows();
  }

  /// The rows of the slots lie scattered: they are asked for before the weights are computed.
  void prefetch_slots() const {
    for (int64_t i = 0; i < columns_; ++i) {
      for_each_slot(i, [&](int64_t, int64_t slot) {
        prefetch_row(slots_.query + slot * state_.head_columns, shape_.head_dim);
        prefetch_row(slots_.key + slot * state_.head_columns, shape_.head_dim);
        prefetch_row(slots_.value + slot * state_.value_columns, shape_.value_dim);
      });
    }
  }

  void add_surrogates(bool first_tile) const {
    copy_rows(problem_.inputs.query, shape_.head_dim, state_.head_columns,
              sequence_.query_factor + first_);
    const AssignmentSums sums = state_.surrogate_sums.at(pair_ * state_.maximum_parts + part_);
    simd_.multiply(change_, simd_.lanes, 1, problem_.clusters, columns_, rows_, state_.head_columns,
                   shape_.head_dim, sums.values, state_.head_columns, !first_tile);
  }

  /// The gradients that belong to the tokens of the tile.
  void write_rows() {
    const float scale = state_.forward.product_scale(problem_.clusters);
    alignas(64) float factor[kMaximumLanes];
    for (int64_t i = 0; i < columns_; ++i) factor[i] = scale * sequence_.query_factor[first_ + i];
    add_weighted_rows(problem_.surrogates + head_ * problem_.clusters * shape_.head_dim,
                      shape_.head_dim, problem_.clusters, shape_.head_dim, change_, columns_, false,
                      packed_);
    simd_.unpack(packed_, columns_, shape_.head_dim, factor, rows_, state_.head_columns, nullptr);
    const AttentionGradients& wanted = state_.problem.gradients;
    bool finite = true;
    for (int64_t i = 0; i < columns_; ++i) {
      float* row = rows_ + i * state_.head_columns;
      write_gate(i, row);
      if (wanted.query.data != nullptr) {
        finite &= write_row(i, row, slots_.query, state_.head_columns, shape_.head_dim,
                            wanted.query.row(sequence_.batch, head_, first_ + i));
      }
      if (wanted.key.data != nullptr) {
        finite &= write_row(i, nullptr, slots_.key, state_.head_columns, shape_.head_dim,
                            wanted.key.row(sequence_.batch, head_, first_ + i));
      }
      if (wanted.value.data != nullptr) {
        finite &= write_row(i, nullptr, slots_.value, state_.value_columns, shape_.value_dim,
                            wanted.value.row(sequence_.batch, head_, first_ + i));
      }
    }
    if (!finite) state_.forward.context.mark_non_finite();
  }

  /// `row`: the gradient by the query of token i through step 6, whose logits are products with
  /// softplus1(phi) q; its derivative is sigma(phi).
  void write_gate(int64_t i, const float* row) const {
    const int64_t token = first_ + i;
    const float* query = problem_.inputs.query.row(sequence_.batch, head_, token);
    float sum = simd_.dot(query, row, shape_.head_dim) * sequence_.query_gate[token] /
                sequence_.query_factor[token];
    for_each_slot(i, [&](int64_t, int64_t slot) { sum += slots_.gate[slot]; });
    state_.gate[pair_ * shape_.key_length + token] = sum;
  }

  /// target = row (null: 0) + what the slots of token i hold, by ascending cluster.
  bool write_row(int64_t i, const float* row, const float* slot_rows, int64_t stride, int64_t dim,
                 float* target) const {
    if (row != nullptr) {
      std::copy_n(row, dim, target);
    } else {
      std::fill_n(target, dim, 0.0f);
    }
    for_each_slot(i, [&](int64_t, int64_t slot) {
      const float* source = slot_rows + slot * stride;
      for (int64_t d = 0; d < dim; ++d) target[d] += source[d];
    });
    return all_finite(target, dim);
  }

  void clear_padding() const {
    const AttentionGradients& wanted = state_.problem.gradients;
    const auto clear = [&](const OutputRows& rows, int64_t n, int64_t dim) {
      if (rows.data != nullptr) std::fill_n(rows.row(sequence_.batch, head_, n), dim, 0.0f);
    };
    for (int64_t n = sequence_.tokens; n < shape_.key_length; ++n) {
      clear(wanted.query, n, shape_.head_dim);
      clear(wanted.key, n, shape_.head_dim);
      clear(wanted.value, n, shape_.value_dim);
    }
  }

  const CastGradientState& state_;
  const Simd& simd_;
  const CastAttentionProblem& problem_;
  const AttentionShape& shape_;
  const CastSequence& sequence_;
  const int64_t head_;
  const int64_t pair_;  // of the wave
  const int64_t part_;
  const CastSlots slots_;

  int64_t first_ = 0;
  int64_t columns_ = 0;
  float* packed_;  // (max(D,E), lanes)
  float* score_;   // (C, lanes)
  float* change_;  // (C, lanes)
  float* rows_;    // (lanes, max(head columns, value columns))
};

/// Calls body(TokenGradient) for every part of the tokens of `count` pairs.
template <typename Body>
Status for_each_part(const CastGradientState& state, int64_t first, int64_t count,
                     double products_per_pair, Body body) {
  // tasks: (pair, part of the tokens)
  const AttentionShape& shape = state.given.inputs.shape;
  const double pairs = static_cast<double>(count * shape.key_length * state.given.clusters);
  return state.forward.context.parallel(
      count * state.maximum_parts,
      [&](int64_t task, int worker) {
        TokenGradient gradient(state, first, task / state.maximum_parts, task % state.maximum_parts,
                               worker);
        body(gradient);
      },
      products_per_pair * pairs * static_cast<double>(shape.head_dim + shape.value_dim));
}

}  // namespace

int64_t token_gradient_scratch(const CastGradientState& state) {
  const AttentionShape& shape = state.given.inputs.shape;
  return state.forward.simd.lanes *
         (std::max(shape.head_dim, shape.value_dim) + 2 * state.given.clusters +
          std::max(state.head_columns, state.value_columns));
}

Status find_summary_gradients(const CastGradientState& state, int64_t first, int64_t count) {
  return for_each_part(state, first, count, 2.0,
                       [](TokenGradient& gradient) { gradient.find_summary_gradients(); });
}

Status differentiate_tokens(const CastGradientState& state, int64_t first, int64_t count) {
  return for_each_part(state, first, count, 4.0,
                       [](TokenGradient& gradient) { gradient.differentiate(); });
}

}  // namespace cluster_attention::kernels
