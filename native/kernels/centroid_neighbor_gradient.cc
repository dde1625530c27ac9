#include "native/kernels/centroid_neighbor_gradient.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "native/core/shape.h"
#include "native/core/softmax_state.h"
#include "native/kernels/finite.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

namespace {

constexpr int64_t kCentroidsPerTask = 32;
constexpr int64_t kInputsPerTask = 512;
constexpr int64_t kRowsPerProduct = 64;
/// Places that one group of sequences may hold, unless a single sequence needs more.
constexpr int64_t kGroupPlaces = int64_t{1} << 21;

/// Softmax of logits in base 2, in place. A NaN makes all of them NaN.
void normalize(float* terms, int64_t count) {
  float maximum = terms[0];
  for (int64_t i = 1; i < count; ++i) {
    if (!(terms[i] <= maximum)) maximum = terms[i];
  }
  for (int64_t i = 0; i < count; ++i) terms[i] -= maximum;
  simd().exp2(terms, count);
  const float sum = static_cast<float>(std::accumulate(terms, terms + count, 0.0));
  for (int64_t i = 0; i < count; ++i) terms[i] /= sum;
}

}  // namespace

Status NeighborGradient::prepare(const CentroidAttentionGradientProblem& problem,
                                 const ActiveInputs& active, const CentroidOutputGradient& output,
                                 float* weight_terms, Context& context) {
  problem_ = &problem;
  active_ = &active;
  output_ = &output;
  weight_terms_ = weight_terms;
  const CentroidAttentionProblem& forward = problem.forward;
  const AttentionShape& shape = forward.inputs.shape;
  NeighborProblem neighbors;
  neighbors.batch = shape.batch;
  neighbors.centroids = shape.query_length;
  neighbors.length = shape.key_length;
  neighbors.slots = forward.neighbor_count;
  neighbors.neighbors = forward.neighbors;
  neighbors.centroid_lengths = forward.inputs.query_lengths;
  CA_RETURN_IF_ERROR(find_neighbor_lists(neighbors, active, context, lists_));

  const int64_t places = shape.query_length * forward.neighbor_count;
  group_ = std::clamp<int64_t>(kGroupPlaces / std::max<int64_t>(places, 1), 1,
                               std::max<int64_t>(shape.batch * shape.heads, 1));
  share_ = context.workspace().allocate<float>(group_ * places);
  change_ = context.workspace().allocate<float>(group_ * places);
  if (share_ == nullptr || change_ == nullptr) return Status::out_of_memory();
  return allocate_scratch(context);
}

Status NeighborGradient::allocate_scratch(Context& context) {
  const AttentionShape& shape = problem_->forward.inputs.shape;
  const int64_t columns = round_up(std::max(shape.head_dim, shape.value_dim), simd().width);
  Workspace& workspace = context.workspace();
  scratch_ = workspace.allocate<Scratch>(context.workers());
  if (scratch_ == nullptr) return Status::out_of_memory();
  for (int worker = 0; worker < context.workers(); ++worker) {
    Scratch& scratch = scratch_[worker];
    scratch.share = workspace.allocate<float>(shape.query_length);
    scratch.change = workspace.allocate<float>(shape.query_length);
    scratch.rows = workspace.allocate_zeroed<float>(kRowsPerProduct * columns);
    scratch.sum = workspace.allocate<float>(columns);
    if (scratch.share == nullptr || scratch.change == nullptr || scratch.rows == nullptr ||
        scratch.sum == nullptr) {
      return Status::out_of_memory();
    }
  }
  return Status::success();
}

/// Calls body(sequence, item, scratch) for every item of `count` sequences from `first` on.
template <typename Body>
Status NeighborGradient::for_each(int64_t first, int64_t count, bool accumulate, int64_t items,
                                  int64_t items_per_task, Context& context, Body body) {
  const int64_t places = lists_.centroids * lists_.slots;
  const int64_t tasks = divide_up(items, items_per_task);
  return context.parallel(count * tasks, [&](int64_t task, int worker) {
    const int64_t member = task / tasks;
    const Sequence sequence{centroid_sequence(problem_->forward, *active_, first + member),
                            first + member, share_ + member * places, change_ + member * places,
                            accumulate};
    const int64_t begin = task % tasks * items_per_task;
    const int64_t end = std::min(begin + items_per_task, items);
    for (int64_t item = begin; item < end; ++item) {
      if (context.cancelled()) return;
      body(sequence, item, scratch_[worker]);
    }
  });
}

Status NeighborGradient::run(bool accumulate, Context& context) {
  const AttentionShape& shape = problem_->forward.inputs.shape;
  const int64_t sequences = shape.batch * shape.heads;
  for (int64_t first = 0; first < sequences; first += group_) {
    const int64_t count = std::min(group_, sequences - first);
    CA_RETURN_IF_ERROR(for_each(
        first, count, accumulate, shape.query_length, kCentroidsPerTask, context,
        [&](const Sequence& sequence, int64_t item, const Scratch&) { score(sequence, item); }));
    CA_RETURN_IF_ERROR(
        for_each(first, count, accumulate, shape.key_length, kInputsPerTask, context,
                 [&](const Sequence& sequence, int64_t item, const Scratch& scratch) {
                   finish_input(sequence, item, scratch, context);
                 }));
    if (problem_->gradients.query.data == nullptr) continue;
    CA_RETURN_IF_ERROR(
        for_each(first, count, accumulate, shape.query_length, kCentroidsPerTask, context,
                 [&](const Sequence& sequence, int64_t item, const Scratch& scratch) {
                   finish_centroid(sequence, item, scratch, context);
                 }));
  }
  return Status::success();
}

