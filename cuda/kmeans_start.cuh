#pragma once

// The first centroids of K-means, and what all iterations share: the point that rows and centroids
// are measured from, inverse lengths, the packed rows and the tolerance. As native/kernels/lloyd.cc
// and starts.cc, in whose order every double is summed, but for the distances of k-means++, whose
// sums in double run over blocks of 1024 rows as a tree.

#include "cuda/exact.cuh"
#include "cuda/kmeans.h"
#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/shared_memory.cuh"
#include "cuda/primitives/warp.cuh"
#include "cuda/read_rows.cuh"
#include "native/core/order.h"
#include "native/core/random.h"
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
  int64_t clusters;         // clamped to the length of the shape
  int64_t chunks;           // of kKMeansChunk rows per sequence
  int64_t iteration;        // updates before this launch
  int64_t draw;             // of k-means++
  bool round_initial;       // precision: 'bfloat16'
  KMeansState* state;       // (sequences)
  uint32_t* tickets;        // (sequences), of last_block_done()
  int64_t* chosen;          // (sequences,clusters), starting rows of k-means++
  float* distances;         // (sequences,length), k-means++: to the nearest row so far
  uint8_t* taken;           // (sequences,length), k-means++: rows chosen
  double* chunk_sums;       // (sequences,chunks), of distances or of the inertia
  int64_t* chunk_farthest;  // (sequences,chunks)
  double* scales;           // (sequences,length), cosine: inverse lengths
  float* packed;            // (sequences,length,dim), rows measured from the origin
  float* origin;            // (sequences,dim)
  float* shifted;           // (sequences,clusters,dim), centroids measured from it
  float* bias;              // (sequences,clusters), -|shifted|²/2
  double* movement;         // (sequences,clusters), with a tolerance
  double* moments;          // (sequences,chunks,2,dim), with a tolerance
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

/// Inverse lengths of the rows, for the cosine.
template <Read kRead>
__global__ void kmeans_scales_kernel(const KMeansParams params) {
  // thread: row (dim) -> scale
  const int64_t blocks = divide_up(params.problem.length, kKMeansThreads);
  const KMeansSequence sequence(params, blockIdx.x / blocks);
  const int64_t i = blockIdx.x % blocks * kKMeansThreads + threadIdx.x;
  if (i >= sequence.length) return;
  params.scales[sequence.index * params.problem.length + i] = inverse_length(
      params.problem.dim, [&](int64_t d) { return element_of<kRead>(params, sequence, i, d); });
}

// ---- k-means++ ----------------------------------------------------------------------------------

/// Rows and columns of a tile in shared memory, through which a block reads rows.
constexpr int kStartColumns = 32;
constexpr int kStartStride = kStartColumns + 1;

struct StartLayout {
  int64_t tile, center, sums, places, bytes;
};
CA_HOST_DEVICE inline StartLayout start_layout() {
  SharedLayout parts;
  const int64_t tile = parts.add<float>(kKMeansThreads * kStartStride);
  const int64_t center = parts.add<float>(kStartColumns);
  const int64_t sums = parts.add<double>(kWarp);
  const int64_t places = parts.add<int64_t>(kWarp);
  return {tile, center, sums, places, parts.bytes()};
}

