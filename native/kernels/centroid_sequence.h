#pragma once

#include <cstdint>

#include "native/core/problem.h"
#include "native/kernels/active_inputs.h"

namespace cluster_attention::kernels {

/// One (batch, head) of a centroid attention problem.
struct CentroidSequence {
  int64_t batch = 0;
  int64_t head = 0;
  int64_t centroids = 0;           // the real ones
  int64_t inputs = 0;              // the active ones
  const int32_t* index = nullptr;  // (inputs), where they lie; null: in order
  const float* weights = nullptr;  // (inputs), null: all 1
  const float* query = nullptr;    // (M,D)
  int64_t query_stride = 0;
  const float* key = nullptr;  // (N,D)
  int64_t key_stride = 0;
  const float* value = nullptr;  // (N,E)
  int64_t value_stride = 0;
  float* output = nullptr;  // (M,E)
  int64_t output_stride = 0;
  int32_t* labels = nullptr;   // (N), null when not wanted
  float* masses = nullptr;     // (M), likewise
  float* logsumexp = nullptr;  // (M), likewise
};

CentroidSequence centroid_sequence(const CentroidAttentionProblem& problem,
                                   const ActiveInputs& active, int64_t sequence);

/// Parts into which the inputs of a sequence are cut, each summed on its own and then added in
/// order. A function of the sequence alone, so results depend neither on threads nor on the batch.
/// Partial sums of all parts together stay below twice the inputs in size.
int64_t input_parts(int64_t inputs, int64_t centroids);

/// The largest input_parts() of any sequence: what scratch memory is sized by.
int64_t maximum_input_parts(const CentroidAttentionProblem& problem, const ActiveInputs& active);

/// Packs inputs [first, first + columns) of those that `index` lists into the lanes of a tile.
void pack_inputs(const float* rows, int64_t row_stride, const int32_t* index, int64_t first,
                 int64_t columns, int64_t dim,
                 float* packed);  // (dim,lanes)

/// Asks for rows that the next tile will read: a tile reads many rows side by side, which the
/// processor does not foresee.
void prefetch_rows(const float* rows, int64_t row_stride, int64_t count, int64_t dim);

/// Scores of a negative scale are those of negated operands: the kernels see scales >= 0, and the
/// smallest dot product they report is -Inf for every Inf that would get the weight 0.
void negate(float* packed, int64_t count);

/// Natural log-sum-exp of a softmax state in base 2.
double log_sum_exp(float maximum, float sum);

/// objective[b] = sum over heads and parts of partial (B,H,parts), in that order.
void sum_objective(const double* partial, int64_t batch, int64_t heads, int64_t parts,
                   double* objective);  // (B)

}  // namespace cluster_attention::kernels
