#pragma once

// The k best scores of every row: larger first, of equal ones the lower index; -0 equals +0, NaN is
// above everything (native/core/order.h).
//
// Method: a block per row, kTopKPage results at a time. Score and index make one integer, so that
// no two are equal; the page's last one is found by radix selection, eight bits per pass over the
// row, and what is not below it is collected and sorted in shared memory. The next page goes on
// below. Integers only: exact. Limits: any k; each further page costs a few passes over the row.

#include "cuda/block_sort.cuh"
#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/shared_memory.cuh"
#include "cuda/primitives/warp.cuh"
#include "cuda/radix.cuh"
#include "cuda/read_rows.cuh"
#include "cuda/top_k.h"
#include "native/core/order.h"

namespace cluster_attention::cuda {

constexpr int kTopKThreads = 256;
constexpr int64_t kTopKPage = 2048;

struct TopKParams {
  TopKProblem problem;
  int page;  // results that are sorted at a time: a power of two
  Flags* flags;
};

struct TopKLayout {
  int64_t candidates, counts, scratch, bytes;
};
CA_HOST_DEVICE inline TopKLayout top_k_layout(int page) {
  SharedLayout parts;
  const int64_t candidates = parts.add<Candidate>(page);
  const int64_t counts = parts.add<int32_t>(kDigits);
  const int64_t scratch = parts.add<int64_t>(2);
  return {candidates, counts, scratch, parts.bytes()};
}

/// One row of scores as candidates.
template <Read kRead>
struct ScoreRow {
  const float* scores;
  int64_t base;
  int64_t columns;  // valid

  __device__ float score(int64_t i) const { return read<kRead>(scores, base + i); }

  /// body(candidate) for every candidate up to `limit`.
  template <typename Body>
  __device__ void for_each_up_to(Candidate limit, Body&& body) const {
    for (int64_t i = threadIdx.x; i < columns; i += kTopKThreads) {
      const Candidate candidate = make_candidate(score(i), static_cast<int32_t>(i));
      if (candidate <= limit) body(candidate);
    }
  }
};

/// The least of the `wanted` best candidates up to `limit`, of which there are more than `wanted`.
template <Read kRead>
__device__ Candidate select_candidate(const ScoreRow<kRead>& row, Candidate limit, int64_t wanted,
                                      int32_t* counts, int64_t* scratch) {
  Candidate prefix = 0;  // the digits so far, in place
  for (int shift = 56;; shift -= 8) {
    for (int i = threadIdx.x; i < kDigits; i += kTopKThreads) counts[i] = 0;
    __syncthreads();
    // The digits above this one; a shift by 64 is undefined.
    const Candidate above = shift == 56 ? 0 : ~Candidate{0} << (shift + 8);
    row.for_each_up_to(limit, [&](Candidate candidate) {
      if ((candidate & above) != prefix) return;
      // Larger digits first.
      atomicAdd(&counts[kDigits - 1 - static_cast<int>(candidate >> shift & 0xff)], 1);
    });
    const DigitChoice choice = choose_digit(counts, wanted - 1, scratch);
    const int32_t held = counts[choice.digit];
    __syncthreads();
    prefix |= static_cast<Candidate>(kDigits - 1 - choice.digit) << shift;
    wanted -= choice.before;
    if (held == wanted || shift == 0) return prefix;  // the whole digit
  }
}

template <Read kRead>
__global__ void __launch_bounds__(kTopKThreads) top_k_kernel(const TopKParams params) {
  // block: scores (columns) -> values (k), indices (k)
  const TopKProblem& problem = params.problem;
  const TopKLayout layout = top_k_layout(params.page);
  Candidate* candidates = dynamic_shared<Candidate>(layout.candidates);
  int32_t* counts = dynamic_shared<int32_t>(layout.counts);
  int64_t* scratch = dynamic_shared<int64_t>(layout.scratch);
  const int64_t index = blockIdx.x;
  const ScoreRow<kRead> row{problem.scores, index * problem.columns,
                            real_length(problem.lengths, index, problem.columns)};
  bool finite = true;  // a -Inf shows in no result
  for (int64_t i = threadIdx.x; i < row.columns; i += kTopKThreads) {
    finite = finite && is_finite(row.score(i));
  }
  if (!finite) mark_non_finite(params.flags);

  const int64_t count = problem.k < row.columns ? problem.k : row.columns;
  Candidate limit = ~Candidate{0};
  for (int64_t first = 0; first < count; first += params.page) {
    const int64_t wanted = count - first < params.page ? count - first : params.page;
    const Candidate least =
        wanted < row.columns - first ? select_candidate(row, limit, wanted, counts, scratch) : 0;
    for (int i = threadIdx.x; i < params.page; i += kTopKThreads) candidates[i] = 0;
    if (threadIdx.x == 0) counts[0] = 0;
    __syncthreads();
    row.for_each_up_to(limit, [&](Candidate candidate) {
      if (candidate >= least) candidates[atomicAdd(&counts[0], 1)] = candidate;
    });
    __syncthreads();
    sort_descending(candidates, params.page);
    for (int64_t i = threadIdx.x; i < wanted; i += kTopKThreads) {
      const int32_t column = candidate_index(candidates[i]);
      problem.indices[index * problem.k + first + i] = column;
      write<kRead>(problem.values, index * problem.k + first + i, row.score(column));
    }
    limit = candidates[wanted - 1] - 1;
    __syncthreads();
  }
  for (int64_t i = count + threadIdx.x; i < problem.k; i += kTopKThreads) {
    problem.indices[index * problem.k + i] = -1;
    write<kRead>(problem.values, index * problem.k + i, __int_as_float(0xff800000));
  }
}

}  // namespace cluster_attention::cuda
