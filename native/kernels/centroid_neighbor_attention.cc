#include "native/kernels/centroid_neighbor_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "native/core/shape.h"
#include "native/core/softmax_state.h"
#include "native/core/weighted_sums.h"
#include "native/kernels/finite.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kCentroidsPerTask = 32;
constexpr int64_t kInputsPerTask = 512;
constexpr int64_t kRowsPerProduct = 64;
/// Scores that one group of sequences may hold, unless a single sequence needs more.
constexpr int64_t kGroupScores = int64_t{1} << 22;

/// Turns logits in base 2 into exponentials relative to their maximum, which it returns. A NaN
/// makes all of them NaN.
float exponentiate(float* terms, int64_t count) {
  float maximum = -kInfinity;
  for (int64_t i = 0; i < count; ++i) {
    if (!(terms[i] <= maximum)) maximum = terms[i];
  }
  for (int64_t i = 0; i < count; ++i) terms[i] -= maximum;
  simd().exp2(terms, count);
  return maximum;
}

}  // namespace

Status NeighborAttention::prepare(const CentroidAttentionProblem& problem,
                                  const ActiveInputs& active, Context& context) {
  problem_ = &problem;
  active_ = &active;
  const AttentionShape& shape = problem.inputs.shape;
  NeighborProblem neighbors;
  neighbors.batch = shape.batch;
  neighbors.centroids = shape.query_length;
  neighbors.length = shape.key_length;
  neighbors.slots = problem.neighbor_count;
  neighbors.neighbors = problem.neighbors;
  neighbors.centroid_lengths = problem.inputs.query_lengths;
  CA_RETURN_IF_ERROR(find_neighbor_lists(neighbors, active, context, lists_));

  const int64_t sequences = shape.batch * shape.heads;
  const int64_t pairs = shape.query_length * problem.neighbor_count;
  group_ = std::clamp<int64_t>(kGroupScores / std::max<int64_t>(pairs, 1), 1,
                               std::max<int64_t>(sequences, 1));
  parts_ = problem.normalize == Normalize::inputs ? divide_up(shape.query_length, kCentroidsPerTask)
                                                  : divide_up(shape.key_length, kInputsPerTask);
  Workspace& workspace = context.workspace();
  scores_ = workspace.allocate<float>(group_ * pairs);
  objective_ = workspace.allocate_zeroed<double>(sequences * parts_);
  scratch_ = workspace.allocate<Scratch>(context.workers());
  if (scores_ == nullptr || objective_ == nullptr || scratch_ == nullptr) {
    return Status::out_of_memory();
  }
  const int64_t columns = round_up(shape.value_dim, simd().width);
  for (int worker = 0; worker < context.workers(); ++worker) {
    Scratch& scratch = scratch_[worker];
    scratch.terms = workspace.allocate<float>(std::max(problem.neighbor_count, shape.query_length));
    scratch.values = workspace.allocate_zeroed<float>(kRowsPerProduct * columns);
    scratch.output = workspace.allocate<float>(columns);
    if (scratch.terms == nullptr || scratch.values == nullptr || scratch.output == nullptr) {
      return Status::out_of_memory();
    }
  }
  return Status::success();
}

Status NeighborAttention::run(Context& context) {
  const AttentionShape& shape = problem_->inputs.shape;
  const int64_t sequences = shape.batch * shape.heads;
  for (int64_t first = 0; first < sequences; first += group_) {
    const Group group{first, std::min(group_, sequences - first)};
    CA_RETURN_IF_ERROR(problem_->normalize == Normalize::inputs
                           ? run_over_inputs(group, context)
                           : run_over_centroids(group, context));
  }
  if (problem_->objective != nullptr) {
    sum_objective(objective_, shape.batch, shape.heads, parts_, problem_->objective);
  }
  return Status::success();
}

/// Calls body(sequence, member of the group, item, scratch) for each centroid or input; what it
/// returns is summed per task into objective (B*H, tasks) unless that is null.
template <typename Body>
Status NeighborAttention::for_each(const Group& group, int64_t items, int64_t items_per_task,
                                   double* objective, Context& context, Body body) {
  const int64_t tasks = divide_up(items, items_per_task);
  return context.parallel(group.count * tasks, [&](int64_t task, int worker) {
    const int64_t member = task / tasks;
    const CentroidSequence sequence = centroid_sequence(*problem_, *active_, group.first + member);
    const int64_t begin = task % tasks * items_per_task;
    const int64_t end = std::min(begin + items_per_task, items);
    double sum = 0.0;
    for (int64_t item = begin; item < end; ++item) {
      if (context.cancelled()) return;
      sum += body(sequence, member, item, scratch_[worker]);
    }
    if (objective != nullptr) objective[group.first * tasks + task] = sum;
  });
}

