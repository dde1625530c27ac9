#include "cuda/centroid_encode_gradient.cuh"
#include "cuda/centroid_encode_gradient.h"
#include "cuda/centroid_encoding.h"
#include "cuda/centroid_gradient.h"
#include "cuda/launch.h"
#include "cuda/outer_products.h"
#include "native/core/absorption.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

namespace {

class EncodeGradient {
 public:
  EncodeGradient(Session& session, const CentroidEncodeGradientProblem& problem, const Call& call)
      : session_(session),
        problem_(problem),
        forward_(problem.forward),
        call_(call),
        rounds_(call.precision == Precision::bfloat16),
        absorbed_(forward_.neighbors == nullptr && absorbing_is_cheaper(forward_)),
        width_(forward_.heads * forward_.head_dim),
        rows_(forward_.batch * forward_.centroids),
        inputs_(forward_.batch * forward_.length),
        scope_(session.workspace()),
        encoding_(session, forward_, call, absorbed_, scope_) {}

  Status run() {
    CA_RETURN_IF_ERROR(allocate());
    CA_RETURN_IF_ERROR(clear());
    CA_RETURN_IF_ERROR(find_states());
    for (int64_t step = forward_.steps - 1; step >= 0; --step) {
      CA_RETURN_IF_ERROR(step_back(step));
    }
    if (!absorbed_ && forward_.steps > 0) {
      CA_RETURN_IF_ERROR(
          finish_projection(key_gradient_, forward_.key_weight, problem_.key_weight));
      CA_RETURN_IF_ERROR(
          finish_projection(value_gradient_, forward_.value_weight, problem_.value_weight));
    }
    return close();
  }

 private:
  Status allocate() {
    const int64_t dim = forward_.dim;
    const int64_t heads = forward_.heads;
    const int64_t steps = forward_.steps > 1 ? forward_.steps : 1;
    const int64_t absorbed = absorbed_ ? checked_size(rows_, heads, dim) : 0;
    CA_RETURN_IF_ERROR(encoding_.allocate(true));
    CA_RETURN_IF_ERROR(scope_.allocate(&states_, checked_size(steps, rows_, dim)));
    CA_RETURN_IF_ERROR(scope_.allocate(&gradient_, checked_size(rows_, dim)));
    CA_RETURN_IF_ERROR(scope_.allocate(&collected_gradient_, checked_size(rows_, width_)));
    CA_RETURN_IF_ERROR(scope_.allocate(&query_gradient_, checked_size(rows_, width_)));
    CA_RETURN_IF_ERROR(scope_.allocate(&absorbed_collected_gradient_, absorbed));
    CA_RETURN_IF_ERROR(scope_.allocate(&absorbed_query_gradient_, absorbed));
    input_gradient_ = problem_.inputs;
    if (problem_.inputs != nullptr && call_.storage == Storage::bfloat16) {
      CA_RETURN_IF_ERROR(scope_.allocate(&input_gradient_, checked_size(inputs_, dim)));
    }
    const bool projects = !absorbed_ && forward_.steps > 0;
    if (projects && (problem_.inputs != nullptr || problem_.key_weight != nullptr)) {
      CA_RETURN_IF_ERROR(scope_.allocate(&key_gradient_, checked_size(inputs_, width_)));
    }
    if (projects && (problem_.inputs != nullptr || problem_.value_weight != nullptr)) {
      CA_RETURN_IF_ERROR(scope_.allocate(&value_gradient_, checked_size(inputs_, width_)));
    }
    prepare_attention();
    return Status::success();
  }

  void prepare_attention() {
    const int64_t heads = forward_.heads;
    const int64_t centroids = forward_.centroids;
    const int64_t dim = absorbed_ ? forward_.dim : forward_.head_dim;
    float* collected = absorbed_ ? absorbed_collected_gradient_ : collected_gradient_;
    float* query = absorbed_ ? absorbed_query_gradient_ : query_gradient_;
    attention_.forward = encoding_.attention();
    attention_.output_gradient =
        dense_rows<const float>(collected, Layout::blhd, heads, centroids, dim);
    AttentionGradients& gradients = attention_.gradients;
    gradients.query = dense_rows(query, Layout::blhd, heads, centroids, dim);
    if (absorbed_) {  // keys and values of all heads are the inputs themselves
      gradients.key = dense_rows(input_gradient_, forward_.length, dim);
      gradients.value = gradients.key;
    } else {
      gradients.key = dense_rows(key_gradient_, Layout::blhd, heads, forward_.length, dim);
      gradients.value = dense_rows(value_gradient_, Layout::blhd, heads, forward_.length, dim);
    }
    operands_.inputs = encoding_.operands().inputs;
    operands_.round_inputs = encoding_.operands().round_inputs;
    operands_.round_weights = encoding_.operands().round_weights;
    operands_.accumulate = true;
  }

