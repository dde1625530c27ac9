#pragma once

// Locality-sensitive hashing (Vyas et al. 2020, section 3.2): bit b of a row is 1 iff
// x·plane_b > threshold_b, strict.
//
// Method: hash_product.cuh, and without tensor cores, for long rows, and for thresholds of the data
// this: a block multiplies 128 rows with all planes (fma_tile.cuh) and turns the comparisons into
// bits by ballots. Precision: fp32, one fmaf chain per projection in index order: the CPU's bits.
// Threshold::data: the projections of every sequence are stored bit by bit; a block per sequence
// and bit selects the value of rank floor(u_b n) by its ordered key, eight bits of the key per
// pass; the hash kernel then takes these thresholds. Limits: 1..64 bits, any dim.

#include "cuda/fma_tile.cuh"
#include "cuda/hash.h"
#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/shared_memory.cuh"
#include "cuda/radix.cuh"
#include "cuda/read_rows.cuh"
#include "native/core/order.h"
#include "native/core/random.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

constexpr int kHashBits = 64;

struct HashParams {
  HashSequences sequences;
  int64_t tiles;                // of kFmaRows rows per sequence
  bool round_planes;            // precision: 'bfloat16'
  const float* own_thresholds;  // (sequences,kHashBits), null: the last column of the planes
  float* projections;           // (sequences,bits,length), of the kernel that stores them
  Flags* flags;
};

/// kProject: stores the projections instead of their signs.
template <Read kRead, bool kProject>
__global__ void hash_kernel(const HashParams params) {
  // block: rows (128,dim) x planes (bits,dim) -> 128 hashes
  const HashSequences& problem = params.sequences;
  FmaTileStorage& tile = *dynamic_shared<FmaTileStorage>();
  const int64_t sequence = blockIdx.x / params.tiles;
  const int64_t batch = sequence / problem.heads;
  const int64_t first_row = blockIdx.x % params.tiles * kFmaRows;
  const int64_t left = real_length(problem.lengths, batch, problem.length) - first_row;
  const int rows = static_cast<int>(left < kFmaRows ? (left < 0 ? 0 : left) : kFmaRows);
  const int64_t base = row_offset(problem.inputs, batch, sequence % problem.heads, first_row);
  const int bits = static_cast<int>(problem.bits);
  bool bad = false;

  const auto plane = [&](int bit, int64_t d) {
    const float value = problem.planes[bit * (problem.dim + 1) + d];
    bad = bad || !is_finite(value);
    return params.round_planes ? round_to_bfloat16(value) : value;
  };
  const auto element = [&](int row, int64_t d) {
    return read<kRead>(problem.inputs.data, base + row * problem.inputs.row_stride + d);
  };
  // Of a projection that leaves the range of float32 on the way.
  const auto exceeds_in_double = [&](int row, int bit, float threshold) {
    double exact = 0.0;
#pragma unroll 1
    for (int64_t d = 0; d < problem.dim; ++d) {
      exact += static_cast<double>(element(row, d)) * plane(bit, d);
    }
    return exact > threshold;
  };
  FmaSums sum;
  fma_product(
      tile, problem.dim,
      [&](int row, int64_t d) {
        if (row >= rows) return 0.0f;
        const float value = element(row, d);
        bad = bad || !is_finite(value);
        return value;
      },
      [&](int bit, int64_t d) { return bit < bits ? plane(bit, d) : 0.0f; }, sum);

  const int y = static_cast<int>(threadIdx.x) / 16;
  const int x = static_cast<int>(threadIdx.x) % 16;
  if constexpr (kProject) {
    for (int j = 0; j < 4; ++j) {
      const int bit = x + 16 * j;
      if (bit >= bits) continue;
      float* target = params.projections + (sequence * bits + bit) * problem.length + first_row;
      for (int i = 0; i < 8; ++i) {
        if (8 * y + i >= rows) continue;
        target[8 * y + i] = sum[i][j];
        bad = bad || !is_finite(sum[i][j]);  // it has no rank
      }
    }
  } else {
    float threshold[4];
    for (int j = 0; j < 4; ++j) {
      const int bit = x + 16 * j;
      threshold[j] = 0.0f;
      if (bit >= bits || rows <= 0) continue;  // a sequence without rows has no thresholds either
      threshold[j] = plane(bit, problem.dim);
      if (params.own_thresholds != nullptr) {
        threshold[j] = params.own_thresholds[sequence * kHashBits + bit];
      }
    }
    uint64_t* hashes = problem.hashes + sequence * problem.length + first_row;
    const int shift = y % 2 * 16;  // a warp has two rows
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      uint64_t hash = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int bit = x + 16 * j;
        bool exceeds = sum[i][j] > threshold[j];
        if (bit < bits && 8 * y + i < rows && !is_finite(sum[i][j])) {
          exceeds = exceeds_in_double(8 * y + i, bit, threshold[j]);
        }
        const uint32_t signs = ballot(bit < bits && exceeds);
        hash |= static_cast<uint64_t>(signs >> shift & 0xffffu) << (16 * j);
      }
      if (x == i && 8 * y + i < rows) hashes[8 * y + i] = hash;
    }
  }
  if (bad) mark_non_finite(params.flags);
}

struct HashThresholdParams {
  int64_t heads;
  int64_t length;
  const int32_t* lengths;
  int64_t bits;
  uint64_t seed;
  const float* projections;  // (sequences,bits,length)
  float* thresholds;         // (sequences,kHashBits)
};

constexpr int kThresholdThreads = kDigits;

struct ThresholdLayout {
  int64_t counts, scratch, bytes;
};
CA_HOST_DEVICE inline ThresholdLayout threshold_layout() {
  SharedLayout parts;
  const int64_t counts = parts.add<int32_t>(kDigits);
  const int64_t scratch = parts.add<int64_t>(2);
  return {counts, scratch, parts.bytes()};
}

/// One block per sequence and bit. Ascending rank r: pass by pass, the digit of the key whose count
/// holds r; what is left of r belongs to the keys that share the digits so far.
template <typename = void>
__global__ void __launch_bounds__(kThresholdThreads)
    hash_threshold_kernel(const HashThresholdParams params) {
  // block: projections (length) -> 1 threshold
  int32_t* counts = dynamic_shared<int32_t>(threshold_layout().counts);
  int64_t* scratch = dynamic_shared<int64_t>(threshold_layout().scratch);
  const int64_t sequence = blockIdx.x / params.bits;
  const int64_t bit = blockIdx.x % params.bits;
  const int64_t count = real_length(params.lengths, sequence / params.heads, params.length);
  const float* values = params.projections + blockIdx.x * params.length;
  const int thread = static_cast<int>(threadIdx.x);
  if (count == 0) return;
  const double u = random_uniform(params.seed, RandomStream::hash_thresholds, bit);
  int64_t rank = static_cast<int64_t>(u * static_cast<double>(count));
  uint32_t prefix = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    counts[thread] = 0;
    __syncthreads();
    for (int64_t i = thread; i < count; i += kThresholdThreads) {
      const uint32_t key = ordered_key(values[i]);
      // The digits above this one; a shift by 32 is undefined.
      const uint32_t above = shift == 24 ? 0u : key >> (shift + 8);
      if (above == prefix) atomicAdd(&counts[key >> shift & 0xffu], 1);
    }
    const DigitChoice choice = choose_digit(counts, rank, scratch);
    prefix = prefix << 8 | static_cast<uint32_t>(choice.digit);
    rank -= choice.before;
  }
  if (thread == 0) params.thresholds[sequence * kHashBits + bit] = value_of_key(prefix);
}

}  // namespace cluster_attention::cuda