Status NeighborAttention::run_over_centroids(const Group& group, Context& context) {
  const AttentionShape& shape = problem_->inputs.shape;
  const int64_t slots = problem_->neighbor_count;
  const int64_t pairs = shape.query_length * slots;
  CA_RETURN_IF_ERROR(for_each(
      group, shape.query_length, kCentroidsPerTask, nullptr, context,
      [&](const CentroidSequence& sequence, int64_t member, int64_t centroid, const Scratch&) {
        score(sequence, centroid, scores_ + member * pairs + centroid * slots, context);
        return 0.0;
      }));
  CA_RETURN_IF_ERROR(for_each(
      group, shape.key_length, kInputsPerTask, objective_, context,
      [&](const CentroidSequence& sequence, int64_t member, int64_t input, const Scratch& scratch) {
        return normalize_over_centroids(sequence, input, scores_ + member * pairs, scratch);
      }));
  return for_each(group, shape.query_length, kCentroidsPerTask, nullptr, context,
                  [&](const CentroidSequence& sequence, int64_t member, int64_t centroid,
                      const Scratch& scratch) {
                    const float* assignment = scores_ + member * pairs + centroid * slots;
                    sum(sequence, centroid, assignment, scratch, context);
                    return 0.0;
                  });
}

Status NeighborAttention::run_over_inputs(const Group& group, Context& context) {
  const AttentionShape& shape = problem_->inputs.shape;
  const int64_t slots = problem_->neighbor_count;
  const int64_t pairs = shape.query_length * slots;
  CA_RETURN_IF_ERROR(for_each(group, shape.query_length, kCentroidsPerTask, objective_, context,
                              [&](const CentroidSequence& sequence, int64_t member,
                                  int64_t centroid, const Scratch& scratch) {
                                float* scores = scores_ + member * pairs + centroid * slots;
                                score(sequence, centroid, scores, context);
                                const double objective =
                                    normalize_over_inputs(sequence, centroid, scores, scratch);
                                sum(sequence, centroid, scratch.terms, scratch, context);
                                return objective;
                              }));
  if (problem_->labels == nullptr) return Status::success();
  return for_each(
      group, shape.key_length, kInputsPerTask, nullptr, context,
      [&](const CentroidSequence& sequence, int64_t member, int64_t input, const Scratch& scratch) {
        label(sequence, input, scores_ + member * pairs, scratch);
        return 0.0;
      });
}

void NeighborAttention::score(const CentroidSequence& sequence, int64_t centroid, float* scores,
                              Context& context) const {
  const int64_t head_dim = problem_->inputs.shape.head_dim;
  const float scale = problem_->inputs.scale * kLog2E;
  const int32_t* list = lists_.list(sequence.batch, centroid);
  const int64_t count = lists_.count(sequence.batch, centroid);
  const float* query = sequence.query + centroid * sequence.query_stride;
  for (int64_t slot = 0; slot < count; ++slot) {
    const float* key = sequence.key + list[slot] * sequence.key_stride;
    scores[slot] = simd().dot(query, key, head_dim) * scale;
  }
  if (!all_finite(scores, count)) context.mark_non_finite();
}

/// Gathers what the places that list an input hold into scratch.terms; returns their number.
int64_t NeighborAttention::gather(const CentroidSequence& sequence, int64_t input,
                                  const float* scores, const Scratch& scratch) const {
  const int64_t* places = lists_.places_of(sequence.batch, input);
  const int64_t count = lists_.listings(sequence.batch, input);
  for (int64_t i = 0; i < count; ++i) scratch.terms[i] = scores[places[i]];
  return count;
}

/// The centroid of the largest score among the places that list an input, the lowest of equals; NaN
/// is passed over.
void NeighborAttention::label(const CentroidSequence& sequence, int64_t input, const float* scores,
                              const Scratch& scratch) const {
  const int64_t count = gather(sequence, input, scores, scratch);
  if (count == 0) return;
  const auto rank = [](float score) { return score == score ? score : -kInfinity; };
  const auto worse = [&](float a, float b) { return rank(a) < rank(b); };
  const int64_t best =
      std::max_element(scratch.terms, scratch.terms + count, worse) - scratch.terms;
  const int64_t place = lists_.places_of(sequence.batch, input)[best];
  sequence.labels[input] = static_cast<int32_t>(place / lists_.slots);
}

