#include "native/kernels/cast_combination.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "native/core/shape.h"
#include "native/kernels/blocked_product.h"
#include "native/kernels/cast_activation.h"
#include "native/kernels/prefetch.h"

namespace cluster_attention::kernels {

namespace {

/// One block of tokens of one (sequence, head) pair.
class TokenBlock {
 public:
  TokenBlock(const CastState& state, int64_t pair, const float* intra, const float* inter,
             int64_t first, int64_t columns, int worker)
      : state_(state),
        problem_(state.problem),
        shape_(state.problem.inputs.shape),
        sequence_(state.sequences[pair / shape_.heads]),
        head_(pair % shape_.heads),
        intra_(intra),
        inter_(inter),
        first_(first),
        columns_(columns) {
    const int64_t lanes = state.simd.lanes;
    packed_query_ = state.scratch(worker);
    weights_ = packed_query_ + shape_.head_dim * lanes;
    product_ = weights_ + problem_.clusters * lanes;
    inter_rows_ = product_ + shape_.value_dim * lanes;
    intra_rows_ = inter_rows_ + shape_.value_dim * lanes;
  }

  void run() {
    // query: (columns, D), surrogates: (C, D), inter: (C, E) -> output: (columns, E)
    const int64_t value_dim = shape_.value_dim;
    const int64_t lanes = state_.simd.lanes;
    prefetch_intra();
    bool finite = weigh_clusters();
    for (int64_t i = 0; i < columns_; ++i) move_own_clusters(i);
    multiply_in_blocks(inter_, 1, value_dim, value_dim, problem_.clusters, weights_, lanes,
                       columns_, product_, lanes, false);
    if (!state_.simd.unpack(product_, columns_, value_dim, nullptr, inter_rows_, value_dim,
                            nullptr)) {
      for (int64_t i = 0; i < columns_; ++i) recompute_inter(i);
    }
    for (int64_t i = 0; i < columns_; ++i) finite &= write_row(i);
    if (!finite) state_.context.mark_non_finite();
  }

 private:
  /// weights = A_sum of the block, (C, lanes). False if a logit was not finite.
  bool weigh_clusters() {
    const float scale =
        score_clusters(state_, sequence_, head_, first_, columns_, packed_query_, weights_);
    return activate_rows(state_.simd, problem_.activation, weights_, problem_.clusters, columns_,
                         scale);
  }

  const float* intra_row(const CastSlot& place) const {
    return intra_ + (place.cluster * problem_.cluster_size + place.slot) * shape_.value_dim;
  }

  /// The rows of R_intra lie scattered: they are asked for before the weights are computed.
  [[gnu::always_inline]] void prefetch_intra() const {
    const CastSlot* end = sequence_.end_slots(first_ + columns_ - 1);
    for (const CastSlot* place = sequence_.begin_slots(first_); place != end; ++place) {
      prefetch_row(intra_row(*place), shape_.value_dim);
    }
  }

  /// Spends the weights of token i on its own clusters: afterwards they are 0.
  void move_own_clusters(int64_t i) {
    constexpr int64_t kBlock = 128;  // a chain of thousands of floats would lose digits
    float* row = intra_rows_ + i * shape_.value_dim;
    float* sums = inter_rows_ + i * shape_.value_dim;  // which come later
    std::fill_n(row, shape_.value_dim, 0.0f);
    const CastSlot* end = sequence_.end_slots(first_ + i);
    for (const CastSlot* place = sequence_.begin_slots(first_ + i); place != end;) {
      std::fill_n(sums, shape_.value_dim, 0.0f);
      for (const CastSlot* stop = place + std::min<int64_t>(kBlock, end - place); place != stop;
           ++place) {
        float& slot_weight = weights_[place->cluster * state_.simd.lanes + i];
        const float weight = slot_weight;
        slot_weight = 0.0f;
        const float* intra = intra_row(*place);
        for (int64_t e = 0; e < shape_.value_dim; ++e) sums[e] += weight * intra[e];
      }
      for (int64_t e = 0; e < shape_.value_dim; ++e) row[e] += sums[e];
    }
  }

  /// The sum over the other clusters, term by term: a summary that is not finite must not reach the
  /// rows of its own members by a product with weight 0.
  void recompute_inter(int64_t i) {
    float* row = inter_rows_ + i * shape_.value_dim;
    std::fill_n(row, shape_.value_dim, 0.0f);
    const CastSlot* place = sequence_.begin_slots(first_ + i);
    for (int64_t c = 0; c < problem_.clusters; ++c) {
      if (place != sequence_.end_slots(first_ + i) && place->cluster == c) {
        ++place;
        continue;
      }
      const float weight = weights_[c * state_.simd.lanes + i];
      const float* inter = inter_ + c * shape_.value_dim;
      for (int64_t e = 0; e < shape_.value_dim; ++e) row[e] += weight * inter[e];
    }
  }

