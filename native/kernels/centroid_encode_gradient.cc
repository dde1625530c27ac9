#include "native/kernels/centroid_encode_gradient.h"

#include <algorithm>
#include <utility>

#include "native/core/shape.h"
#include "native/kernels/centroid_attention_gradient.h"
#include "native/kernels/centroid_encoding.h"
#include "native/kernels/finite.h"
#include "native/kernels/outer_products.h"
#include "native/kernels/project_rows.h"

namespace cluster_attention::kernels {

namespace {

class EncodeGradient {
 public:
  EncodeGradient(const CentroidEncodeGradientProblem& problem, Context& context)
      : problem_(problem),
        forward_(problem.forward),
        context_(context),
        absorbed_(forward_.neighbors == nullptr && absorbing_is_cheaper(forward_)),
        encoding_(forward_, absorbed_, context),
        width_(encoding_.width()),
        rows_(encoding_.rows()) {}

  Status run();

 private:
  Status find_states();
  Status allocate();
  Status prepare_projected();
  Status prepare_absorbed();
  Status step_back(int64_t step);
  Status differentiate_projections();
  Status finish_projected();
  void finish_start();
  Status add_outer(const GroupedRows<const float>& left, int64_t left_columns,
                   const GroupedRows<const float>& right, int64_t right_columns, int64_t groups,
                   float* sums);
  void mark_non_finite() const;

  float* state(int64_t step) const { return states_ + step * rows_ * forward_.dim; }
  int64_t inputs() const { return forward_.batch * forward_.length; }
  int64_t weight_size() const { return width_ * forward_.dim; }

  const CentroidEncodeGradientProblem& problem_;
  const CentroidEncodeProblem& forward_;
  Context& context_;
  const bool absorbed_;
  CentroidEncoding encoding_;
  const int64_t width_;  // H*D
  const int64_t rows_;   // batch*M

