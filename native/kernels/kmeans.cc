#include "native/kernels/kmeans.h"

#include <algorithm>

#include "native/core/shape.h"
#include "native/kernels/finite.h"
#include "native/kernels/lloyd.h"
#include "native/kernels/steps.h"

namespace cluster_attention::kernels {

namespace {

/// Clusters whose centroids one task of an update recomputes.
constexpr int64_t kClustersPerTask = 8;
/// Fewest rows that are worth a part of their own.
constexpr int64_t kRowsPerPart = 256;

/// The sequences that iterate together.
class Group {
 public:
  Group(const KMeansProblem& problem, Context& context, Lloyd* sequences, int64_t* active,
        int64_t count, int64_t parts, Steps steps)
      : problem_(problem),
        context_(context),
        sequences_(sequences),
        active_(active),
        count_(count),
        parts_(parts),
        steps_(steps) {}

  Status run() {
    CA_RETURN_IF_ERROR(start());
    int64_t left = count_;
    for (int64_t i = 0; i < count_; ++i) active_[i] = i;
    for (int64_t updates = 0; left > 0; ++updates) {
      CA_RETURN_IF_ERROR(assign(left));
      left = retire(left, updates);
      CA_RETURN_IF_ERROR(update(left));
    }
    return measure();
  }

 private:
  double elements(int64_t count) const {
    return static_cast<double>(count * problem_.length) * static_cast<double>(problem_.dim);
  }

  Status start() {
    for (int64_t i = 0; i < count_; ++i) CA_RETURN_IF_ERROR(sequences_[i].start(steps_));
    CA_RETURN_IF_ERROR(steps_.run(count_ * parts_, elements(count_), [this](int64_t task) {
      Lloyd& sequence = sequences_[task / parts_];
      sequence.pack(split(sequence.tiles(), parts_, task % parts_));
    }));
    if (!(problem_.tolerance > 0.0)) return Status::success();
    CA_RETURN_IF_ERROR(for_each_chunk(&Lloyd::measure_moments));
    for (int64_t i = 0; i < count_; ++i) {
      sequences_[i].tolerance = problem_.tolerance * sequences_[i].mean_variance();
    }
    return Status::success();
  }

  Status assign(int64_t count) {
    const double operations = 2.0 * static_cast<double>(problem_.clusters) * elements(count);
    return steps_.run(count * parts_, operations, [this](int64_t task) {
      Lloyd& sequence = sequences_[active_[task / parts_]];
      const int64_t part = task % parts_;
      if (!sequence.assign(split(sequence.tiles(), parts_, part), part, steps_)) {
        context_.mark_non_finite();
      }
    });
  }

  /// Keeps the sequences that go on; returns how many.
  int64_t retire(int64_t count, int64_t updates) {
    int64_t left = 0;
    for (int64_t i = 0; i < count; ++i) {
      Lloyd& sequence = sequences_[active_[i]];
      const bool settled = updates > 0 && sequence.movement() <= sequence.tolerance;
      if (sequence.changed(parts_) && updates < problem_.max_iterations && !settled) {
        active_[left++] = active_[i];
      } else {
        sequence.updates = updates;
      }
    }
    return left;
  }

  Status update(int64_t count) {
    CA_RETURN_IF_ERROR(steps_.run(count, elements(count),
                                  [this](int64_t task) { sequences_[active_[task]].sort(); }));
    const int64_t blocks = divide_up(problem_.clusters, kClustersPerTask);
    return steps_.run(count * blocks, elements(count), [this, blocks](int64_t task) {
      Lloyd& sequence = sequences_[active_[task / blocks]];
      const int64_t first = std::min(task % blocks * kClustersPerTask, sequence.clusters());
      const int64_t last = std::min(first + kClustersPerTask, sequence.clusters());
      if (!sequence.update({first, last})) context_.mark_non_finite();
    });
  }

  Status measure() {
    if (problem_.inertia != nullptr) {
      CA_RETURN_IF_ERROR(for_each_chunk(&Lloyd::measure_inertia));
    }
    for (int64_t i = 0; i < count_; ++i) {
      if (!sequences_[i].finish()) context_.mark_non_finite();
    }
    return Status::success();
  }

  Status for_each_chunk(void (Lloyd::*measure)(int64_t)) {
    int64_t chunks = 0;
    for (int64_t i = 0; i < count_; ++i) chunks = std::max(chunks, sequences_[i].chunks());
    return steps_.run(count_ * chunks, 4.0 * elements(count_),
                      [this, chunks, measure](int64_t task) {
                        Lloyd& sequence = sequences_[task / chunks];
                        if (task % chunks < sequence.chunks()) (sequence.*measure)(task % chunks);
                      });
  }

  const KMeansProblem& problem_;
  Context& context_;
  Lloyd* sequences_;
  int64_t* active_;  // (count)
  int64_t count_;
  int64_t parts_;
  Steps steps_;
};

}  // namespace

Status kmeans(const KMeansProblem& problem, Context& context) {
  const int64_t count = problem.batch * problem.heads;
  if (count == 0) return Status::success();
  const int64_t clusters = std::min(problem.clusters, problem.length);
  const double operations =
      2.0 * static_cast<double>(problem.length) * static_cast<double>(clusters * problem.dim);
  const bool alone = Steps::prefer_alone(context, count, operations);
  const int64_t sets = alone ? std::min<int64_t>(context.workers(), count) : count;
  const Steps steps(context, alone);
  const int64_t parts =
      std::min(steps.parts(count), std::max<int64_t>(divide_up(problem.length, kRowsPerPart), 1));

  Lloyd* sequences = context.workspace().allocate<Lloyd>(count);
  int64_t* active = context.workspace().allocate<int64_t>(count);
  LloydScratch* scratch = context.workspace().allocate<LloydScratch>(sets);
  if (sequences == nullptr || active == nullptr || scratch == nullptr) {
    return Status::out_of_memory();
  }
  for (int64_t i = 0; i < sets; ++i) {
    scratch[i] = LloydScratch();
    CA_RETURN_IF_ERROR(scratch[i].allocate(problem, parts, context.workspace()));
  }
  const auto open = [&](int64_t i, int worker) {
    sequences[i] = Lloyd();
    sequences[i].open(problem, i, scratch[alone ? worker : i]);
    if (!alone) return;
    const Status status = Group(problem, context, sequences + i, active + i, 1, parts, steps).run();
    if (!status.ok()) context.fail(status);
  };
  const double rounds = 1.0 + static_cast<double>(problem.max_iterations);
  CA_RETURN_IF_ERROR(context.parallel(
      count, open, alone ? static_cast<double>(count) * operations * rounds : 0.0));
  if (alone) return Status::success();
  return Group(problem, context, sequences, active, count, parts, steps).run();
}

}  // namespace cluster_attention::kernels
