#pragma once

// Centroid attention with the softmax over the inputs, for each centroid on its own:
// a_ji = w_i exp(tau q_j.k_i) / sum_i' w_i' exp(tau q_j.k_i'), output_j = sum_i a_ji v_i.
//
// Method: centroids in lanes, the online softmax over parts of the inputs, parts merged in order.
// Labels, argmax_j a_ji = argmax_j (tau q_j.k_i - logsumexp_j), take a second pass over the scores
// with inputs in lanes. Precision: fp32, the objective in double.

#include "native/kernels/assignment.h"
#include "native/kernels/centroid_sequence.h"

namespace cluster_attention::kernels {

class SoftmaxOverInputs {
 public:
  /// Takes all the memory that run() needs. Both arguments must outlive this object.
  Status prepare(const CentroidAttentionProblem& problem, const ActiveInputs& active,
                 Context& context);
  /// May run any number of times on changing contents.
  Status run(Context& context);

 private:
  /// State of the online softmax of one tile of centroids over one part of the inputs.
  struct TileState {
    float* maximum;  // (lanes)
    float* sum;      // (lanes)
    float* minimum;  // (lanes)
    float* output;   // (E,lanes)
  };
  struct Scratch {
    float* query = nullptr;   // (D,lanes)
    float* scores = nullptr;  // (kKeyBlock,lanes)
    float* key = nullptr;     // (kKeyBlock,D), gathered rows
    float* value = nullptr;   // (kKeyBlock,E)
    AssignmentTile labels;
  };

  Status allocate_scratch(Context& context);
  TileState state(int64_t sequence, int64_t tile, int64_t part) const;
  void pass(int64_t sequence, int64_t tile, int64_t part, const Scratch& scratch,
            Context& context) const;
  void join_parts(int64_t sequence, int64_t tile, int64_t parts, int64_t columns) const;
  void merge(int64_t sequence, int64_t tile, Context& context) const;
  void label(int64_t sequence, int64_t first_input, Scratch& scratch, Context& context) const;

  const CentroidAttentionProblem* problem_ = nullptr;
  const ActiveInputs* active_ = nullptr;
  int64_t lanes_ = 0;
  int64_t tiles_ = 0;                    // per sequence
  int64_t parts_ = 0;                    // of the longest sequence
  int64_t state_size_ = 0;               // floats of a TileState
  float* states_ = nullptr;              // (B*H,tiles,parts) TileStates
  double* objective_ = nullptr;          // (B*H,tiles)
  float* negative_logsumexp_ = nullptr;  // (B*H,M)
  Scratch* scratch_ = nullptr;           // (workers)
};

}  // namespace cluster_attention::kernels
