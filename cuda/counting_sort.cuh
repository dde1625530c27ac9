#pragma once

// Stable counting sort of the rows of every sequence by label.
//
// Method: sort_cluster.cuh where a cluster of blocks holds a sequence; else this. A sequence is cut
// into parts of a few hundred rows, one per warp. Launch 1 counts the labels of every part; the
// last block of a sequence turns the counts into the place at which each part begins within each
// cluster, and sums the clusters up. Launch 2 places the rows: a warp finds the lanes with an equal
// label by a ballot per bit of the label, and takes 32 rows at a time. Integers only. Limits:
// length and clusters up to 2^31 - 1.

#include "cuda/counting_sort.h"
#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/shared_memory.cuh"
#include "cuda/primitives/warp.cuh"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

constexpr int kSortThreads = 256;
constexpr int kSortWarps = kSortThreads / kWarp;

struct SortParams {
  SortProblem problem;
  int64_t part_rows;
  int64_t parts;        // per sequence
  int64_t blocks;       // per sequence, of kSortWarps parts
  int label_bits;       // of the largest label
  int32_t* counts;      // (sequences,parts,clusters): rows per label, then rows of earlier parts
  uint32_t* tickets;    // (sequences), 0
  const int32_t* done;  // optional: sequences to leave alone are not 0,
  int64_t done_stride;  // so many elements apart
  Flags* flags;
};

inline int bits_of_labels(int64_t clusters) {
  int bits = 0;
  while (int64_t{1} << bits < clusters) ++bits;
  return bits;
}

/// Cuts the sequences of `sort.problem` into parts.
inline void plan_sort(SortParams& sort) {
  sort.part_rows =
      sort.problem.part_rows > 0 ? sort.problem.part_rows : sort_part_rows(sort.problem.clusters);
  sort.parts = divide_up(sort.problem.length, sort.part_rows);
  if (sort.parts == 0) sort.parts = 1;
  sort.blocks = divide_up(sort.parts, kSortWarps);
  sort.label_bits = bits_of_labels(sort.problem.clusters);
}

__device__ inline int64_t real_rows(const SortProblem& problem, int64_t sequence) {
  return problem.lengths == nullptr
             ? problem.length
             : problem.lengths[sequence / problem.heads] * problem.length_unit;
}

__device__ inline Range rows_of_part(const SortParams& params, int64_t part, int64_t rows) {
  const int64_t begin = part * params.part_rows;
  return {begin, begin + params.part_rows < rows ? begin + params.part_rows : rows};
}

/// Labels side by side whose counts a thread turns into places: their loads are on their way at
/// the same time.
constexpr int kScanLabels = 8;

/// Turns the counts of `labels` labels into those of earlier parts; totals: their sums.
__device__ inline void scan_parts(const SortParams& params, int32_t* counts, int labels,
                                  int32_t (&totals)[kScanLabels]) {
  constexpr int kAtOnce = 4;  // parts
  const int64_t stride = params.problem.clusters;
  for (int32_t& total : totals) total = 0;
  for (int64_t first = 0; first < params.parts; first += kAtOnce) {
    int32_t count[kAtOnce][kScanLabels];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int j = 0; j < kScanLabels; ++j) {
        const bool real = first + i < params.parts && j < labels;
        count[i][j] = real ? counts[(first + i) * stride + j] : 0;
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int j = 0; j < kScanLabels; ++j) {
        if (first + i < params.parts && j < labels) counts[(first + i) * stride + j] = totals[j];
        totals[j] += count[i][j];
      }
    }
  }
}

/// Offsets of all clusters and parts, by the last block of a sequence.
__device__ inline void scan_label_counts(const SortParams& params, int64_t sequence,
                                         int32_t* scratch) {
  const SortProblem& problem = params.problem;
  int32_t* offsets = problem.offsets + sequence * (problem.clusters + 1);
  int32_t* counts = params.counts + sequence * params.parts * problem.clusters;
  int32_t members = 0;  // of the clusters so far
  int32_t active = 0;
  for (int64_t first = 0; first < problem.clusters; first += kSortThreads * kScanLabels) {
    const int64_t own = first + static_cast<int64_t>(threadIdx.x) * kScanLabels;
    const int64_t left = problem.clusters - own;
    const int labels = static_cast<int>(left < 0 ? 0 : left < kScanLabels ? left : kScanLabels);
    int32_t totals[kScanLabels];
    scan_parts(params, counts + own, labels, totals);
    int32_t rows = 0;
    int32_t used = 0;
#pragma unroll
    for (int32_t total : totals) {
      rows += total;
      used += total > 0 ? 1 : 0;
    }
    int32_t added;
    int32_t before = members + block_exclusive_sum(rows, scratch, &added);
    members += added;
    int32_t place = active;
    if (problem.active != nullptr) {
      place += block_exclusive_sum(used, scratch, &added);
      active += added;
    }
#pragma unroll
    for (int j = 0; j < kScanLabels; ++j) {
      if (j >= labels) continue;
      offsets[own + j] = before;
      before += totals[j];
      if (problem.active == nullptr || totals[j] == 0) continue;
      problem.active[sequence * problem.clusters + place++] = static_cast<int32_t>(own + j);
    }
  }
  if (threadIdx.x != 0) return;
  offsets[problem.clusters] = members;
  if (problem.active != nullptr) problem.active_count[sequence] = active;
}

