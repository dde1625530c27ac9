#include "native/kernels/top_key_gradient.h"

#include <algorithm>

#include "native/core/shape.h"
#include "native/core/softmax_state.h"
#include "native/kernels/prefetch.h"

namespace cluster_attention::kernels {

namespace {

/// Copies a row and fills it up with zeros.
void copy_padded(const float* row, int64_t dim, int64_t padded, float* target) {
  std::copy_n(row, dim, target);
  std::fill(target + dim, target + padded, 0.0f);
}

}  // namespace

TopKeyGradient::Scratch TopKeyGradient::carve(int worker, int64_t& size) const {
  const AttentionShape& shape = problem_->forward.inputs.shape;
  const int64_t lanes = simd().lanes;
  const int64_t k = problem_->forward.top_k;
  int64_t used = 0;
  const auto take = [&](int64_t count) {
    float* first = scratch_ == nullptr ? nullptr : scratch_ + worker * scratch_size_ + used;
    used += round_up(count, 16);
    return first;
  };
  Scratch scratch;
  scratch.key = take(k * padded_dim_);
  scratch.value = take(k * padded_value_dim_);
  scratch.share = take(k);
  scratch.shared_value = take(padded_value_dim_);
  scratch.query_rows = take(lanes * padded_dim_);
  scratch.gradient_rows = take(lanes * padded_value_dim_);
  scratch.query = take(shape.head_dim * lanes);
  scratch.gradient = take(shape.value_dim * lanes);
  scratch.weights = take(k * lanes);
  scratch.change = take(k * lanes);
  scratch.query_gradient = take(shape.head_dim * lanes);
  scratch.mass = take(lanes);
  scratch.total = take(lanes);
  size = used;
  return scratch;
}

Status TopKeyGradient::prepare(const ClusteredAttentionGradientProblem& problem, Context& context) {
  problem_ = &problem;
  const AttentionShape& shape = problem.forward.inputs.shape;
  wants_change_ = problem.gradients.query.data != nullptr || problem.gradients.key.data != nullptr;
  padded_dim_ = round_up(shape.head_dim, simd().width);
  padded_value_dim_ = round_up(shape.value_dim, simd().width);
  carve(0, scratch_size_);
  scratch_ = context.workspace().allocate<float>(scratch_size_ * context.workers());
  return scratch_ == nullptr ? Status::out_of_memory() : Status::success();
}

/// The rows of the tile of queries from `first` on.
[[gnu::always_inline]] inline void TopKeyGradient::prefetch_members(const ClusterTerms& cluster,
                                                                    int64_t first) const {
  const AttentionInputs& inputs = problem_->forward.inputs;
  for (int64_t i = first; i < std::min(cluster.count, first + simd().lanes); ++i) {
    const int32_t member = cluster.members[i];
    prefetch_row(inputs.query.row(cluster.batch, cluster.head, member), inputs.shape.head_dim);
    prefetch_row(problem_->output_gradient.row(cluster.batch, cluster.head, member),
                 inputs.shape.value_dim);
  }
}

/// Where the gradients of a tile of queries go.
[[gnu::always_inline]] inline void TopKeyGradient::prefetch_targets(const ClusterTerms& cluster,
                                                                    int64_t first,
                                                                    int64_t columns) const {
  const OutputRows& target = problem_->gradients.query;
  if (target.data == nullptr) return;
  for (int64_t i = first; i < first + columns; ++i) {
    prefetch_row(target.row(cluster.batch, cluster.head, cluster.members[i]),
                 problem_->forward.inputs.shape.head_dim);
  }
}

[[gnu::always_inline]] inline void TopKeyGradient::prefetch_keys(
    const ClusterTerms& cluster) const {
  const AttentionInputs& inputs = problem_->forward.inputs;
  for (int64_t t = 0; t < problem_->forward.top_k && cluster.top_keys[t] >= 0; ++t) {
    prefetch_row(inputs.key.row(cluster.batch, cluster.head, cluster.top_keys[t]),
                 inputs.shape.head_dim);
    prefetch_row(inputs.value.row(cluster.batch, cluster.head, cluster.top_keys[t]),
                 inputs.shape.value_dim);
  }
}

bool TopKeyGradient::run(const ClusterTerms& cluster, const ClusterTerms* next, int worker) const {
  // members: (count, D), (count, E) in lanes; T_j: (keys, D), (keys, E)
  const AttentionShape& shape = problem_->forward.inputs.shape;
  int64_t size;
  const Scratch scratch = carve(worker, size);
  const Top top = gather(cluster, scratch);
  double mass_gradient = 0.0;
  bool finite = true;
  for (int64_t first = 0; first < cluster.count; first += simd().lanes) {
    if (first + simd().lanes < cluster.count) {
      prefetch_members(cluster, first + simd().lanes);
    } else if (next != nullptr) {
      prefetch_keys(*next);
      prefetch_members(*next, 0);
    }
    finite &= differentiate(cluster, first, top, scratch, mass_gradient);
  }
  if (!wants_change_) return finite;
  if (problem_->detach_mass) mass_gradient = 0.0;
  double offset = top.mass * mass_gradient;
  for (int64_t e = 0; e < shape.value_dim; ++e) {
    offset +=
        static_cast<double>(cluster.gradient[e]) *
        (static_cast<double>(cluster.value[e]) - static_cast<double>(scratch.shared_value[e]));
  }
  *cluster.offset = static_cast<float>(offset);
  *cluster.change = static_cast<float>(mass_gradient);
  return finite;
}

/// Copies the rows of T_j side by side; A_jt, their sum, and sum_t A_jt v_t.
TopKeyGradient::Top TopKeyGradient::gather(const ClusterTerms& cluster,
                                           const Scratch& scratch) const {
  const AttentionInputs& inputs = problem_->forward.inputs;
  const AttentionShape& shape = inputs.shape;
  Top top{0, 0.0};
  for (int64_t t = 0; t < problem_->forward.top_k && cluster.top_keys[t] >= 0; ++t) {
    float* key = scratch.key + t * padded_dim_;
    copy_padded(inputs.key.row(cluster.batch, cluster.head, cluster.top_keys[t]), shape.head_dim,
                padded_dim_, key);
    copy_padded(inputs.value.row(cluster.batch, cluster.head, cluster.top_keys[t]), shape.value_dim,
                padded_value_dim_, scratch.value + t * padded_value_dim_);
    const double logit = static_cast<double>(simd().dot(cluster.mean, key, shape.head_dim)) *
                         static_cast<double>(inputs.scale * kLog2E);
    scratch.share[t] = std::min(static_cast<float>(logit - double{cluster.maximum}), 0.0f);
    ++top.keys;
  }
  simd().exp2(scratch.share, top.keys);
  for (int64_t t = 0; t < top.keys; ++t) top.mass += static_cast<double>(scratch.share[t]);
  simd().multiply(scratch.share, top.keys, 1, 1, top.keys, scratch.value, padded_value_dim_,
                  shape.value_dim, scratch.shared_value, padded_value_dim_, false);
  std::fill_n(scratch.mass, simd().lanes, static_cast<float>(top.mass));
  return top;
}

/// One tile of queries of the cluster. Adds sum_i x̄_i to the gradient by the mass.
bool TopKeyGradient::differentiate(const ClusterTerms& cluster, int64_t first, const Top& top,
                                   const Scratch& scratch, double& mass_gradient) const {
  const Simd& cpu = simd();
  const AttentionShape& shape = problem_->forward.inputs.shape;
  const int64_t columns = std::min(cpu.lanes, cluster.count - first);
  weigh(cluster, first, columns, top.keys, scratch);
  bool finite = true;
  prefetch_targets(cluster, first, columns);
  if (wants_change_) {
    for (int64_t i = 0; i < columns; ++i) mass_gradient += static_cast<double>(scratch.total[i]);
    finite = write_queries(cluster, first, columns, top.keys, scratch);
  }
  if (problem_->gradients.key.data != nullptr) {
    cpu.multiply(scratch.change, cpu.lanes, 1, top.keys, columns, scratch.query_rows, padded_dim_,
                 shape.head_dim, cluster.key_rows, padded_dim_, first > 0);
  }
  if (problem_->gradients.value.data != nullptr) {
    cpu.multiply(scratch.weights, cpu.lanes, 1, top.keys, columns, scratch.gradient_rows,
                 padded_value_dim_, shape.value_dim, cluster.value_rows, padded_value_dim_,
                 first > 0);
  }
  return finite;
}

/// m̂ p and y of a tile of queries, and x̄.
void TopKeyGradient::weigh(const ClusterTerms& cluster, int64_t first, int64_t columns,
                           int64_t keys, const Scratch& scratch) const {
  const Simd& cpu = simd();
  const AttentionInputs& inputs = problem_->forward.inputs;
  const AttentionShape& shape = inputs.shape;
  for (int64_t i = 0; i < columns; ++i) {
    const int32_t member = cluster.members[first + i];
    copy_padded(inputs.query.row(cluster.batch, cluster.head, member), shape.head_dim, padded_dim_,
                scratch.query_rows + i * padded_dim_);
    copy_padded(problem_->output_gradient.row(cluster.batch, cluster.head, member), shape.value_dim,
                padded_value_dim_, scratch.gradient_rows + i * padded_value_dim_);
  }
  cpu.pack(scratch.query_rows, padded_dim_, nullptr, columns, shape.head_dim, scratch.query);
  cpu.multiply(scratch.key, padded_dim_, 1, keys, shape.head_dim, scratch.query, cpu.lanes, columns,
               scratch.weights, cpu.lanes, false);
  float maximum[kMaximumLanes];
  float sum[kMaximumLanes];
  float minimum[kMaximumLanes];
  cpu.softmax_rows(scratch.weights, keys, columns, inputs.scale * kLog2E, maximum, sum, minimum);
  if (!wants_change_) {
    for (int64_t i = 0; i < keys * cpu.lanes; ++i) scratch.weights[i] *= scratch.mass[0];
    return;
  }
  cpu.pack(scratch.gradient_rows, padded_value_dim_, nullptr, columns, shape.value_dim,
           scratch.gradient);
  cpu.multiply(scratch.value, padded_value_dim_, 1, keys, shape.value_dim, scratch.gradient,
               cpu.lanes, columns, scratch.change, cpu.lanes, false);
  cpu.softmax_gradient(scratch.weights, scratch.change, keys, columns, nullptr, scratch.mass, true,
                       scratch.total);
}

/// tau sum_t y_it k_t of a tile of queries; false if one is not finite.
bool TopKeyGradient::write_queries(const ClusterTerms& cluster, int64_t first, int64_t columns,
                                   int64_t keys, const Scratch& scratch) const {
  const OutputRows& target = problem_->gradients.query;
  if (target.data == nullptr) return true;
  const Simd& cpu = simd();
  const AttentionInputs& inputs = problem_->forward.inputs;
  std::fill_n(scratch.query_gradient, inputs.shape.head_dim * cpu.lanes, 0.0f);
  for (int64_t t = 0; t < keys; t += kKeyBlock) {
    cpu.multiply(scratch.key + t * padded_dim_, 1, padded_dim_, inputs.shape.head_dim,
                 std::min(kKeyBlock, keys - t), scratch.change + t * cpu.lanes, cpu.lanes, columns,
                 scratch.query_gradient, cpu.lanes, t > 0);
  }
  float factors[kMaximumLanes];
  std::fill_n(factors, kMaximumLanes, inputs.scale);
  return cpu.unpack(scratch.query_gradient, columns, inputs.shape.head_dim, factors,
                    target.sequence(cluster.batch, cluster.head), target.row_stride,
                    cluster.members + first);
}

}  // namespace cluster_attention::kernels
