#pragma once

// inputs_i = output_gradient[label_i] (/ members of the cluster, for the mean), 0 for label -1.
// Method: a warp per row; how many members a cluster has is read off the sorted rows. fp32, one
// division, as on the CPU. Limits: any dim.

#include "cuda/clustering_gradient.h"
#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/warp.cuh"
#include "cuda/read_rows.cuh"

namespace cluster_attention::cuda {

constexpr int kClusterSpreadThreads = 256;

struct ClusterSpreadParams {
  AggregateGradientProblem problem;
  const int32_t* offsets;  // (batch,heads,C+1)
  Flags* flags;
};

template <Read kRead>
__global__ void spread_gradient_kernel(const ClusterSpreadParams params) {
  // warp: output_gradient (C,dim), 1 label -> inputs (dim)
  const AggregateProblem& forward = params.problem.forward;
  const int64_t row =
      static_cast<int64_t>(blockIdx.x) * (kClusterSpreadThreads / kWarp) + warp_index();
  if (row >= forward.batch * forward.heads * forward.length) return;
  const int64_t sequence = row / forward.length;
  const int64_t label = forward.labels[row];
  const bool inside = label >= 0 && label < forward.clusters;
  const int64_t source = (sequence * forward.clusters + label) * forward.dim;
  const int64_t target = row_offset(params.problem.inputs, sequence / forward.heads,
                                    sequence % forward.heads, row % forward.length);
  float divisor = 1.0f;
  if (inside && forward.reduce == Reduce::mean) {
    const int32_t* offsets = params.offsets + sequence * (forward.clusters + 1) + label;
    divisor = static_cast<float>(offsets[1] - offsets[0]);
  }
  bool finite = true;
  for (int64_t d = lane_index(); d < forward.dim; d += kWarp) {
    const float gradient =
        inside ? read<kRead>(params.problem.output_gradient, source + d) / divisor : 0.0f;
    finite = write<kRead>(params.problem.inputs.data, target + d, gradient) && finite;
  }
  if (!finite) mark_non_finite(params.flags);
}

}  // namespace cluster_attention::cuda
