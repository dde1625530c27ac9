#include "native/reference/clustered_attention.h"

#include <algorithm>

#include "native/reference/aggregate.h"
#include "native/reference/attention.h"
#include "native/reference/hamming_kmeans.h"
#include "native/reference/hash.h"
#include "native/reference/kmeans.h"

namespace cluster_attention::reference {

namespace {

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

/// T_j of one cluster.
std::vector<int64_t> top_keys(const ClusteredAttentionProblem& problem,
                              const ClusteredChoices& choices, int64_t sequence, int64_t cluster) {
  const auto first =
      choices.indices.begin() + (sequence * problem.clusters + cluster) * problem.top_k;
  std::vector<int64_t> top(first, first + problem.top_k);
  top.erase(std::remove(top.begin(), top.end(), int64_t{-1}), top.end());
  return top;
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
    const std::vector<int64_t> top =
        top_keys(problem, choices, batch * problem.inputs.shape.heads + head, j);
    double mass = 0.0;
    for (int64_t key : top) mass += cluster_weights(j, key);
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

namespace {

/// The gradient of one sequence, written as the chain rule: weights of the queries -> weights of
/// the clusters, masses and weights over T_j -> logits -> queries and keys.
class SequenceGradient {
 public:
  SequenceGradient(const ClusteredAttentionGradientProblem& problem,
                   const ClusteredChoices& choices, int64_t batch, int64_t head)
      : problem_(problem),
        forward_(problem.forward),
        choices_(choices),
        index_(batch * forward_.inputs.shape.heads + head),
        scale_(forward_.inputs.scale),
        rows_(read_sequence(forward_.inputs, batch, head)),
        labels_(sequence_labels(forward_, choices.labels, batch, head)),
        means_(aggregate(rows_.query, labels_, forward_.clusters, Reduce::mean)),
        cluster_weights_(softmax_rows(scaled(multiply_transposed(means_, rows_.key), scale_))),
        cluster_gradient_(forward_.clusters, rows_.key.rows()),
        query(rows_.query.rows(), rows_.query.columns()),
        key(rows_.key.rows(), rows_.key.columns()) {
    const Matrix weights = clustered_weights(forward_, choices, batch, head);
    // Padding and queries without a cluster are not read: their weights are 0.
    Matrix gradient(weights.rows(), rows_.value.columns());
    for (int64_t i = 0; i < gradient.rows(); ++i) {
      const float* row = problem.output_gradient.row(batch, head, i);
      for (int64_t e = 0; labels_[i] >= 0 && e < gradient.columns(); ++e) gradient(i, e) = row[e];
    }
    value = multiply(transpose(weights), gradient);
    const Matrix weights_gradient = multiply_transposed(gradient, rows_.value);
    for (int64_t i = 0; i < weights.rows(); ++i) {
      if (labels_[i] >= 0) add_query(i, weights_gradient);
    }
    add_means();
  }

 private:
  void add_query(int64_t i, const Matrix& weights_gradient) {
    const int64_t j = labels_[i];
    const std::vector<int64_t> top = top_keys(forward_, choices_, index_, j);
    for (int64_t s = 0; s < rows_.key.rows(); ++s) {
      if (std::find(top.begin(), top.end(), s) == top.end()) {
        cluster_gradient_(j, s) += weights_gradient(i, s);
      }
    }
    // The weight of key t in T_j is m̂ p_t.
    const Matrix p = top_weights(rows_, scale_, i, top);
    Matrix p_gradient(1, p.columns());
    double mass = 0.0;
    double mass_gradient = 0.0;
    for (int64_t t = 0; t < p.columns(); ++t) {
      mass += cluster_weights_(j, top[t]);
      mass_gradient += p(0, t) * weights_gradient(i, top[t]);
    }
    for (int64_t t = 0; t < p.columns(); ++t) {
      p_gradient(0, t) = mass * weights_gradient(i, top[t]);
      if (!problem_.detach_mass) cluster_gradient_(j, top[t]) += mass_gradient;
    }
    const Matrix logit_gradient = softmax_rows_gradient(p, p_gradient);
    for (int64_t t = 0; t < p.columns(); ++t) {
      for (int64_t d = 0; d < query.columns(); ++d) {
        query(i, d) += scale_ * logit_gradient(0, t) * rows_.key(top[t], d);
        key(top[t], d) += scale_ * logit_gradient(0, t) * rows_.query(i, d);
      }
    }
  }

  void add_means() {
    const Matrix logit_gradient =
        scaled(softmax_rows_gradient(cluster_weights_, cluster_gradient_), scale_);
    const Matrix mean_gradient = multiply(logit_gradient, rows_.key);
    const std::vector<int32_t> counts = count_labels(labels_, forward_.clusters);
    for (int64_t i = 0; i < query.rows(); ++i) {
      const int64_t j = labels_[i];
      for (int64_t d = 0; j >= 0 && d < query.columns(); ++d) {
        query(i, d) += mean_gradient(j, d) / counts[j];
      }
    }
    const Matrix by_means = multiply(transpose(logit_gradient), means_);
    for (int64_t s = 0; s < key.rows(); ++s) {
      for (int64_t d = 0; d < key.columns(); ++d) key(s, d) += by_means(s, d);
    }
  }

  const ClusteredAttentionGradientProblem& problem_;
  const ClusteredAttentionProblem& forward_;
  const ClusteredChoices& choices_;
  int64_t index_;
  double scale_;
  Sequence rows_;
  std::vector<int32_t> labels_;
  Matrix means_;             // (C,D)
  Matrix cluster_weights_;   // (C,S): A
  Matrix cluster_gradient_;  // (C,S): by A

 public:
  Matrix query;  // (L,D)
  Matrix key;    // (S,D)
  Matrix value;  // (S,E)
};

}  // namespace

AttentionGradientResult clustered_attention_gradient(
    const ClusteredAttentionGradientProblem& problem, const ClusteredChoices& choices) {
  const AttentionShape& shape = problem.forward.inputs.shape;
  AttentionGradientResult result(shape);
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t h = 0; h < shape.heads; ++h) {
      const SequenceGradient gradient(problem, choices, b, h);
      const int64_t sequence = b * shape.heads + h;
      write_rows(gradient.query, sequence, shape.query_length, result.query);
      write_rows(gradient.key, sequence, shape.key_length, result.key);
      write_rows(gradient.value, sequence, shape.key_length, result.value);
    }
  }
  return result;
}

}  // namespace cluster_attention::reference
