#pragma once

// §6 Backward of centroid attention in which centroid j meets only the inputs that neighbors[j]
// lists (the maths: native/kernels/centroid_attention_gradient.h). Work and memory are proportional
// to the M*K listed pairs.
//
// Method: scores and x of all slots, a warp per list; the slots are sorted by input
// (counting_sort.cuh), and a warp per input finishes its slots and adds its gradients over them in
// order; then a warp per list adds dq over its keys. Precision: plain float32.

#include "cuda/centroid_gradient_params.cuh"
#include "cuda/neighbor_lists.cuh"
#include "native/core/softmax_state.h"

namespace cluster_attention::cuda {

struct NeighborGradientParams {
  CentroidGradientParams gradient;
  int64_t batch = 0;
  int64_t heads = 0;
  int64_t centroids = 0;               // M
  int64_t inputs = 0;                  // N
  int64_t slots = 0;                   // K
  const int32_t* neighbors = nullptr;  // (B,M,K)
  int32_t* lists = nullptr;            // (B,M,K): the neighbors as sets, -1 for none
  int32_t* offsets = nullptr;          // (B,N+1): the slots sorted by input
  int32_t* order = nullptr;            // (B,M*K)
  float* share = nullptr;              // (B*H,M,K): logits in base 2 or p, then a_ji factor_j
  float* change = nullptr;             // (B*H,M,K): x, then dz
  Flags* flags = nullptr;

  __device__ int64_t real_inputs(int64_t b) const { return gradient.assignment.real_inputs(b); }
  __device__ int64_t real_centroids(int64_t b) const {
    return gradient.assignment.real_centroids(b);
  }
  __device__ float weight(int64_t b, int64_t input) const {
    return gradient.assignment.weight(b, input);
  }
};

__global__ void __launch_bounds__(kNeighborThreads)
    clean_neighbor_lists(const NeighborGradientParams params) {
  // neighbors: (B,M,K) -> lists: (B,M,K)
  const int64_t list = list_of_warp();
  if (list < params.batch * params.centroids) clean_list(params, list);
}

/// Logits (over the inputs: p) and x of one list per warp.
__global__ void __launch_bounds__(kNeighborThreads)
    score_neighbor_pairs(const NeighborGradientParams params) {
  // query, output_gradient: (1), key, value: (K of N) -> share, change: (K)
  const CentroidGradientParams& gradient = params.gradient;
  const AssignmentParams& assignment = gradient.assignment;
  const int64_t index = list_of_warp();
  if (index >= assignment.sequences * params.centroids) return;
  const int64_t sequence = index / params.centroids;
  const int64_t j = index % params.centroids;
  const int64_t batch = sequence / params.heads;
  const int64_t head = sequence % params.heads;
  const CentroidTerms u = centroid_terms(gradient, sequence, j, assignment.real_centroids(batch));
  if (u.position < 0) return;
  const Rows query(assignment.query, batch, head);
  const Rows key(assignment.key, batch, head);
  const Rows rows(gradient.output_gradient, batch, head);
  const Rows value(assignment.value, batch, head);
  const int32_t* list = params.lists + (batch * params.centroids + j) * params.slots;
  bool bad = false;
  for (int64_t first = 0; first < params.slots; first += kSlotsAtOnce) {
    const SlotInputs inputs(list, first, params.slots);
    float products[kSlotsAtOnce];
    float changes[kSlotsAtOnce] = {};
    warp_dots(query, j, key, inputs, assignment.dim, products);
    if (gradient.with_changes) {
      warp_dots(rows, j, value, inputs, assignment.value_dim, changes);
    }
#pragma unroll
    for (int i = 0; i < kSlotsAtOnce; ++i) {
      if (inputs.input[i] < 0) continue;
      const float logit = assignment.sign * assignment.exponent * products[i];
      const float x = gradient.with_changes ? changes[i] * u.factor - u.offset : 0.0f;
      bad |= !(fabsf(logit) < INFINITY) || !(fabsf(x) < INFINITY);
      if (lane_index() > 0) continue;
      const int64_t place = index * params.slots + first + i;
      params.share[place] = gradient.over_inputs ? exp2f(logit - u.logsumexp) : logit;
      params.change[place] = x;
    }
  }
  if (bad) mark_non_finite(params.flags);
}

/// One input as a warp sees it: the slots that list it.
class ListedInput {
 public:
  __device__ ListedInput(const NeighborGradientParams& params, int64_t sequence, int64_t input)
      : params_(params),
        sequence_(sequence),
        batch_(sequence / params.heads),
        input_(input),
        first_(sequence * params.centroids * params.slots) {
    const int32_t* offsets = params.offsets + batch_ * (params.inputs + 1) + input;
    count_ = offsets[1] - offsets[0];
    slots_ = params.order + batch_ * params.centroids * params.slots + offsets[0];
  }

  /// a factor and dz of all slots; returns dw.
  __device__ float differentiate() {
    const bool over_inputs = params_.gradient.over_inputs;
    float maximum = -INFINITY;
    for (int64_t t = lane_index(); t < count_ && !over_inputs; t += kWarp) {
      maximum = max_or_nan(maximum, params_.share[first_ + slots_[t]]);
    }
    maximum = warp_reduce(maximum, [](float a, float b) { return max_or_nan(a, b); });
    float sum = 0.0f;
    float product = 0.0f;
    for (int64_t t = lane_index(); t < count_; t += kWarp) {
      const int64_t place = first_ + slots_[t];
      const float p = over_inputs ? params_.share[place] : exp2f(params_.share[place] - maximum);
      sum += p;
      product += p * params_.change[place];
    }
    sum = warp_sum(sum);
    product = warp_sum(product);
    const float inverse = over_inputs || count_ == 0 ? 1.0f : 1.0f / sum;
    const float total = product * inverse;
    const float weight = count_ > 0 ? params_.weight(batch_, input_) : 0.0f;
    for (int64_t t = lane_index(); t < count_; t += kWarp) {
      const int64_t place = first_ + slots_[t];
      const float p = over_inputs ? params_.share[place] : exp2f(params_.share[place] - maximum);
      const float a = weight * p * inverse;
      params_.share[place] = a * params_.gradient.output_factor[row_of(t)];
      params_.change[place] = a * (params_.change[place] - (over_inputs ? 0.0f : total));
    }
    __syncwarp();
    return total;
  }

