#include "native/kernels/centroid_softmax_over_inputs.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "native/core/shape.h"
#include "native/core/softmax_state.h"
#include "native/core/weighted_sums.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
/// Keys between two looks at the caller's abort flag.
constexpr int64_t kKeysPerCall = 8 * kKeyBlock;
constexpr int64_t kTilesPerLabelTask = 8;

void gather_rows(const float* rows, int64_t row_stride, const int32_t* index, int64_t count,
                 int64_t dim, float* gathered) {
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(gathered + i * dim, rows + index[i] * row_stride, dim * sizeof(float));
  }
}

}  // namespace

Status SoftmaxOverInputs::prepare(const CentroidAttentionProblem& problem,
                                  const ActiveInputs& active, Context& context) {
  problem_ = &problem;
  active_ = &active;
  const AttentionShape& shape = problem.inputs.shape;
  const int64_t sequences = shape.batch * shape.heads;
  lanes_ = simd().lanes;
  tiles_ = divide_up(shape.query_length, lanes_);
  parts_ = maximum_input_parts(problem, active);
  state_size_ = (3 + shape.value_dim) * lanes_;
  Workspace& workspace = context.workspace();
  states_ = workspace.allocate<float>(sequences * tiles_ * parts_ * state_size_);
  objective_ = workspace.allocate_zeroed<double>(sequences * tiles_);
  negative_logsumexp_ = workspace.allocate<float>(sequences * shape.query_length);
  if (states_ == nullptr || objective_ == nullptr || negative_logsumexp_ == nullptr) {
    return Status::out_of_memory();
  }
  return allocate_scratch(context);
}

Status SoftmaxOverInputs::allocate_scratch(Context& context) {
  const AttentionShape& shape = problem_->inputs.shape;
  Workspace& workspace = context.workspace();
  scratch_ = workspace.allocate<Scratch>(context.workers());
  if (scratch_ == nullptr) return Status::out_of_memory();
  for (int worker = 0; worker < context.workers(); ++worker) {
    Scratch scratch;
    scratch.query = workspace.allocate<float>(shape.head_dim * lanes_);
    scratch.scores = workspace.allocate<float>(kKeyBlock * lanes_);
    scratch.key = workspace.allocate<float>(kKeyBlock * shape.head_dim);
    scratch.value = workspace.allocate<float>(kKeyBlock * shape.value_dim);
    if (scratch.query == nullptr || scratch.scores == nullptr || scratch.key == nullptr ||
        scratch.value == nullptr) {
      return Status::out_of_memory();
    }
    if (problem_->labels != nullptr &&
        !scratch.labels.allocate(shape.query_length, shape.head_dim, 0, workspace)) {
      return Status::out_of_memory();
    }
    scratch_[worker] = scratch;
  }
  return Status::success();
}

SoftmaxOverInputs::TileState SoftmaxOverInputs::state(int64_t sequence, int64_t tile,
                                                      int64_t part) const {
  float* memory = states_ + ((sequence * tiles_ + tile) * parts_ + part) * state_size_;
  return {memory, memory + lanes_, memory + 2 * lanes_, memory + 3 * lanes_};
}

Status SoftmaxOverInputs::run(Context& context) {
  const AttentionShape& shape = problem_->inputs.shape;
  const int64_t tiles = shape.batch * shape.heads * tiles_;
  CA_RETURN_IF_ERROR(context.parallel(tiles * parts_, [&](int64_t task, int worker) {
    const int64_t tile = task / parts_;
    pass(tile / tiles_, tile % tiles_, task % parts_, scratch_[worker], context);
  }));
  CA_RETURN_IF_ERROR(context.parallel(
      tiles, [&](int64_t task, int) { merge(task / tiles_, task % tiles_, context); }));
  if (problem_->objective != nullptr) {
    sum_objective(objective_, shape.batch, shape.heads, tiles_, problem_->objective);
  }
  if (problem_->labels == nullptr) return Status::success();
  const int64_t inputs = kTilesPerLabelTask * lanes_;
  const int64_t tasks = divide_up(shape.key_length, inputs);
  return context.parallel(shape.batch * shape.heads * tasks, [&](int64_t task, int worker) {
    label(task / tasks, task % tasks * inputs, scratch_[worker], context);
  });
}

