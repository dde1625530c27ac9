#pragma once

// What the kernels of K-means share: their parameters, a sequence as a block sees it, and its rows.

#include "cuda/kmeans.h"
#include "cuda/primitives/flags.cuh"
#include "cuda/read_rows.cuh"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

constexpr int kKMeansThreads = 256;
/// Rows whose contributions to a sum over all rows are added first.
constexpr int64_t kKMeansChunk = 1024;

/// What the blocks of a sequence share.
struct KMeansState {
  int32_t changed;   // a label has changed in this iteration
  int32_t done;      // labels and centroids are final
  double movement;   // summed squares of the last update
  double tolerance;  // the iteration ends when the movement is no larger
};

struct KMeansParams {
  KMeansProblem problem;
  int64_t clusters;       // clamped to the length of the shape
  int64_t chunks;         // of kKMeansChunk rows per sequence
  int64_t iteration;      // updates before this launch
  bool round_initial;     // precision: 'bfloat16'
  KMeansState* state;     // (sequences)
  uint32_t* tickets;      // (sequences), of last_block_done()
  const int32_t* chosen;  // (sequences,clusters), rows of k-means++ but for the first
  double* chunk_sums;     // (sequences,chunks), of the inertia
  double* scales;         // (sequences,length), cosine: inverse lengths
  float* packed;          // (sequences,length,dim), rows measured from the origin
  float* origin;          // (sequences,dim)
  float* shifted;         // (sequences,clusters,dim), centroids measured from it
  float* bias;            // (sequences,clusters), -|shifted|²/2
  double* movement;       // (sequences,clusters), with a tolerance
  double* moments;        // (sequences,chunks,2,dim), with a tolerance
  Flags* flags;

  __device__ bool cosine() const { return problem.metric == Metric::cosine; }
};

/// One sequence as a block sees it.
struct KMeansSequence {
  int64_t index;
  int64_t base;      // element of the inputs at which its rows begin
  int64_t length;    // real
  int64_t clusters;  // at most length

  __device__ KMeansSequence(const KMeansParams& params, int64_t sequence) {
    const KMeansProblem& problem = params.problem;
    const int64_t batch = sequence / problem.heads;
    index = sequence;
    base = row_offset(problem.inputs, batch, sequence % problem.heads, 0);
    length = real_length(problem.lengths, batch, problem.length);
    clusters = problem.clusters < length ? problem.clusters : length;
  }
};

/// Element d of row i.
template <Read kRead>
__device__ float element_of(const KMeansParams& params, const KMeansSequence& sequence, int64_t i,
                            int64_t d) {
  return read<kRead>(params.problem.inputs.data,
                     sequence.base + i * params.problem.inputs.row_stride + d);
}

}  // namespace cluster_attention::cuda
