#include "native/kernels/centroid_encode.h"

#include <algorithm>

#include "native/kernels/centroid_attention.h"
#include "native/kernels/centroid_start.h"
#include "native/kernels/finite.h"
#include "native/kernels/project_rows.h"

namespace cluster_attention::kernels {

namespace {

/// Whether the absorbed way takes fewer multiplications than the projected one: per batch entry,
/// with (centroid, input) pairs over all heads and steps,
///
///     projected   2 N d H D + 2 pairs D        absorbed   2 pairs d + 2 T H M d D
bool absorbing_is_cheaper(const CentroidEncodeProblem& problem) {
  const double dim = static_cast<double>(problem.dim);
  const double head_dim = static_cast<double>(problem.head_dim);
  const double heads = static_cast<double>(problem.heads);
  const double length = static_cast<double>(problem.length);
  const double partners =
      problem.neighbors != nullptr ? static_cast<double>(problem.neighbor_count) : length;
  const double queries =
      static_cast<double>(problem.steps) * heads * static_cast<double>(problem.centroids);
  const double projected = length * dim * heads * head_dim + queries * partners * head_dim;
  const double absorbed = queries * partners * dim + queries * dim * head_dim;
  return absorbed < projected;
}

class CentroidEncoding {
 public:
  CentroidEncoding(const CentroidEncodeProblem& problem, Context& context)
      : problem_(problem),
        context_(context),
        width_(problem.heads * problem.head_dim),
        rows_(problem.batch * problem.centroids),
        absorbed_(absorbing_is_cheaper(problem)) {}

  Status run();

 private:
  Status start();
  Status start_sequence(int64_t batch, const ActiveInputs& active, float* gathered,
                        int64_t* chosen);
  Status prepare_projected();
  Status prepare_absorbed();
  Status prepare_attention(int64_t dim);
  Status step();
  Status add_change();

  const CentroidEncodeProblem& problem_;
  Context& context_;
  const int64_t width_;  // H*D
  const int64_t rows_;   // batch*M
  const bool absorbed_;

