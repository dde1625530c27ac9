#include "cuda/centroid_encode.h"
#include "cuda/centroid_encoding.h"
#include "native/core/absorption.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

Status CentroidEncoding::allocate(bool with_state) {
  const int64_t inputs = absorbed_ ? 0 : checked_size(problem_.batch, problem_.length, width_);
  const int64_t absorbed = absorbed_ ? checked_size(rows_, problem_.heads, problem_.dim) : 0;
  CA_RETURN_IF_ERROR(scope_.allocate(&query_, checked_size(rows_, width_)));
  CA_RETURN_IF_ERROR(scope_.allocate(&collected_, checked_size(rows_, width_)));
  CA_RETURN_IF_ERROR(scope_.allocate(&key_, inputs));
  CA_RETURN_IF_ERROR(scope_.allocate(&value_, inputs));
  CA_RETURN_IF_ERROR(scope_.allocate(&absorbed_query_, absorbed));
  CA_RETURN_IF_ERROR(scope_.allocate(&absorbed_collected_, absorbed));
  if (problem_.weights != nullptr) CA_RETURN_IF_ERROR(allocate_active());
  if (with_state) {
    CA_RETURN_IF_ERROR(scope_.allocate(&attention_.masses, checked_size(rows_, problem_.heads)));
    CA_RETURN_IF_ERROR(scope_.allocate(&attention_.logsumexp, checked_size(rows_, problem_.heads)));
  }
  prepare_start();
  prepare_attention();
  return allocate_start(scope_, start_);
}

Status CentroidEncoding::allocate_active() {
  active_.length = problem_.length;
  active_.most_centroids = problem_.centroids;
  active_.given = problem_.start == PoolStart::given;
  active_.weights = problem_.weights;
  CA_RETURN_IF_ERROR(
      scope_.allocate(&active_.index, checked_size(problem_.batch, problem_.length)));
  CA_RETURN_IF_ERROR(scope_.allocate(&active_.counts, problem_.batch));
  return scope_.allocate(&active_.centroids, problem_.batch);
}

void CentroidEncoding::prepare_start() {
  start_.batch = problem_.batch;
  start_.length = problem_.length;
  start_.dim = problem_.dim;
  start_.count = problem_.centroids;
  start_.inputs.data = problem_.inputs;
  start_.inputs.batch_stride = problem_.length * problem_.dim;
  start_.inputs.row_stride = problem_.dim;
  start_.inputs.storage = storage_;
  start_.inputs.round = rounds_;
  start_.lengths = active_.counts;
  start_.index = active_.index;
  start_.initial = problem_.initial;
  start_.round_initial = rounds_;
  start_.keep_given = problem_.start == PoolStart::given;
  start_.start = problem_.start;
  start_.seed = problem_.seed;
  start_.storage = storage_;
  start_.flags = session_.flags();
}

void CentroidEncoding::prepare_attention() {
  const int64_t heads = problem_.heads;
  const int64_t dim = absorbed_ ? problem_.dim : problem_.head_dim;
  AttentionInputs& inputs = attention_.inputs;
  inputs.shape = {problem_.batch, heads, problem_.centroids, problem_.length, dim, dim};
  inputs.query_lengths = active_.centroids;
  inputs.scale = problem_.scale;
  const float* query = absorbed_ ? absorbed_query_ : query_;
  inputs.query = dense_rows(query, Layout::blhd, heads, problem_.centroids, dim);
  if (absorbed_) {
    inputs.key = dense_rows(problem_.inputs, problem_.length, dim);  // the same for every head
    inputs.value = inputs.key;
  } else {
    inputs.key = dense_rows<const float>(key_, Layout::blhd, heads, problem_.length, dim);
    inputs.value = dense_rows<const float>(value_, Layout::blhd, heads, problem_.length, dim);
  }
  float* output = absorbed_ ? absorbed_collected_ : collected_;
  attention_.output = dense_rows(output, Layout::blhd, heads, problem_.centroids, dim);
  attention_.normalize = problem_.normalize;
  attention_.aggregate = problem_.aggregate;
  attention_.weights = problem_.weights;
  attention_.neighbors = problem_.neighbors;
  attention_.neighbor_count = problem_.neighbor_count;
  operands_.inputs = absorbed_ ? storage_ : Storage::float32;
  operands_.round_inputs = absorbed_ && rounds_;
  operands_.round_weights = rounds_;
}

Status CentroidEncoding::project(ProjectionParams params) {
  params.round_weight = rounds_;
  return launch_projection(session_, params);
}

