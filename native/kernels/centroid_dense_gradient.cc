#include "native/kernels/centroid_dense_gradient.h"

#include <algorithm>

#include "native/core/shape.h"
#include "native/core/softmax_state.h"
#include "native/kernels/finite.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

namespace {

constexpr int64_t kCentroidsPerMerge = 64;

}  // namespace

bool DenseGradient::Tile::allocate(const AttentionShape& shape, int64_t chunk, float tau,
                                   Workspace& workspace) {
  const int64_t lanes = simd().lanes;
  if (!inputs.allocate(chunk, shape.head_dim, shape.head_dim, workspace)) return false;
  value = workspace.allocate<float>(tile_size(shape.value_dim, lanes));
  change = workspace.allocate<float>(tile_size(chunk, lanes));
  weights = workspace.allocate<float>(3 * lanes);
  key_sum = workspace.allocate<float>(tile_size(shape.head_dim, lanes));
  value_sum = workspace.allocate<float>(tile_size(shape.value_dim, lanes));
  rows = workspace.allocate<float>(tile_size(std::max(shape.head_dim, shape.value_dim), lanes));
  if (value == nullptr || change == nullptr || weights == nullptr || key_sum == nullptr ||
      value_sum == nullptr || rows == nullptr) {
    return false;
  }
  total = weights + lanes;
  scale = total + lanes;
  std::fill_n(scale, lanes, tau);
  return true;
}

Status DenseGradient::prepare(const CentroidAttentionGradientProblem& problem,
                              const ActiveInputs& active, const CentroidOutputGradient& output,
                              float* weight_terms, Context& context) {
  problem_ = &problem;
  active_ = &active;
  output_ = &output;
  weight_terms_ = weight_terms;
  const CentroidAttentionProblem& forward = problem.forward;
  const AttentionShape& shape = forward.inputs.shape;
  parts_ = maximum_input_parts(forward, active);
  const bool shared = forward.inputs.key.head_stride == 0 && forward.inputs.value.head_stride == 0;
  group_size_ = shared && shape.heads > 1 ? shape.heads : 1;
  // A softmax over the centroids needs all of them at a time.
  chunk_ = forward.normalize == Normalize::centroids ? shape.query_length
                                                     : std::min(shape.query_length, kRowsPerSum);
  Workspace& workspace = context.workspace();
  tiles_ = workspace.allocate<Tile>(context.workers());
  if (tiles_ == nullptr || !sums_.allocate(shape.batch * shape.heads * parts_, shape.query_length,
                                           shape.head_dim, false, workspace)) {
    return Status::out_of_memory();
  }
  for (int worker = 0; worker < context.workers(); ++worker) {
    tiles_[worker] = Tile();
    if (!tiles_[worker].allocate(shape, chunk_, forward.inputs.scale, workspace)) {
      return Status::out_of_memory();
    }
  }
  return Status::success();
}

Status DenseGradient::run(bool accumulate, Context& context) {
  const AttentionShape& shape = problem_->forward.inputs.shape;
  const int64_t sequences = shape.batch * shape.heads;
  CA_RETURN_IF_ERROR(
      context.parallel(sequences / group_size_ * parts_, [&](int64_t task, int worker) {
        pass(task / parts_, task % parts_, accumulate, tiles_[worker], context);
      }));
  if (problem_->gradients.query.data == nullptr) return Status::success();
  const int64_t merges = divide_up(shape.query_length, kCentroidsPerMerge);
  return context.parallel(sequences * merges, [&](int64_t task, int) {
    merge(task / merges, task % merges * kCentroidsPerMerge, context);
  });
}

