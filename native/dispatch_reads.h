#pragma once

// Which rows of an argument take part in a result: one predicate per argument that is read in part.

#include <algorithm>
#include <cstdint>

#include "native/core/problem.h"
#include "native/core/tensor.h"

namespace cluster_attention::reading {

inline bool contains(const int32_t* values, int64_t count, int64_t wanted) {
  return std::find(values, values + count, static_cast<int32_t>(wanted)) != values + count;
}

/// Makes a ReadsRow of a predicate on the problem itself.
template <typename Problem, bool (*predicate)(const Problem&, int64_t, int64_t, int64_t)>
bool reads(const void* problem, int64_t batch, int64_t head, int64_t row) {
  return predicate(*static_cast<const Problem*>(problem), batch, head, row);
}

/// A query reads the keys that it sees, and is read itself where there are any.
inline bool sees_keys(const AttentionProblem& problem, int64_t b, int64_t, int64_t row) {
  const AttentionInputs& inputs = problem.inputs;
  const int64_t keys = real_length(inputs.key_lengths, b, inputs.shape.key_length);
  if (!problem.causal) return keys > 0;
  return row + keys >= real_length(inputs.query_lengths, b, inputs.shape.query_length);
}

/// The last query of a sequence sees all keys.
inline bool seen(const AttentionProblem& problem, int64_t b, int64_t, int64_t) {
  const AttentionInputs& inputs = problem.inputs;
  return real_length(inputs.query_lengths, b, inputs.shape.query_length) > 0;
}

inline bool in_cluster(const ClusteredAttentionProblem& problem, int64_t b, int64_t h,
                       int64_t row) {
  const AttentionShape& shape = problem.inputs.shape;
  return problem.grouping != Grouping::given ||
         problem.given_labels[(b * shape.heads + h) * shape.query_length + row] >= 0;
}

// A gradient goes by the labels that the forward call has found.
inline bool labelled(const ClusteredAttentionProblem& problem, int64_t b, int64_t h, int64_t row) {
  const AttentionShape& shape = problem.inputs.shape;
  return problem.labels[(b * shape.heads + h) * shape.query_length + row] >= 0;
}

inline bool member(const AggregateProblem& problem, int64_t b, int64_t h, int64_t row) {
  return problem.labels[(b * problem.heads + h) * problem.length + row] >= 0;
}

inline bool has_members(const AggregateProblem& problem, int64_t sequence, int64_t,
                        int64_t cluster) {
  return contains(problem.labels + sequence * problem.length, problem.length, cluster);
}

inline bool taken(const BroadcastProblem& problem, int64_t b, int64_t, int64_t row) {
  return contains(problem.labels + b * problem.length, problem.length, row);
}

inline bool takes(const BroadcastProblem& problem, int64_t b, int64_t, int64_t row) {
  return problem.labels[b * problem.length + row] >= 0;
}

/// Inputs of centroid attention are read unless their weight is 0 or no centroid lists them.
inline bool active(const float* weights, const int32_t* neighbors, int64_t b, int64_t length,
                   int64_t listed_per_batch, int64_t row) {
  if (weights != nullptr && weights[b * length + row] == 0.0f) return false;
  return neighbors == nullptr || contains(neighbors + b * listed_per_batch, listed_per_batch, row);
}

inline bool active_input(const CentroidAttentionProblem& problem, int64_t b, int64_t, int64_t row) {
  const AttentionShape& shape = problem.inputs.shape;
  return active(problem.weights, problem.neighbors, b, shape.key_length,
                shape.query_length * problem.neighbor_count, row);
}

inline bool active_row(const CentroidEncodeProblem& problem, int64_t b, int64_t, int64_t row) {
  return active(problem.weights, problem.neighbors, b, problem.length,
                problem.centroids * problem.neighbor_count, row);
}

/// Centroids of the learned layer that are not rows of zeros.
inline bool real_centroid(const CentroidEncodeProblem& problem, int64_t b, int64_t, int64_t row) {
  if (problem.start == PoolStart::given) return true;
  if (problem.weights == nullptr) return row < problem.length;
  const float* weights = problem.weights + b * problem.length;
  return row < problem.length - std::count(weights, weights + problem.length, 0.0f);
}

// Given centroids are read up to the clamp to the sequence's real length.
inline bool within_clamp(const CentroidPoolProblem& problem, int64_t b, int64_t, int64_t row) {
  return row < real_length(problem.lengths, b, problem.length);
}

inline bool within_clamp(const KMeansProblem& problem, int64_t sequence, int64_t, int64_t row) {
  return row < real_length(problem.lengths, sequence / problem.heads, problem.length);
}

/// The listed keys of one query, nullptr when it has none.
inline const int32_t* listed_keys(const SparseIndices& sparse, const AttentionShape& shape,
                                  int64_t sequence, int64_t query) {
  const int64_t row = sequence * shape.query_length + query;
  if (sparse.labels == nullptr) return sparse.indices + row * sparse.k;
  if (sparse.labels[row] < 0) return nullptr;
  return sparse.indices + (sequence * sparse.clusters + sparse.labels[row]) * sparse.k;
}

/// Keys of sparse products are read when a real query lists them.
template <typename Problem>
bool listed(const Problem& problem, int64_t b, int64_t h, int64_t row) {
  const AttentionShape& shape = problem.shape;
  const int64_t queries = real_length(problem.query_lengths, b, shape.query_length);
  for (int64_t query = 0; query < queries; ++query) {
    const int32_t* keys = listed_keys(problem.sparse, shape, b * shape.heads + h, query);
    if (keys != nullptr && contains(keys, problem.sparse.k, row)) return true;
  }
  return false;
}

/// Slots (row = query * k + place) that hold a real key.
template <typename Problem>
bool filled(const Problem& problem, int64_t sequence, int64_t, int64_t row) {
  const AttentionShape& shape = problem.shape;
  const int64_t k = problem.sparse.k;
  const int64_t b = sequence / shape.heads;
  if (row / k >= real_length(problem.query_lengths, b, shape.query_length)) return false;
  const int32_t* keys = listed_keys(problem.sparse, shape, sequence, row / k);
  return keys != nullptr && keys[row % k] >= 0 &&
         keys[row % k] < real_length(problem.key_lengths, b, shape.key_length);
}

/// Queries with at least one real key.
template <typename Problem>
bool lists_key(const Problem& problem, int64_t b, int64_t h, int64_t query) {
  const int64_t k = problem.sparse.k;
  for (int64_t place = 0; place < k; ++place) {
    if (filled(problem, b * problem.shape.heads + h, 0, query * k + place)) return true;
  }
  return false;
}

}  // namespace cluster_attention::reading
