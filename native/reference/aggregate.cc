#include "native/reference/aggregate.h"

namespace cluster_attention::reference {

std::vector<int32_t> count_labels(const std::vector<int32_t>& labels, int64_t clusters) {
  std::vector<int32_t> counts(clusters, 0);
  for (int32_t label : labels) {
    if (label >= 0) ++counts[label];
  }
  return counts;
}

Matrix aggregate(const Matrix& inputs, const std::vector<int32_t>& labels, int64_t clusters,
                 Reduce reduce) {
  const std::vector<int32_t> counts = count_labels(labels, clusters);
  Matrix result(clusters, inputs.columns());
  for (int64_t i = 0; i < inputs.rows(); ++i) {
    if (labels[i] < 0) continue;
    const double weight = reduce == Reduce::mean ? 1.0 / counts[labels[i]] : 1.0;
    for (int64_t d = 0; d < inputs.columns(); ++d) result(labels[i], d) += weight * inputs(i, d);
  }
  return result;
}

std::vector<double> aggregate(const AggregateProblem& problem) {
  const int64_t sequences = problem.batch * problem.heads;
  std::vector<double> output(sequences * problem.clusters * problem.dim);
  for (int64_t sequence = 0; sequence < sequences; ++sequence) {
    const int32_t* labels = problem.labels + sequence * problem.length;
    // Only the rows of a cluster are read: the others may hold anything.
    Matrix inputs(problem.length, problem.dim);
    for (int64_t i = 0; i < problem.length; ++i) {
      const float* row = problem.inputs.row(sequence / problem.heads, sequence % problem.heads, i);
      for (int64_t d = 0; d < problem.dim; ++d) inputs(i, d) = labels[i] < 0 ? 0.0 : row[d];
    }
    write_rows(
        aggregate(inputs, {labels, labels + problem.length}, problem.clusters, problem.reduce),
        sequence, problem.clusters, output);
  }
  return output;
}

std::vector<double> aggregate_gradient(const AggregateGradientProblem& problem) {
  const AggregateProblem& forward = problem.forward;
  const int64_t sequences = forward.batch * forward.heads;
  std::vector<double> gradient(sequences * forward.length * forward.dim);
  for (int64_t sequence = 0; sequence < sequences; ++sequence) {
    const int32_t* labels = forward.labels + sequence * forward.length;
    const std::vector<int32_t> counts =
        count_labels({labels, labels + forward.length}, forward.clusters);
    for (int64_t i = 0; i < forward.length; ++i) {
      const int32_t j = labels[i];
      if (j < 0) continue;
      const float* row = problem.output_gradient + (sequence * forward.clusters + j) * forward.dim;
      for (int64_t d = 0; d < forward.dim; ++d) {
        gradient[(sequence * forward.length + i) * forward.dim + d] =
            forward.reduce == Reduce::mean ? double{row[d]} / counts[j] : double{row[d]};
      }
    }
  }
  return gradient;
}

}  // namespace cluster_attention::reference
