#include "native/kernels/centroid_encoding.h"

#include <algorithm>

namespace cluster_attention::kernels {

Status CentroidEncoding::find_active() {
  CA_RETURN_IF_ERROR(
      active_.find(problem_.batch, problem_.length, nullptr, problem_.weights, false, context_));
  centroids_ = context_.workspace().allocate<int32_t>(problem_.batch);
  if (centroids_ == nullptr) return Status::out_of_memory();
  const bool given = problem_.start == PoolStart::given;
  for (int64_t b = 0; b < problem_.batch; ++b) {
    const int64_t limit = given ? problem_.centroids : active_.count(b);
    centroids_[b] = static_cast<int32_t>(std::min(problem_.centroids, limit));
  }
  return Status::success();
}

Status CentroidEncoding::start(float* centroids) {
  bool any_removed = false;
  for (int64_t b = 0; b < problem_.batch; ++b) any_removed |= active_.index(b) != nullptr;
  Workspace& workspace = context_.workspace();
  chosen_ = workspace.allocate<int64_t>(rows_);
  float* gathered = workspace.allocate<float>(any_removed ? problem_.length * problem_.dim : 0);
  if (chosen_ == nullptr || gathered == nullptr) return Status::out_of_memory();
  for (int64_t b = 0; b < problem_.batch; ++b) {
    CA_RETURN_IF_ERROR(
        start_sequence(b, gathered, centroids + b * problem_.centroids * problem_.dim));
  }
  return Status::success();
}

CentroidStart CentroidEncoding::start_of(int64_t batch) const {
  CentroidStart sequence;
  sequence.start = problem_.start;
  sequence.seed = problem_.seed;
  sequence.inputs = problem_.inputs + batch * problem_.length * problem_.dim;
  sequence.length = active_.count(batch);
  sequence.dim = problem_.dim;
  return sequence;
}

Status CentroidEncoding::start_sequence(int64_t batch, float* gathered, float* centroids) {
  const int64_t dim = problem_.dim;
  CentroidStart sequence = start_of(batch);
  if (problem_.start == PoolStart::given) {
    sequence.initial = problem_.initial + batch * problem_.centroids * dim;
  } else if (const int32_t* index = active_.index(batch)) {
    for (int64_t i = 0; i < sequence.length; ++i) {
      const float* row = sequence.inputs + index[i] * dim;
      std::copy(row, row + dim, gathered + i * dim);
    }
    sequence.inputs = gathered;
  }
  const int64_t count = centroids_[batch];
  std::fill(centroids + count * dim, centroids + problem_.centroids * dim, 0.0f);
  return start_centroids(sequence, count, chosen_ + batch * problem_.centroids, context_,
                         centroids);
}

void CentroidEncoding::add_start_gradient(const float* gradient, float* inputs) const {
  for (int64_t b = 0; b < problem_.batch; ++b) {
    const int64_t first = b * problem_.centroids;
    kernels::add_start_gradient(start_of(b), centroids_[b], chosen_ + first, active_.index(b),
                                gradient + first * problem_.dim,
                                inputs + b * problem_.length * problem_.dim);
  }
}

Status CentroidEncoding::prepare(bool with_state) {
  Workspace& workspace = context_.workspace();
  query_ = workspace.allocate<float>(rows_ * width_);
  collected_ = workspace.allocate<float>(rows_ * width_);
  change_ = workspace.allocate<float>(rows_ * problem_.dim);
  if (query_ == nullptr || collected_ == nullptr || change_ == nullptr) {
    return Status::out_of_memory();
  }
  if (with_state) {
    attention_problem_.masses = workspace.allocate<float>(rows_ * problem_.heads);
    attention_problem_.logsumexp = workspace.allocate<float>(rows_ * problem_.heads);
    if (attention_problem_.masses == nullptr || attention_problem_.logsumexp == nullptr) {
      return Status::out_of_memory();
    }
  }
  CA_RETURN_IF_ERROR(
      pack_weight(problem_.query_weight, 1, width_, problem_.dim, context_, query_weight_));
  CA_RETURN_IF_ERROR(
      pack_weight(problem_.output_weight, 1, problem_.dim, width_, context_, output_weight_));
  return absorbed_ ? prepare_absorbed() : prepare_projected();
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

Status CentroidEncoding::attend(const float* u) {
  const int64_t dim = problem_.dim;
  const int64_t head_dim = problem_.head_dim;
  const int64_t absorbed_width = problem_.heads * dim;
  CA_RETURN_IF_ERROR(
      project_rows({u, dim, 0}, rows_, query_weight_, {query_, width_, 0}, context_));
  if (absorbed_) {
    CA_RETURN_IF_ERROR(project_rows({query_, width_, head_dim}, rows_, key_absorption_,
                                    {absorbed_query_, absorbed_width, dim}, context_));
  }
  CA_RETURN_IF_ERROR(attention_.run(context_));
  if (!absorbed_) return Status::success();
  return project_rows({absorbed_collected_, absorbed_width, dim}, rows_, value_absorption_,
                      {collected_, width_, head_dim}, context_);
}

Status CentroidEncoding::add_change(float* u) {
  CA_RETURN_IF_ERROR(project_rows({collected_, width_, 0}, rows_, output_weight_,
                                  {change_, problem_.dim, 0}, context_));
  return context_.parallel(rows_, [this, u](int64_t row, int) {
    const float* change = change_ + row * problem_.dim;
    float* centroid = u + row * problem_.dim;
    for (int64_t d = 0; d < problem_.dim; ++d) centroid[d] += problem_.step_size * change[d];
  });
}

}  // namespace cluster_attention::kernels