void SoftmaxOverInputs::pass(int64_t sequence_index, int64_t tile_index, int64_t part,
                             const Scratch& scratch, Context& context) const {
  // query: (columns,D) in lanes; key: (N,D) rows; value: (N,E) rows
  const CentroidSequence sequence = centroid_sequence(*problem_, *active_, sequence_index);
  const AttentionShape& shape = problem_->inputs.shape;
  const int64_t first_centroid = tile_index * lanes_;
  const int64_t parts = input_parts(sequence.inputs, sequence.centroids);
  if (first_centroid >= sequence.centroids || part >= parts) return;

  const TileState state = this->state(sequence_index, tile_index, part);
  std::fill(state.maximum, state.maximum + lanes_, -kInfinity);
  std::fill(state.sum, state.sum + lanes_, 0.0f);
  std::fill(state.minimum, state.minimum + lanes_, kInfinity);
  std::fill(state.output, state.output + shape.value_dim * lanes_, 0.0f);

  AttendTile tile;
  tile.packed_query = scratch.query;
  tile.columns = std::min(lanes_, sequence.centroids - first_centroid);
  tile.head_dim = shape.head_dim;
  tile.value_dim = shape.value_dim;
  tile.scale_log2 = std::fabs(problem_->inputs.scale) * kLog2E;
  tile.maximum = state.maximum;
  tile.sum = state.sum;
  tile.minimum = state.minimum;
  tile.output = state.output;
  tile.scores = scratch.scores;
  simd().pack(sequence.query + first_centroid * sequence.query_stride, sequence.query_stride,
              nullptr, tile.columns, shape.head_dim, scratch.query);
  if (problem_->inputs.scale < 0.0f) negate(scratch.query, shape.head_dim * lanes_);

  const Range range = split(sequence.inputs, parts, part);
  const int64_t step = sequence.index != nullptr ? kKeyBlock : kKeysPerCall;
  for (int64_t first = range.begin; first < range.end; first += step) {
    if (context.cancelled()) return;
    tile.keys = std::min(step, range.end - first);
    tile.key_weight = sequence.weights != nullptr ? sequence.weights + first : nullptr;
    if (sequence.index != nullptr) {
      gather_rows(sequence.key, sequence.key_stride, sequence.index + first, tile.keys,
                  shape.head_dim, scratch.key);
      gather_rows(sequence.value, sequence.value_stride, sequence.index + first, tile.keys,
                  shape.value_dim, scratch.value);
      tile.key = scratch.key;
      tile.key_stride = shape.head_dim;
      tile.value = scratch.value;
      tile.value_stride = shape.value_dim;
    } else {
      tile.key = sequence.key + first * sequence.key_stride;
      tile.key_stride = sequence.key_stride;
      tile.value = sequence.value + first * sequence.value_stride;
      tile.value_stride = sequence.value_stride;
    }
    simd().attend(tile);
  }
  if (std::count(state.minimum, state.minimum + tile.columns, -kInfinity) > 0) {
    context.mark_non_finite();
  }
}

/// Adds the states of parts 1, 2, ... to that of part 0, in order.
void SoftmaxOverInputs::join_parts(int64_t sequence, int64_t tile, int64_t parts,
                                   int64_t columns) const {
  const int64_t value_dim = problem_->inputs.shape.value_dim;
  const TileState total = state(sequence, tile, 0);
  for (int64_t part = 1; part < parts; ++part) {
    const TileState other = state(sequence, tile, part);
    SoftmaxState::Factors factors[kMaximumLanes];
    for (int64_t i = 0; i < columns; ++i) {
      SoftmaxState lane{total.maximum[i], total.sum[i]};
      factors[i] = lane.merge({other.maximum[i], other.sum[i]});
      total.maximum[i] = lane.maximum;
      total.sum[i] = lane.sum;
    }
    for (int64_t e = 0; e < value_dim; ++e) {
      float* mine = total.output + e * lanes_;
      for (int64_t i = 0; i < columns; ++i) {
        mine[i] = mine[i] * factors[i].mine + other.output[e * lanes_ + i] * factors[i].other;
      }
    }
  }
}

