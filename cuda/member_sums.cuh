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
/// So many that a multiprocessor holds seven blocks of four warps: the usual 100 clusters of eight
/// sequences all run at once on one of 132.
constexpr int kMemberRegisters = 72;

struct MemberSumsParams {
  MemberSumsProblem problem;
  int64_t slices;  // of 32 or 64 columns
  Flags* flags;
};

/// Whether a lane can read two neighbouring columns at once.
template <Read kRead>
bool has_pairs(const InputRows& rows, int64_t dim) {
  constexpr uintptr_t kBytes = kRead == Read::bfloat16 ? 4 : 8;
  return dim % 2 == 0 && reinterpret_cast<uintptr_t>(rows.data) % kBytes == 0 &&
         rows.batch_stride % 2 == 0 && rows.head_stride % 2 == 0 && rows.row_stride % 2 == 0;
}

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
    const int64_t begin = member * row_stride;  // of the row of each lane, multiplied once
    const int rows = static_cast<int>(count - first < kWarp ? count - first : kWarp);
    float value[kWarp];
#pragma unroll
    for (int i = 0; i < kWarp; ++i) {
      const int64_t row = shuffle(begin, i);
      const bool wanted = i < rows && column >= 0;
      value[i] = wanted ? read<kRead>(data, base + row + column) : 0.0f;
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

/// Rows of a piece that are on their way together: as many as 32 registers hold.
template <Read kRead, int kColumns>
constexpr int kRowsAtOnce = kWarp * 4 / static_cast<int>(sizeof(StoredColumns<kRead, kColumns>));

/// Sum of one part of `count` members: every kMemberParts-th piece of 32 rows, from piece `part`
/// on.
template <Read kRead, int kColumns>
__device__ void sum_part(const InputRows& inputs, int64_t base, const int32_t* members,
                         int64_t count, int part, bool inside, double (&sum)[kColumns]) {
  constexpr int64_t kStep = int64_t{kWarp} * kMemberParts;
  constexpr int kAtOnce = kRowsAtOnce<kRead, kColumns>;
  int64_t first = int64_t{part} * kWarp;
  const auto member_at = [&](int64_t i) { return i < count ? members[i] : 0; };
  int32_t next = member_at(first + lane_index());
  for (; first < count; first += kStep) {
    const int64_t begin = next * inputs.row_stride;  // likewise
    next = member_at(first + kStep + lane_index());
    const int rows = static_cast<int>(count - first < kWarp ? count - first : kWarp);
#pragma unroll
    for (int done = 0; done < kWarp; done += kAtOnce) {
      StoredColumns<kRead, kColumns> values[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int64_t row = shuffle(begin, done + i);
        if (done + i < rows && inside) values[i].load(inputs.data, base + row);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (done + i < rows) values[i].add_to(sum);
      }
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

/// The members of a cluster, and the columns of them that a block owns.
template <int kColumns>
struct MemberSlice {
  int64_t count;
  const int32_t* members;
  int64_t column;  // of this lane, the first one
  bool inside;     // there is such a column
  int64_t base;    // its place in row 0
  int parts;

  /// `slice`: of kWarp * kColumns columns.
  __device__ MemberSlice(const MemberSumsProblem& problem, int64_t sequence, int64_t cluster,
                         int64_t slice) {
    const int32_t* offsets = offsets_of(problem, sequence) + cluster;
    count = offsets[1] - offsets[0];
    members = problem.order + sequence * problem.length + offsets[0];
    column = (slice * kWarp + lane_index()) * kColumns;
    inside = column < problem.dim;
    // Both fit as the grid does.
    const auto number = static_cast<uint32_t>(sequence);
    const auto heads = static_cast<uint32_t>(problem.heads);
    base = row_offset(problem.inputs, number / heads, number % heads, 0) + column;
    parts = parts_of(count);
  }

  __device__ static const int32_t* offsets_of(const MemberSumsProblem& problem, int64_t sequence) {
    return problem.offsets + sequence * (problem.clusters + 1);
  }
  __device__ static int parts_of(int64_t count) {
    const int64_t pieces = divide_up(count, kWarp);
    return static_cast<int>(pieces < kMemberParts ? pieces : kMemberParts);
  }
};

/// Doubles of shared memory for the parts of a slice.
template <int kColumns>
constexpr int kSliceSums = kMemberParts* kColumns* kWarp;

/// Sums part `part` of the slice into its place in `partial` (kMemberParts,kColumns,32); by a warp.
template <Read kRead, int kColumns>
__device__ void sum_part_of_slice(const MemberSumsProblem& problem,
                                  const MemberSlice<kColumns>& slice, int part, double* partial) {
  double sum[kColumns] = {};
  sum_part<kRead, kColumns>(problem.inputs, slice.base, slice.members, slice.count, part,
                            slice.inside, sum);
  for (int i = 0; i < kColumns; ++i) {
    partial[(part * kColumns + i) * kWarp + lane_index()] = sum[i];
  }
}

/// Adds the parts and stores; by a warp, a lane its columns.
/// `row`: of the outputs.
template <Read kRead, int kColumns>
__device__ void store_slice(const MemberSumsParams& params, const MemberSlice<kColumns>& slice,
                            int64_t row, const double* partial) {
  for (int i = 0; i < kColumns; ++i) {
    double sum = 0.0;
    for (int part = 0; part < slice.parts; ++part) {
      sum += partial[(part * kColumns + i) * kWarp + lane_index()];
    }
    store_member_sum<kRead>(params, row * params.problem.dim + slice.column + i, sum, slice.count);
  }
}

template <Read kRead, int kColumns>
__global__ void __maxnreg__(kMemberRegisters) member_sums_kernel(const MemberSumsParams params) {
  // block: members (count,32 kColumns) -> 32 kColumns sums
  double* partial = dynamic_shared<double>();
  const int64_t row = blockIdx.x / params.slices;
  const int64_t clusters = params.problem.clusters;
  const MemberSlice<kColumns> slice(params.problem, row / clusters, row % clusters,
                                    blockIdx.x % params.slices);
  for (int part = warp_index(); part < slice.parts; part += static_cast<int>(blockDim.x) / kWarp) {
    sum_part_of_slice<kRead, kColumns>(params.problem, slice, part, partial);
  }
  __syncthreads();
  if (warp_index() != 0 || !slice.inside) return;
  store_slice<kRead, kColumns>(params, slice, row, partial);
}

/// The same for every `step`-th cluster of a sequence from cluster `first` on, as many slices at a
/// time as shared memory has places for (`partial`, `places` of kSliceSums doubles); all threads of
/// the block call it.
template <Read kRead, int kColumns>
__device__ void sum_clusters(const MemberSumsParams& params, int64_t sequence, int first, int step,
                             double* partial, int places) {
  const MemberSumsProblem& problem = params.problem;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const int slices = static_cast<int>(params.slices);
  const int clusters = static_cast<int>(problem.clusters);
  const int own = first < clusters ? (clusters - first + step - 1) / step : 0;
  const auto cluster_of = [&](int task) { return first + task / slices * step; };
  for (int done = 0; done < own * slices; done += places) {
    const int count = own * slices - done < places ? own * slices - done : places;
    int parts = 0;  // of the largest cluster
    for (int i = lane_index(); i < count; i += kWarp) {
      const int32_t* offsets =
          MemberSlice<kColumns>::offsets_of(problem, sequence) + cluster_of(done + i);
      parts = max(parts, MemberSlice<kColumns>::parts_of(offsets[1] - offsets[0]));
    }
    parts = warp_max(parts);
    // Part by part, so that clusters of one part meet all warps.
    for (int i = warp_index(); i < count * parts; i += warps) {
      const int part = i / count;
      const int place = i % count;
      const int task = done + place;
      const MemberSlice<kColumns> slice(problem, sequence, cluster_of(task), task % slices);
      if (part >= slice.parts) continue;
      sum_part_of_slice<kRead, kColumns>(problem, slice, part,
                                         partial + place * kSliceSums<kColumns>);
    }
    __syncthreads();
    for (int i = warp_index(); i < count; i += warps) {
      const int task = done + i;
      const MemberSlice<kColumns> slice(problem, sequence, cluster_of(task), task % slices);
      if (!slice.inside) continue;
      store_slice<kRead, kColumns>(params, slice, sequence * problem.clusters + cluster_of(task),
                                   partial + i * kSliceSums<kColumns>);
    }
    __syncthreads();
  }
}

}  // namespace cluster_attention::cuda