template <typename = void>
__global__ void count_labels_kernel(const SortParams params) {
  // warp: labels (part_rows) -> counts (clusters)
  int32_t* scratch = dynamic_shared<int32_t>();  // (kWarp)
  const SortProblem& problem = params.problem;
  const int64_t sequence = blockIdx.x / params.blocks;
  const int64_t part = blockIdx.x % params.blocks * kSortWarps + warp_index();
  const int64_t rows = real_rows(problem, sequence);
  if (part < params.parts) {
    int32_t* counts = params.counts + (sequence * params.parts + part) * problem.clusters;
    for (int64_t c = lane_index(); c < problem.clusters; c += kWarp) counts[c] = 0;
    __syncwarp();
    const Range part_rows = rows_of_part(params, part, problem.length);
    for (int64_t row = part_rows.begin + lane_index(); row < part_rows.end; row += kWarp) {
      const int64_t place = sequence * problem.length + row;
      int32_t label = row < rows ? problem.labels[place] : -1;
      if (label < -1 || label >= problem.clusters) {
        mark_fault(params.flags, IndexFault::out_of_range,
                   problem.argument == SortArgument::labels ? IndexArgument::labels
                                                            : IndexArgument::indices,
                   place);
        label = -1;
      }
      if (label >= 0) atomicAdd(&counts[label], 1);
      if (problem.clean != nullptr) problem.clean[place] = label;
    }
  }
  if (last_block_done(&params.tickets[sequence], static_cast<uint32_t>(params.blocks),
                      reinterpret_cast<uint32_t*>(scratch))) {
    scan_label_counts(params, sequence, scratch);
  }
}

/// Lanes whose label is this lane's.
__device__ inline uint32_t lanes_of_label(int32_t label, int label_bits) {
  uint32_t lanes = ballot(label >= 0);
  if (label < 0) lanes = ~lanes;
  for (int bit = 0; bit < label_bits; ++bit) {
    const bool set = (label >> bit & 1) != 0;
    const uint32_t other = ballot(set);
    lanes &= set ? other : ~other;
  }
  return lanes;
}

template <typename = void>
__global__ void place_rows_kernel(const SortParams params) {
  // warp: labels (part_rows) -> order
  const SortProblem& problem = params.problem;
  const int64_t sequence = blockIdx.x / params.blocks;
  const int64_t part = blockIdx.x % params.blocks * kSortWarps + warp_index();
  if (part >= params.parts) return;
  if (params.done != nullptr && params.done[sequence * params.done_stride] != 0) return;
  const int64_t rows = real_rows(problem, sequence);
  const int32_t* offsets = problem.offsets + sequence * (problem.clusters + 1);
  int32_t* placed = params.counts + (sequence * params.parts + part) * problem.clusters;
  int32_t* order = problem.order + sequence * problem.length;
  const int32_t* labels = problem.labels + sequence * problem.length;
  const Range part_rows = rows_of_part(params, part, rows);
  for (int64_t first = part_rows.begin; first < part_rows.end; first += kWarp) {
    const int64_t row = first + lane_index();
    int32_t label = row < part_rows.end ? labels[row] : -1;
    if (label < -1 || label >= problem.clusters) label = -1;  // counted as a fault already
    const uint32_t lanes = lanes_of_label(label, params.label_bits);
    const uint32_t earlier = lanes & ((1u << lane_index()) - 1u);
    const int32_t before = label >= 0 ? placed[label] : 0;
    __syncwarp();
    if (label >= 0) {
      order[offsets[label] + before + __popc(earlier)] = static_cast<int32_t>(row);
      // The first lane of a label moves its counter on.
      if (earlier == 0) placed[label] = before + __popc(lanes);
    }
    __syncwarp();
  }
}

}  // namespace cluster_attention::cuda
