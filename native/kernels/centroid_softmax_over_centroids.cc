#include "native/kernels/centroid_softmax_over_centroids.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "native/core/shape.h"
#include "native/core/softmax_state.h"
#include "native/core/weighted_sums.h"
#include "native/kernels/finite.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

namespace {

constexpr int64_t kCentroidsPerMerge = 64;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace

Status SoftmaxOverCentroids::prepare(const CentroidAttentionProblem& problem,
                                     const ActiveInputs& active, Context& context) {
  problem_ = &problem;
  active_ = &active;
  parts_ = maximum_input_parts(problem, active);
  const AttentionShape& shape = problem.inputs.shape;
  const bool shared = problem.inputs.key.head_stride == 0 && problem.inputs.value.head_stride == 0;
  group_size_ = shared && shape.heads > 1 ? shape.heads : 1;
  const int64_t sums = shape.batch * shape.heads * parts_;
  with_masses_ = problem.masses != nullptr || problem.aggregate == Collect::mean;
  Workspace& workspace = context.workspace();
  tiles_ = workspace.allocate<AssignmentTile>(context.workers());
  objective_ = workspace.allocate_zeroed<double>(sums);
  if (tiles_ == nullptr || objective_ == nullptr ||
      !sums_.allocate(sums, shape.query_length, shape.value_dim, with_masses_, workspace)) {
    return Status::out_of_memory();
  }
  for (int worker = 0; worker < context.workers(); ++worker) {
    tiles_[worker] = AssignmentTile();
    if (!tiles_[worker].allocate(shape.query_length, shape.head_dim, shape.value_dim, workspace)) {
      return Status::out_of_memory();
    }
  }
  return Status::success();
}

Status SoftmaxOverCentroids::run(Context& context) {
  const AttentionShape& shape = problem_->inputs.shape;
  const int64_t sequences = shape.batch * shape.heads;
  const int64_t groups = sequences / group_size_;
  CA_RETURN_IF_ERROR(context.parallel(groups * parts_, [&](int64_t task, int worker) {
    pass(task / parts_, task % parts_, tiles_[worker], context);
  }));
  const int64_t merges = divide_up(shape.query_length, kCentroidsPerMerge);
  CA_RETURN_IF_ERROR(context.parallel(sequences * merges, [&](int64_t task, int) {
    merge(task / merges, task % merges * kCentroidsPerMerge, context);
  }));
  if (problem_->objective != nullptr) {
    sum_objective(objective_, shape.batch, shape.heads, parts_, problem_->objective);
  }
  return Status::success();
}

void SoftmaxOverCentroids::pass(int64_t group, int64_t part, AssignmentTile& tile,
                                Context& context) {
  // key: (N,D) in lanes; value: (N,E) rows
  const CentroidSequence inputs = centroid_sequence(*problem_, *active_, group * group_size_);
  const int64_t parts = input_parts(inputs.inputs, inputs.centroids);
  if (part >= parts || inputs.centroids == 0) return;
  const AttentionShape& shape = problem_->inputs.shape;
  const int64_t lanes = simd().lanes;
  const Range range = split(inputs.inputs, parts, part);
  for (int64_t first = range.begin; first < range.end; first += lanes) {
    if (context.cancelled()) return;
    const int64_t columns = std::min(lanes, range.end - first);
    pack_inputs(inputs.key, inputs.key_stride, inputs.index, first, columns, shape.head_dim,
                tile.packed);
    if (problem_->inputs.scale < 0.0f) negate(tile.packed, shape.head_dim * lanes);
    const TileRows values = tile_rows(inputs.value, inputs.value_stride, inputs.index,
                                      inputs.weights, first, columns, shape.value_dim, tile);
    if (inputs.index == nullptr) {
      const int64_t next = first + columns;
      const int64_t count = std::min(lanes, range.end - next);
      prefetch_rows(inputs.key + next * inputs.key_stride, inputs.key_stride, count,
                    shape.head_dim);
      prefetch_rows(inputs.value + next * inputs.value_stride, inputs.value_stride, count,
                    shape.value_dim);
    }
    for (int64_t member = 0; member < group_size_; ++member) {
      const int64_t sequence = group * group_size_ + member;
      double& objective = objective_[sequence * parts_ + part];
      if (first == range.begin) objective = 0.0;
      objective += assign_tile(sequence, first, columns, tile, context);
      add_tile(tile, inputs.centroids, columns, values, shape.value_dim, first > range.begin,
               sums_.at(sequence * parts_ + part));
    }
  }
}

/// Turns a packed tile of inputs into assignments to the centroids of one sequence; returns their
/// term of the objective.
double SoftmaxOverCentroids::assign_tile(int64_t sequence_index, int64_t first, int64_t columns,
                                         AssignmentTile& tile, Context& context) const {
  // query: (M,D) rows x (D,lanes) -> scores (M,lanes)
  const CentroidSequence sequence = centroid_sequence(*problem_, *active_, sequence_index);
  const Simd& cpu = simd();
  const float scale = std::fabs(problem_->inputs.scale);
  cpu.multiply(sequence.query, sequence.query_stride, 1, sequence.centroids,
               problem_->inputs.shape.head_dim, tile.packed, cpu.lanes, columns, tile.scores,
               cpu.lanes, false);
  if (sequence.labels != nullptr) {
    tile.find_best(sequence.centroids, columns, scale, nullptr);
    for (int64_t i = 0; i < columns; ++i) {
      const int64_t input = sequence.index != nullptr ? sequence.index[first + i] : first + i;
      sequence.labels[input] = tile.best_row[i];
    }
  }
  cpu.softmax_rows(tile.scores, sequence.centroids, columns, scale * kLog2E, tile.maximum, tile.sum,
                   tile.minimum);
  if (std::count(tile.minimum, tile.minimum + columns, -kInfinity) > 0) {
    context.mark_non_finite();
  }
  return problem_->objective != nullptr ? tile_objective(sequence, first, columns, tile) : 0.0;
}

double SoftmaxOverCentroids::tile_objective(const CentroidSequence& sequence, int64_t first,
                                            int64_t columns, const AssignmentTile& tile) const {
  double objective = 0.0;
  for (int64_t i = 0; i < columns; ++i) {
    const double weight = sequence.weights != nullptr ? sequence.weights[first + i] : 1.0;
    objective += weight * log_sum_exp(tile.maximum[i], tile.sum[i]);
  }
  return objective;
}

void SoftmaxOverCentroids::merge(int64_t sequence_index, int64_t first_centroid,
                                 Context& context) const {
  const CentroidSequence sequence = centroid_sequence(*problem_, *active_, sequence_index);
  const AttentionShape& shape = problem_->inputs.shape;
  const int64_t parts = sequence.inputs == 0 ? 0 : input_parts(sequence.inputs, sequence.centroids);
  const int64_t end = std::min(first_centroid + kCentroidsPerMerge, shape.query_length);
  for (int64_t j = first_centroid; j < end; ++j) {
    float* output = sequence.output + j * sequence.output_stride;
    const int64_t count = j < sequence.centroids ? parts : 0;
    sums_.total_values(sequence_index * parts_, count, j, output);
    if (with_masses_) {
      const float mass = sums_.total_mass(sequence_index * parts_, count, j);
      if (sequence.masses != nullptr) sequence.masses[j] = mass;
      if (!all_finite(&mass, 1)) context.mark_non_finite();
      const float factor = problem_->aggregate == Collect::mean ? mean_factor(mass) : 1.0f;
      for (int64_t e = 0; e < shape.value_dim; ++e) output[e] *= factor;
    }
    if (!all_finite(output, shape.value_dim)) context.mark_non_finite();
  }
}

}  // namespace cluster_attention::kernels
