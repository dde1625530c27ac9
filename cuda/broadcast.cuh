#pragma once

// output_i = inputs[label_i]: each row takes its cluster's row, a row of zeros for label -1.
// Method: a warp per row. A label outside -1..C-1 is a fault of "labels". Limits: any dim.

#include "cuda/broadcast.h"
#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/warp.cuh"
#include "cuda/read_rows.cuh"

namespace cluster_attention::cuda {

constexpr int kBroadcastThreads = 256;

struct BroadcastParams {
  BroadcastProblem problem;
  Flags* flags;
};

template <Read kRead>
__global__ void broadcast_kernel(const BroadcastParams params) {
  // warp: inputs (C,dim), 1 label -> output (dim)
  const BroadcastProblem& problem = params.problem;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kBroadcastThreads / kWarp) + warp_index();
  if (row >= problem.batch * problem.length) return;
  const int64_t label = problem.labels[row];
  const bool inside = label >= 0 && label < problem.clusters;
  if (!inside && label != -1 && lane_index() == 0) {
    mark_fault(params.flags, IndexFault::out_of_range, IndexArgument::labels, row);
  }
  const int64_t source = (row / problem.length * problem.clusters + label) * problem.dim;
  bool finite = true;
  for (int64_t d = lane_index(); d < problem.dim; d += kWarp) {
    const float value = inside ? read<kRead>(problem.inputs, source + d) : 0.0f;
    finite = write<kRead>(problem.output, row * problem.dim + d, value) && finite;
  }
  if (!finite) mark_non_finite(params.flags);
}

}  // namespace cluster_attention::cuda