  bool write_row(int64_t i) const {
    const float* inter = inter_rows_ + i * shape_.value_dim;
    const float* intra = intra_rows_ + i * shape_.value_dim;
    float* output = problem_.output.row(sequence_.batch, head_, first_ + i);
    uint32_t non_finite = 0;
    for (int64_t e = 0; e < shape_.value_dim; ++e) {
      const float sum = inter[e] + intra[e];
      non_finite |= is_non_finite(sum);
      output[e] = sum;
    }
    return non_finite == 0;
  }

  const CastState& state_;
  const CastAttentionProblem& problem_;
  const AttentionShape& shape_;
  const CastSequence& sequence_;
  const int64_t head_;
  const float* intra_;  // (C,kappa,E)
  const float* inter_;  // (C,E)
  const int64_t first_;
  const int64_t columns_;

  float* packed_query_;  // (D, lanes)
  float* weights_;       // (C, lanes)
  float* product_;       // (E, lanes)
  float* inter_rows_;    // (lanes, E)
  float* intra_rows_;    // (lanes, E)
};

}  // namespace

float score_clusters(const CastState& state, const CastSequence& sequence, int64_t head,
                     int64_t first, int64_t columns, float* packed_query, float* scores) {
  // query: (columns, D), surrogates: (C, D) -> scores: (C, lanes)
  const CastAttentionProblem& problem = state.problem;
  const int64_t head_dim = problem.inputs.shape.head_dim;
  const int64_t lanes = state.simd.lanes;
  const float scale = state.product_scale(problem.clusters);
  // Softmax wants a scale >= 0: its sign goes to the queries, as softplus1(phi) does.
  const bool laplace = problem.activation == Activation::laplace;
  const float sign = !laplace && scale < 0.0f ? -1.0f : 1.0f;
  alignas(64) float factor[kMaximumLanes] = {};
  for (int64_t i = 0; i < columns; ++i) factor[i] = sign * sequence.query_factor[first + i];
  const InputRows& query = problem.inputs.query;
  state.simd.pack(query.row(sequence.batch, head, first), query.row_stride, nullptr, columns,
                  head_dim, packed_query);
  for (int64_t d = 0; d < head_dim; ++d) {
    float* element = packed_query + d * lanes;
    for (int64_t i = 0; i < lanes; ++i) element[i] *= factor[i];
  }
  state.simd.multiply(problem.surrogates + head * problem.clusters * head_dim, head_dim, 1,
                      problem.clusters, head_dim, packed_query, lanes, columns, scores, lanes,
                      false);
  return sign * scale;
}

int64_t combination_scratch(const CastState& state) {
  const AttentionShape& shape = state.problem.inputs.shape;
  return state.simd.lanes * (shape.head_dim + state.problem.clusters + 3 * shape.value_dim);
}

Status combine_clusters(const CastState& state, int64_t first, int64_t count) {
  // tasks: (pair, block of tokens)
  const CastAttentionProblem& problem = state.problem;
  const AttentionShape& shape = problem.inputs.shape;
  const int64_t lanes = state.simd.lanes;
  const int64_t blocks = divide_up(shape.key_length, lanes);
  const double products = static_cast<double>(count * shape.key_length * problem.clusters);
  const int64_t inter_size = problem.clusters * shape.value_dim;
  return state.context.parallel(
      count * blocks,
      [&](int64_t task, int worker) {
        const int64_t pair = task / blocks;  // of the wave
        const int64_t token = task % blocks * lanes;
        const CastSequence& sequence = state.sequences[(first + pair) / shape.heads];
        const int64_t end = std::min(token + lanes, shape.key_length);
        const int64_t real = std::clamp(sequence.tokens, token, end);
        for (int64_t n = real; n < end; ++n) {
          std::fill_n(problem.output.row(sequence.batch, (first + pair) % shape.heads, n),
                      shape.value_dim, 0.0f);
        }
        if (real == token) return;
        TokenBlock block(state, first + pair,
                         state.pairs + pair * inter_size * problem.cluster_size,
                         state.inter + pair * inter_size, token, real - token, worker);
        block.run();
      },
      2.0 * products * static_cast<double>(shape.head_dim + shape.value_dim));
}

}  // namespace cluster_attention::kernels