/// Squared distances of the rows first + thread from row `center`: of unit rows under the cosine.
template <Read kRead>
__device__ float squared_distance(const KMeansParams& params, const KMeansSequence& sequence,
                                  int64_t first, int64_t center) {
  const StartLayout layout = start_layout();
  float* tile = dynamic_shared<float>(layout.tile);
  float* center_row = dynamic_shared<float>(layout.center);
  const int64_t dim = params.problem.dim;
  const double* scales = params.scales + sequence.index * params.problem.length;
  const auto element = [&](int64_t i, int64_t d) {
    const float value = element_of<kRead>(params, sequence, i, d);
    return params.cosine() ? static_cast<float>(exact_product(double{value}, scales[i])) : value;
  };
  float sum = 0.0f;
  for (int64_t column = 0; column < dim; column += kStartColumns) {
    const int columns =
        static_cast<int>(dim - column < kStartColumns ? dim - column : kStartColumns);
    const int d = lane_index();
    for (int row = warp_index(); row < kKMeansThreads && first + row < sequence.length;
         row += kKMeansThreads / kWarp) {
      if (d < columns) tile[row * kStartStride + d] = element(first + row, column + d);
    }
    if (warp_index() == 0 && d < columns) center_row[d] = element(center, column + d);
    __syncthreads();
    for (int k = 0; k < columns; ++k) {
      const float difference =
          tile[static_cast<int>(threadIdx.x) * kStartStride + k] - center_row[k];
      sum += exact_product(difference, difference);
    }
    __syncthreads();
  }
  return sum;
}

/// The lowest row that is not chosen yet; all threads of the block call it.
__device__ inline int64_t lowest_unchosen(const KMeansParams& params,
                                          const KMeansSequence& sequence, int64_t* scratch) {
  const uint8_t* taken = params.taken + sequence.index * params.problem.length;
  const auto lower = [](int64_t a, int64_t b) { return a < b ? a : b; };
  for (int64_t first = 0; first < sequence.length; first += kKMeansThreads) {
    const int64_t i = first + threadIdx.x;
    const bool free = i < sequence.length && taken[i] == 0;
    const int64_t lowest = block_reduce(free ? i : sequence.length, lower, scratch);
    if (lowest < sequence.length) return lowest;
  }
  return 0;  // not reached: fewer rows are chosen than there are
}

/// The first row at which the running sum of the distances exceeds `share` of their total, -1 when
/// no distance is positive; by the last block of a sequence.
__device__ inline int64_t draw_row(const KMeansParams& params, const KMeansSequence& sequence,
                                   double share, double* sums, int64_t* places) {
  const double* chunk_sums = params.chunk_sums + sequence.index * params.chunks;
  const int64_t* farthest = params.chunk_farthest + sequence.index * params.chunks;
  const float* distances = params.distances + sequence.index * params.problem.length;
  const int64_t chunks = divide_up(sequence.length, kKMeansChunk);
  if (threadIdx.x == 0) {
    double total = 0.0;
    for (int64_t c = 0; c < chunks; ++c) total += chunk_sums[c];
    const double target = share * total;
    double before = 0.0;
    int64_t last_positive = -1;
    int64_t found = -1;
    for (int64_t c = 0; c < chunks && found < 0; ++c) {
      const double sum = chunk_sums[c];
      if (sum > 0.0) last_positive = farthest[c];
      if (sum > 0.0 && before + sum > target) {
        found = c;
      } else {
        before += sum;
      }
    }
    places[0] = found;
    places[1] = last_positive;
    sums[0] = before;
    sums[1] = target;
  }
  __syncthreads();
  const int64_t chunk = places[0];
  int64_t row = places[1];
  double before = sums[0];
  const double target = sums[1];
  __syncthreads();
  if (chunk < 0) return row;
  const int64_t begin = chunk * kKMeansChunk;
  const auto lower = [](int64_t a, int64_t b) { return a < b ? a : b; };
  const auto higher = [](int64_t a, int64_t b) { return a > b ? a : b; };
  for (int64_t first = begin; first < begin + kKMeansChunk; first += kKMeansThreads) {
    const int64_t i = first + threadIdx.x;
    const float distance = i < sequence.length ? distances[i] : 0.0f;
    double added;
    const double running =
        before + block_exclusive_sum(static_cast<double>(distance), sums, &added) + distance;
    const bool past = i < sequence.length && running > target;
    const int64_t reached = block_reduce(past ? i : sequence.length, lower, places);
    if (reached < sequence.length) return reached;
    // Rounding may keep the sum from the target: then it is the last row that counts.
    const int64_t positive = block_reduce(distance > 0.0f ? i : int64_t{-1}, higher, places);
    row = positive >= 0 ? positive : row;
    before += added;
  }
  return row;
}