void SoftmaxOverInputs::merge(int64_t sequence_index, int64_t tile_index, Context& context) const {
  const CentroidSequence sequence = centroid_sequence(*problem_, *active_, sequence_index);
  const AttentionShape& shape = problem_->inputs.shape;
  const int64_t first = tile_index * lanes_;
  const int64_t end = std::min(first + lanes_, shape.query_length);
  const int64_t real = sequence.inputs == 0 ? 0 : sequence.centroids;
  const int64_t columns = std::clamp<int64_t>(real - first, 0, lanes_);
  for (int64_t j = first + columns; j < end; ++j) {
    float* output = sequence.output + j * sequence.output_stride;
    std::fill(output, output + shape.value_dim, 0.0f);
    if (sequence.masses != nullptr) sequence.masses[j] = 0.0f;
    if (sequence.logsumexp != nullptr) sequence.logsumexp[j] = -kInfinity;
  }
  if (columns == 0) return;

  join_parts(sequence_index, tile_index, input_parts(sequence.inputs, sequence.centroids), columns);
  const TileState total = state(sequence_index, tile_index, 0);
  // Every assignment sums to 1 (NaN stays NaN), so the mean divides by a constant.
  const float mean = problem_->aggregate == Collect::mean ? 1.0f / (1.0f + 1e-6f) : 1.0f;
  float normalizer[kMaximumLanes];
  // The saved log-sum-exps are of the scaled weights, as those of the gradient are.
  const double log_scale = std::log(static_cast<double>(active_->scale(sequence.batch)));
  double objective = 0.0;
  for (int64_t i = 0; i < columns; ++i) {
    const SoftmaxState lane{total.maximum[i], total.sum[i]};
    normalizer[i] = share_factor(lane.sum) * mean;
    objective += log_sum_exp(lane.maximum, lane.sum) - log_scale;
    const float logsumexp = lane.logsumexp();
    negative_logsumexp_[sequence_index * shape.query_length + first + i] = -logsumexp;
    if (sequence.logsumexp != nullptr) sequence.logsumexp[first + i] = logsumexp;
    if (sequence.masses != nullptr) {
      sequence.masses[first + i] = lane.sum == lane.sum ? 1.0f : lane.sum;
    }
  }
  objective_[sequence_index * tiles_ + tile_index] = objective;
  if (!simd().unpack(total.output, columns, shape.value_dim, normalizer,
                     sequence.output + first * sequence.output_stride, sequence.output_stride,
                     nullptr)) {
    context.mark_non_finite();
  }
}

void SoftmaxOverInputs::label(int64_t sequence_index, int64_t first_input, Scratch& scratch,
                              Context& context) const {
  // query: (M,D) rows; key: (N,D) in lanes
  const CentroidSequence sequence = centroid_sequence(*problem_, *active_, sequence_index);
  if (sequence.centroids == 0) return;
  const AttentionShape& shape = problem_->inputs.shape;
  const float scale = problem_->inputs.scale;
  const float* bias = negative_logsumexp_ + sequence_index * shape.query_length;
  AssignmentTile& tile = scratch.labels;
  const int64_t end = std::min(first_input + kTilesPerLabelTask * lanes_, sequence.inputs);
  for (int64_t first = first_input; first < end; first += lanes_) {
    if (context.cancelled()) return;
    const int64_t columns = std::min(lanes_, end - first);
    pack_inputs(sequence.key, sequence.key_stride, sequence.index, first, columns, shape.head_dim,
                tile.packed);
    simd().multiply(sequence.query, sequence.query_stride, 1, sequence.centroids, shape.head_dim,
                    tile.packed, lanes_, columns, tile.scores, lanes_, false);
    tile.find_best(sequence.centroids, columns, scale, bias);
    for (int64_t i = 0; i < columns; ++i) {
      const int64_t input = sequence.index != nullptr ? sequence.index[first + i] : first + i;
      // A single input belongs wholly to every centroid: an exact tie, which rounding would break.
      sequence.labels[input] = sequence.inputs > 1 ? tile.best_row[i] : 0;
    }
  }
}

}  // namespace cluster_attention::kernels
