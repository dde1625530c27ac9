#pragma once

// Which rows of an argument take part in a result: of each argument that is read in part, whether a
// row does, or, where lists say so, those that do.

#include <algorithm>
#include <cstdint>

#include "native/core/problem.h"
#include "native/core/tensor.h"

namespace cluster_attention::reading {

/// Makes a MarkRows of a predicate on the problem and a row.
template <typename Problem, bool (*predicate)(const Problem&, int64_t, int64_t, int64_t)>
void reads(const void* problem, int64_t batch, int64_t head, int64_t rows, bool* read) {
  for (int64_t row = 0; row < rows; ++row) {
    read[row] = predicate(*static_cast<const Problem*>(problem), batch, head, row);
  }
}

/// Makes a MarkRows of what marks the rows of a problem.
template <typename Problem, void (*mark)(const Problem&, int64_t, int64_t, int64_t, bool*)>
void reads(const void* problem, int64_t batch, int64_t head, int64_t rows, bool* read) {
  mark(*static_cast<const Problem*>(problem), batch, head, rows, read);
}

/// Those of `rows` that are listed; -1 is none.
inline void mark_listed(const int32_t* list, int64_t count, int64_t rows, bool* read) {
  for (int64_t i = 0; i < count; ++i) {
    if (list[i] >= 0 && list[i] < rows) read[list[i]] = true;
  }
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

inline void have_members(const AggregateProblem& problem, int64_t sequence, int64_t, int64_t rows,
                         bool* read) {
  mark_listed(problem.labels + sequence * problem.length, problem.length, rows, read);
}

inline void taken(const BroadcastProblem& problem, int64_t b, int64_t, int64_t rows, bool* read) {
  mark_listed(problem.labels + b * problem.length, problem.length, rows, read);
}

inline bool takes(const BroadcastProblem& problem, int64_t b, int64_t, int64_t row) {
  return problem.labels[b * problem.length + row] >= 0;
}

/// Inputs of centroid attention are read unless their weight is 0 or no centroid lists them.
inline void mark_active(const float* weights, const int32_t* neighbors, int64_t b, int64_t length,
                        int64_t listed_per_batch, int64_t rows, bool* read) {
  if (neighbors == nullptr) {
    std::fill_n(read, rows, true);
  } else {
    mark_listed(neighbors + b * listed_per_batch, listed_per_batch, rows, read);
  }
  for (int64_t row = 0; weights != nullptr && row < rows; ++row) {
    read[row] = read[row] && weights[b * length + row] != 0.0f;
  }
}

inline void active_inputs(const CentroidAttentionProblem& problem, int64_t b, int64_t, int64_t rows,
                          bool* read) {
  const AttentionShape& shape = problem.inputs.shape;
  mark_active(problem.weights, problem.neighbors, b, shape.key_length,
              shape.query_length * problem.neighbor_count, rows, read);
}

inline void active_rows(const CentroidEncodeProblem& problem, int64_t b, int64_t, int64_t rows,
                        bool* read) {
  mark_active(problem.weights, problem.neighbors, b, problem.length,
              problem.centroids * problem.neighbor_count, rows, read);
}

/// Centroids of the learned layer that are not rows of zeros: as many as there are active inputs.
inline void real_centroids(const CentroidEncodeProblem& problem, int64_t b, int64_t, int64_t rows,
                           bool* read) {
  int64_t real = rows;
  if (problem.start != PoolStart::given) {
    real = std::min(rows, problem.length);
    if (problem.weights != nullptr) {
      const float* weights = problem.weights + b * problem.length;
      real = std::min(rows, problem.length - std::count(weights, weights + problem.length, 0.0f));
    }
  }
  std::fill_n(read, real, true);
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
void listed(const Problem& problem, int64_t b, int64_t h, int64_t rows, bool* read) {
  const AttentionShape& shape = problem.shape;
  const int64_t queries = real_length(problem.query_lengths, b, shape.query_length);
  for (int64_t query = 0; query < queries; ++query) {
    const int32_t* keys = listed_keys(problem.sparse, shape, b * shape.heads + h, query);
    if (keys != nullptr) mark_listed(keys, problem.sparse.k, rows, read);
  }
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
