#pragma once

// What centroid_start.cuh and start_rows.cuh read; launchers of other files fill it.

#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/grid.cuh"
#include "cuda/rows.cuh"
#include "native/core/order.h"
#include "native/core/problem.h"
#include "native/core/random.h"

namespace cluster_attention::cuda {

constexpr int kStartThreads = 256;

struct StartParams {
  int64_t batch = 0;                 // sequences
  int64_t heads = 1;                 // of them share a length
  int64_t length = 0;                // N
  int64_t dim = 0;                   // d
  int64_t count = 0;                 // M
  Tensor inputs;                     // (batch,N,d)
  const int32_t* lengths = nullptr;  // (batch): real inputs, or active ones where `index` is given
  const int32_t* index = nullptr;    // (batch,N): positions of the active inputs
  const float* initial = nullptr;    // (batch,M,d) for PoolStart::given
  bool round_initial = false;        // to bfloat16
  bool keep_given = false;           // all given centroids, however few the inputs
  PoolStart start = PoolStart::stride;
  uint64_t seed = 0;
  bool unit_rows = false;  // distances between unit-normalised rows

  double* scales = nullptr;             // (batch,N): 1 / |row|, of unit rows
  float* distances = nullptr;           // (2,batch,N), to the nearest chosen row; -0: chosen itself
  double* chunk_sums = nullptr;         // (2,batch,chunks) of them, k-means++
  Candidate* chunk_farthest = nullptr;  // (2,batch,chunks), farthest points
  int32_t* chosen = nullptr;            // (batch,M)
  DrawRange draws = {};                 // of this launch
  RowAccess access = RowAccess::any;    // to the inputs
  int buffers = 1;                      // of a block

  float* centroids = nullptr;  // (batch,M,d)
  float* output = nullptr;     // the same as they are stored
  Storage storage = Storage::float32;
  Flags* flags = nullptr;

  __device__ int64_t real(int64_t b) const {
    return lengths != nullptr ? lengths[batch_of(b)] : length;
  }
  /// As many sequences as blocks of a grid: a short division.
  __device__ int64_t batch_of(int64_t b) const {
    return heads == 1 ? b : static_cast<uint32_t>(b) / static_cast<uint32_t>(heads);
  }
  __device__ Rows rows(int64_t b) const {
    return Rows(inputs, batch_of(b), b - batch_of(b) * heads);
  }
  /// Centroids of a sequence that are not padding.
  __device__ int64_t real_count(int64_t b) const {
    return keep_given || count < real(b) ? count : real(b);
  }
  __device__ int64_t position(int64_t b, int64_t i) const {
    return index != nullptr ? index[b * length + i] : i;
  }
  /// The row with which k-means++ and farthest points begin.
  __device__ int64_t first_row(int64_t b) const {
    if (start == PoolStart::farthest) return 0;
    return static_cast<int64_t>(random_uniform(seed, RandomStream::plus_plus, 0) *
                                static_cast<double>(real(b)));
  }
};

/// Whether rows are chosen by their distances from those chosen before.
inline bool chooses_by_distance(const StartParams& params) {
  return params.start == PoolStart::plus_plus || params.start == PoolStart::farthest;
}

/// Which inputs take part, where some may have weight 0.
struct ActiveParams {
  int64_t length = 0;
  int64_t most_centroids = 0;
  bool given = false;              // the start: then all centroids are real
  const float* weights = nullptr;  // (batch,N)
  int32_t* index = nullptr;        // (batch,N)
  int32_t* counts = nullptr;       // (batch)
  int32_t* centroids = nullptr;    // (batch): the real ones
};

}  // namespace cluster_attention::cuda