  /// target = scale sum over the slots of factors[slot] times the row of its centroid.
  __device__ bool write(const GradientRows& target, const float* factors, const Tensor& rows,
                        int64_t dim, float scale) const {
    if (!target.wanted()) return true;
    const bool accumulate = params_.gradient.accumulate;
    const int64_t head = sequence_ % params_.heads;
    const Rows source(rows, batch_, head);
    const int64_t offset = target.offset(batch_, head, input_);
    bool finite = true;
    for (int64_t column = 0; column < dim; column += kWarp) {
      const int64_t d = column + lane_index();
      const bool inside = d < dim;
      float sum = 0.0f;
      for (int64_t begin = 0; begin < count_; begin += kWarp) {
        // A lane looks a slot up for all.
        const int64_t left = count_ - begin;
        const bool listed_here = lane_index() < left;
        const int32_t slot = listed_here ? slots_[begin + lane_index()] : 0;
        const int32_t centroid = centroid_of(slot);
        const float factor = listed_here ? factors[first_ + slot] : 0.0f;
        const int listed = static_cast<int>(left < kWarp ? left : kWarp);
#pragma unroll 4
        for (int i = 0; i < listed; ++i) {
          const int32_t row = shuffle(centroid, i);
          const float element = inside ? source.element(row, d) : 0.0f;
          sum = fmaf(shuffle(factor, i), element, sum);
        }
      }
      if (!inside) continue;
      sum *= scale;
      if (accumulate) sum += target.rows.data[offset + d];
      store_element(target.rows.data, target.storage, offset + d, sum);
      finite = finite && fabsf(sum) < INFINITY;
    }
    return finite;
  }

 private:
  /// The centroid of a slot; 64 bits would take far longer to divide.
  __device__ int32_t centroid_of(int32_t slot) const {
    return static_cast<int32_t>(static_cast<uint32_t>(slot) / static_cast<uint32_t>(params_.slots));
  }
  /// The same among those of all sequences.
  __device__ int64_t row_of(int64_t t) const {
    return sequence_ * params_.centroids + centroid_of(slots_[t]);
  }

  const NeighborGradientParams& params_;
  const int64_t sequence_;
  const int64_t batch_;
  const int64_t input_;
  const int64_t first_;  // slot of the sequence
  int64_t count_;
  const int32_t* slots_;
};

/// Everything that belongs to one input; one warp each.
__global__ void __launch_bounds__(kNeighborThreads)
    finish_listed_inputs(const NeighborGradientParams params) {
  // share, change: (slots of 1), query, output_gradient: (M) -> share, change, dk, dv: (1)
  const CentroidGradientParams& gradient = params.gradient;
  const AssignmentParams& assignment = gradient.assignment;
  const int64_t index = list_of_warp();
  if (index >= assignment.sequences * params.inputs) return;
  ListedInput input(params, index / params.inputs, index % params.inputs);
  const float total = input.differentiate();
  if (gradient.weight_terms != nullptr && lane_index() == 0) gradient.weight_terms[index] = total;
  // One after the other: they may be the same rows.
  const bool values = input.write(gradient.value, params.share, gradient.output_gradient,
                                  assignment.value_dim, 1.0f);
  const bool keys =
      input.write(gradient.key, params.change, assignment.query, assignment.dim, gradient.scale);
  if (!values || !keys) mark_non_finite(params.flags);
}

/// dq of one list per warp; 0 for padding and for a list without inputs.
__global__ void __launch_bounds__(kNeighborThreads)
    finish_neighbor_centroids(const NeighborGradientParams params) {
  // change: (K), key: (K of N,D) -> dq: (D)
  const CentroidGradientParams& gradient = params.gradient;
  const AssignmentParams& assignment = gradient.assignment;
  const int64_t index = list_of_warp();
  if (index >= assignment.sequences * params.centroids) return;
  const int64_t sequence = index / params.centroids;
  const int64_t j = index % params.centroids;
  const int64_t batch = sequence / params.heads;
  const int64_t head = sequence % params.heads;
  const Rows key(assignment.key, batch, head);
  const int32_t* list = params.lists + (batch * params.centroids + j) * params.slots;
  const float* change = params.change + index * params.slots;
  const int64_t row = gradient.query.offset(batch, head, j);
  bool finite = true;
  for (int64_t d = lane_index(); d < assignment.dim; d += kWarp) {
    float sum = 0.0f;
    for (int64_t slot = 0; slot < params.slots; ++slot) {
      if (list[slot] >= 0) sum = fmaf(change[slot], key.element(list[slot], d), sum);
    }
    sum *= gradient.scale;
    store_element(gradient.query.rows.data, gradient.query.storage, row + d, sum);
    finite = finite && fabsf(sum) < INFINITY;
  }
  if (!finite) mark_non_finite(params.flags);
}

}  // namespace cluster_attention::cuda
