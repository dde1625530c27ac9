#pragma once

// Backward of centroid attention (centroid_attention_gradient.h) in which centroid j meets only the
// inputs that neighbors[j] lists. Work and memory are proportional to the M*K listed pairs.
//
// Method, for a group of sequences at a time: logits and x of all (centroid, slot) places; then
// each input gathers the places that list it, finishes them, and sums its gradients over their
// queries and output gradients; then each centroid sums over its keys. Precision: fp32.

#include "native/kernels/centroid_output_gradient.h"
#include "native/kernels/centroid_sequence.h"
#include "native/kernels/neighbor_lists.h"

namespace cluster_attention::kernels {

class NeighborGradient {
 public:
  /// Takes all the memory that run() needs. The arguments must outlive this object;
  /// `weight_terms` (B,H,N) may be null.
  Status prepare(const CentroidAttentionGradientProblem& problem, const ActiveInputs& active,
                 const CentroidOutputGradient& output, float* weight_terms, Context& context);
  /// May run any number of times on changing contents. Every sequence has its own inputs.
  Status run(bool accumulate, Context& context);

 private:
  struct Scratch {
    float* share = nullptr;   // (M), of the places of one input
    float* change = nullptr;  // (M)
    float* rows = nullptr;    // (kRowsPerProduct, max(D,E) rounded up), gathered
    float* sum = nullptr;     // (max(D,E) rounded up)
  };
  /// One sequence, where its places are kept, and what surrounds it.
  struct Sequence {
    CentroidSequence view;
    int64_t index;
    float* share;   // (M,K): logits in base 2 or the softmax's values, then a
    float* change;  // (M,K): x, then dz
    bool accumulate;
  };

  Status allocate_scratch(Context& context);
  template <typename Body>
  Status for_each(int64_t first, int64_t count, bool accumulate, int64_t items,
                  int64_t items_per_task, Context& context, Body body);
  void score(const Sequence& sequence, int64_t centroid) const;
  void finish_input(const Sequence& sequence, int64_t input, const Scratch& scratch,
                    Context& context) const;
  void differentiate(const Sequence& sequence, int64_t input, int64_t count,
                     const Scratch& scratch) const;
  void finish_centroid(const Sequence& sequence, int64_t centroid, const Scratch& scratch,
                       Context& context) const;
  template <typename Row>
  bool write_sum(const float* factors, int64_t count, Row row, int64_t dim, float scale,
                 bool accumulate, const Scratch& scratch, float* target) const;

  const CentroidAttentionGradientProblem* problem_ = nullptr;
  const ActiveInputs* active_ = nullptr;
  const CentroidOutputGradient* output_ = nullptr;
  float* weight_terms_ = nullptr;
  NeighborLists lists_;
  int64_t group_ = 0;           // sequences at a time
  float* share_ = nullptr;      // (group,M,K)
  float* change_ = nullptr;     // (group,M,K)
  Scratch* scratch_ = nullptr;  // (workers)
};

}  // namespace cluster_attention::kernels
