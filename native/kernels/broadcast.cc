#include "native/kernels/broadcast.h"

#include <algorithm>

#include "native/core/shape.h"
#include "native/kernels/aggregate.h"
#include "native/kernels/finite.h"
#include "native/kernels/first_index.h"

namespace cluster_attention::kernels {

namespace {

constexpr int64_t kRowsPerTask = 1024;

}  // namespace

Status broadcast(const BroadcastProblem& problem, Context& context) {
  const int64_t length = problem.length;
  const int64_t clusters = problem.clusters;
  const int64_t dim = problem.dim;
  const int64_t chunks = divide_up(length, kRowsPerTask);
  const int64_t workers = std::min<int64_t>(context.workers(), problem.batch * chunks);
  // Which rows the task at hand has read: each is checked once, one that no label names never.
  uint8_t* all_seen = context.workspace().allocate<uint8_t>(checked_size(workers, clusters));
  if (all_seen == nullptr) return Status::out_of_memory();

  FirstIndex bad_label;
  const auto check = [&](int64_t task, int) {
    const int64_t b = task / chunks;
    const int64_t begin = b * length + task % chunks * kRowsPerTask;
    for (int64_t i = begin; i < std::min(begin + kRowsPerTask, (b + 1) * length); ++i) {
      const int32_t label = problem.labels[i];
      if (label < -1 || label >= clusters) return bad_label.report(i);
    }
  };
  CA_RETURN_IF_ERROR(
      context.parallel(problem.batch * chunks, check, static_cast<double>(problem.batch * length)));
  CA_RETURN_IF_ERROR(bad_label.status("labels"));

  const auto copy_rows = [&](int64_t task, int worker) {
    const int64_t b = task / chunks;
    const float* inputs = problem.inputs + b * clusters * dim;
    uint8_t* seen = all_seen + worker * clusters;
    std::fill(seen, seen + clusters, 0);
    const int64_t begin = task % chunks * kRowsPerTask;
    for (int64_t i = begin; i < std::min(begin + kRowsPerTask, length); ++i) {
      const int32_t label = problem.labels[b * length + i];
      float* output = problem.output + (b * length + i) * dim;
      if (label < 0) {
        std::fill(output, output + dim, 0.0f);
        continue;
      }
      const float* row = inputs + label * dim;
      if (seen[label] == 0) {
        seen[label] = 1;
        if (!all_finite(row, dim)) context.mark_non_finite();
      }
      std::copy(row, row + dim, output);
    }
  };
  return context.parallel(problem.batch * chunks, copy_rows,
                          static_cast<double>(problem.batch * length * dim));
}

Status broadcast_gradient(const BroadcastGradientProblem& problem, Context& context) {
  const BroadcastProblem& forward = problem.forward;
  if (problem.inputs == nullptr) return Status::success();
  AggregateProblem sum;
  sum.batch = forward.batch;
  sum.length = forward.length;
  sum.dim = forward.dim;
  sum.clusters = forward.clusters;
  sum.reduce = Reduce::sum;
  sum.inputs = dense_rows(problem.output_gradient, forward.length, forward.dim);
  sum.labels = forward.labels;
  sum.output = problem.inputs;
  return aggregate(sum, context);
}

}  // namespace cluster_attention::kernels
