#pragma once

// The gradients' side of the contract in problem.h. A gradient problem holds the forward problem as
// it was called: its inputs, and its outputs, which now hold the results (the saved state).
// Discrete choices (labels, indices) are read from there and are constants; all else is recomputed
// tile by tile, so that nothing of size L x S, C x S or N x M is ever stored.
//
// Every gradient has the shape and the strides of the input that it belongs to and is written whole
// (padding gets 0). A gradient whose data is null is not wanted and costs nothing.

#include <cstdint>

#include "native/core/problem.h"
#include "native/core/tensor.h"

namespace cluster_attention {

/// Of the inputs that every attention kind shares.
struct AttentionGradients {
  OutputRows query;  // (B,H,L,D)
  OutputRows key;    // (B,H,S,D)
  OutputRows value;  // (B,H,S,E)
};

struct AttentionGradientProblem {
  AttentionProblem forward;   // with output and logsumexp
  InputRows output_gradient;  // (B,H,L,E)
  AttentionGradients gradients;
};

struct AggregateGradientProblem {
  AggregateProblem forward;                // output is not read
  const float* output_gradient = nullptr;  // (batch,heads,C,dim)
  OutputRows inputs;                       // (batch,heads,length,dim)
};

struct BroadcastGradientProblem {
  BroadcastProblem forward;                // output is not read
  const float* output_gradient = nullptr;  // (batch,length,dim)
  float* inputs = nullptr;                 // (batch,C,dim)
};

struct SparseDotGradientProblem {
  SparseDotProblem forward;                // output is not read
  const float* output_gradient = nullptr;  // (B,H,L,k); where the output is -Inf it is not read
  OutputRows query;                        // (B,H,L,D)
  OutputRows key;                          // (B,H,S,D)
};

struct SparseWeightedSumGradientProblem {
  SparseWeightedSumProblem forward;  // output is not read
  InputRows output_gradient;         // (B,H,L,E)
  float* weights = nullptr;          // (B,H,L,k)
  OutputRows value;                  // (B,H,S,E)
};

struct ClusteredAttentionGradientProblem {
  ClusteredAttentionProblem forward;  // with labels, indices, cluster_values, cluster_logsumexp
  /// The share m̂ that a cluster gives to its top keys counts as a constant.
  bool detach_mass = false;
  InputRows output_gradient;  // (B,H,L,E)
  AttentionGradients gradients;
};

struct CentroidAttentionGradientProblem {
  /// With output, masses (for Collect::mean) and logsumexp (for Normalize::inputs).
  CentroidAttentionProblem forward;
  InputRows output_gradient;  // (B,H,M,E)
  AttentionGradients gradients;
  float* weights = nullptr;  // (B,N), 0 for an input of weight 0: it is removed
};

struct CentroidPoolGradientProblem {
  CentroidPoolProblem forward;             // output is not read: the steps run again
  const float* output_gradient = nullptr;  // (batch,M,d)
  float* inputs = nullptr;                 // (batch,N,d), through the start too
  float* initial = nullptr;                // (batch,M,d) for PoolStart::given
};

struct CentroidEncodeGradientProblem {
  CentroidEncodeProblem forward;           // output is not read: the steps run again
  const float* output_gradient = nullptr;  // (batch,M,d)
  float* inputs = nullptr;                 // (batch,N,d), through the start too
  float* initial = nullptr;                // (batch,M,d) for PoolStart::given
  float* query_weight = nullptr;           // (H*D,d)
  float* key_weight = nullptr;             // (H*D,d)
  float* value_weight = nullptr;           // (H*D,d)
  float* output_weight = nullptr;          // (d,H*D)
};

struct CastAttentionGradientProblem {
  CastAttentionProblem forward;  // with indices
  InputRows output_gradient;     // (B,H,N,E)
  AttentionGradients gradients;
  float* surrogates = nullptr;  // (H,C,D)
  float* gate = nullptr;        // (B,N)
};

}  // namespace cluster_attention
