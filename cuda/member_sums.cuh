#pragma once

// output_c = sum (or mean) of the rows of cluster c.
//
// Method: a block owns 32 or 64 columns of a cluster. The members, in index order, are cut into
// pieces of 32 rows; part p of kMemberParts adds pieces p, p + kMemberParts, ... in double, and
// then the parts are added. Which piece belongs to which part depends on the number of members
// alone. Up to 32 members that is the CPU's order; past that, the sums of doubles differ in their
// last bit at most, which a float32 result does not show but where it is within 2^-28 of a tie.
// Layout: rows sorted by cluster (counting_sort.h). Limits: any dim.

#include "cuda/exact.cuh"
#include "cuda/member_sums.h"
#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/shared_memory.cuh"
#include "cuda/primitives/warp.cuh"
#include "cuda/read_rows.cuh"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

constexpr int kMemberParts = 8;
constexpr int kMostMemberThreads = kMemberParts * kWarp;

struct MemberSumsParams {
  MemberSumsProblem problem;
  int64_t slices;  // of 32 or 64 columns
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

/// One or two neighbouring columns of a row as they are stored.
template <Read kRead, int kColumns>
struct StoredColumns;
template <Read kRead>
struct StoredColumns<kRead, 1> {
  float value = 0.0f;
  __device__ void load(const float* data, int64_t at) { value = read<kRead>(data, at); }
  __device__ void add_to(double (&sum)[1]) const { sum[0] += static_cast<double>(value); }
};
template <Read kRead>
struct StoredColumns<kRead, 2> {
  float2 value = {0.0f, 0.0f};
  __device__ void load(const float* data, int64_t at) {
    value = *reinterpret_cast<const float2*>(data + at);
    if constexpr (kRead == Read::rounded) {
      value = make_float2(round_to_bfloat16(value.x), round_to_bfloat16(value.y));
    }
  }
  __device__ void add_to(double (&sum)[2]) const {
    sum[0] += static_cast<double>(value.x);
    sum[1] += static_cast<double>(value.y);
  }
};
template <>
struct StoredColumns<Read::bfloat16, 2> {
  uint32_t packed = 0;
  __device__ void load(const float* data, int64_t at) {
    packed = *reinterpret_cast<const uint32_t*>(reinterpret_cast<const bfloat16*>(data) + at);
  }
  __device__ void add_to(double (&sum)[2]) const {
    sum[0] += static_cast<double>(low_of(packed));
    sum[1] += static_cast<double>(high_of(packed));
  }
};

/// Sum of one part of `count` members: every kMemberParts-th piece of 32 rows, from piece `part`
/// on.
template <Read kRead, int kColumns>
__device__ void sum_part(const InputRows& inputs, int64_t base, const int32_t* members,
                         int64_t count, int part, bool inside, double (&sum)[kColumns]) {
  constexpr int64_t kStep = int64_t{kWarp} * kMemberParts;
  int64_t first = int64_t{part} * kWarp;
  const auto member_at = [&](int64_t i) { return i < count ? members[i] : 0; };
  int32_t next = member_at(first + lane_index());
  for (; first < count; first += kStep) {
    const int32_t member = next;
    next = member_at(first + kStep + lane_index());
    const int rows = static_cast<int>(count - first < kWarp ? count - first : kWarp);
    StoredColumns<kRead, kColumns> values[kWarp];
#pragma unroll
    for (int i = 0; i < kWarp; ++i) {
      const int64_t row = shuffle(member, i);
      if (i < rows && inside) values[i].load(inputs.data, base + row * inputs.row_stride);
    }
#pragma unroll
    for (int i = 0; i < kWarp; ++i) {
      if (i < rows) values[i].add_to(sum);
    }
  }
}

/// Divides where means are asked for, and stores.
template <Read kRead>
__device__ void store_member_sum(const MemberSumsParams& params, int64_t place, double sum,
                                 int64_t count) {
  const MemberSumsProblem& problem = params.problem;
  const double divisor =
      problem.reduce == Reduce::mean && count > 0 ? static_cast<double>(count) : 1.0;
  const float value = static_cast<float>(sum / divisor);
  bool finite;
  if (problem.output_in_storage) {
    finite = write<kRead>(problem.output, place, value);
  } else {
    finite = write<Read::float32>(problem.output, place, value);
  }
  if (!finite) mark_non_finite(params.flags);
}

template <Read kRead, int kColumns>
__global__ void __launch_bounds__(kMostMemberThreads)
    member_sums_kernel(const MemberSumsParams params) {
  // block: members (count,32 kColumns) -> 32 kColumns sums
  const MemberSumsProblem& problem = params.problem;
  double* partial = dynamic_shared<double>();  // (kMemberParts,kColumns,32)
  const int64_t slice = blockIdx.x % params.slices;
  const int64_t cluster = blockIdx.x / params.slices;  // sequence * clusters + c
  const int64_t sequence = cluster / problem.clusters;
  const int32_t* offsets = problem.offsets + cluster + sequence;  // one more per sequence
  const int64_t count = offsets[1] - offsets[0];
  const int32_t* members = problem.order + sequence * problem.length + offsets[0];
  const int64_t column = (slice * kWarp + lane_index()) * kColumns;
  const bool inside = column < problem.dim;
  const int64_t base =
      row_offset(problem.inputs, sequence / problem.heads, sequence % problem.heads, 0) + column;
  const int64_t pieces = divide_up(count, kWarp);
  const int parts = static_cast<int>(pieces < kMemberParts ? pieces : kMemberParts);
  for (int part = warp_index(); part < parts; part += static_cast<int>(blockDim.x) / kWarp) {
    double sum[kColumns] = {};
    sum_part<kRead, kColumns>(problem.inputs, base, members, count, part, inside, sum);
    for (int i = 0; i < kColumns; ++i) {
      partial[(part * kColumns + i) * kWarp + lane_index()] = sum[i];
    }
  }
  __syncthreads();
  if (warp_index() != 0 || !inside) return;
  for (int i = 0; i < kColumns; ++i) {
    double sum = 0.0;
    for (int part = 0; part < parts; ++part) {
      sum += partial[(part * kColumns + i) * kWarp + lane_index()];
    }
    store_member_sum<kRead>(params, cluster * problem.dim + column + i, sum, count);
  }
}

}  // namespace cluster_attention::cuda