ProjectionParams CentroidEncoding::inputs_projection(const float* weight, float* output) const {
  ProjectionParams params;
  params.rows = problem_.batch * problem_.length;
  params.columns = width_;
  params.depth = problem_.dim;
  params.input = problem_.inputs;
  params.input_row_stride = problem_.dim;
  params.input_storage = storage_;
  params.round_input = rounds_;
  params.weight = weight;
  params.weight_column_stride = problem_.dim;
  params.output = output;
  params.output_row_stride = width_;
  return params;
}

ProjectionParams CentroidEncoding::query_projection(const float* centroids) const {
  ProjectionParams params;
  params.rows = rows_;
  params.columns = width_;
  params.depth = problem_.dim;
  params.input = centroids;
  params.input_row_stride = problem_.dim;
  params.weight = problem_.query_weight;
  params.weight_column_stride = problem_.dim;
  params.output = query_;
  params.output_row_stride = width_;
  return params;
}

ProjectionParams CentroidEncoding::key_absorption() const {
  ProjectionParams params;
  params.rows = rows_;
  params.columns = problem_.dim;
  params.depth = problem_.head_dim;
  params.groups = problem_.heads;
  params.input = query_;
  params.input_row_stride = width_;
  params.input_group_stride = problem_.head_dim;
  params.weight = problem_.key_weight;
  params.weight_group_stride = problem_.head_dim * problem_.dim;
  params.weight_column_stride = 1;
  params.weight_element_stride = problem_.dim;
  params.output = absorbed_query_;
  params.output_row_stride = problem_.heads * problem_.dim;
  params.output_group_stride = problem_.dim;
  return params;
}

ProjectionParams CentroidEncoding::value_absorption() const {
  ProjectionParams params;
  params.rows = rows_;
  params.columns = problem_.head_dim;
  params.depth = problem_.dim;
  params.groups = problem_.heads;
  params.input = absorbed_collected_;
  params.input_row_stride = problem_.heads * problem_.dim;
  params.input_group_stride = problem_.dim;
  params.weight = problem_.value_weight;
  params.weight_group_stride = problem_.head_dim * problem_.dim;
  params.weight_column_stride = problem_.dim;
  params.output = collected_;
  params.output_row_stride = width_;
  params.output_group_stride = problem_.head_dim;
  return params;
}

ProjectionParams CentroidEncoding::output_projection(const float* before, float* centroids,
                                                     float* stored) const {
  ProjectionParams params;
  params.rows = rows_;
  params.columns = problem_.dim;
  params.depth = width_;
  params.input = collected_;
  params.input_row_stride = width_;
  params.weight = problem_.output_weight;
  params.weight_column_stride = width_;
  params.output = centroids;
  params.output_row_stride = problem_.dim;
  params.base = before;
  params.step = problem_.step_size;
  if (centroids != stored) params.stored = stored;
  params.storage = storage_;
  params.watch = true;
  return params;
}

Status CentroidEncoding::start(float* centroids, float* stored) {
  if (problem_.weights != nullptr) {
    CA_RETURN_IF_ERROR(launch_find_active(session_, active_, problem_.batch));
  }
  start_.centroids = centroids;
  start_.output = stored;
  CA_RETURN_IF_ERROR(launch_start(session_, start_));
  if (absorbed_) return Status::success();
  CA_RETURN_IF_ERROR(project(inputs_projection(problem_.key_weight, key_)));
  return project(inputs_projection(problem_.value_weight, value_));
}

Status CentroidEncoding::attend(const float* centroids) {
  CA_RETURN_IF_ERROR(project(query_projection(centroids)));
  if (absorbed_) CA_RETURN_IF_ERROR(project(key_absorption()));
  CA_RETURN_IF_ERROR(centroid_attention(session_, attention_, operands_));
  return absorbed_ ? project(value_absorption()) : Status::success();
}

Status CentroidEncoding::add_change(const float* before, float* centroids, float* stored) {
  return project(output_projection(before, centroids, stored));
}

Status centroid_encode(Session& session, const CentroidEncodeProblem& problem, const Call& call) {
  DeviceWorkspace::Scope scope(session.workspace());
  CentroidEncoding encoding(session, problem, call, absorbing_is_cheaper(problem), scope);
  float* centroids = problem.output;
  if (call.storage == Storage::bfloat16) {
    CA_RETURN_IF_ERROR(
        scope.allocate(&centroids, checked_size(problem.batch, problem.centroids, problem.dim)));
  }
  CA_RETURN_IF_ERROR(encoding.allocate(false));
  CA_RETURN_IF_ERROR(encoding.start(centroids, problem.output));
  for (int64_t step = 0; step < problem.steps; ++step) {
    CA_RETURN_IF_ERROR(encoding.attend(centroids));
    CA_RETURN_IF_ERROR(encoding.add_change(centroids, centroids, problem.output));
  }
  return Status::success();
}

}  // namespace cluster_attention::cuda
