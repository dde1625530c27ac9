#pragma once

// Step 3 of CAST (§7): which tokens each cluster holds, and where each token sits.
//
//   select_members    Top-K: each cluster takes the kappa best tokens of its column, best first
//   assign_members    single assignment: tokens by descending best A_g; each goes to its best
//                     cluster with room
//   take_members      given indices, checked
//
// Single assignment is the serial rule, made in rounds: a round's tokens choose among the clusters
// that are open at its start, and all before the first one whose choice is full by then are served;
// the others choose again. Every round serves at least one token, and all of them unless a cluster
// fills up: at most N / 256 + C rounds.

#include "cuda/block_selection.cuh"
#include "cuda/block_sort.cuh"
#include "cuda/cast_params.cuh"

namespace cluster_attention::cuda {

constexpr int kSelectionThreads = 256;
/// The most members that are sorted in shared memory.
constexpr int64_t kSharedMembers = BlockSelection::kMost;

struct SelectionLayout {
  int64_t scratch;
  int64_t list_scratch;  // of longer lists
  int64_t candidates;
  int64_t bytes;
};

CA_HOST_DEVICE inline SelectionLayout selection_layout(int64_t cluster_size) {
  SharedLayout parts;
  SelectionLayout layout;
  const int64_t size = next_power_of_two(cluster_size);
  layout.scratch = parts.add<BlockSelection::Scratch>(1);
  layout.list_scratch = parts.add<SelectionScratch>(1);
  layout.candidates = parts.add<unsigned long long>(size <= kSharedMembers ? size : 0);
  layout.bytes = parts.bytes();
  return layout;
}

__global__ void __launch_bounds__(kBlockSelectionThreads) select_members(const CastParams params) {
  // affinity: (N) of one cluster -> members: (kappa), slots: (N), of members alone
  constexpr int kThreads = kBlockSelectionThreads;
  const int64_t list = blockIdx.x;
  const int64_t tokens = params.real_tokens(list / params.clusters);
  const int64_t size = params.cluster_size < tokens ? params.cluster_size : tokens;
  const SelectionLayout layout = selection_layout(params.cluster_size);
  const bool in_shared = next_power_of_two(params.cluster_size) <= kSharedMembers;
  unsigned long long* candidates = in_shared ? dynamic_shared<unsigned long long>(layout.candidates)
                                             : params.order + list * params.order_size;
  const float* affinity = params.affinity + list * params.tokens;
  int32_t* slots = params.slots + list * params.tokens;
  BlockSelection selection(*dynamic_shared<BlockSelection::Scratch>(layout.scratch));
  const bool done = size > 0 && in_shared && size <= BlockSelection::kMostQuickly &&
                    selection.run_quickly(affinity, tokens, static_cast<int>(size), candidates);
  if (size > 0 && !done) {
    if (in_shared) {
      selection.run(affinity, tokens, static_cast<int>(size), candidates);
    } else {
      select_largest(affinity, tokens, size, candidates,
                     *dynamic_shared<SelectionScratch>(layout.list_scratch));
    }
    const int64_t padded = next_power_of_two(size);
    for (int64_t i = size + threadIdx.x; i < padded; i += kThreads) candidates[i] = 0;
    __syncthreads();
    sort_descending(candidates, padded);
  }
  __syncthreads();
  for (int64_t slot = threadIdx.x; slot < params.cluster_size; slot += kThreads) {
    const int64_t place = list * params.cluster_size + slot;
    const int32_t token = slot < size ? candidate_index(candidates[slot]) : -1;
    if (slot < size) {
      params.members[place] = token;
      slots[token] = static_cast<int32_t>(slot);
    }
    if (params.indices != nullptr) params.indices[place] = token;
  }
  if (threadIdx.x == 0) params.counts[list] = static_cast<int32_t>(size);
}

/// What the threads of assign_members() tell each other.
struct RoundData {
  int32_t choice[kSelectionThreads];
  int32_t refused;  // the first token whose choice is full
};

/// The best cluster with room for a token, -1 when none is open. By one warp.
__device__ inline int32_t choose_cluster(const CastParams& params, const float* affinity,
                                         const int32_t* counts) {
  unsigned long long best = 0;
  for (int64_t cluster = lane_index(); cluster < params.clusters; cluster += kWarp) {
    if (counts[cluster] >= params.cluster_size) continue;
    const unsigned long long candidate =
        make_candidate(affinity[cluster], static_cast<int32_t>(cluster));
    best = candidate > best ? candidate : best;
  }
  best = warp_max(best);
  return best == 0 ? -1 : candidate_index(best);
}

__global__ void __launch_bounds__(kSelectionThreads) assign_members(const CastParams params) {
  // affinity: (N,C), order: (N) of one sequence -> members: (C,kappa), own_slot: (N)
  const int64_t batch = blockIdx.x;
  const int64_t tokens = params.real_tokens(batch);
  const int thread = static_cast<int>(threadIdx.x);
  RoundData& round = *dynamic_shared<RoundData>();
  unsigned long long* order = params.order + batch * params.order_size;
  int32_t* counts = params.counts + batch * params.clusters;
  int32_t* members = params.members + batch * params.clusters * params.cluster_size;
  const int64_t padded = next_power_of_two(tokens);
  for (int64_t i = tokens + thread; i < padded; i += kSelectionThreads) order[i] = 0;
  for (int64_t c = thread; c < params.clusters; c += kSelectionThreads) counts[c] = 0;
  __syncthreads();
  sort_descending(order, padded);

  for (int64_t visit = 0; visit < tokens;) {
    const int size =
        static_cast<int>(tokens - visit < kSelectionThreads ? tokens - visit : kSelectionThreads);
    for (int i = warp_index(); i < size; i += kSelectionThreads / kWarp) {
      const int64_t token = candidate_index(order[visit + i]);
      const int32_t choice = choose_cluster(
          params, params.affinity + (batch * params.tokens + token) * params.clusters, counts);
      if (lane_index() == 0) round.choice[i] = choice;
    }
    if (thread == 0) round.refused = size;
    __syncthreads();
    if (round.choice[0] < 0) break;  // all clusters are full
    const int32_t cluster = thread < size ? round.choice[thread] : -1;
    int32_t slot = 0;
    if (cluster >= 0) {
      slot = counts[cluster];
      for (int i = 0; i < thread; ++i) slot += round.choice[i] == cluster ? 1 : 0;
      if (slot >= params.cluster_size) atomicMin(&round.refused, thread);
    }
    __syncthreads();
    const int served = round.refused;
    if (thread < served) {
      const int64_t token = candidate_index(order[visit + thread]);
      members[cluster * params.cluster_size + slot] = static_cast<int32_t>(token);
      params.own_slot[batch * params.tokens + token] = slot;
      atomicAdd(counts + cluster, 1);
    }
    visit += served;
    __syncthreads();
  }
  __syncthreads();
  if (params.indices == nullptr) return;
  for (int64_t i = thread; i < params.clusters * params.cluster_size; i += kSelectionThreads) {
    const bool filled = i % params.cluster_size < counts[i / params.cluster_size];
    params.indices[batch * params.clusters * params.cluster_size + i] = filled ? members[i] : -1;
  }
}

__global__ void __launch_bounds__(kSelectionThreads) take_members(const CastParams params) {
  // given: (kappa) of one cluster -> members: (kappa), slots: (N); also a share of the gates
  const int64_t list = blockIdx.x;
  const int64_t batch = list / params.clusters;
  const int64_t cluster = list % params.clusters;
  const int64_t tokens = params.real_tokens(batch);
  int32_t* scan = dynamic_shared<int32_t>();
  int32_t* slots = params.slots + list * params.tokens;
  if (cluster == 0 && threadIdx.x == 0) params.covered[batch] = 0;
  for (int64_t n = cluster * kSelectionThreads + threadIdx.x; n < tokens;
       n += params.clusters * kSelectionThreads) {
    open_gate(params, batch, n);
    params.clear_memberships(batch, n);
  }
  constexpr int32_t kFree = 0x7fffffff;
  for (int64_t n = threadIdx.x; n < params.tokens; n += kSelectionThreads) slots[n] = kFree;
  __syncthreads();
  // The lowest slot of a token keeps it; it is named by its place in the list for now.
  for (int64_t slot = threadIdx.x; slot < params.cluster_size; slot += kSelectionThreads) {
    const int32_t token = params.given[list * params.cluster_size + slot];
    if (token >= 0 && token < tokens) atomicMin(slots + token, static_cast<int32_t>(slot));
  }
  __syncthreads();
  int32_t size = 0;
  for (int64_t first = 0; first < params.cluster_size; first += kSelectionThreads) {
    const int64_t slot = first + threadIdx.x;
    const int64_t place = list * params.cluster_size + slot;
    const int32_t token = slot < params.cluster_size ? params.given[place] : -1;
    if (token < -1 || token >= params.tokens) {
      mark_fault(params.flags, IndexFault::out_of_range, IndexArgument::indices, place);
    }
    const bool real = token >= 0 && token < tokens;
    const bool keeps = real && slots[token] == slot;
    if (real && !keeps) {
      mark_fault(params.flags, IndexFault::duplicate, IndexArgument::indices, place);
    }
    if (params.indices != nullptr && slot < params.cluster_size) {
      params.indices[place] = real ? token : -1;
    }
    int32_t total = 0;
    const int32_t rank = size + block_exclusive_sum<int32_t>(keeps ? 1 : 0, scan, &total);
    if (keeps) params.members[list * params.cluster_size + rank] = token;
    size += total;
  }
  __syncthreads();
  for (int64_t n = threadIdx.x; n < params.tokens; n += kSelectionThreads) slots[n] = -1;
  __syncthreads();
  for (int64_t slot = threadIdx.x; slot < size; slot += kSelectionThreads) {
    slots[params.members[list * params.cluster_size + slot]] = static_cast<int32_t>(slot);
  }
  if (threadIdx.x == 0) params.counts[list] = size;
}

}  // namespace cluster_attention::cuda