/// Draw `params.draw` >= 1 of k-means++ (Arthur and Vassilvitskii, 2007): lowers the distances by
/// the row drawn before, then the last block of a sequence draws with probability proportional to
/// them.
template <Read kRead>
__global__ void plus_plus_kernel(const KMeansParams params) {
  // block: rows (1024,dim) -> distances (1024); the last block: distances (length) -> row
  const StartLayout layout = start_layout();
  double* sums = dynamic_shared<double>(layout.sums);
  int64_t* places = dynamic_shared<int64_t>(layout.places);
  const KMeansSequence sequence(params, blockIdx.x / params.chunks);
  const int64_t chunk = blockIdx.x % params.chunks;
  int64_t* chosen = params.chosen + sequence.index * params.clusters;
  float* distances = params.distances + sequence.index * params.problem.length;
  uint8_t* taken = params.taken + sequence.index * params.problem.length;
  const uint64_t seed = params.problem.seed;
  const bool first_draw = params.draw == 1;
  if (sequence.clusters == 0 || (params.draw >= sequence.clusters && !first_draw)) return;
  double u = random_uniform(seed, RandomStream::plus_plus, 0);
  const int64_t center = first_draw ? static_cast<int64_t>(u * static_cast<double>(sequence.length))
                                    : chosen[params.draw - 1];
  double sum = 0.0;
  Candidate farthest = 0;  // distance and place in the chunk: the larger the better
  for (int64_t first = chunk * kKMeansChunk;
       first < (chunk + 1) * kKMeansChunk && first < sequence.length; first += kKMeansThreads) {
    const int64_t i = first + threadIdx.x;
    const float squared = squared_distance<kRead>(params, sequence, first, center);
    if (i >= sequence.length) continue;
    float distance = first_draw ? __int_as_float(0x7f800000) : distances[i];
    if (squared < distance) distance = squared;
    if (i == center) distance = 0.0f;  // even where the row holds NaN: no row is chosen twice
    if (i == center || first_draw) taken[i] = i == center ? 1 : 0;
    distances[i] = distance;
    sum += static_cast<double>(distance);
    const Candidate candidate =
        make_candidate(distance, static_cast<int32_t>(i - chunk * kKMeansChunk));
    farthest = candidate > farthest ? candidate : farthest;
  }
  sum = block_sum(sum, sums);
  farthest = block_reduce(
      farthest, [](Candidate a, Candidate b) { return a > b ? a : b; },
      reinterpret_cast<Candidate*>(places));
  if (threadIdx.x == 0) {
    params.chunk_sums[blockIdx.x] = sum;
    params.chunk_farthest[blockIdx.x] = chunk * kKMeansChunk + candidate_index(farthest);
  }
  if (!last_block_done(&params.tickets[sequence.index], static_cast<uint32_t>(params.chunks),
                       reinterpret_cast<uint32_t*>(places))) {
    return;
  }
  if (first_draw && threadIdx.x == 0) chosen[0] = center;
  if (params.draw >= sequence.clusters) return;
  u = random_uniform(seed, RandomStream::plus_plus, params.draw);
  int64_t row = draw_row(params, sequence, u, sums, places);
  if (row < 0) row = lowest_unchosen(params, sequence, places);
  if (threadIdx.x == 0) chosen[params.draw] = row;
}

// ---- start --------------------------------------------------------------------------------------

/// The mean rounded to a multiple of a power of two no less than the deviation: near the mean on
/// the scale of the data, and an integer for integers that are spread at all.
__device__ inline float grid_mean(double mean, double deviation, float any_value) {
  if (deviation == 0.0) return any_value;  // all the same
  int exponent = 0;
  const double fraction = frexp(deviation, &exponent);
  const double grid = ldexp(1.0, fraction == 0.5 ? exponent - 1 : exponent);
  const float rounded = static_cast<float>(exact_product(nearbyint(mean / grid), grid));
  return is_finite(rounded) ? rounded : 0.0f;
}

