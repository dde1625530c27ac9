#pragma once

// Attention of the mean queries of clusters over all keys, A^c V with A^c = softmax(tau q̄ K^T), and
// the top-k keys of every cluster by q̄·k. The kernels are in clustered_pass.cuh.

#include "cuda/backend.h"
#include "cuda/operands.h"
#include "cuda/query_groups.h"
#include "cuda/workspace.h"

namespace cluster_attention::cuda {

/// Entries of empty clusters are 0, keys -1.
struct ClusteredPass {
  float* values = nullptr;      // (B,H,C,E): V^c
  float* bases = nullptr;       // (B,H,C,E), with top_k: V^c - sum_t A^c_t v_t over T_j
  float* masses = nullptr;      // (B,H,C), with top_k: sum_t A^c_t
  int32_t* top_keys = nullptr;  // (B,H,C,k), best first; -1 past the real keys
  bfloat16* rounded = nullptr;  // (B,H,C,E), without top_k and with bfloat16 storage: V^c
};

/// Keys of one stretch: stretches meet in order, and are cut by the number of keys alone. There are
/// at most kMostStretches.
int64_t pass_stretch(int64_t key_length);
constexpr int kMostStretches = 64;

/// Two launches: one over tiles of clusters and stretches of keys, one that joins the stretches;
/// the second one also writes the problem's labels, counts, indices, cluster_values and
/// cluster_logsumexp, and the zeros of queries in no cluster. The arrays live in `scope`.
Status clustered_pass(Session& session, DeviceWorkspace::Scope& scope,
                      const ClusteredAttentionProblem& problem, const Call& call,
                      const QueryGroups& groups, const KeysAndValues& operands,
                      ClusteredPass* pass);

}  // namespace cluster_attention::cuda
