#pragma once

// What the kernels of the backward of CAST (§7) share; what is computed is said in
// native/kernels/cast_attention_gradient.h, and by which launches in cast_attention_gradient.h.

#include "cuda/cast_params.cuh"

namespace cluster_attention::cuda {

struct CastGradientParams {
  CastParams forward;      // the tokens of its clusters are given ones
  Tensor output_gradient;  // (B,H,N,E)

  // The gradients; data is null where one is not wanted.
  OutputRows query;             // (B,H,N,D)
  OutputRows key;               // (B,H,N,D)
  OutputRows value;             // (B,H,N,E)
  float* surrogates = nullptr;  // (H,C,D)
  float* gate = nullptr;        // (B,N)

  // Step 6, of each token of each head: (B*H,N).
  float* token_maximum = nullptr;  // of its scores, under softmax
  float* token_inverse = nullptr;  // 1 / sum of their exponentials
  float* token_total = nullptr;    // sum over the clusters of A_sum times the gradient by it
  float* token_gate = nullptr;     // what step 6 adds to the gradient by phi

  // Of each slot: (B*H,C,kappa) and the columns named.
  float* slot_weight = nullptr;     // A_sum
  float* slot_gate = nullptr;       // what step 5 adds to the gradient by phi
  float* slot_query = nullptr;      // D: gradients by query, key and value
  float* slot_key = nullptr;        // D
  float* slot_value = nullptr;      // E
  float* summary_weight = nullptr;  // its share of the cluster's summary

  // Of each query of a cluster, the summary as the last one: (B*H,C,kappa+1).
  float* row_maximum = nullptr;
  float* row_inverse = nullptr;
  float* row_total = nullptr;  // g.r, for a slot the gradient by A_sum

  // Of each cluster: (B*H,C) and the columns named; sums of parts of the tokens: (B*H,sum_rows).
  float* inter = nullptr;             // E: R_inter
  float* summary_sums = nullptr;      // E: gradients by R_inter, parts
  float* summary_gradient = nullptr;  // E: their sum
  float* surrogate_sums = nullptr;    // D: gradients by the surrogates in step 6, parts
  float* surrogate_terms = nullptr;   // D: the same in step 5
  int64_t sum_rows = 0;
  uint32_t* tickets = nullptr;  // (B*H, tiles of clusters, value blocks)

  // Tiles of the rows of a block that stay in shared memory.
  int head_tiles = 1;   // of D columns
  int value_tiles = 1;  // of E columns

  /// Whether step 6 is differentiated; the values' gradients need its weights alone.
  CA_HOST_DEVICE bool wants_weights() const {
    return query.data != nullptr || surrogates != nullptr || gate != nullptr;
  }
  /// Whether steps 4 and 5 are, their values apart.
  CA_HOST_DEVICE bool wants_scores() const { return wants_weights() || key.data != nullptr; }

  /// The place of a token in a cluster of batch entry b, or -1.
  __device__ int32_t slot_of(int64_t b, int64_t cluster, int64_t token) const {
    return forward.slots[(b * forward.clusters + cluster) * forward.tokens + token];
  }
};

/// f of §7 along `keys` logits, and its derivative.
struct CastFunction {
  bool softmax;
  float scale;     // of a logit
  float sign;      // of a score
  float exponent;  // of 2, per unit of a score

  __device__ CastFunction(const CastParams& params, int64_t keys)
      : softmax(params.activation == Activation::softmax),
        scale(params.product_scale(keys)),
        sign(scale < 0.0f ? -1.0f : 1.0f),
        exponent(fabsf(scale) * kLog2E) {}

  /// The logit scale * factor * product, under softmax without |scale|: its maximum comes off
  /// first, so that scales of any size are met.
  __device__ float score(float product, float factor) const {
    return softmax ? sign * (product * factor) : product * factor * scale;
  }
  __device__ float weight(float score, float maximum, float inverse) const {
    return softmax ? exp2f((score - maximum) * exponent) * inverse : laplace(score);
  }
  /// The gradient by the logit; change: by the weight, total: sum of weight times change.
  __device__ float slope(float score, float weight, float change, float total) const {
    if (softmax) return weight * (change - total);
    constexpr float kSlope = static_cast<float>(1.0 / (0.282095 * 2.50662827463100050242));
    const float distance = (score - kLaplaceMean) * kLaplaceInverseWidth;
    return kSlope * expf(-distance * distance) * change;
  }
};

/// sigma(phi), the derivative of softplus1(phi).
__device__ inline float sigmoid(float phi) { return 1.0f / (1.0f + expf(-phi)); }

}  // namespace cluster_attention::cuda
