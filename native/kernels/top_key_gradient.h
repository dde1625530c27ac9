#pragma once

// The queries of one cluster and its top keys: what improved clustered attention adds to plain
// clustered attention, differentiated (clustered_attention_gradient.h).
//
// Method: the k key and value rows are gathered once per cluster and packed into lanes; per tile of
// queries five products: scores and x (queries by keys), dq, and the rows of dk and dv. Queries and
// gradients stay rows, so that none of them has to be transposed and small clusters waste no lanes.

#include <cstdint>

#include "native/core/context.h"
#include "native/core/gradient_problem.h"
#include "native/kernels/query_groups.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

/// One cluster, and where its results go.
struct ClusterTerms {
  int64_t batch = 0;
  int64_t head = 0;
  const int32_t* members = nullptr;  // (count)
  int64_t count = 0;
  const int32_t* top_keys = nullptr;  // (k), -1 past the last
  const float* mean = nullptr;        // (D): q̄
  const float* gradient = nullptr;    // (E): G
  const float* value = nullptr;       // (E): V^c
  float maximum = 0.0f;               // log-sum-exp of q̄, base 2
  float* key_rows = nullptr;          // (k, padded D): sum_i y_it q_i
  float* value_rows = nullptr;        // (k, padded E): sum_i m̂ p_it g_i
  float* offset = nullptr;            // delta
  float* change = nullptr;            // mu
};

class TopKeyGradient {
 public:
  /// Takes all the memory that run() needs.
  Status prepare(const ClusteredAttentionGradientProblem& problem, Context& context);
  /// Writes the terms of a cluster, and of dq the part that goes through p. False if a gradient is
  /// not finite. While it computes, the memory fetches what run() will read first of `next`, the
  /// cluster after this one; null: there is none.
  bool run(const ClusterTerms& cluster, const ClusterTerms* next, int worker) const;

  int64_t padded_dim() const { return padded_dim_; }
  int64_t padded_value_dim() const { return padded_value_dim_; }

 private:
  /// Scratch of one worker.
  struct Scratch {
    float* key_rows;        // (k, padded D)
    float* key;             // (stride / lanes, D, lanes): T_j, `lanes` keys at a time in lanes
    float* value;           // (stride / lanes, E, lanes)
    float* share;           // (stride): A at T_j
    float* slope;           // (stride): G·v_t
    float* query;           // (lanes, padded D)
    float* gradient;        // (lanes, padded E)
    float* weights;         // (lanes, stride): p, then m̂ p
    float* change;          // (lanes, stride): x, then y
    float* query_gradient;  // (lanes, padded D)
    float* total;           // (lanes): x̄
  };
  struct Top {
    int64_t keys = 0;
    double mass = 0.0;   // m̂
    double slope = 0.0;  // sum_t A_jt G·v_t
  };

  Scratch carve(int worker, int64_t& size) const;
  void prefetch_members(const ClusterTerms& cluster, int64_t first) const;
  void prefetch_targets(const ClusterTerms& cluster, int64_t first, int64_t rows) const;
  void prefetch_keys(const ClusterTerms& cluster) const;
  void multiply_keys(const float* rows, int64_t row_stride, int64_t count, int64_t dim,
                     const float* packed, int64_t keys, float* product) const;
  Top gather(const ClusterTerms& cluster, const Scratch& scratch) const;
  bool differentiate(const ClusterTerms& cluster, int64_t first, const Top& top,
                     const Scratch& scratch, double& mass_gradient) const;
  bool weigh(const ClusterTerms& cluster, int64_t first, int64_t rows, const Top& top,
             const Scratch& scratch) const;
  bool write_queries(const ClusterTerms& cluster, int64_t first, int64_t rows, int64_t keys,
                     const Scratch& scratch) const;

  const ClusteredAttentionGradientProblem* problem_ = nullptr;
  bool wants_change_ = false;  // a gradient that goes through the logits
  int64_t padded_dim_ = 0;
  int64_t padded_value_dim_ = 0;
  int64_t stride_ = 0;  // of k numbers of a query: whole tiles of lanes
  int64_t scratch_size_ = 0;
  float* scratch_ = nullptr;  // (workers, scratch_size)
};

}  // namespace cluster_attention::kernels
