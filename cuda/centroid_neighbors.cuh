#pragma once

// §6 Centroid attention over lists of neighbors: work and memory are proportional to the M*K listed
// pairs. With s the score tau log2(e) q_j.k_i of a pair,
//
//   over the centroids   a_ji = w_i 2^(s_ji - max_i) / sum over the j' that list i
//   over the inputs      a_ji = w_i 2^(s_ji - max_j) / sum over the inputs that j lists
//
// Method: one warp per list, lanes over the elements of a row; gathered rows pass no tile, so
// products are plain float32. What an input needs of the lists that mention it (the maximum, the
// sum, the best centroid) is joined by integer atomics, whose order does not matter: maxima as
// ordered keys, sums in units of 2^-40 of the largest term, so that no inverse lists are needed.
// Precision: float32, sums of exponentials exact to 2^-40, masses and the objective in double.

#include "cuda/neighbor_lists.cuh"
#include "cuda/primitives/shared_memory.cuh"
#include "native/core/order.h"
#include "native/core/problem.h"
#include "native/core/softmax_state.h"
#include "native/core/weighted_sums.h"

namespace cluster_attention::cuda {

struct NeighborParams {
  int64_t batch = 0;
  int64_t heads = 0;
  int64_t centroids = 0;  // M
  int64_t inputs = 0;     // N
  int64_t slots = 0;      // K
  int64_t dim = 0;        // D
  int64_t value_dim = 0;  // E
  Tensor query;
  Tensor key;
  Tensor value;
  const int32_t* centroid_lengths = nullptr;
  const int32_t* input_lengths = nullptr;
  const float* weights = nullptr;  // (B,N)
  bool round_weights = false;
  const int32_t* neighbors = nullptr;  // (B,M,K)
  float scale = 0.0f;                  // tau log2(e)
  bool over_inputs = false;
  bool mean = false;

  int32_t* lists = nullptr;            // (B,M,K): the neighbors as sets, -1 for none
  float* scores = nullptr;             // (B*H,M,K)
  unsigned int* maximum = nullptr;     // (B*H,N): ordered_key, 0 without a list
  unsigned long long* sums = nullptr;  // (B*H,N), in units of 2^-40
  unsigned long long* best = nullptr;  // (B*H,N): Candidate, 0 without a list
  double* terms = nullptr;             // (B*H,N or M) of the objective, optional
  OutputRows output;
  Storage storage = Storage::float32;
  int32_t* labels = nullptr;
  float* masses = nullptr;
  float* logsumexp = nullptr;
  Flags* flags = nullptr;

  __device__ int64_t real_inputs(int64_t b) const {
    return input_lengths != nullptr ? input_lengths[b] : inputs;
  }
  __device__ int64_t real_centroids(int64_t b) const {
    return centroid_lengths != nullptr ? centroid_lengths[b] : centroids;
  }
  __device__ float weight(int64_t b, int64_t input) const {
    if (weights == nullptr) return 1.0f;
    const float value = weights[b * inputs + input];
    return round_weights ? round_to_bfloat16(value) : value;
  }
};

constexpr double kSumUnit = 1099511627776.0;  // 2^40

/// Checks the lists, drops what counts as none, and clears what the inputs will collect.
__global__ void __launch_bounds__(kNeighborThreads) prepare_neighbors(const NeighborParams params) {
  // neighbors: (B,M,K) -> lists: (B,M,K); maximum, sums, best: (B*H,N)
  const int64_t places = params.batch * params.heads * params.inputs;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kNeighborThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kNeighborThreads + threadIdx.x; i < places;
       i += stride) {
    params.maximum[i] = 0;
    params.sums[i] = 0;
    params.best[i] = 0;
  }
  const int64_t list = list_of_warp();
  if (list < params.batch * params.centroids) clean_list(params, list);
}

