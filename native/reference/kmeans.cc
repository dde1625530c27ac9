#include "native/reference/kmeans.h"

#include <algorithm>
#include <cmath>

#include "native/reference/aggregate.h"
#include "native/reference/starting_rows.h"

namespace cluster_attention::reference {

namespace {

double row_length(const Matrix& points, int64_t row) {
  double sum = 0.0;
  for (int64_t d = 0; d < points.columns(); ++d) sum += points(row, d) * points(row, d);
  return std::sqrt(sum);
}

/// Squared distance, or 1 - cos of two unit vectors.
double distance(const Matrix& points, int64_t i, const Matrix& centroids, int64_t j,
                Metric metric) {
  double squared = 0.0;
  double dot = 0.0;
  for (int64_t d = 0; d < points.columns(); ++d) {
    const double difference = points(i, d) - centroids(j, d);
    squared += difference * difference;
    dot += points(i, d) * centroids(j, d);
  }
  return metric == Metric::euclidean ? squared : 1.0 - dot;
}

/// Mean of the variances of the columns.
double mean_variance(const Matrix& points) {
  double total = 0.0;
  for (int64_t d = 0; d < points.columns(); ++d) {
    double mean = 0.0;
    for (int64_t i = 0; i < points.rows(); ++i) mean += points(i, d) / points.rows();
    for (int64_t i = 0; i < points.rows(); ++i) {
      total += (points(i, d) - mean) * (points(i, d) - mean) / points.rows();
    }
  }
  return points.columns() == 0 ? 0.0 : total / points.columns();
}

/// Moves each centroid to the mean of its members; an empty cluster (and under the cosine a mean
/// of zero) keeps its centroid. Returns the summed squared movement.
double update(const Matrix& points, const std::vector<int32_t>& labels, Metric metric,
              Matrix& centroids) {
  Matrix means = aggregate(points, labels, centroids.rows(), Reduce::mean);
  std::vector<bool> keeps(static_cast<size_t>(means.rows()), false);
  if (metric == Metric::cosine) {
    for (int64_t j = 0; j < means.rows(); ++j) keeps[j] = row_length(means, j) <= kZeroMean;
    means = normalize_rows(means);
  }
  const std::vector<int32_t> counts = count_labels(labels, centroids.rows());
  double movement = 0.0;
  for (int64_t j = 0; j < centroids.rows(); ++j) {
    if (counts[j] == 0 || keeps[j]) continue;
    movement += distance(means, j, centroids, j, Metric::euclidean);
    for (int64_t d = 0; d < centroids.columns(); ++d) centroids(j, d) = means(j, d);
  }
  return movement;
}

Matrix starting_centroids(const KMeansProblem& problem, const Matrix& points, int64_t sequence) {
  const int64_t clusters = std::min(problem.clusters, points.rows());
  switch (problem.start) {
    case KMeansStart::given:
      return read_dense(problem.initial + sequence * problem.clusters * problem.dim, clusters,
                        problem.dim);
    case KMeansStart::sample:
      return take_rows(points, sample_rows(points.rows(), clusters, problem.seed));
    default:
      return take_rows(points, plus_plus_rows(points, clusters, problem.seed));
  }
}

}  // namespace

Matrix normalize_rows(const Matrix& points) {
  Matrix result = points;
  for (int64_t i = 0; i < points.rows(); ++i) {
    const double length = row_length(points, i);
    if (length == 0.0) continue;
    for (int64_t d = 0; d < points.columns(); ++d) result(i, d) /= length;
  }
  return result;
}

std::vector<int32_t> nearest_centroids(const Matrix& points, const Matrix& centroids,
                                       Metric metric) {
  std::vector<int32_t> labels(points.rows(), 0);
  for (int64_t i = 0; i < points.rows(); ++i) {
    for (int64_t j = 1; j < centroids.rows(); ++j) {
      if (distance(points, i, centroids, j, metric) <
          distance(points, i, centroids, labels[i], metric)) {
        labels[i] = static_cast<int32_t>(j);
      }
    }
  }
  return labels;
}

KMeansResult kmeans(const KMeansProblem& problem) {
  const int64_t length = problem.length;
  const int64_t clusters = problem.clusters;
  const int64_t sequences = problem.batch * problem.heads;
  KMeansResult result{std::vector<double>(sequences * clusters * problem.dim),
                      std::vector<int32_t>(sequences * length, -1),
                      std::vector<int32_t>(sequences * clusters), std::vector<double>(sequences),
                      std::vector<int32_t>(sequences)};
  for (int64_t sequence = 0; sequence < sequences; ++sequence) {
    const int64_t b = sequence / problem.heads;
    Matrix points = read_rows(problem.inputs, b, sequence % problem.heads,
                              real_length(problem.lengths, b, length), problem.dim);
    if (problem.metric == Metric::cosine) points = normalize_rows(points);
    Matrix centroids = starting_centroids(problem, points, sequence);
    if (problem.metric == Metric::cosine) centroids = normalize_rows(centroids);

    const double tolerance = problem.tolerance * mean_variance(points);
    std::vector<int32_t> labels(points.rows(), -1);
    int32_t updates = 0;
    double movement = kInfinity;
    for (;; ++updates) {
      const std::vector<int32_t> previous = labels;
      labels = nearest_centroids(points, centroids, problem.metric);
      if (labels == previous || updates == problem.max_iterations || movement <= tolerance) break;
      movement = update(points, labels, problem.metric, centroids);
    }

    for (int64_t i = 0; i < points.rows(); ++i) {
      result.labels[sequence * length + i] = labels[i];
      result.inertia[sequence] += distance(points, i, centroids, labels[i], problem.metric);
    }
    const std::vector<int32_t> counts = count_labels(labels, clusters);
    std::copy(counts.begin(), counts.end(), result.counts.begin() + sequence * clusters);
    write_rows(centroids, sequence, clusters, result.centroids);
    result.iterations[sequence] = updates;
  }
  return result;
}

}  // namespace cluster_attention::reference