/// Logits (over the inputs: the softmax's values) and x of the places of one centroid.
void NeighborGradient::score(const Sequence& sequence, int64_t centroid) const {
  const AttentionInputs& inputs = problem_->forward.inputs;
  const float scale = inputs.scale * kLog2E;
  const CentroidSequence& view = sequence.view;
  const int32_t* list = lists_.list(view.batch, centroid);
  const int64_t count = lists_.count(view.batch, centroid);
  float* share = sequence.share + centroid * lists_.slots;
  float* change = sequence.change + centroid * lists_.slots;
  const float* query = view.query + centroid * view.query_stride;
  const float* output = output_->rows(sequence.index) + centroid * inputs.shape.value_dim;
  const float offset = output_->offsets(sequence.index)[centroid];
  const bool over_inputs = problem_->forward.normalize == Normalize::inputs;
  for (int64_t slot = 0; slot < count; ++slot) {
    const float* key = view.key + list[slot] * view.key_stride;
    const float* value = view.value + list[slot] * view.value_stride;
    const float product = simd().dot(query, key, inputs.shape.head_dim);
    share[slot] = over_inputs ? product : product * scale;
    change[slot] = simd().dot(output, value, inputs.shape.value_dim) - offset;
  }
  if (over_inputs) simd().weigh(share, count, scale, saved_in_base2(view.logsumexp[centroid]));
}

/// Gradients that belong to one input: by its key, its value and its weight.
void NeighborGradient::finish_input(const Sequence& sequence, int64_t input, const Scratch& scratch,
                                    Context& context) const {
  const CentroidSequence& view = sequence.view;
  if (!active_->contains(view.batch, input)) return;
  const AttentionInputs& inputs = problem_->forward.inputs;
  const int64_t* places = lists_.places_of(view.batch, input);
  const int64_t count = lists_.listings(view.batch, input);
  differentiate(sequence, input, count, scratch);
  bool finite = true;
  if (problem_->gradients.value.data != nullptr) {
    const float* rows = output_->rows(sequence.index);
    finite &= write_sum(
        scratch.share, count,
        [&](int64_t i) { return rows + places[i] / lists_.slots * inputs.shape.value_dim; },
        inputs.shape.value_dim, 1.0f, sequence.accumulate, scratch,
        problem_->gradients.value.row(view.batch, view.head, input));
  }
  if (problem_->gradients.key.data != nullptr) {
    finite &= write_sum(
        scratch.change, count,
        [&](int64_t i) { return view.query + places[i] / lists_.slots * view.query_stride; },
        inputs.shape.head_dim, inputs.scale, sequence.accumulate, scratch,
        problem_->gradients.key.row(view.batch, view.head, input));
  }
  if (!finite) context.mark_non_finite();
}

/// a and dz of the places that list an input, in scratch and where they are kept.
void NeighborGradient::differentiate(const Sequence& sequence, int64_t input, int64_t count,
                                     const Scratch& scratch) const {
  const int64_t batch = sequence.view.batch;
  const int64_t* places = lists_.places_of(batch, input);
  const bool over_centroids = problem_->forward.normalize == Normalize::centroids;
  for (int64_t i = 0; i < count; ++i) {
    scratch.share[i] = sequence.share[places[i]];
    scratch.change[i] = sequence.change[places[i]];
  }
  if (over_centroids && count > 0) normalize(scratch.share, count);
  const float total = static_cast<float>(
      std::inner_product(scratch.share, scratch.share + count, scratch.change, 0.0));
  if (weight_terms_ != nullptr) weight_terms_[sequence.index * lists_.length + input] = total;
  const float weight = active_->weight(batch, input);
  const float centre = over_centroids ? total : 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    scratch.share[i] *= weight;
    scratch.change[i] = scratch.share[i] * (scratch.change[i] - centre);
    sequence.change[places[i]] = scratch.change[i];
  }
}

/// The gradient by one query; 0 for padding and for a list without inputs.
void NeighborGradient::finish_centroid(const Sequence& sequence, int64_t centroid,
                                       const Scratch& scratch, Context& context) const {
  const CentroidSequence& view = sequence.view;
  const AttentionInputs& inputs = problem_->forward.inputs;
  const int32_t* list = lists_.list(view.batch, centroid);
  const bool finite = write_sum(
      sequence.change + centroid * lists_.slots, lists_.count(view.batch, centroid),
      [&](int64_t slot) { return view.key + list[slot] * view.key_stride; }, inputs.shape.head_dim,
      inputs.scale, false, scratch, problem_->gradients.query.row(view.batch, view.head, centroid));
  if (!finite) context.mark_non_finite();
}

/// target (+)= scale * sum_i factors[i] * row(i); false if the sum is not finite.
template <typename Row>
bool NeighborGradient::write_sum(const float* factors, int64_t count, Row row, int64_t dim,
                                 float scale, bool accumulate, const Scratch& scratch,
                                 float* target) const {
  const int64_t columns = round_up(dim, simd().width);
  std::fill_n(scratch.sum, columns, 0.0f);
  for (int64_t first = 0; first < count; first += kRowsPerProduct) {
    const int64_t rows = std::min(kRowsPerProduct, count - first);
    for (int64_t i = 0; i < rows; ++i) {
      std::memcpy(scratch.rows + i * columns, row(first + i), dim * sizeof(float));
    }
    simd().multiply(factors + first, count, 1, 1, rows, scratch.rows, columns, dim, scratch.sum,
                    columns, true);
  }
  for (int64_t d = 0; d < dim; ++d) {
    scratch.sum[d] *= scale;
    target[d] = accumulate ? target[d] + scratch.sum[d] : scratch.sum[d];
  }
  return all_finite(scratch.sum, dim);
}

}  // namespace cluster_attention::kernels