/// output_j = factor * sum over the slots of assignment times value, written by the warp.
template <typename Assignment>
__device__ void write_neighbor_output(const NeighborParams& params, int64_t sequence,
                                      int64_t centroid, const int32_t* list, double mass,
                                      const Assignment& assignment) {
  const int64_t batch = sequence / params.heads;
  const int64_t head = sequence % params.heads;
  const Rows value(params.value, batch, head);
  const float factor = params.mean ? mean_factor(mass) : 1.0f;
  const int64_t row = batch * params.output.batch_stride + head * params.output.head_stride +
                      centroid * params.output.row_stride;
  bool bad = false;
  for (int64_t e = lane_index(); e < params.value_dim; e += kWarp) {
    float sum = 0.0f;
    for (int64_t slot = 0; slot < params.slots; ++slot) {
      if (list[slot] >= 0) sum = fmaf(assignment(slot), value.element(list[slot], e), sum);
    }
    sum *= factor;
    store_element(params.output.data, params.storage, row + e, sum);
    bad |= !(fabsf(sum) < INFINITY);
  }
  if (params.masses != nullptr && lane_index() == 0) {
    const auto stored = static_cast<float>(mass);
    params.masses[sequence * params.centroids + centroid] = stored;
    bad |= !(fabsf(stored) < INFINITY);
  }
  if (bad) mark_non_finite(params.flags);
}

/// A centroid that lists an input, which keeps the best one; NaN is passed over where there is
/// more.
__device__ inline void offer_centroid(unsigned long long* best, float score, int64_t centroid) {
  const Candidate candidate =
      make_candidate(score == score ? score : -INFINITY, static_cast<int32_t>(centroid));
  atomicMax(best, static_cast<unsigned long long>(candidate));
}

/// Scores of a list; over the inputs everything else of its centroid, too.
__global__ void __launch_bounds__(kNeighborThreads) score_neighbors(const NeighborParams params) {
  // query: (M,D), key: (K of N,D) -> scores: (M,K); over the inputs: output: (M,E)
  const int64_t index = list_of_warp();
  if (index >= params.batch * params.heads * params.centroids) return;
  const int64_t sequence = index / params.centroids;
  const int64_t centroid = index % params.centroids;
  const int64_t batch = sequence / params.heads;
  const int64_t head = sequence % params.heads;
  const Rows query(params.query, batch, head);
  const Rows key(params.key, batch, head);
  const int32_t* list = params.lists + (batch * params.centroids + centroid) * params.slots;
  float* scores = params.scores + index * params.slots;
  const bool writes = lane_index() == 0;
  float maximum = -INFINITY;
  bool bad = false;
  for (int64_t first = 0; first < params.slots; first += kSlotsAtOnce) {
    const SlotInputs inputs(list, first, params.slots);
    float dots[kSlotsAtOnce];
    warp_dots(query, centroid, key, inputs, params.dim, dots);
#pragma unroll
    for (int i = 0; i < kSlotsAtOnce; ++i) {
      if (inputs.input[i] < 0) continue;
      const float score = dots[i] * params.scale;
      bad |= !(fabsf(score) < INFINITY);
      maximum = max_or_nan(maximum, score);
      if (!writes) continue;
      scores[first + i] = score;
      if (params.over_inputs) continue;
      const int64_t place = sequence * params.inputs + inputs.input[i];
      atomicMax(params.maximum + place, ordered_key(score));
      offer_centroid(params.best + place, score, centroid);
    }
  }
  if (bad && writes) mark_non_finite(params.flags);
  if (!params.over_inputs) return;

  __syncwarp();
  float sum = 0.0f;
  bool any_slot = false;
  for (int64_t slot = lane_index(); slot < params.slots; slot += kWarp) {
    if (list[slot] < 0) continue;
    any_slot = true;
    sum += params.weight(batch, list[slot]) * exp2f(scores[slot] - maximum);
  }
  sum = warp_sum(sum);
  any_slot = any(any_slot);
  const float inverse = share_factor(sum);
  // Normalised over its inputs, a list sums to 1 up to rounding (NaN stays NaN).
  const double mass = !any_slot ? 0.0 : (sum == sum ? 1.0 : static_cast<double>(sum));
  write_neighbor_output(params, sequence, centroid, list, mass, [&](int64_t slot) {
    return params.weight(batch, list[slot]) * exp2f(scores[slot] - maximum) * inverse;
  });
  const double logarithm = log2(static_cast<double>(sum));
  const double logsumexp = (static_cast<double>(maximum) + logarithm) * kLn2;
  if (writes) {
    if (params.logsumexp != nullptr) {
      params.logsumexp[index] = any_slot ? static_cast<float>(logsumexp) : -INFINITY;
    }
    if (params.terms != nullptr) params.terms[index] = any_slot ? logsumexp : 0.0;
  }
  // Logarithms of the assignments, up to the weight of the input, which all its lists share.
  for (int64_t slot = lane_index(); slot < params.slots; slot += kWarp) {
    if (list[slot] < 0) continue;
    const float rank = scores[slot] - maximum - static_cast<float>(logarithm);
    offer_centroid(params.best + sequence * params.inputs + list[slot], rank, centroid);
  }
}