  PackedWeight query_weight_;        // W_q
  PackedWeight output_weight_;       // W_o
  PackedWeight key_absorption_;      // W_k,l per head, transposed
  PackedWeight value_absorption_;    // W_v,l per head
  int32_t* centroids_ = nullptr;     // (batch), the real ones
  float* query_ = nullptr;           // (batch,M,H*D)
  float* collected_ = nullptr;       // (batch,M,H*D), the attention's output with values projected
  float* change_ = nullptr;          // (batch,M,d)
  float* absorbed_query_ = nullptr;  // (batch,M,H,d)
  float* absorbed_collected_ = nullptr;  // (batch,M,H,d)
  CentroidAttentionProblem attention_problem_;
  CentroidAttention attention_;
};

Status CentroidEncoding::run() {
  Workspace& workspace = context_.workspace();
  query_ = workspace.allocate<float>(rows_ * width_);
  collected_ = workspace.allocate<float>(rows_ * width_);
  change_ = workspace.allocate<float>(rows_ * problem_.dim);
  centroids_ = workspace.allocate<int32_t>(problem_.batch);
  if (query_ == nullptr || collected_ == nullptr || change_ == nullptr || centroids_ == nullptr) {
    return Status::out_of_memory();
  }
  CA_RETURN_IF_ERROR(start());
  CA_RETURN_IF_ERROR(
      pack_weight(problem_.query_weight, 1, width_, problem_.dim, context_, query_weight_));
  CA_RETURN_IF_ERROR(
      pack_weight(problem_.output_weight, 1, problem_.dim, width_, context_, output_weight_));
  CA_RETURN_IF_ERROR(absorbed_ ? prepare_absorbed() : prepare_projected());
  for (int64_t step = 0; step < problem_.steps; ++step) CA_RETURN_IF_ERROR(this->step());
  if (!all_finite(problem_.output, rows_ * problem_.dim)) context_.mark_non_finite();
  return Status::success();
}

Status CentroidEncoding::start() {
  const int64_t length = problem_.length;
  ActiveInputs active;
  CA_RETURN_IF_ERROR(active.find(problem_.batch, length, nullptr, problem_.weights, context_));
  bool any_removed = false;
  for (int64_t b = 0; b < problem_.batch; ++b) any_removed |= active.index(b) != nullptr;
  Workspace& workspace = context_.workspace();
  int64_t* chosen = workspace.allocate<int64_t>(problem_.centroids);
  float* gathered = workspace.allocate<float>(any_removed ? length * problem_.dim : 0);
  if (chosen == nullptr || gathered == nullptr) return Status::out_of_memory();
  for (int64_t b = 0; b < problem_.batch; ++b) {
    CA_RETURN_IF_ERROR(start_sequence(b, active, gathered, chosen));
  }
  return Status::success();
}

Status CentroidEncoding::start_sequence(int64_t batch, const ActiveInputs& active, float* gathered,
                                        int64_t* chosen) {
  const int64_t dim = problem_.dim;
  CentroidStart sequence;
  sequence.start = problem_.start;
  sequence.seed = problem_.seed;
  sequence.inputs = problem_.inputs + batch * problem_.length * dim;
  sequence.length = active.count(batch);
  sequence.dim = dim;
  int64_t count = std::min(problem_.centroids, sequence.length);
  if (problem_.start == PoolStart::given) {
    sequence.initial = problem_.initial + batch * problem_.centroids * dim;
    count = problem_.centroids;
  } else if (const int32_t* index = active.index(batch)) {
    for (int64_t i = 0; i < sequence.length; ++i) {
      const float* row = sequence.inputs + index[i] * dim;
      std::copy(row, row + dim, gathered + i * dim);
    }
    sequence.inputs = gathered;
  }
  centroids_[batch] = static_cast<int32_t>(count);
  float* output = problem_.output + batch * problem_.centroids * dim;
  std::fill(output + count * dim, output + problem_.centroids * dim, 0.0f);
  return start_centroids(sequence, count, chosen, context_, output);
}

/// Everything about the attention but its rows; `dim` is that of queries, keys and values.
Status CentroidEncoding::prepare_attention(int64_t dim) {
  AttentionInputs& inputs = attention_problem_.inputs;
  inputs.shape = {problem_.batch, problem_.heads, problem_.centroids, problem_.length, dim, dim};
  inputs.query_lengths = centroids_;
  inputs.scale = problem_.scale;
  attention_problem_.normalize = problem_.normalize;
  attention_problem_.aggregate = problem_.aggregate;
  attention_problem_.weights = problem_.weights;
  attention_problem_.neighbors = problem_.neighbors;
  attention_problem_.neighbor_count = problem_.neighbor_count;
  return attention_.prepare(attention_problem_, context_);
}

Status CentroidEncoding::prepare_projected() {
  const int64_t inputs = problem_.batch * problem_.length;
  float* key = context_.workspace().allocate<float>(inputs * width_);
  float* value = context_.workspace().allocate<float>(inputs * width_);
  if (key == nullptr || value == nullptr) return Status::out_of_memory();
  PackedWeight key_weight;
  PackedWeight value_weight;
  CA_RETURN_IF_ERROR(
      pack_weight(problem_.key_weight, 1, width_, problem_.dim, context_, key_weight));
  CA_RETURN_IF_ERROR(
      pack_weight(problem_.value_weight, 1, width_, problem_.dim, context_, value_weight));
  const GroupedRows<const float> rows{problem_.inputs, problem_.dim, 0};
  CA_RETURN_IF_ERROR(project_rows(rows, inputs, key_weight, {key, width_, 0}, context_));
  CA_RETURN_IF_ERROR(project_rows(rows, inputs, value_weight, {value, width_, 0}, context_));

  const int64_t heads = problem_.heads;
  const int64_t dim = problem_.head_dim;
  AttentionInputs& attention = attention_problem_.inputs;
  attention.query = dense_rows<const float>(query_, Layout::blhd, heads, problem_.centroids, dim);
  attention.key = dense_rows<const float>(key, Layout::blhd, heads, problem_.length, dim);
  attention.value = dense_rows<const float>(value, Layout::blhd, heads, problem_.length, dim);
  attention_problem_.output = dense_rows(collected_, Layout::blhd, heads, problem_.centroids, dim);
  return prepare_attention(dim);
}

Status CentroidEncoding::prepare_absorbed() {
  const int64_t heads = problem_.heads;
  const int64_t dim = problem_.dim;
  absorbed_query_ = context_.workspace().allocate<float>(rows_ * heads * dim);
  absorbed_collected_ = context_.workspace().allocate<float>(rows_ * heads * dim);
  if (absorbed_query_ == nullptr || absorbed_collected_ == nullptr) {
    return Status::out_of_memory();
  }
  CA_RETURN_IF_ERROR(pack_transposed_weight(problem_.key_weight, heads, problem_.head_dim, dim,
                                            context_, key_absorption_));
  CA_RETURN_IF_ERROR(pack_weight(problem_.value_weight, heads, problem_.head_dim, dim, context_,
                                 value_absorption_));
  AttentionInputs& attention = attention_problem_.inputs;
  attention.query =
      dense_rows<const float>(absorbed_query_, Layout::blhd, heads, problem_.centroids, dim);
  attention.key = dense_rows(problem_.inputs, problem_.length, dim);  // the same for every head
  attention.value = attention.key;
  attention_problem_.output =
      dense_rows(absorbed_collected_, Layout::blhd, heads, problem_.centroids, dim);
  return prepare_attention(dim);
}

Status CentroidEncoding::step() {
  const int64_t dim = problem_.dim;
  const int64_t head_dim = problem_.head_dim;
  const int64_t absorbed_width = problem_.heads * dim;
  CA_RETURN_IF_ERROR(
      project_rows({problem_.output, dim, 0}, rows_, query_weight_, {query_, width_, 0}, context_));
  if (absorbed_) {
    CA_RETURN_IF_ERROR(project_rows({query_, width_, head_dim}, rows_, key_absorption_,
                                    {absorbed_query_, absorbed_width, dim}, context_));
  }
  CA_RETURN_IF_ERROR(attention_.run(context_));
  if (absorbed_) {
    CA_RETURN_IF_ERROR(project_rows({absorbed_collected_, absorbed_width, dim}, rows_,
                                    value_absorption_, {collected_, width_, head_dim}, context_));
  }
  CA_RETURN_IF_ERROR(
      project_rows({collected_, width_, 0}, rows_, output_weight_, {change_, dim, 0}, context_));
  return add_change();
}

Status CentroidEncoding::add_change() {
  return context_.parallel(rows_, [this](int64_t row, int) {
    const float* change = change_ + row * problem_.dim;
    float* centroid = problem_.output + row * problem_.dim;
    for (int64_t d = 0; d < problem_.dim; ++d) centroid[d] += problem_.step_size * change[d];
  });
}

}  // namespace

Status centroid_encode(const CentroidEncodeProblem& problem, Context& context) {
  return CentroidEncoding(problem, context).run();
}

}  // namespace cluster_attention::kernels