/// What the assignment reads of centroid c: its distance from the origin, and -|shifted|²/2. A warp
/// or a thread may do it: `centroid` and `shifted` are (dim), visible to the thread.
__device__ inline float centroid_bias(const KMeansParams& params, const float* centroid,
                                      const float* shifted) {
  const int64_t dim = params.problem.dim;
  double distance = sum_terms(
      dim, [=](int64_t d) { return exact_product(double{shifted[d]}, double{shifted[d]}); });
  // A centroid of zeros has cosine 0 with everything, as if it were a unit vector at a right angle.
  if (params.cosine() && sum_terms(dim, [=](int64_t d) {
                           return exact_product(double{centroid[d]}, double{centroid[d]});
                         }) == 0.0) {
    distance += 1.0;
  }
  return static_cast<float>(-0.5 * distance);
}

/// Copies the starting rows, chooses the origin, and writes all that lies past the real length and
/// past the clamp.
template <Read kRead>
__global__ void kmeans_start_kernel(const KMeansParams params) {
  // block: rows (clusters,dim) -> centroids (clusters,dim), origin (dim)
  const KMeansProblem& problem = params.problem;
  const KMeansSequence sequence(params, blockIdx.x);
  const int64_t dim = problem.dim;
  const int64_t clusters = sequence.clusters;
  float* centroids = problem.centroids + sequence.index * problem.clusters * dim;
  float* origin = params.origin + sequence.index * dim;
  for (int64_t i = threadIdx.x; i < problem.length; i += blockDim.x) {
    problem.labels[sequence.index * problem.length + i] = -1;
  }
  for (int64_t c = clusters + threadIdx.x; c < problem.clusters; c += blockDim.x) {
    problem.counts[sequence.index * problem.clusters + c] = 0;
  }
  for (int64_t i = threadIdx.x; i < problem.clusters * dim; i += blockDim.x) {
    const int64_t c = i / dim;
    float value = 0.0f;
    if (c < clusters) {
      if (problem.start == KMeansStart::given) {
        value = problem.initial[sequence.index * problem.clusters * dim + i];
        if (params.round_initial) value = round_to_bfloat16(value);
      } else {
        const int64_t row =
            problem.start == KMeansStart::sample
                ? random_position(problem.seed, RandomStream::start_positions, sequence.length, c)
                : params.chosen[sequence.index * params.clusters + c];
        value = element_of<kRead>(params, sequence, row, i % dim);
      }
      if (!is_finite(value)) mark_non_finite(params.flags);
    }
    centroids[i] = value;
  }
  __syncthreads();
  if (params.cosine()) {
    for (int64_t c = threadIdx.x; c < clusters; c += blockDim.x) {
      float* centroid = centroids + c * dim;
      const double scale = inverse_length(dim, [=](int64_t d) { return centroid[d]; });
      for (int64_t d = 0; d < dim; ++d) {
        centroid[d] = static_cast<float>(exact_product(double{centroid[d]}, scale));
      }
    }
    __syncthreads();
  }
  for (int64_t d = threadIdx.x; d < dim && clusters > 0; d += blockDim.x) {
    const float first = centroids[d];
    double sum = 0.0;
    double squares = 0.0;
    for (int64_t c = 0; c < clusters; ++c) {
      const double offset = static_cast<double>(centroids[c * dim + d]) - first;
      sum += offset;
      squares += exact_product(offset, offset);
    }
    const double mean = sum / static_cast<double>(clusters);
    const double variance = squares / static_cast<double>(clusters) - exact_product(mean, mean);
    const double deviation = variance > 0.0 ? sqrt(variance) : 0.0;
    const float chosen = grid_mean(first + mean, deviation, first);
    origin[d] = is_finite(chosen) ? chosen : 0.0f;
  }
  __syncthreads();
  float* shifted = params.shifted + sequence.index * params.clusters * dim;
  for (int64_t i = threadIdx.x; i < clusters * dim; i += blockDim.x) {
    shifted[i] = centroids[i] - origin[i % dim];
  }
  __syncthreads();
  for (int64_t c = threadIdx.x; c < clusters; c += blockDim.x) {
    params.bias[sequence.index * params.clusters + c] =
        centroid_bias(params, centroids + c * dim, shifted + c * dim);
  }
  if (threadIdx.x == 0) {
    params.state[sequence.index] = KMeansState{0, 0, 0.0, 0.0};
  }
}

