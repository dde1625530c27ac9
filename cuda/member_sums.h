#pragma once

// Means or sums of the member rows of sorted clusters; see member_sums.cuh.

#include "cuda/backend.h"

namespace cluster_attention::cuda {

struct MemberSumsProblem {
  int64_t sequences = 0;
  int64_t heads = 1;
  int64_t length = 0;
  int64_t clusters = 0;
  int64_t dim = 0;
  Reduce reduce = Reduce::mean;
  InputRows inputs;                  // (batch,heads,length,dim), in the call's storage
  const int32_t* offsets = nullptr;  // (sequences,clusters+1)
  const int32_t* order = nullptr;    // (sequences,length)
  float* output = nullptr;           // (sequences,clusters,dim), 0 for an empty cluster
  bool output_in_storage = false;    // else fp32
};

/// One launch.
Status sum_members(Session& session, const MemberSumsProblem& problem, const Call& call);

}  // namespace cluster_attention::cuda
