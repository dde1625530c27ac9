#pragma once

// Iterative clusterings run in steps (assign, update), each over all sequences of a group. Many
// sequences: every sequence is a group of its own and runs on one thread from start to end. Few
// and long ones: one group, each step shared out over the threads. The results are the same.

#include <cstdint>

#include "native/core/context.h"

namespace cluster_attention::kernels {

class Steps {
 public:
  /// `alone`: the steps run on the calling thread, which may be inside Context::parallel().
  Steps(Context& context, bool alone) : context_(context), alone_(alone) {}

  /// Into how many parts a step over `groups` sequences is best cut, per sequence.
  int64_t parts(int64_t groups) const {
    return alone_ ? 1 : 1 + (kTasksPerWorker * context_.workers() - 1) / groups;
  }

  /// Calls body(task) for every task in [0, tasks). `operations`: see Context::parallel().
  template <typename Body>
  Status run(int64_t tasks, double operations, Body&& body) {
    if (!alone_) {
      return context_.parallel(
          tasks, [&body](int64_t task, int) { body(task); }, operations);
    }
    for (int64_t task = 0; task < tasks && !cancelled(); ++task) body(task);
    return cancelled() ? Status::cancelled() : Status::success();
  }

  /// What long tasks poll: run() then reports it.
  bool cancelled() const { return context_.cancelled(); }

  /// Whether each sequence should run alone: there are enough of them to keep the threads evenly
  /// busy, or a step of one is so short that meeting after it would cost more than it gains.
  static bool prefer_alone(const Context& context, int64_t sequences, double operations_per_step) {
    const int64_t workers = context.workers();
    return workers == 1 || sequences >= kTasksPerWorker * workers ||
           operations_per_step <= (sequences >= workers ? 1e7 : 1e6);
  }

 private:
  static constexpr int64_t kTasksPerWorker = 4;

  Context& context_;
  bool alone_;
};

}  // namespace cluster_attention::kernels
