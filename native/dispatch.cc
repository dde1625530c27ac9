#include "native/dispatch.h"

#include "native/dispatch_arrays.h"
#include "native/kernels/aggregate.h"
#include "native/kernels/attention.h"
#include "native/kernels/attention_gradient.h"
#include "native/kernels/broadcast.h"
#include "native/kernels/cast_attention.h"
#include "native/kernels/cast_attention_gradient.h"
#include "native/kernels/centroid_attention.h"
#include "native/kernels/centroid_attention_gradient.h"
#include "native/kernels/centroid_encode.h"
#include "native/kernels/centroid_encode_gradient.h"
#include "native/kernels/centroid_pool.h"
#include "native/kernels/centroid_pool_gradient.h"
#include "native/kernels/clustered_attention.h"
#include "native/kernels/clustered_attention_gradient.h"
#include "native/kernels/hamming_kmeans.h"
#include "native/kernels/hash.h"
#include "native/kernels/kmeans.h"
#include "native/kernels/matmul.h"
#include "native/kernels/sparse.h"
#include "native/kernels/sparse_gradient.h"
#include "native/kernels/top_k.h"

namespace cluster_attention {

namespace {

/// Kernel, then the cause of a non-finite result.
template <typename Problem>
Status run_kernel(const Problem& problem, const ProblemArrays& arrays, const CallSettings& settings,
                  Context& context, Status (*kernel)(const Problem&, Context&)) {
  CA_RETURN_IF_ERROR(kernel(problem, context));
  if (settings.non_finite == NonFinite::error && context.saw_non_finite()) {
    return arrays.find_non_finite(context);
  }
  return Status::success();
}

/// Precision, kernel, and NaN in what it may have half written when it fails.
template <typename Problem>
Status execute(Problem problem, const CallSettings& settings, Context& context,
               Status (*kernel)(const Problem&, Context&)) {
  const ProblemArrays arrays(problem);
  if (context.cancelled()) return Status::cancelled();  // before anything is allocated
  if (!arrays.has_results()) return Status::success();
  if (settings.precision == Precision::bfloat16) {
    CA_RETURN_IF_ERROR(arrays.round(context));
    context.set_bfloat16_operands();
  }
  const Status status = run_kernel(problem, arrays, settings, context, kernel);
  // Only asynchronous calls are cancelled: nobody sees what those have written.
  const bool is_seen = status.code != StatusCode::cancelled && !status.refuses_arguments();
  if (!status.ok() && is_seen) arrays.spoil_results();
  return status;
}

}  // namespace

Status run(const AttentionProblem& problem, const CallSettings& settings, Context& context) {
  return execute(problem, settings, context, kernels::attention);
}

Status run(const ClusteredAttentionProblem& problem, const CallSettings& settings,
           Context& context) {
  ClusteredAttentionProblem complete = problem;
  CA_RETURN_IF_ERROR(draw_missing_planes(complete, context));
  return execute(complete, settings, context, kernels::clustered_attention);
}

Status run(const CentroidAttentionProblem& problem, const CallSettings& settings,
           Context& context) {
  return execute(problem, settings, context, kernels::centroid_attention);
}

Status run(const CastAttentionProblem& problem, const CallSettings& settings, Context& context) {
  return execute(problem, settings, context, kernels::cast_attention);
}

Status run(const CentroidPoolProblem& problem, const CallSettings& settings, Context& context) {
  return execute(problem, settings, context, kernels::centroid_pool);
}

Status run(const CentroidEncodeProblem& problem, const CallSettings& settings, Context& context) {
  return execute(problem, settings, context, kernels::centroid_encode);
}

Status run(const HashProblem& problem, const CallSettings& settings, Context& context) {
  return execute(problem, settings, context, kernels::hash);
}

Status run(const HammingKMeansProblem& problem, const CallSettings& settings, Context& context) {
  return execute(problem, settings, context, kernels::hamming_kmeans);
}

Status run(const KMeansProblem& problem, const CallSettings& settings, Context& context) {
  return execute(problem, settings, context, kernels::kmeans);
}

Status run(const AggregateProblem& problem, const CallSettings& settings, Context& context) {
  return execute(problem, settings, context, kernels::aggregate);
}

Status run(const BroadcastProblem& problem, const CallSettings& settings, Context& context) {
  return execute(problem, settings, context, kernels::broadcast);
}

Status run(const TopKProblem& problem, const CallSettings& settings, Context& context) {
  return execute(problem, settings, context, kernels::top_k);
}

Status run(const SparseDotProblem& problem, const CallSettings& settings, Context& context) {
  return execute(problem, settings, context, kernels::sparse_dot);
}

Status run(const SparseWeightedSumProblem& problem, const CallSettings& settings,
           Context& context) {
  return execute(problem, settings, context, kernels::sparse_weighted_sum);
}

Status run(const MatmulProblem& problem, const CallSettings& settings, Context& context) {
  return execute(problem, settings, context, kernels::matmul);
}

Status run(const AttentionGradientProblem& problem, const CallSettings& settings,
           Context& context) {
  return execute(problem, settings, context, kernels::attention_gradient);
}

Status run(const ClusteredAttentionGradientProblem& problem, const CallSettings& settings,
           Context& context) {
  return execute(problem, settings, context, kernels::clustered_attention_gradient);
}

Status run(const AggregateGradientProblem& problem, const CallSettings& settings,
           Context& context) {
  return execute(problem, settings, context, kernels::aggregate_gradient);
}

Status run(const BroadcastGradientProblem& problem, const CallSettings& settings,
           Context& context) {
  return execute(problem, settings, context, kernels::broadcast_gradient);
}

Status run(const SparseDotGradientProblem& problem, const CallSettings& settings,
           Context& context) {
  return execute(problem, settings, context, kernels::sparse_dot_gradient);
}

Status run(const SparseWeightedSumGradientProblem& problem, const CallSettings& settings,
           Context& context) {
  return execute(problem, settings, context, kernels::sparse_weighted_sum_gradient);
}

Status run(const CentroidAttentionGradientProblem& problem, const CallSettings& settings,
           Context& context) {
  return execute(problem, settings, context, kernels::centroid_attention_gradient);
}

Status run(const CastAttentionGradientProblem& problem, const CallSettings& settings,
           Context& context) {
  return execute(problem, settings, context, kernels::cast_attention_gradient);
}

Status run(const CentroidEncodeGradientProblem& problem, const CallSettings& settings,
           Context& context) {
  return execute(problem, settings, context, kernels::centroid_encode_gradient);
}

Status run(const CentroidPoolGradientProblem& problem, const CallSettings& settings,
           Context& context) {
  return execute(problem, settings, context, kernels::centroid_pool_gradient);
}

}  // namespace cluster_attention
