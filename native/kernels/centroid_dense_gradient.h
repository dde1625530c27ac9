#pragma once

// Backward of centroid attention (centroid_attention_gradient.h) where every centroid meets every
// input.
//
// Method: the tile of the forward pass, inputs in lanes, scored again against every centroid; five
// products per tile (scores, x, and the gradients by value, key and query) instead of the forward's
// two, and nothing of size M x N in memory. Gradients by key and value belong to the tile; those by
// query are summed per part of the inputs, parts merged in order. Sequences that share their inputs
// (head stride 0) share their gradients: the tile sums over them.
// Precision: fp32; sums over centroids in blocks, sums over inputs as in assignment.h.

#include "native/kernels/assignment.h"
#include "native/kernels/centroid_output_gradient.h"
#include "native/kernels/centroid_sequence.h"

namespace cluster_attention::kernels {

class DenseGradient {
 public:
  /// Takes all the memory that run() needs. The arguments must outlive this object;
  /// `weight_terms` (B,H,N) may be null.
  Status prepare(const CentroidAttentionGradientProblem& problem, const ActiveInputs& active,
                 const CentroidOutputGradient& output, float* weight_terms, Context& context);
  /// May run any number of times on changing contents.
  Status run(bool accumulate, Context& context);

 private:
  /// Scratch of one worker.
  struct Tile {
    AssignmentTile inputs;       // packed keys; scores, of a chunk of centroids; key rows
    float* value = nullptr;      // (E,lanes), packed
    float* change = nullptr;     // (chunk,lanes): x, then dz
    float* weights = nullptr;    // (lanes)
    float* total = nullptr;      // (lanes): dw, of a chunk
    float* scale = nullptr;      // (lanes), tau in all of them
    float* key_sum = nullptr;    // (D,lanes): sum_j dz_ji q_j
    float* value_sum = nullptr;  // (E,lanes): dv
    float* rows = nullptr;       // (lanes,max(D,E)), gradients on their way to memory

    bool allocate(const AttentionShape& shape, int64_t chunk, float tau, Workspace& workspace);
  };
  /// One tile of inputs: which of the active ones, and what all sequences of a group share.
  struct Columns {
    int64_t first;
    int64_t count;
    TileRows key;  // null rows where the gradient by query is not wanted
  };

  void pass(int64_t group, int64_t part, bool accumulate, const Tile& tile, Context& context);
  void pack(const CentroidSequence& sequence, int64_t first, int64_t count, const Tile& tile) const;
  void differentiate(int64_t sequence, const Columns& columns, int64_t part, bool first_tile,
                     bool first_member, const Tile& tile) const;
  void assign(const CentroidSequence& sequence, int64_t index, int64_t first_centroid,
              int64_t centroids, int64_t columns, const Tile& tile) const;
  bool write(const CentroidSequence& sequence, const Columns& columns, bool accumulate,
             const Tile& tile) const;
  void merge(int64_t sequence, int64_t first_centroid, Context& context) const;

  const CentroidAttentionGradientProblem* problem_ = nullptr;
  const ActiveInputs* active_ = nullptr;
  const CentroidOutputGradient* output_ = nullptr;
  float* weight_terms_ = nullptr;
  int64_t parts_ = 0;         // of the longest sequence
  int64_t group_size_ = 1;    // sequences that share their inputs: the heads, or one
  int64_t chunk_ = 0;         // centroids that are scored at a time
  Tile* tiles_ = nullptr;     // (workers)
  AssignmentSumsArray sums_;  // (B*H*parts): sum_i dz_ji k_i
};

}  // namespace cluster_attention::kernels