/// Rows as the assignment reads them.
template <Read kRead>
__global__ void kmeans_pack_kernel(const KMeansParams params) {
  // block: rows (256,dim) -> packed (256,dim)
  const int64_t dim = params.problem.dim;
  const int64_t blocks = divide_up(params.problem.length, kKMeansThreads);
  const KMeansSequence sequence(params, blockIdx.x / blocks);
  const int64_t first = blockIdx.x % blocks * kKMeansThreads;
  const int64_t left = sequence.length - first;
  const int64_t rows = left < kKMeansThreads ? left : kKMeansThreads;
  const float* origin = params.origin + sequence.index * dim;
  const int64_t first_row = sequence.index * params.problem.length + first;
  for (int64_t i = threadIdx.x; i < rows * dim; i += kKMeansThreads) {
    const int64_t row = i / dim;
    const int64_t d = i % dim;
    const float value = element_of<kRead>(params, sequence, first + row, d);
    params.packed[first_row * dim + i] =
        params.cosine()
            ? static_cast<float>(exact_product(double{value}, params.scales[first_row + row]) -
                                 origin[d])
            : value - origin[d];
  }
}

/// The tolerance: a share of the mean of the columns' variances. Sums of a chunk of rows by column;
/// the last block of a sequence adds the chunks up.
template <Read kRead>
__global__ void kmeans_tolerance_kernel(const KMeansParams params) {
  // block: rows (1024,dim) -> sums and squares (dim); the last block: -> 1 tolerance
  uint32_t* scratch = dynamic_shared<uint32_t>();
  const int64_t dim = params.problem.dim;
  const KMeansSequence sequence(params, blockIdx.x / params.chunks);
  const int64_t begin = blockIdx.x % params.chunks * kKMeansChunk;
  const int64_t end =
      begin + kKMeansChunk < sequence.length ? begin + kKMeansChunk : sequence.length;
  const float* origin = params.origin + sequence.index * dim;
  const double* scales = params.scales + sequence.index * params.problem.length;
  double* moments = params.moments + sequence.index * params.chunks * 2 * dim;
  double* own = moments + (blockIdx.x % params.chunks) * 2 * dim;
  for (int64_t d = threadIdx.x; d < dim; d += blockDim.x) {
    double sum = 0.0;
    double squares = 0.0;
    for (int64_t i = begin; i < end; ++i) {
      const double value = element_of<kRead>(params, sequence, i, d);
      const double offset = (params.cosine() ? exact_product(value, scales[i]) : value) - origin[d];
      sum += offset;
      squares += exact_product(offset, offset);
    }
    own[d] = sum;
    own[dim + d] = squares;
  }
  if (!last_block_done(&params.tickets[sequence.index], static_cast<uint32_t>(params.chunks),
                       scratch)) {
    return;
  }
  const double rows = static_cast<double>(sequence.length);
  for (int64_t d = threadIdx.x; d < dim; d += blockDim.x) {
    double sum = 0.0;
    double squares = 0.0;
    for (int64_t c = 0; c * kKMeansChunk < sequence.length; ++c) {
      sum += moments[2 * c * dim + d];
      squares += moments[(2 * c + 1) * dim + d];
    }
    moments[d] = squares / rows - exact_product(sum / rows, sum / rows);
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  double total = 0.0;
  for (int64_t d = 0; d < dim; ++d) total += moments[d];
  params.state[sequence.index].tolerance =
      exact_product(params.problem.tolerance, total / static_cast<double>(dim));
}

}  // namespace cluster_attention::cuda
