#include "native/kernels/aggregate.h"

#include <algorithm>

#include "native/core/shape.h"
#include "native/kernels/counting_sort.h"
#include "native/kernels/finite.h"
#include "native/kernels/first_index.h"
#include "native/kernels/prefetch.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

namespace {

/// Columns that are summed at a time.
constexpr int64_t kDimBlock = 256;
/// Clusters that one task owns.
constexpr int64_t kClustersPerTask = 8;
/// Rows whose gradients one task writes.
constexpr int64_t kRowsPerTask = 1024;

/// Writes the sum or the mean of a cluster of `count` members, and leaves it in `sums`; false if a
/// value is not finite.
bool write_cluster(double* sums, int64_t count, bool mean, int64_t dim, float* target) {
  if (mean && count > 1) {
    for (int64_t d = 0; d < dim; ++d) sums[d] /= static_cast<double>(count);
  }
  for (int64_t d = 0; d < dim; ++d) target[d] = static_cast<float>(sums[d]);
  return all_finite(target, dim);
}

}  // namespace

void sum_members(const float* rows, int64_t row_stride, const int32_t* members, int64_t count,
                 const double* scales, int64_t dim, double* __restrict sums) {
  if (scales == nullptr) {
    simd().sum_rows(rows, row_stride, members, count, dim, sums);
    return;
  }
  std::fill(sums, sums + dim, 0.0);
  for (int64_t i = 0; i < count; ++i) {
    prefetch_listed(rows, row_stride, dim, members, count, i);
    const float* row = rows + members[i] * row_stride;
    const double scale = scales[members[i]];
    for (int64_t d = 0; d < dim; ++d) sums[d] += row[d] * scale;
  }
}

bool aggregate_sorted(const float* rows, int64_t row_stride, const int32_t* order,
                      const int32_t* offsets, int64_t clusters, int64_t dim, bool mean,
                      float* output) {
  double sums[kDimBlock];
  bool finite = true;
  for (int64_t c = 0; c < clusters; ++c) {
    const int64_t count = offsets[c + 1] - offsets[c];
    for (int64_t first = 0; first < dim; first += kDimBlock) {
      const int64_t columns = std::min(kDimBlock, dim - first);
      sum_members(rows + first, row_stride, order + offsets[c], count, nullptr, columns, sums);
      finite &= write_cluster(sums, count, mean, columns, output + c * dim + first);
    }
  }
  return finite;
}

bool aggregate_labelled(const float* rows, int64_t row_stride, const int32_t* labels,
                        int64_t length, const int32_t* offsets, Range clusters, int64_t dim,
                        bool mean, double* sums, float* output) {
  std::fill_n(sums, clusters.size() * dim, 0.0);
  simd().sum_labelled_rows(rows, row_stride, labels, length, static_cast<int32_t>(clusters.begin),
                           static_cast<int32_t>(clusters.size()), dim, sums);
  bool finite = true;
  for (int64_t c = 0; c < clusters.size(); ++c) {
    const int64_t count = offsets[clusters.begin + c + 1] - offsets[clusters.begin + c];
    finite &= write_cluster(sums + c * dim, count, mean, dim, output + c * dim);
  }
  return finite;
}

Status aggregate(const AggregateProblem& problem, Context& context) {
  const int64_t sequences = problem.batch * problem.heads;
  const int64_t clusters = problem.clusters;
  const int64_t length = problem.length;
  Workspace& workspace = context.workspace();
  int32_t* offsets = workspace.allocate<int32_t>(checked_size(sequences, clusters + 1));
  int32_t* order = workspace.allocate<int32_t>(checked_size(sequences, length));
  if (offsets == nullptr || order == nullptr) return Status::out_of_memory();

  FirstIndex bad_label;
  const auto sort = [&](int64_t sequence, int) {
    const Status status = sort_by_label(
        problem.labels + sequence * length, length, clusters, "labels", sequence * length,
        offsets + sequence * (clusters + 1), order + sequence * length);
    if (!status.ok()) bad_label.report(status.index);
  };
  const double rows = static_cast<double>(sequences * length);
  CA_RETURN_IF_ERROR(context.parallel(sequences, sort, 16.0 * rows));
  CA_RETURN_IF_ERROR(bad_label.status("labels"));

  const int64_t blocks = divide_up(clusters, kClustersPerTask);
  const auto sum_block = [&](int64_t task, int) {
    const int64_t sequence = task / blocks;
    const int64_t first = task % blocks * kClustersPerTask;
    const int64_t count = std::min(kClustersPerTask, clusters - first);
    const float* rows = problem.inputs.sequence(sequence / problem.heads, sequence % problem.heads);
    if (!aggregate_sorted(rows, problem.inputs.row_stride, order + sequence * length,
                          offsets + sequence * (clusters + 1) + first, count, problem.dim,
                          problem.reduce == Reduce::mean,
                          problem.output + (sequence * clusters + first) * problem.dim)) {
      context.mark_non_finite();
    }
  };
  return context.parallel(sequences * blocks, sum_block,
                          2.0 * rows * static_cast<double>(problem.dim));
}

Status aggregate_gradient(const AggregateGradientProblem& problem, Context& context) {
  const AggregateProblem& forward = problem.forward;
  const int64_t sequences = forward.batch * forward.heads;
  const int64_t clusters = forward.clusters;
  const int64_t length = forward.length;
  const int64_t dim = forward.dim;
  if (problem.inputs.data == nullptr) return Status::success();
  int32_t* counts = context.workspace().allocate_zeroed<int32_t>(checked_size(sequences, clusters));
  if (counts == nullptr) return Status::out_of_memory();

  FirstIndex bad_label;
  const auto count = [&](int64_t sequence, int) {
    for (int64_t i = sequence * length; i < (sequence + 1) * length; ++i) {
      const int32_t label = forward.labels[i];
      if (label < -1 || label >= clusters) return bad_label.report(i);
      if (label >= 0) ++counts[sequence * clusters + label];
    }
  };
  const double rows = static_cast<double>(sequences * length);
  CA_RETURN_IF_ERROR(context.parallel(sequences, count, rows));
  CA_RETURN_IF_ERROR(bad_label.status("labels"));

  const int64_t chunks = divide_up(length, kRowsPerTask);
  const auto spread = [&](int64_t task, int) {
    const int64_t sequence = task / chunks;
    const int64_t begin = task % chunks * kRowsPerTask;
    bool finite = true;
    for (int64_t i = begin; i < std::min(begin + kRowsPerTask, length); ++i) {
      float* target = problem.inputs.row(sequence / forward.heads, sequence % forward.heads, i);
      const int32_t label = forward.labels[sequence * length + i];
      if (label < 0) {
        std::fill_n(target, dim, 0.0f);
        continue;
      }
      const int64_t cluster = sequence * clusters + label;
      const float* row = problem.output_gradient + cluster * dim;
      const float divisor =
          forward.reduce == Reduce::mean ? static_cast<float>(counts[cluster]) : 1.0f;
      for (int64_t d = 0; d < dim; ++d) target[d] = row[d] / divisor;
      finite = finite && all_finite(target, dim);
    }
    if (!finite) context.mark_non_finite();
  };
  return context.parallel(sequences * chunks, spread, rows * static_cast<double>(dim));
}

}  // namespace cluster_attention::kernels
