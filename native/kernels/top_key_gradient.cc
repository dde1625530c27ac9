#include "native/kernels/top_key_gradient.h"

#include <algorithm>

#include "native/core/shape.h"
#include "native/core/softmax_state.h"
#include "native/kernels/blocked_product.h"
#include "native/kernels/finite.h"
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
  int64_t used = 0;
  const auto take = [&](int64_t count) {
    float* first = scratch_ == nullptr ? nullptr : scratch_ + worker * scratch_size_ + used;
    used += round_up(count, 16);
    return first;
  };
  Scratch scratch;
  scratch.key_rows = take(problem_->forward.top_k * padded_dim_);
  scratch.key = take(stride_ * shape.head_dim);
  scratch.value = take(stride_ * shape.value_dim);
  scratch.share = take(stride_);
  scratch.slope = take(stride_);
  scratch.query = take(lanes * padded_dim_);
  scratch.gradient = take(lanes * padded_value_dim_);
  scratch.weights = take(lanes * stride_);
  scratch.change = take(lanes * stride_);
  scratch.query_gradient = take(lanes * padded_dim_);
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
  stride_ = round_up(problem.forward.top_k, simd().lanes);
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
                                                                    int64_t rows) const {
  const OutputRows& target = problem_->gradients.query;
  if (target.data == nullptr) return;
  for (int64_t i = first; i < first + rows; ++i) {
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
  double offset = top.mass * mass_gradient - top.slope;
  for (int64_t e = 0; e < shape.value_dim; ++e) {
    offset += static_cast<double>(cluster.gradient[e]) * static_cast<double>(cluster.value[e]);
  }
  *cluster.offset = static_cast<float>(offset);
  *cluster.change = static_cast<float>(mass_gradient);
  return finite;
}

/// product[r][t] = rows[r]·T_j[t] for packed keys or values, rows stride_ apart.
void TopKeyGradient::multiply_keys(const float* rows, int64_t row_stride, int64_t count,
                                   int64_t dim, const float* packed, int64_t keys,
                                   float* product) const {
  const Simd& cpu = simd();
  for (int64_t t = 0; t < keys; t += cpu.lanes) {
    cpu.multiply(rows, row_stride, 1, count, dim, packed + t * dim, cpu.lanes,
                 std::min(cpu.lanes, keys - t), product + t, stride_, false);
  }
}

/// Packs T_j; A_jt, their sum, and sum_t A_jt G·v_t.
TopKeyGradient::Top TopKeyGradient::gather(const ClusterTerms& cluster,
                                           const Scratch& scratch) const {
  const Simd& cpu = simd();
  const AttentionInputs& inputs = problem_->forward.inputs;
  const AttentionShape& shape = inputs.shape;
  Top top;
  for (; top.keys < problem_->forward.top_k && cluster.top_keys[top.keys] >= 0; ++top.keys) {
    copy_padded(inputs.key.row(cluster.batch, cluster.head, cluster.top_keys[top.keys]),
                shape.head_dim, padded_dim_, scratch.key_rows + top.keys * padded_dim_);
  }
  for (int64_t t = 0; t < top.keys; t += cpu.lanes) {
    const int64_t columns = std::min(cpu.lanes, top.keys - t);
    cpu.pack(scratch.key_rows + t * padded_dim_, padded_dim_, nullptr, columns, shape.head_dim,
             scratch.key + t * shape.head_dim);
    cpu.pack(inputs.value.sequence(cluster.batch, cluster.head), inputs.value.row_stride,
             cluster.top_keys + t, columns, shape.value_dim, scratch.value + t * shape.value_dim);
  }
  multiply_keys(cluster.mean, shape.head_dim, 1, shape.head_dim, scratch.key, top.keys,
                scratch.share);
  multiply_keys(cluster.gradient, shape.value_dim, 1, shape.value_dim, scratch.value, top.keys,
                scratch.slope);
  const double scale_log2 = static_cast<double>(inputs.scale * kLog2E);
  for (int64_t t = 0; t < top.keys; ++t) {
    const double logit = static_cast<double>(scratch.share[t]) * scale_log2;
    scratch.share[t] = std::min(static_cast<float>(logit - double{cluster.maximum}), 0.0f);
  }
  cpu.exp2(scratch.share, top.keys);
  for (int64_t t = 0; t < top.keys; ++t) {
    top.mass += static_cast<double>(scratch.share[t]);
    top.slope += static_cast<double>(scratch.share[t]) * static_cast<double>(scratch.slope[t]);
  }
  return top;
}

/// One tile of queries of the cluster. Adds sum_i x̄_i to the gradient by the mass.
bool TopKeyGradient::differentiate(const ClusterTerms& cluster, int64_t first, const Top& top,
                                   const Scratch& scratch, double& mass_gradient) const {
  const Simd& cpu = simd();
  const AttentionShape& shape = problem_->forward.inputs.shape;
  const int64_t rows = std::min(cpu.lanes, cluster.count - first);
  prefetch_targets(cluster, first, rows);
  bool finite = weigh(cluster, first, rows, top, scratch);
  if (wants_change_) {
    for (int64_t i = 0; i < rows; ++i) mass_gradient += static_cast<double>(scratch.total[i]);
    finite &= write_queries(cluster, first, rows, top.keys, scratch);
  }
  if (problem_->gradients.key.data != nullptr) {
    cpu.multiply(scratch.change, 1, stride_, top.keys, rows, scratch.query, padded_dim_,
                 shape.head_dim, cluster.key_rows, padded_dim_, first > 0);
  }
  if (problem_->gradients.value.data != nullptr) {
    cpu.multiply(scratch.weights, 1, stride_, top.keys, rows, scratch.gradient, padded_value_dim_,
                 shape.value_dim, cluster.value_rows, padded_value_dim_, first > 0);
  }
  return finite;
}

/// m̂ p and y of a tile of queries, and x̄; false if a score is not finite.
bool TopKeyGradient::weigh(const ClusterTerms& cluster, int64_t first, int64_t rows, const Top& top,
                           const Scratch& scratch) const {
  const Simd& cpu = simd();
  const AttentionInputs& inputs = problem_->forward.inputs;
  const AttentionShape& shape = inputs.shape;
  const float mass = static_cast<float>(top.mass);
  for (int64_t i = 0; i < rows; ++i) {
    const int32_t member = cluster.members[first + i];
    copy_padded(inputs.query.row(cluster.batch, cluster.head, member), shape.head_dim, padded_dim_,
                scratch.query + i * padded_dim_);
    copy_padded(problem_->output_gradient.row(cluster.batch, cluster.head, member), shape.value_dim,
                padded_value_dim_, scratch.gradient + i * padded_value_dim_);
  }
  multiply_keys(scratch.query, padded_dim_, rows, shape.head_dim, scratch.key, top.keys,
                scratch.weights);
  const bool finite =
      cpu.softmax_lanes(scratch.weights, rows, stride_, top.keys, inputs.scale * kLog2E, 1.0f);
  if (!wants_change_) {
    // The same products as below: what else is wanted does not change dv.
    for (int64_t i = 0; i < rows * stride_; ++i) scratch.weights[i] *= mass;
    return finite;
  }
  multiply_keys(scratch.gradient, padded_value_dim_, rows, shape.value_dim, scratch.value, top.keys,
                scratch.change);
  cpu.softmax_lanes_gradient(scratch.weights, scratch.change, rows, stride_, top.keys, mass,
                             scratch.total);
  return finite;
}

/// tau sum_t y_it k_t of a tile of queries; false if one is not finite.
bool TopKeyGradient::write_queries(const ClusterTerms& cluster, int64_t first, int64_t rows,
                                   int64_t keys, const Scratch& scratch) const {
  const OutputRows& target = problem_->gradients.query;
  if (target.data == nullptr) return true;
  const AttentionInputs& inputs = problem_->forward.inputs;
  multiply_in_blocks(scratch.change, stride_, 1, rows, keys, scratch.key_rows, padded_dim_,
                     inputs.shape.head_dim, scratch.query_gradient, padded_dim_, false);
  bool finite = true;
  for (int64_t i = 0; i < rows; ++i) {
    const float* sum = scratch.query_gradient + i * padded_dim_;
    float* row = target.row(cluster.batch, cluster.head, cluster.members[first + i]);
    for (int64_t d = 0; d < inputs.shape.head_dim; ++d) row[d] = inputs.scale * sum[d];
    finite = all_finite(row, inputs.shape.head_dim) && finite;
  }
  return finite;
}

}  // namespace cluster_attention::kernels