  /// Sums begin at 0.
  Status clear() {
    const int64_t weight = width_ * forward_.dim;
    const struct {
      float* sums;
      int64_t count;
    } all[] = {{problem_.query_weight, weight},          {problem_.key_weight, weight},
               {problem_.value_weight, weight},          {problem_.output_weight, weight},
               {key_gradient_, inputs_ * width_},        {value_gradient_, inputs_ * width_},
               {input_gradient_, inputs_ * forward_.dim}};
    for (const auto& one : all) {
      if (one.sums == nullptr || one.count == 0) continue;
      CA_RETURN_IF_ERROR(session_.check(cudaMemsetAsync(
          one.sums, 0, static_cast<size_t>(one.count) * sizeof(float), session_.stream())));
    }
    return Status::success();
  }

  float* state(int64_t step) const { return states_ + step * rows_ * forward_.dim; }

  /// u⁰ to u^(T-1), and the gradient by u^T.
  Status find_states() {
    const int64_t elements = rows_ * forward_.dim;
    CA_RETURN_IF_ERROR(encoding_.start(states_, states_));
    for (int64_t step = 1; step < forward_.steps; ++step) {
      CA_RETURN_IF_ERROR(encoding_.attend(state(step - 1)));
      CA_RETURN_IF_ERROR(encoding_.add_change(state(step - 1), state(step), state(step)));
    }
    EncodeOpeningParams opening;
    opening.batch = forward_.batch;
    opening.centroids = forward_.centroids;
    opening.dim = forward_.dim;
    opening.output_gradient.data = problem_.output_gradient;
    opening.output_gradient.batch_stride = forward_.centroids * forward_.dim;
    opening.output_gradient.row_stride = forward_.dim;
    opening.output_gradient.storage = call_.storage;
    opening.output_gradient.round = rounds_;
    opening.real_centroids = encoding_.real_centroids();
    opening.gradient = gradient_;
    // grid: one thread per element
    return launch(session_, divide_up(elements, kEncodeGradientThreads), kEncodeGradientThreads, 0,
                  open_encode_gradient, opening);
  }

  /// From the gradient by u after a step to that by u before it.
  Status step_back(int64_t step) {
    const int64_t dim = forward_.dim;
    CA_RETURN_IF_ERROR(encoding_.attend(state(step)));
    CA_RETURN_IF_ERROR(add_outer_of({gradient_, dim, 0, dim},
                                    {encoding_.collected(), width_, 0, width_}, 1,
                                    forward_.step_size, problem_.output_weight));
    ProjectionParams collected = transposed(forward_.output_weight, dim, width_);
    collected.input = gradient_;
    collected.output = collected_gradient_;
    collected.step = forward_.step_size;
    CA_RETURN_IF_ERROR(encoding_.project(collected));
    CA_RETURN_IF_ERROR(absorbed_ ? differentiate_projections()
                                 : centroid_attention_gradient(session_, attention_, operands_));
    CA_RETURN_IF_ERROR(add_outer_of({query_gradient_, width_, 0, width_},
                                    {state(step), dim, 0, dim}, 1, 1.0f, problem_.query_weight));
    ProjectionParams query = transposed(forward_.query_weight, width_, dim);
    query.input = query_gradient_;
    query.base = query.output = gradient_;
    return encoding_.project(query);
  }

  /// The attention over absorbed projections, and these.
  Status differentiate_projections() {
    const int64_t dim = forward_.dim;
    const int64_t head_dim = forward_.head_dim;
    const int64_t wide = forward_.heads * dim;
    const OuterOperand collected{attention_.forward.output.data, wide, dim, dim};
    CA_RETURN_IF_ERROR(add_outer_of({collected_gradient_, width_, head_dim, head_dim}, collected,
                                    forward_.heads, 1.0f, problem_.value_weight));
    ProjectionParams absorb = grouped(forward_.value_weight);
    absorb.columns = dim;
    absorb.depth = head_dim;
    absorb.input = collected_gradient_;
    absorb.input_row_stride = width_;
    absorb.input_group_stride = head_dim;
    absorb.weight_column_stride = 1;
    absorb.weight_element_stride = dim;
    absorb.output = absorbed_collected_gradient_;
    absorb.output_row_stride = wide;
    absorb.output_group_stride = dim;
    CA_RETURN_IF_ERROR(encoding_.project(absorb));
    CA_RETURN_IF_ERROR(centroid_attention_gradient(session_, attention_, operands_));
    CA_RETURN_IF_ERROR(add_outer_of({encoding_.query(), width_, head_dim, head_dim},
                                    {absorbed_query_gradient_, wide, dim, dim}, forward_.heads,
                                    1.0f, problem_.key_weight));
    ProjectionParams query = grouped(forward_.key_weight);
    query.columns = head_dim;
    query.depth = dim;
    query.input = absorbed_query_gradient_;
    query.input_row_stride = wide;
    query.input_group_stride = dim;
    query.weight_column_stride = dim;
    query.output = query_gradient_;
    query.output_row_stride = width_;
    query.output_group_stride = head_dim;
    return encoding_.project(query);
  }

