#include "native/reference/clustered_attention.h"

#include <algorithm>

#include "native/reference/aggregate.h"
#include "native/reference/attention.h"
#include "native/reference/hamming_kmeans.h"
#include "native/reference/hash.h"
#include "native/reference/kmeans.h"

namespace cluster_attention::reference {

namespace {

Matrix scaled(Matrix matrix, double factor) {
  for (int64_t i = 0; i < matrix.rows(); ++i) {
    for (int64_t j = 0; j < matrix.columns(); ++j) matrix(i, j) *= factor;
  }
  return matrix;
}

/// The labels of the real queries of one sequence.
std::vector<int32_t> sequence_labels(const ClusteredAttentionProblem& problem,
                                     const std::vector<int32_t>& labels, int64_t batch,
                                     int64_t head) {
  const AttentionShape& shape = problem.inputs.shape;
  const auto first = labels.begin() + (batch * shape.heads + head) * shape.query_length;
  return {first, first + real_length(problem.inputs.query_lengths, batch, shape.query_length)};
}

/// Â_i: each query over its cluster's own k keys; p_it at column t.
Matrix top_weights(const Sequence& sequence, double scale, int64_t query,
                   const std::vector<int64_t>& top) {
  Matrix logits(1, static_cast<int64_t>(top.size()));
  for (size_t t = 0; t < top.size(); ++t) {
    double dot = 0.0;
    for (int64_t d = 0; d < sequence.query.columns(); ++d) {
      dot += sequence.query(query, d) * sequence.key(top[t], d);
    }
    logits(0, static_cast<int64_t>(t)) = scale * dot;
  }
  return softmax_rows(logits);
}

}  // namespace

std::vector<int32_t> clustered_labels(const ClusteredAttentionProblem& problem) {
  const AttentionInputs& inputs = problem.inputs;
  const AttentionShape& shape = inputs.shape;
  std::vector<int32_t> labels(shape.batch * shape.heads * shape.query_length, -1);
  for (int64_t sequence = 0; sequence < shape.batch * shape.heads; ++sequence) {
    const int64_t b = sequence / shape.heads;
    const int64_t h = sequence % shape.heads;
    const int64_t queries = real_length(inputs.query_lengths, b, shape.query_length);
    std::vector<int32_t> part;
    if (problem.grouping == Grouping::given) {
      const int32_t* given = problem.given_labels + sequence * shape.query_length;
      part.assign(given, given + queries);
    } else if (problem.grouping == Grouping::euclidean) {
      KMeansProblem one;
      one.batch = 1;
      one.length = queries;
      one.dim = shape.head_dim;
      one.clusters = problem.clusters;
      one.max_iterations = problem.iterations;
      one.seed = problem.seed;
      one.start = KMeansStart::sample;
      one.inputs = inputs.query;
      one.inputs.data = inputs.query.sequence(b, h);
      part = kmeans(one).labels;
    } else {
      const Matrix query = read_rows(inputs.query, b, h, queries, shape.head_dim);
      Matrix planes = read_dense(problem.planes, problem.bits, shape.head_dim + 1);
      if (problem.threshold == Threshold::data) {
        planes = with_data_thresholds(query, planes, problem.seed);
      }
      part = hamming_kmeans(hash(query, planes), problem.clusters, problem.iterations, problem.seed,
                            nullptr)
                 .labels;
    }
    std::copy(part.begin(), part.end(), labels.begin() + sequence * shape.query_length);
  }
  return labels;
}

std::vector<int32_t> clustered_indices(const ClusteredAttentionProblem& problem,
                                       const std::vector<int32_t>& labels) {
  const AttentionShape& shape = problem.inputs.shape;
  const int64_t k = problem.top_k;
  std::vector<int32_t> indices(shape.batch * shape.heads * problem.clusters * k, -1);
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t h = 0; h < shape.heads; ++h) {
      const Sequence sequence = read_sequence(problem.inputs, b, h);
      const std::vector<int32_t> own = sequence_labels(problem, labels, b, h);
      const std::vector<int32_t> counts = count_labels(own, problem.clusters);
      const Matrix means = aggregate(sequence.query, own, problem.clusters, Reduce::mean);
      const Matrix scores = multiply_transposed(means, sequence.key);
      for (int64_t j = 0; j < problem.clusters; ++j) {
        if (counts[j] == 0) continue;
        const auto row = scores.data().begin() + j * scores.columns();
        const std::vector<int32_t> order = sorted_indices({row, row + scores.columns()});
        std::copy_n(order.begin(), std::min(k, scores.columns()),
                    indices.begin() + ((b * shape.heads + h) * problem.clusters + j) * k);
      }
    }
  }
  return indices;
}

Matrix clustered_weights(const ClusteredAttentionProblem& problem, const ClusteredChoices& choices,
                         int64_t batch, int64_t head) {
  const Sequence sequence = read_sequence(problem.inputs, batch, head);
  const double scale = problem.inputs.scale;
  const std::vector<int32_t> labels = sequence_labels(problem, choices.labels, batch, head);
  const Matrix means = aggregate(sequence.query, labels, problem.clusters, Reduce::mean);
  const Matrix cluster_weights =
      softmax_rows(scaled(multiply_transposed(means, sequence.key), scale));

  Matrix weights(sequence.query.rows(), sequence.key.rows());
  for (int64_t i = 0; i < weights.rows(); ++i) {
    const int64_t j = labels[i];
    if (j < 0) continue;
    for (int64_t s = 0; s < weights.columns(); ++s) weights(i, s) = cluster_weights(j, s);
    const int32_t* row =
        choices.indices.data() +
        ((batch * problem.inputs.shape.heads + head) * problem.clusters + j) * problem.top_k;
    std::vector<int64_t> top;
    double mass = 0.0;
    for (int64_t t = 0; t < problem.top_k; ++t) {
      if (row[t] < 0) continue;
      top.push_back(row[t]);
      mass += cluster_weights(j, row[t]);
    }
    const Matrix p = top_weights(sequence, scale, i, top);
    for (size_t t = 0; t < top.size(); ++t) weights(i, top[t]) = mass * p(0, t);
  }
  return weights;
}

std::vector<double> clustered_attention(const ClusteredAttentionProblem& problem,
                                        const ClusteredChoices& choices) {
  const AttentionShape& shape = problem.inputs.shape;
  std::vector<double> output(shape.batch * shape.heads * shape.query_length * shape.value_dim);
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t h = 0; h < shape.heads; ++h) {
      const Matrix value = read_sequence(problem.inputs, b, h).value;
      write_rows(multiply(clustered_weights(problem, choices, b, h), value), b * shape.heads + h,
                 shape.query_length, output);
    }
  }
  return output;
}

}  // namespace cluster_attention::reference