  float* states_ = nullptr;                       // (T,batch,M,d)
  float* gradient_ = nullptr;                     // (batch,M,d), G
  float* scaled_ = nullptr;                       // (batch,M,d), step_size G
  float* collected_gradient_ = nullptr;           // (batch,M,H*D), dc
  float* query_gradient_ = nullptr;               // (batch,M,H*D), dq
  float* key_gradient_ = nullptr;                 // (batch,N,H*D), dk; of projected inputs
  float* value_gradient_ = nullptr;               // (batch,N,H*D), dv; likewise
  float* absorbed_collected_gradient_ = nullptr;  // (batch,M,H,d), dZ
  float* absorbed_query_gradient_ = nullptr;      // (batch,M,H,d), dq̃
  PackedWeight output_weight_;                    // W_o, transposed
  PackedWeight query_weight_;                     // W_q, transposed
  PackedWeight value_absorption_;                 // W_v,l per head, transposed
  PackedWeight key_absorption_;                   // W_k,l per head
  CentroidAttentionGradientProblem attention_problem_;
  CentroidAttentionGradient attention_;
};

Status EncodeGradient::run() {
  float* weights[] = {problem_.query_weight, problem_.key_weight, problem_.value_weight,
                      problem_.output_weight};
  for (float* weight : weights) {
    if (weight != nullptr) std::fill_n(weight, weight_size(), 0.0f);
  }
  if (problem_.inputs != nullptr) std::fill_n(problem_.inputs, inputs() * forward_.dim, 0.0f);
  CA_RETURN_IF_ERROR(find_states());
  if (forward_.steps > 0) {
    CA_RETURN_IF_ERROR(allocate());
    CA_RETURN_IF_ERROR(absorbed_ ? prepare_absorbed() : prepare_projected());
    for (int64_t step = forward_.steps - 1; step >= 0; --step) CA_RETURN_IF_ERROR(step_back(step));
    if (!absorbed_) CA_RETURN_IF_ERROR(finish_projected());
  }
  finish_start();
  mark_non_finite();
  return Status::success();
}

/// u⁰ to u^(T-1), and the gradient by u^T of the centroids that are real.
Status EncodeGradient::find_states() {
  const int64_t size = rows_ * forward_.dim;
  states_ = context_.workspace().allocate<float>(
      checked_size(std::max<int64_t>(forward_.steps, 1), rows_, forward_.dim));
  gradient_ = context_.workspace().allocate_zeroed<float>(size);
  if (states_ == nullptr || gradient_ == nullptr) return Status::out_of_memory();
  CA_RETURN_IF_ERROR(encoding_.find_active());
  CA_RETURN_IF_ERROR(encoding_.start(states_));
  for (int64_t b = 0; b < forward_.batch; ++b) {
    const int64_t first = b * forward_.centroids * forward_.dim;
    std::copy_n(problem_.output_gradient + first, encoding_.real_centroids()[b] * forward_.dim,
                gradient_ + first);
  }
  if (forward_.steps == 0) return Status::success();
  CA_RETURN_IF_ERROR(encoding_.prepare(true));
  for (int64_t step = 1; step < forward_.steps; ++step) {
    std::copy_n(state(step - 1), size, state(step));
    CA_RETURN_IF_ERROR(encoding_.attend(state(step)));
    CA_RETURN_IF_ERROR(encoding_.add_change(state(step)));
  }
  return Status::success();
}

Status EncodeGradient::allocate() {
  Workspace& workspace = context_.workspace();
  scaled_ = workspace.allocate<float>(rows_ * forward_.dim);
  collected_gradient_ = workspace.allocate<float>(rows_ * width_);
  query_gradient_ = workspace.allocate<float>(rows_ * width_);
  if (scaled_ == nullptr || collected_gradient_ == nullptr || query_gradient_ == nullptr) {
    return Status::out_of_memory();
  }
  CA_RETURN_IF_ERROR(pack_transposed_weight(forward_.output_weight, 1, forward_.dim, width_,
                                            context_, output_weight_));
  CA_RETURN_IF_ERROR(pack_transposed_weight(forward_.query_weight, 1, width_, forward_.dim,
                                            context_, query_weight_));
  attention_problem_.forward = encoding_.attention();
  return Status::success();
}

Status EncodeGradient::prepare_projected() {
  const int64_t heads = forward_.heads;
  const int64_t dim = forward_.head_dim;
  AttentionGradients& gradients = attention_problem_.gradients;
  attention_problem_.output_gradient =
      dense_rows<const float>(collected_gradient_, Layout::blhd, heads, forward_.centroids, dim);
  gradients.query = dense_rows(query_gradient_, Layout::blhd, heads, forward_.centroids, dim);
  if (problem_.inputs != nullptr || problem_.key_weight != nullptr) {
    key_gradient_ = context_.workspace().allocate_zeroed<float>(inputs() * width_);
    if (key_gradient_ == nullptr) return Status::out_of_memory();
    gradients.key = dense_rows(key_gradient_, Layout::blhd, heads, forward_.length, dim);
  }
  if (problem_.inputs != nullptr || problem_.value_weight != nullptr) {
    value_gradient_ = context_.workspace().allocate_zeroed<float>(inputs() * width_);
    if (value_gradient_ == nullptr) return Status::out_of_memory();
    gradients.value = dense_rows(value_gradient_, Layout::blhd, heads, forward_.length, dim);
  }
  return attention_.prepare(attention_problem_, context_);
}

Status EncodeGradient::prepare_absorbed() {
  const int64_t heads = forward_.heads;
  const int64_t dim = forward_.dim;
  absorbed_collected_gradient_ = context_.workspace().allocate<float>(rows_ * heads * dim);
  absorbed_query_gradient_ = context_.workspace().allocate<float>(rows_ * heads * dim);
  if (absorbed_collected_gradient_ == nullptr || absorbed_query_gradient_ == nullptr) {
    return Status::out_of_memory();
  }
  CA_RETURN_IF_ERROR(pack_transposed_weight(forward_.value_weight, heads, forward_.head_dim, dim,
                                            context_, value_absorption_));
  CA_RETURN_IF_ERROR(
      pack_weight(forward_.key_weight, heads, forward_.head_dim, dim, context_, key_absorption_));
  AttentionGradients& gradients = attention_problem_.gradients;
  attention_problem_.output_gradient = dense_rows<const float>(
      absorbed_collected_gradient_, Layout::blhd, heads, forward_.centroids, dim);
  gradients.query =
      dense_rows(absorbed_query_gradient_, Layout::blhd, heads, forward_.centroids, dim);
  if (problem_.inputs != nullptr) {  // keys and values of all heads are the inputs themselves
    gradients.key = dense_rows(problem_.inputs, forward_.length, dim);
    gradients.value = gradients.key;
  }
  return attention_.prepare(attention_problem_, context_);
}

/// From the gradient by u after a step to that by u before it.
Status EncodeGradient::step_back(int64_t step) {
  const int64_t dim = forward_.dim;
  CA_RETURN_IF_ERROR(encoding_.attend(state(step)));
  for (int64_t i = 0; i < rows_ * dim; ++i) scaled_[i] = forward_.step_size * gradient_[i];
  CA_RETURN_IF_ERROR(add_outer({scaled_, dim, 0}, dim, {encoding_.collected(), width_, 0}, width_,
                               1, problem_.output_weight));
  CA_RETURN_IF_ERROR(project_rows({scaled_, dim, 0}, rows_, output_weight_,
                                  {collected_gradient_, width_, 0}, context_));
  CA_RETURN_IF_ERROR(absorbed_ ? differentiate_projections() : attention_.run(true, context_));
  CA_RETURN_IF_ERROR(add_outer({query_gradient_, width_, 0}, width_, {state(step), dim, 0}, dim, 1,
                               problem_.query_weight));
  return project_rows({query_gradient_, width_, 0}, rows_, query_weight_, {gradient_, dim, 0},
                      context_, {true, false});
}

/// The attention over absorbed projections, and these.
Status EncodeGradient::differentiate_projections() {
  const int64_t dim = forward_.dim;
  const int64_t head_dim = forward_.head_dim;
  const int64_t heads = forward_.heads;
  const int64_t absorbed_width = heads * dim;
  const GroupedRows<const float> collected{encoding_.attention().output.data, absorbed_width, dim};
  CA_RETURN_IF_ERROR(add_outer({collected_gradient_, width_, head_dim}, head_dim, collected, dim,
                               heads, problem_.value_weight));
  CA_RETURN_IF_ERROR(project_rows({collected_gradient_, width_, head_dim}, rows_, value_absorption_,
                                  {absorbed_collected_gradient_, absorbed_width, dim}, context_));
  CA_RETURN_IF_ERROR(attention_.run(true, context_));
  CA_RETURN_IF_ERROR(add_outer({encoding_.query(), width_, head_dim}, head_dim,
                               {absorbed_query_gradient_, absorbed_width, dim}, dim, heads,
                               problem_.key_weight));
  return project_rows({absorbed_query_gradient_, absorbed_width, dim}, rows_, key_absorption_,
                      {query_gradient_, width_, head_dim}, context_);
}

/// From the gradients by all keys and values to those by the inputs and both weights.
Status EncodeGradient::finish_projected() {
  const int64_t dim = forward_.dim;
  const struct {
    const float* gradient;
    const float* weight;
    float* weight_gradient;
  } projections[] = {{key_gradient_, forward_.key_weight, problem_.key_weight},
                     {value_gradient_, forward_.value_weight, problem_.value_weight}};
  for (const auto& projection : projections) {
    if (projection.weight_gradient != nullptr) {
      OuterProducts products;
      products.rows = inputs();
      products.left = {projection.gradient, width_, 0};
      products.left_columns = width_;
      products.right = {forward_.inputs, dim, 0};
      products.right_columns = dim;
      products.weights = forward_.weights;
      CA_RETURN_IF_ERROR(sum_outer_products(products, false, context_, projection.weight_gradient));
    }
    if (problem_.inputs == nullptr) continue;
    PackedWeight weight;
    CA_RETURN_IF_ERROR(pack_transposed_weight(projection.weight, 1, width_, dim, context_, weight));
    CA_RETURN_IF_ERROR(project_rows({projection.gradient, width_, 0}, inputs(), weight,
                                    {problem_.inputs, dim, 0}, context_, {true, false}));
  }
  return Status::success();
}

void EncodeGradient::finish_start() {
  if (problem_.initial != nullptr) {
    std::copy_n(gradient_, rows_ * forward_.dim, problem_.initial);
  }
  if (problem_.inputs != nullptr) encoding_.add_start_gradient(gradient_, problem_.inputs);
}

/// sums (groups, left columns, right columns) += sum over the centroids' rows, unless null.
Status EncodeGradient::add_outer(const GroupedRows<const float>& left, int64_t left_columns,
                                 const GroupedRows<const float>& right, int64_t right_columns,
                                 int64_t groups, float* sums) {
  if (sums == nullptr) return Status::success();
  OuterProducts products;
  products.rows = rows_;
  products.groups = groups;
  products.left = left;
  products.left_columns = left_columns;
  products.right = right;
  products.right_columns = right_columns;
  return sum_outer_products(products, true, context_, sums);
}

void EncodeGradient::mark_non_finite() const {
  const std::pair<const float*, int64_t> results[] = {
      {problem_.inputs, inputs() * forward_.dim}, {gradient_, rows_ * forward_.dim},
      {problem_.query_weight, weight_size()},     {problem_.key_weight, weight_size()},
      {problem_.value_weight, weight_size()},     {problem_.output_weight, weight_size()}};
  for (const auto& [values, count] : results) {
    if (values != nullptr && !all_finite(values, count)) context_.mark_non_finite();
  }
}

}  // namespace

Status centroid_encode_gradient(const CentroidEncodeGradientProblem& problem, Context& context) {
  return EncodeGradient(problem, context).run();
}

}  // namespace cluster_attention::kernels
