#pragma once

// What the steps of CAST (§7) share within one call: the problem, and scratch memory. Sequences are
// taken in groups, and (sequence, head) pairs of a group in waves, so that memory stays bounded for
// any batch while small sequences still fill all threads. Neither changes a result: every number
// depends on its own sequence alone.

#include "native/core/context.h"
#include "native/core/problem.h"
#include "native/kernels/shortlist.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

/// Where a token sits: place `slot` among the members of a cluster.
struct CastSlot {
  int32_t cluster;
  int32_t slot;
};

/// Clusters among which a token of a single assignment chooses before its affinities are formed
/// again.
constexpr int64_t kClusterChoices = 8;

/// The scratch of one sequence of the group.
struct CastSequence {
  int64_t batch;   // in the problem
  int64_t tokens;  // real ones

  // Functions of the gate logits phi, (N).
  float* query_gate;    // sigma(phi), step 2
  float* key_gate;      // 1 - sigma(phi), step 2
  float* query_factor;  // softplus1(phi), step 6
  float* key_factor;    // softplus1(-phi), step 5

  // Top-K.
  float* affinity;        // A_g of a stretch: (C, affinity_stride)
  Shortlist* shortlists;  // (C), the best tokens of the stretches so far

  // Single assignment.
  Candidate* order;  // (N), each token with its best affinity
  int32_t* choices;  // (N,kClusterChoices), each token's best clusters, best first; -1: none
  int32_t* waiting;  // tokens that have no choice left
  int64_t waiting_count;
  int64_t served;  // tokens, of those in order

  // Step 3.
  int32_t* counts;   // (C), members of each cluster
  int32_t* members;  // (C,kappa), tokens; the first counts[c] of each row
  int64_t* offsets;  // (N+2), the slots of token n are slots[offsets[n]] .. slots[offsets[n+1]-1]
  CastSlot* slots;   // (C*kappa), by token, then by cluster

  /// The places of a token in its clusters, by ascending cluster.
  const CastSlot* begin_slots(int64_t token) const { return slots + offsets[token]; }
  const CastSlot* end_slots(int64_t token) const { return begin_slots(token + 1); }
};

struct CastState {
  CastState(const CastAttentionProblem& cast_problem, Context& cast_context)
      : problem(cast_problem), context(cast_context), simd(cluster_attention::simd()) {}

  const CastAttentionProblem& problem;
  Context& context;
  const Simd& simd;

  int64_t group = 0;            // sequences processed together
  int64_t wave = 0;             // (sequence, head) pairs processed together, at most group * H
  int64_t stretch = 0;          // tokens that are scored together: all but for Top-K
  int64_t affinity_stride = 0;  // from cluster to cluster; not a power of two
  float* packed_surrogates = nullptr;  // (H, tiles of lanes clusters, D, lanes), step 1
  CastSequence* sequences = nullptr;   // (group)

  // Steps 4 and 5. What is kept of a pair (of the forward, R_intra (C,kappa,E)) lies where A_g lay:
  // A_g is not needed once the members are known.
  float* pairs = nullptr;  // (wave,pair_size)
  float* inter = nullptr;  // R_inter (wave,C,E)

  /// `pair_size`: floats that are kept of each pair of a wave, -1 when too many to count;
  /// `scratch_size`: floats of scratch that a worker needs.
  Status allocate(int64_t pair_size, int64_t scratch_size);
  /// The group of `count` sequences from `first_batch` on.
  void begin_group(int64_t first_batch, int64_t count);

  float* scratch(int worker) const { return scratch_ + worker * scratch_size_; }

  bool selects() const { return problem.selection != Selection::given; }
  /// What multiplies the logits of a product with `keys` keys.
  float product_scale(int64_t keys) const;

 private:
  Status allocate_sequences();
  Status allocate_shortlists();
  Status allocate_choices();

  float* scratch_ = nullptr;
  int64_t scratch_size_ = 0;
};

}  // namespace cluster_attention::kernels
