#pragma once

// Centroid attention in which centroid j meets only the inputs that neighbors[j] lists (point
// clouds). Work and memory are proportional to the M*K listed pairs.
//
// Method, for a group of sequences at a time: scores of all (centroid, slot) places; with the
// softmax over centroids each input normalises the places that list it, found by a counting sort;
// with the softmax over inputs each centroid normalises its own slots. Then every centroid gathers
// its value rows and sums them in slot order. Precision: fp32, masses and the objective in double.

#include "native/kernels/centroid_sequence.h"
#include "native/kernels/neighbor_lists.h"

namespace cluster_attention::kernels {

class NeighborAttention {
 public:
  /// Takes all the memory that run() needs. The arguments must outlive this object.
  Status prepare(const CentroidAttentionProblem& problem, const ActiveInputs& active,
                 Context& context);
  /// May run any number of times on changing contents.
  Status run(Context& context);

 private:
  struct Scratch {
    float* terms = nullptr;   // (max(K,M)), one softmax
    float* values = nullptr;  // (kRowsPerProduct, E rounded up), gathered rows
    float* output = nullptr;  // (E rounded up)
  };

  /// Range of sequences whose scores are in memory at the same time.
  struct Group {
    int64_t first;
    int64_t count;
  };

  template <typename Body>
  Status for_each(const Group& group, int64_t items, int64_t items_per_task, double* objective,
                  Context& context, Body body);
  Status run_over_centroids(const Group& group, Context& context);
  Status run_over_inputs(const Group& group, Context& context);
  void score(const CentroidSequence& sequence, int64_t centroid, float* scores,
             Context& context) const;
  double normalize_over_centroids(const CentroidSequence& sequence, int64_t input, float* scores,
                                  const Scratch& scratch) const;
  double normalize_over_inputs(const CentroidSequence& sequence, int64_t centroid, float* scores,
                               const Scratch& scratch) const;
  int64_t gather(const CentroidSequence& sequence, int64_t input, const float* scores,
                 const Scratch& scratch) const;
  void label(const CentroidSequence& sequence, int64_t input, const float* scores,
             const Scratch& scratch) const;
  void sum(const CentroidSequence& sequence, int64_t centroid, const float* assignment,
           const Scratch& scratch, Context& context) const;

  const CentroidAttentionProblem* problem_ = nullptr;
  const ActiveInputs* active_ = nullptr;
  NeighborLists lists_;
  int64_t group_ = 0;            // sequences at a time
  int64_t parts_ = 0;            // of the objective, per sequence
  float* scores_ = nullptr;      // (group,M,K), logits in base 2, then assignments
  double* objective_ = nullptr;  // (B*H,parts)
  Scratch* scratch_ = nullptr;   // (workers)
};

}  // namespace cluster_attention::kernels