  /// Rows of the centroids, (depth) to (columns), by the transpose of a weight (depth,columns).
  ProjectionParams transposed(const float* weight, int64_t depth, int64_t columns) const {
    ProjectionParams params;
    params.rows = rows_;
    params.columns = columns;
    params.depth = depth;
    params.input_row_stride = depth;
    params.weight = weight;
    params.weight_column_stride = 1;
    params.weight_element_stride = columns;
    params.output_row_stride = columns;
    return params;
  }

  /// By one head's rows of a weight (H*D,d) each.
  ProjectionParams grouped(const float* weight) const {
    ProjectionParams params;
    params.rows = rows_;
    params.groups = forward_.heads;
    params.weight = weight;
    params.weight_group_stride = forward_.head_dim * forward_.dim;
    return params;
  }

  /// sums += scale times the sum over the centroids' rows, unless null.
  Status add_outer_of(const OuterOperand& left, const OuterOperand& right, int64_t groups,
                      float scale, float* sums) {
    if (sums == nullptr) return Status::success();
    OuterProductsParams params;
    params.rows = rows_;
    params.groups = groups;
    params.left = left;
    params.right = right;
    params.scale = scale;
    params.sums = sums;
    return add_outer_products(session_, params);
  }

  /// From the gradients by all keys (or values) to those by the inputs and by the weight.
  Status finish_projection(const float* gradient, const float* weight, float* weight_gradient) {
    const int64_t dim = forward_.dim;
    if (weight_gradient != nullptr) {
      OuterProductsParams params;
      params.rows = inputs_;
      params.left = {gradient, width_, 0, width_};
      params.right = {forward_.inputs, dim, 0, dim, call_.storage, rounds_};
      params.weights = forward_.weights;
      params.sums = weight_gradient;
      CA_RETURN_IF_ERROR(add_outer_products(session_, params));
    }
    if (problem_.inputs == nullptr) return Status::success();
    ProjectionParams params = transposed(weight, width_, dim);
    params.rows = inputs_;
    params.input = gradient;
    params.base = params.output = input_gradient_;
    return encoding_.project(params);
  }

  Status close() {
    if (problem_.inputs != nullptr) {
      CA_RETURN_IF_ERROR(
          launch_start_gradient(session_, encoding_.start_params(), gradient_, input_gradient_));
      CA_RETURN_IF_ERROR(write({inputs_ * forward_.dim, input_gradient_, problem_.inputs,
                                call_.storage, session_.flags()}));
    }
    return write(
        {rows_ * forward_.dim, gradient_, problem_.initial, Storage::float32, session_.flags()});
  }

  /// grid: one thread per element
  Status write(const EncodeResultParams& params) {
    return launch(session_, divide_up(params.count, kEncodeGradientThreads), kEncodeGradientThreads,
                  0, close_encode_gradient, params);
  }

  Session& session_;
  const CentroidEncodeGradientProblem& problem_;
  const CentroidEncodeProblem& forward_;
  const Call& call_;
  const bool rounds_;
  const bool absorbed_;
  const int64_t width_;   // H*D
  const int64_t rows_;    // batch*M
  const int64_t inputs_;  // batch*N
  DeviceWorkspace::Scope scope_;
  CentroidEncoding encoding_;
  CentroidAttentionGradientProblem attention_;
  CentroidGradientOperands operands_;

  float* states_ = nullptr;                       // (T,batch,M,d)
  float* gradient_ = nullptr;                     // (batch,M,d), G
  float* collected_gradient_ = nullptr;           // (batch,M,H*D), dc
  float* query_gradient_ = nullptr;               // (batch,M,H*D), dq
  float* key_gradient_ = nullptr;                 // (batch,N,H*D), dk; of projected inputs
  float* value_gradient_ = nullptr;               // (batch,N,H*D), dv; likewise
  float* absorbed_collected_gradient_ = nullptr;  // (batch,M,H,d), dZ
  float* absorbed_query_gradient_ = nullptr;      // (batch,M,H,d), dq̃
  float* input_gradient_ = nullptr;  // (batch,N,d), sums of the gradients by the inputs
};

}  // namespace

Status centroid_encode_gradient(Session& session, const CentroidEncodeGradientProblem& problem,
                                const Call& call) {
  return EncodeGradient(session, problem, call).run();
}

}  // namespace cluster_attention::cuda