/// Over the centroids: the sum of each input's exponentials. One thread per place.
__global__ void __launch_bounds__(kNeighborThreads) sum_neighbors(const NeighborParams params) {
  // scores: (B*H,M,K), maximum: (B*H,N) -> sums: (B*H,N)
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kNeighborThreads + threadIdx.x;
  if (index >= params.batch * params.heads * params.centroids * params.slots) return;
  const int64_t sequence = index / params.slots / params.centroids;
  const int64_t list = index - sequence * params.centroids * params.slots;
  const int32_t input =
      params.lists[sequence / params.heads * params.centroids * params.slots + list];
  if (input < 0) return;
  const int64_t place = sequence * params.inputs + input;
  const float term = exp2f(params.scores[index] - value_of_key(params.maximum[place]));
  // A NaN is met again where the sum is used: the maximum is NaN, too.
  if (term == term) {
    atomicAdd(params.sums + place,
              static_cast<unsigned long long>(static_cast<double>(term) * kSumUnit));
  }
}

/// Over the centroids: the outputs, one list per warp.
__global__ void __launch_bounds__(kNeighborThreads) weigh_neighbors(const NeighborParams params) {
  // scores: (M,K), maximum, sums: (N), value: (K of N,E) -> output: (M,E)
  const int64_t index = list_of_warp();
  if (index >= params.batch * params.heads * params.centroids) return;
  const int64_t sequence = index / params.centroids;
  const int64_t centroid = index % params.centroids;
  const int64_t batch = sequence / params.heads;
  const int32_t* list = params.lists + (batch * params.centroids + centroid) * params.slots;
  float* scores = params.scores + index * params.slots;
  double mass = 0.0;
  for (int64_t slot = lane_index(); slot < params.slots; slot += kWarp) {
    if (list[slot] < 0) continue;
    const int64_t place = sequence * params.inputs + list[slot];
    const double sum = static_cast<double>(params.sums[place]) / kSumUnit;
    const float factor = static_cast<float>(params.weight(batch, list[slot]) / sum);
    scores[slot] = exp2f(scores[slot] - value_of_key(params.maximum[place])) * factor;
    mass += scores[slot];
  }
  mass = warp_sum(mass);
  __syncwarp();
  write_neighbor_output(params, sequence, centroid, list, mass,
                        [&](int64_t slot) { return scores[slot]; });
}

/// Labels, and over the centroids the terms of the objective. One thread per input.
__global__ void __launch_bounds__(kNeighborThreads) close_neighbors(const NeighborParams params) {
  // best, maximum, sums: (B*H,N) -> labels, terms: (B*H,N)
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kNeighborThreads + threadIdx.x;
  if (index >= params.batch * params.heads * params.inputs) return;
  const unsigned long long best = params.best[index];
  if (params.labels != nullptr) params.labels[index] = best == 0 ? -1 : candidate_index(best);
  if (params.terms == nullptr || params.over_inputs) return;
  double term = 0.0;
  if (best != 0) {
    const int64_t batch = index / params.inputs / params.heads;
    const double sum = static_cast<double>(params.sums[index]) / kSumUnit;
    term = params.weight(batch, index % params.inputs) *
           (static_cast<double>(value_of_key(params.maximum[index])) + log2(sum)) * kLn2;
  }
  params.terms[index] = term;
}

struct NeighborObjectiveParams {
  int64_t count = 0;              // terms of a batch entry
  const double* terms = nullptr;  // (B,count)
  double* objective = nullptr;    // (B)
};

__global__ void __launch_bounds__(kNeighborThreads)
    sum_neighbor_objective(const NeighborObjectiveParams params) {
  // terms: (count) -> objective: (1), one block per batch entry
  double* scratch = dynamic_shared<double>();
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < params.count; i += kNeighborThreads) {
    sum += params.terms[blockIdx.x * params.count + i];
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) params.objective[blockIdx.x] = sum;
}

}  // namespace cluster_attention::cuda
