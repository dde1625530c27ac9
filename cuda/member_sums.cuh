#pragma once

// output_c = sum (or mean) of the rows of cluster c.
//
// Method: one warp owns 32 columns of a cluster and adds its members in index order, in double, as
// the CPU does: the same bits. 32 rows are on their way while the ones before are added.
// Layout: rows sorted by cluster (counting_sort.h). Limits: any dim.

#include "cuda/exact.cuh"
#include "cuda/member_sums.h"
#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/warp.cuh"
#include "cuda/read_rows.cuh"

namespace cluster_attention::cuda {

constexpr int kMemberThreads = 128;

struct MemberSumsParams {
  MemberSumsProblem problem;
  int64_t slices;  // of 32 columns
  Flags* flags;
};

/// Sum of column `column` over `count` members in the order of their list, with `scales` (a factor
/// per row) times their factors; all lanes of the warp call it, each with a column of its own or
/// past the end (`column` < 0).
template <Read kRead>
__device__ double sum_listed(const float* data, int64_t base, int64_t row_stride,
                             const int32_t* members, int64_t count, const double* scales,
                             int64_t column) {
  double sum = 0.0;
  for (int64_t first = 0; first < count; first += kWarp) {
    const int64_t mine = first + lane_index();
    const int32_t member = mine < count ? members[mine] : 0;
    const int rows = static_cast<int>(count - first < kWarp ? count - first : kWarp);
    float value[kWarp];
#pragma unroll
    for (int i = 0; i < kWarp; ++i) {
      const int64_t row = shuffle(member, i);
      const bool wanted = i < rows && column >= 0;
      value[i] = wanted ? read<kRead>(data, base + row * row_stride + column) : 0.0f;
    }
    if (scales == nullptr) {
#pragma unroll
      for (int i = 0; i < kWarp; ++i) {
        if (i < rows) sum += static_cast<double>(value[i]);
      }
      continue;
    }
    const double scale = scales[member];
#pragma unroll
    for (int i = 0; i < kWarp; ++i) {
      const double factor = shuffle(scale, i);
      if (i < rows) sum += exact_product(static_cast<double>(value[i]), factor);
    }
  }
  return sum;
}

template <Read kRead>
__global__ void member_sums_kernel(const MemberSumsParams params) {
  // warp: members (count,32 columns) -> 32 sums
  const MemberSumsProblem& problem = params.problem;
  const int64_t task = static_cast<int64_t>(blockIdx.x) * (kMemberThreads / kWarp) + warp_index();
  const int64_t slice = task % params.slices;
  const int64_t cluster = task / params.slices;  // sequence * clusters + c
  if (cluster >= problem.sequences * problem.clusters) return;
  const int64_t sequence = cluster / problem.clusters;
  const int32_t* offsets = problem.offsets + cluster + sequence;  // one more per sequence
  const int64_t count = offsets[1] - offsets[0];
  const int64_t column = slice * kWarp + lane_index();
  const bool inside = column < problem.dim;
  const double sum = sum_listed<kRead>(
      problem.inputs.data,
      row_offset(problem.inputs, sequence / problem.heads, sequence % problem.heads, 0),
      problem.inputs.row_stride, problem.order + sequence * problem.length + offsets[0], count,
      nullptr, inside ? column : -1);
  if (!inside) return;
  const double divisor =
      problem.reduce == Reduce::mean && count > 0 ? static_cast<double>(count) : 1.0;
  const float value = static_cast<float>(sum / divisor);
  const int64_t place = cluster * problem.dim + column;
  bool finite;
  if (problem.output_in_storage) {
    finite = write<kRead>(problem.output, place, value);
  } else {
    finite = write<Read::float32>(problem.output, place, value);
  }
  if (!finite) mark_non_finite(params.flags);
}

}  // namespace cluster_attention::cuda
