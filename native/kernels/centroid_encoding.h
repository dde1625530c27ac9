#pragma once

// The steps of the learned layer (centroid_encode.h), one at a time: its backward runs them again.

#include "native/core/absorption.h"
#include "native/core/context.h"
#include "native/core/problem.h"
#include "native/kernels/active_inputs.h"
#include "native/kernels/centroid_attention.h"
#include "native/kernels/centroid_start.h"
#include "native/kernels/project_rows.h"

namespace cluster_attention::kernels {

class CentroidEncoding {
 public:
  /// `problem` and `context` must outlive this object.
  CentroidEncoding(const CentroidEncodeProblem& problem, bool absorbed, Context& context)
      : problem_(problem),
        context_(context),
        width_(problem.heads * problem.head_dim),
        rows_(problem.batch * problem.centroids),
        absorbed_(absorbed) {}

  /// Which inputs take part, and so how many centroids are real. To be called first.
  Status find_active();
  /// u⁰ into `centroids`.
  Status start(float* centroids);  // (batch,M,d)
  /// Everything that the steps share. `with_state`: attend() also finds what the backward of the
  /// attention reads.
  Status prepare(bool with_state);
  /// query() and collected() of the centroids u.
  Status attend(const float* u);
  /// u += step_size W_o collected.
  Status add_change(float* u);

  int64_t width() const { return width_; }
  int64_t rows() const { return rows_; }
  const int32_t* real_centroids() const { return centroids_; }  // (batch)
  const float* query() const { return query_; }                 // (batch,M,H*D)
  /// The attention's output with values projected.
  const float* collected() const { return collected_; }  // (batch,M,H*D)
  const CentroidAttentionProblem& attention() const { return attention_problem_; }
  /// Adds the gradient by u⁰ to that by the inputs.
  void add_start_gradient(const float* gradient, float* inputs) const;

 private:
  CentroidStart start_of(int64_t batch) const;
  Status start_sequence(int64_t batch, float* gathered, float* centroids);
  Status prepare_projected();
  Status prepare_absorbed();
  Status prepare_attention(int64_t dim);

  const CentroidEncodeProblem& problem_;
  Context& context_;
  const int64_t width_;  // H*D
  const int64_t rows_;   // batch*M
  const bool absorbed_;

  ActiveInputs active_;
  int64_t* chosen_ = nullptr;            // (batch,M), which active inputs the start has taken
  int32_t* centroids_ = nullptr;         // (batch), the real ones
  PackedWeight query_weight_;            // W_q
  PackedWeight output_weight_;           // W_o
  PackedWeight key_absorption_;          // W_k,l per head, transposed
  PackedWeight value_absorption_;        // W_v,l per head
  float* query_ = nullptr;               // (batch,M,H*D)
  float* collected_ = nullptr;           // (batch,M,H*D)
  float* change_ = nullptr;              // (batch,M,d)
  float* absorbed_query_ = nullptr;      // (batch,M,H,d)
  float* absorbed_collected_ = nullptr;  // (batch,M,H,d)
  CentroidAttentionProblem attention_problem_;
  CentroidAttention attention_;
};

}  // namespace cluster_attention::kernels
