#pragma once

// §2.1 on the device; see hash.cuh and hash_product.cuh for the kernels.

#include "cuda/backend.h"

namespace cluster_attention::cuda {

Status hash(Session& session, const HashProblem& problem, const Call& call);

/// The real rows of every (batch, head), as kernels::hash_sequences.
struct HashSequences {
  InputRows inputs;  // (batch,heads,length,dim)
  int64_t batch = 0;
  int64_t heads = 0;
  int64_t length = 0;
  int64_t dim = 0;
  const int32_t* lengths = nullptr;  // (batch), or null
  const float* planes = nullptr;     // (bits,dim+1)
  int64_t bits = 0;
  Threshold threshold = Threshold::normal;
  uint64_t seed = 0;
  uint64_t* hashes = nullptr;  // (batch,heads,length), padding is not written
  bool tensor_cores = true;    // may be used; the hashes are the same without
};

/// One launch; with Threshold::data three. Workspace: with Threshold::data one float per row and
/// bit.
Status hash_sequences(Session& session, const HashSequences& problem, const Call& call);

}  // namespace cluster_attention::cuda