/// Softmax over the places that list an input; returns its term of the objective.
double NeighborAttention::normalize_over_centroids(const CentroidSequence& sequence, int64_t input,
                                                   float* scores, const Scratch& scratch) const {
  if (sequence.labels != nullptr) label(sequence, input, scores, scratch);
  const int64_t count = gather(sequence, input, scores, scratch);
  if (count == 0) return 0.0;
  const float maximum = exponentiate(scratch.terms, count);
  const float sum = static_cast<float>(std::accumulate(scratch.terms, scratch.terms + count, 0.0));
  const float weight = active_->weight(sequence.batch, input);
  const float factor = weight / sum;
  const int64_t* places = lists_.places_of(sequence.batch, input);
  for (int64_t i = 0; i < count; ++i) scores[places[i]] = scratch.terms[i] * factor;
  return problem_->objective != nullptr ? weight * log_sum_exp(maximum, sum) : 0.0;
}

/// Softmax over the slots of a centroid into scratch.terms; scores become the logarithms of the
/// assignments, up to the weight of the input, which is the same for all that list it. Returns the
/// centroid's term of the objective.
double NeighborAttention::normalize_over_inputs(const CentroidSequence& sequence, int64_t centroid,
                                                float* scores, const Scratch& scratch) const {
  const int32_t* list = lists_.list(sequence.batch, centroid);
  const int64_t count = lists_.count(sequence.batch, centroid);
  if (sequence.logsumexp != nullptr) {
    sequence.logsumexp[centroid] = -kInfinity;
  }
  if (count == 0) return 0.0;
  std::copy(scores, scores + count, scratch.terms);
  const float maximum = exponentiate(scratch.terms, count);
  for (int64_t slot = 0; slot < count; ++slot) {
    scratch.terms[slot] *= active_->weight(sequence.batch, list[slot]);
  }
  const float sum = static_cast<float>(std::accumulate(scratch.terms, scratch.terms + count, 0.0));
  const float factor = share_factor(sum);
  const float logarithm = std::log2(sum);
  for (int64_t slot = 0; slot < count; ++slot) {
    scratch.terms[slot] *= factor;
    scores[slot] = scores[slot] - maximum - logarithm;
  }
  const double logsumexp = log_sum_exp(maximum, sum);
  if (sequence.logsumexp != nullptr) {
    sequence.logsumexp[centroid] = static_cast<float>(logsumexp);
  }
  return logsumexp - std::log(static_cast<double>(active_->scale(sequence.batch)));
}

/// output_j = sum over slots of assignment times value row, 0 for a list without inputs.
void NeighborAttention::sum(const CentroidSequence& sequence, int64_t centroid,
                            const float* assignment, const Scratch& scratch,
                            Context& context) const {
  const int64_t value_dim = problem_->inputs.shape.value_dim;
  const int64_t columns = round_up(value_dim, simd().width);
  const int32_t* list = lists_.list(sequence.batch, centroid);
  const int64_t count = lists_.count(sequence.batch, centroid);
  std::fill(scratch.output, scratch.output + columns, 0.0f);
  double mass = 0.0;
  for (int64_t first = 0; first < count; first += kRowsPerProduct) {
    const int64_t rows = std::min(kRowsPerProduct, count - first);
    for (int64_t i = 0; i < rows; ++i) {
      std::memcpy(scratch.values + i * columns,
                  sequence.value + list[first + i] * sequence.value_stride,
                  value_dim * sizeof(float));
      mass += assignment[first + i];
    }
    simd().multiply(assignment + first, count, 1, 1, rows, scratch.values, columns, value_dim,
                    scratch.output, columns, true);
  }
  // Normalised over its inputs, a list sums to 1 up to rounding (NaN stays NaN).
  if (problem_->normalize == Normalize::inputs && mass > 0.0) mass = 1.0;
  const float factor = problem_->aggregate == Collect::mean ? mean_factor(mass) : 1.0f;
  float* output = sequence.output + centroid * sequence.output_stride;
  for (int64_t e = 0; e < value_dim; ++e) output[e] = scratch.output[e] * factor;
  bool finite = all_finite(output, value_dim);
  if (sequence.masses != nullptr) {
    sequence.masses[centroid] = static_cast<float>(mass);
    finite = finite && all_finite(sequence.masses + centroid, 1);
  }
  if (!finite) context.mark_non_finite();
}

}  // namespace cluster_attention::kernels
