#include "cuda/centroid_attention.h"
#include "cuda/centroid_encode.h"
#include "cuda/centroid_start.h"
#include "cuda/launch.h"
#include "cuda/project.cuh"
#include "native/core/absorption.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

namespace {

class CentroidEncoding {
 public:
  CentroidEncoding(Session& session, const CentroidEncodeProblem& problem, const Call& call)
      : session_(session),
        problem_(problem),
        storage_(call.storage),
        rounds_(call.precision == Precision::bfloat16),
        absorbed_(absorbing_is_cheaper(problem)),
        width_(problem.heads * problem.head_dim),
        rows_(problem.batch * problem.centroids),
        scope_(session.workspace()) {}

  Status run() {
    CA_RETURN_IF_ERROR(allocate());
    if (problem_.weights != nullptr) {
      CA_RETURN_IF_ERROR(launch_find_active(session_, active_, problem_.batch));
    }
    CA_RETURN_IF_ERROR(launch_start(session_, start_));
    if (!absorbed_) {
      CA_RETURN_IF_ERROR(project(inputs_projection(problem_.key_weight, key_)));
      CA_RETURN_IF_ERROR(project(inputs_projection(problem_.value_weight, value_)));
    }
    for (int64_t step = 0; step < problem_.steps; ++step) CA_RETURN_IF_ERROR(this->step());
    return Status::success();
  }

 private:
  Status allocate() {
    const int64_t inputs = absorbed_ ? 0 : checked_size(problem_.batch, problem_.length, width_);
    const int64_t absorbed = absorbed_ ? checked_size(rows_, problem_.heads, problem_.dim) : 0;
    centroids_ = problem_.output;
    if (storage_ == Storage::bfloat16) {
      CA_RETURN_IF_ERROR(scope_.allocate(&centroids_, checked_size(rows_, problem_.dim)));
    }
    CA_RETURN_IF_ERROR(scope_.allocate(&query_, checked_size(rows_, width_)));
    CA_RETURN_IF_ERROR(scope_.allocate(&collected_, checked_size(rows_, width_)));
    CA_RETURN_IF_ERROR(scope_.allocate(&key_, inputs));
    CA_RETURN_IF_ERROR(scope_.allocate(&value_, inputs));
    CA_RETURN_IF_ERROR(scope_.allocate(&absorbed_query_, absorbed));
    CA_RETURN_IF_ERROR(scope_.allocate(&absorbed_collected_, absorbed));
    if (problem_.weights != nullptr) CA_RETURN_IF_ERROR(allocate_active());
    prepare_start();
    prepare_attention();
    return allocate_start(session_, scope_, start_);
  }

  Status allocate_active() {
    active_.length = problem_.length;
    active_.most_centroids = problem_.centroids;
    active_.given = problem_.start == PoolStart::given;
    active_.weights = problem_.weights;
    CA_RETURN_IF_ERROR(
        scope_.allocate(&active_.index, checked_size(problem_.batch, problem_.length)));
    CA_RETURN_IF_ERROR(scope_.allocate(&active_.counts, problem_.batch));
    return scope_.allocate(&active_.centroids, problem_.batch);
  }

  void prepare_start() {
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
    start_.centroids = centroids_;
    start_.output = problem_.output;
    start_.storage = storage_;
    start_.flags = session_.flags();
  }

  /// The attention of one step; its queries are float32, keys and values are the projected inputs
  /// or the inputs themselves.
  void prepare_attention() {
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

  Status project(ProjectionParams params) {
    // grid: tiles of columns x groups x tiles of rows
    params.flags = session_.flags();
    params.round_weight = rounds_;
    const int64_t blocks =
        divide_up(params.rows, kTile) * params.groups * divide_up(params.columns, kTile);
    return launch(session_, blocks, kTileThreads, projection_layout().bytes, project_rows, params);
  }

  /// Rows of `width` elements to rows of H*D, by a weight (H*D,width).
  ProjectionParams inputs_projection(const float* weight, float* output) const {
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

  ProjectionParams query_projection() const {
    ProjectionParams params;
    params.rows = rows_;
    params.columns = width_;
    params.depth = problem_.dim;
    params.input = centroids_;
    params.input_row_stride = problem_.dim;
    params.weight = problem_.query_weight;
    params.weight_column_stride = problem_.dim;
    params.output = query_;
    params.output_row_stride = width_;
    return params;
  }

  /// q̃_l = W_k,l^T q_l
  ProjectionParams key_absorption() const {
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

  /// (W_v x)_l summed = W_v,l Z_l
  ProjectionParams value_absorption() const {
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

  ProjectionParams output_projection() const {
    ProjectionParams params;
    params.rows = rows_;
    params.columns = problem_.dim;
    params.depth = width_;
    params.input = collected_;
    params.input_row_stride = width_;
    params.weight = problem_.output_weight;
    params.weight_column_stride = width_;
    params.output = centroids_;
    params.output_row_stride = problem_.dim;
    params.accumulate = true;
    params.step = problem_.step_size;
    if (centroids_ != problem_.output) params.stored = problem_.output;
    params.storage = storage_;
    params.watch = true;
    return params;
  }

  Status step() {
    CA_RETURN_IF_ERROR(project(query_projection()));
    if (absorbed_) CA_RETURN_IF_ERROR(project(key_absorption()));
    CA_RETURN_IF_ERROR(centroid_attention(session_, attention_, operands_));
    if (absorbed_) CA_RETURN_IF_ERROR(project(value_absorption()));
    return project(output_projection());
  }

  Session& session_;
  const CentroidEncodeProblem& problem_;
  const Storage storage_;
  const bool rounds_;
  const bool absorbed_;
  const int64_t width_;  // H*D
  const int64_t rows_;   // batch*M
  DeviceWorkspace::Scope scope_;
  ActiveParams active_;
  StartParams start_;
  CentroidAttentionProblem attention_;
  CentroidOperands operands_;
  float* centroids_ = nullptr;           // (batch,M,d)
  float* query_ = nullptr;               // (batch,M,H*D)
  float* collected_ = nullptr;           // (batch,M,H*D)
  float* key_ = nullptr;                 // (batch,N,H*D)
  float* value_ = nullptr;               // (batch,N,H*D)
  float* absorbed_query_ = nullptr;      // (batch,M,H,d)
  float* absorbed_collected_ = nullptr;  // (batch,M,H,d)
};

}  // namespace

Status centroid_encode(Session& session, const CentroidEncodeProblem& problem, const Call& call) {
  return CentroidEncoding(session, problem, call).run();
}

}  // namespace cluster_attention::cuda