void DenseGradient::pass(int64_t group, int64_t part, bool accumulate, const Tile& tile,
                         Context& context) {
  // key: (N,D) and value: (N,E), in lanes
  const CentroidSequence inputs =
      centroid_sequence(problem_->forward, *active_, group * group_size_);
  const int64_t parts = input_parts(inputs.inputs, inputs.centroids);
  if (part >= parts || inputs.centroids == 0) return;
  const AttentionShape& shape = problem_->forward.inputs.shape;
  const Range range = split(inputs.inputs, parts, part);
  bool finite = true;
  for (int64_t first = range.begin; first < range.end; first += simd().lanes) {
    if (context.cancelled()) return;
    Columns columns{first, std::min(simd().lanes, range.end - first), {}};
    pack(inputs, first, columns.count, tile);
    if (problem_->gradients.query.data != nullptr) {
      columns.key = tile_rows(inputs.key, inputs.key_stride, inputs.index, nullptr, first,
                              columns.count, shape.head_dim, tile.inputs);
    }
    for (int64_t member = 0; member < group_size_; ++member) {
      differentiate(group * group_size_ + member, columns, part, first == range.begin, member == 0,
                    tile);
    }
    finite &= write(inputs, columns, accumulate, tile);
  }
  if (!finite) context.mark_non_finite();
}

void DenseGradient::pack(const CentroidSequence& sequence, int64_t first, int64_t count,
                         const Tile& tile) const {
  const AttentionShape& shape = problem_->forward.inputs.shape;
  pack_inputs(sequence.key, sequence.key_stride, sequence.index, first, count, shape.head_dim,
              tile.inputs.packed);
  pack_inputs(sequence.value, sequence.value_stride, sequence.index, first, count, shape.value_dim,
              tile.value);
  std::fill_n(tile.weights, simd().lanes, 0.0f);
  if (sequence.weights != nullptr) {
    std::copy_n(sequence.weights + first, count, tile.weights);
  } else {
    std::fill_n(tile.weights, count, 1.0f);
  }
  if (sequence.index != nullptr) return;
  const int64_t next = first + count;
  const int64_t ahead = std::min(simd().lanes, sequence.inputs - next);
  prefetch_rows(sequence.key + next * sequence.key_stride, sequence.key_stride, ahead,
                shape.head_dim);
  prefetch_rows(sequence.value + next * sequence.value_stride, sequence.value_stride, ahead,
                shape.value_dim);
}

/// What one sequence adds to the gradients of a packed tile of inputs, and to those of its queries.
void DenseGradient::differentiate(int64_t index, const Columns& columns, int64_t part,
                                  bool first_tile, bool first_member, const Tile& tile) const {
  const CentroidSequence sequence = centroid_sequence(problem_->forward, *active_, index);
  const AttentionShape& shape = problem_->forward.inputs.shape;
  const AttentionGradients& wanted = problem_->gradients;
  const Simd& cpu = simd();
  const bool over_centroids = problem_->forward.normalize == Normalize::centroids;
  const AssignmentSums sums = sums_.at(index * parts_ + part);
  const int64_t sum_stride = round_up(shape.head_dim, cpu.width);
  for (int64_t j = 0; j < sequence.centroids; j += chunk_) {
    const int64_t count = std::min(chunk_, sequence.centroids - j);
    assign(sequence, index, j, count, columns.count, tile);
    const float* output_rows = output_->rows(index) + j * shape.value_dim;
    cpu.multiply(output_rows, shape.value_dim, 1, count, shape.value_dim, tile.value, cpu.lanes,
                 columns.count, tile.change, cpu.lanes, false);
    cpu.softmax_gradient(tile.inputs.scores, tile.change, count, columns.count,
                         output_->offsets(index) + j, tile.weights, over_centroids, tile.total);
    if (weight_terms_ != nullptr) {
      float* terms = weight_terms_ + index * shape.key_length;
      for (int64_t i = 0; i < columns.count; ++i) {
        const int64_t input = columns.first + i;
        float& term = terms[sequence.index != nullptr ? sequence.index[input] : input];
        term = j == 0 ? tile.total[i] : term + tile.total[i];
      }
    }
    const bool add = !first_member || j > 0;
    if (wanted.value.data != nullptr) {
      add_weighted_rows(output_rows, shape.value_dim, count, shape.value_dim, tile.inputs.scores,
                        columns.count, add, tile.value_sum);
    }
    if (wanted.key.data != nullptr) {
      add_weighted_rows(sequence.query + j * sequence.query_stride, sequence.query_stride, count,
                        shape.head_dim, tile.change, columns.count, add, tile.key_sum);
    }
    if (wanted.query.data != nullptr) {
      cpu.multiply(tile.change, cpu.lanes, 1, count, columns.count, columns.key.rows,
                   columns.key.stride, shape.head_dim, sums.values + j * sum_stride, sum_stride,
                   !first_tile);
    }
  }
}

