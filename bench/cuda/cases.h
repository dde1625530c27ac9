#pragma once

// The operations that cuda_bench times, on tensors that stay on the device.

#include <functional>
#include <string>
#include <vector>

#include "bench/cuda/data.h"

namespace cluster_attention::bench {

struct Case {
  std::string name;
  int64_t length;
  cuda::Storage storage;
  Precision precision;
  double operations;   // multiplications and additions
  double floor;        // seconds on an H200 with bfloat16, 0 where none is stated
  const void* output;  // (1,H,N,E) in the storage
  std::function<Status()> run;
};

/// The cases of one length, made on `session`; `memory` must outlive them.
std::vector<Case> make_cases(cuda::Session* session, DeviceMemory& memory, int64_t length,
                             cuda::Storage storage);

/// Clustered attention as the cases have it; improved with top_k > 0.
ClusteredAttentionProblem make_clustered(const AttentionInputs& inputs, OutputRows output,
                                         const float* planes, int64_t top_k);

/// The backward of attention of these inputs, on what a forward call on the device has saved.
void add_gradient_cases(cuda::Session* session, DeviceMemory& memory, const AttentionInputs& inputs,
                        const float* planes, const cuda::Call& call, std::vector<Case>& cases);

/// Relative L2 distance of a case's results from the CPU's with the same precision; Inf where it
/// fails.
struct CaseError {
  std::string name;
  double error;
};

/// Of the exact and the clustered attentions at a length of 1024, and of 64 queries to 65,536 keys.
std::vector<CaseError> case_errors(cuda::Session* session, cuda::Storage storage);

}  // namespace cluster_attention::bench
