#pragma once

// The launchers of centroid_gradient.cuh and centroid_gradient_sums.cuh. No kernels here.

#include "cuda/centroid_gradient_params.cuh"
#include "cuda/session.h"

namespace cluster_attention::cuda {

/// Scratch memory of the passes, into `params`; sums that are there already are used.
Status allocate_centroid_gradient(DeviceWorkspace::Scope& scope, CentroidGradientParams& params);

/// output_factor and output_offset. One launch.
Status launch_output_terms(Session& session, const OutputTermsParams& params);

/// The output terms and the passes: gradients by key and value, weight_terms, and where
/// `with_query` says so, sums and masses of the parts. Two to four launches.
Status launch_centroid_gradient(Session& session, const OutputTermsParams& params, bool split);

/// Gradients by the weights: terms (B,H,N), summed over the heads. One launch.
Status launch_weight_sums(Session& session, const CentroidAttentionGradientProblem& problem,
                          const float* terms);

}  // namespace cluster_attention::cuda