/// scores = the softmax's values p for a chunk of centroids.
void DenseGradient::assign(const CentroidSequence& sequence, int64_t index, int64_t first_centroid,
                           int64_t centroids, int64_t columns, const Tile& tile) const {
  // query: (M,D) rows x (D,lanes) -> scores (M,lanes)
  const Simd& cpu = simd();
  const AttentionInputs& inputs = problem_->forward.inputs;
  const float scale = inputs.scale * kLog2E;
  float* scores = tile.inputs.scores;
  cpu.multiply(sequence.query + first_centroid * sequence.query_stride, sequence.query_stride, 1,
               centroids, inputs.shape.head_dim, tile.inputs.packed, cpu.lanes, columns, scores,
               cpu.lanes, false);
  if (problem_->forward.normalize == Normalize::centroids) {
    cpu.softmax_rows(scores, centroids, columns, scale, tile.inputs.maximum, tile.inputs.sum,
                     tile.inputs.minimum);
    return;
  }
  const float* logsumexp =
      problem_->forward.logsumexp + index * inputs.shape.query_length + first_centroid;
  for (int64_t j = 0; j < centroids; ++j) {
    cpu.weigh(scores + j * cpu.lanes, columns, scale, saved_in_base2(logsumexp[j]));
  }
}

/// Writes the gradients by key and value of a tile; false if one is not finite.
bool DenseGradient::write(const CentroidSequence& sequence, const Columns& columns, bool accumulate,
                          const Tile& tile) const {
  const AttentionShape& shape = problem_->forward.inputs.shape;
  const auto write_rows = [&](const OutputRows& target, int64_t head, int64_t dim,
                              const float* packed, const float* factor) {
    if (target.data == nullptr) return true;
    float* rows = target.sequence(sequence.batch, head);
    const int32_t* index = sequence.index != nullptr ? sequence.index + columns.first : nullptr;
    if (!accumulate) {
      if (index == nullptr) rows += columns.first * target.row_stride;
      return simd().unpack(packed, columns.count, dim, factor, rows, target.row_stride, index);
    }
    const bool finite = simd().unpack(packed, columns.count, dim, factor, tile.rows, dim, nullptr);
    for (int64_t i = 0; i < columns.count; ++i) {
      const int64_t input = index != nullptr ? index[i] : columns.first + i;
      float* row = rows + input * target.row_stride;
      for (int64_t d = 0; d < dim; ++d) row[d] += tile.rows[i * dim + d];
    }
    return finite;
  };
  const bool finite = write_rows(problem_->gradients.value, sequence.head, shape.value_dim,
                                 tile.value_sum, nullptr);
  return write_rows(problem_->gradients.key, sequence.head, shape.head_dim, tile.key_sum,
                    tile.scale) &&
         finite;
}

/// Gradients by the queries: the sums over all parts; 0 for padding.
void DenseGradient::merge(int64_t index, int64_t first_centroid, Context& context) const {
  const CentroidSequence sequence = centroid_sequence(problem_->forward, *active_, index);
  const AttentionInputs& inputs = problem_->forward.inputs;
  const int64_t parts = sequence.inputs == 0 ? 0 : input_parts(sequence.inputs, sequence.centroids);
  const int64_t end = std::min(first_centroid + kCentroidsPerMerge, inputs.shape.query_length);
  for (int64_t j = first_centroid; j < end; ++j) {
    float* row = problem_->gradients.query.row(sequence.batch, sequence.head, j);
    sums_.total_values(index * parts_, j < sequence.centroids ? parts : 0, j, row);
    for (int64_t d = 0; d < inputs.shape.head_dim; ++d) row[d] *= inputs.scale;
    if (!all_finite(row, inputs.shape.head_dim)) context.mark_non_finite();
  }
}

}  // namespace cluster_attention::kernels
