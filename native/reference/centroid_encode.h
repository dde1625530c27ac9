#pragma once

// §6 the learned layer: T shared steps of u <- u + eps W_o concat_l(aggregate_i a_lji (W_v x_i)_l).

#include "native/core/gradient_problem.h"
#include "native/reference/matrix.h"

namespace cluster_attention::reference {

std::vector<double> centroid_encode(const CentroidEncodeProblem& problem);  // (batch,M,d)

struct CentroidEncodeGradientResult {
  std::vector<double> inputs;         // (batch,N,d)
  std::vector<double> initial;        // (batch,M,d)
  std::vector<double> query_weight;   // (H*D,d)
  std::vector<double> key_weight;     // (H*D,d)
  std::vector<double> value_weight;   // (H*D,d)
  std::vector<double> output_weight;  // (d,H*D)
};

CentroidEncodeGradientResult centroid_encode_gradient(const CentroidEncodeGradientProblem& problem);

}  // namespace cluster_attention::reference
