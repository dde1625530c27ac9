// The reference is the yardstick of every other test: here it is held against hand-computed values
// and the identities of the papers.

#include <cmath>
#include <numeric>

#include "native/reference/aggregate.h"
#include "native/reference/attention.h"
#include "native/reference/cast_attention.h"
#include "native/reference/centroid_attention.h"
#include "native/reference/clustered_attention.h"
#include "native/reference/hamming_kmeans.h"
#include "native/reference/hash.h"
#include "native/reference/kmeans.h"
#include "test/native/attention_arrays.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

namespace {

constexpr double kExact = 1e-12;

double row_distance(const reference::Matrix& a, const reference::Matrix& b, int64_t row) {
  double sum = 0.0;
  for (int64_t s = 0; s < a.columns(); ++s) sum += std::abs(a(row, s) - b(row, s));
  return sum;
}

/// Exact attention's view of the same inputs.
AttentionProblem exact(const AttentionInputs& inputs) {
  AttentionProblem problem;
  problem.inputs = inputs;
  return problem;
}

TEST_ONCE("reference: attention by hand") {
  // q·k = (0, ln 3) and scale 1: weights 1/4 and 3/4 over the values 8 and 4.
  const float query[] = {1.0f};
  const float key[] = {0.0f, std::log(3.0f)};
  const float value[] = {8.0f, 4.0f};
  AttentionProblem problem;
  problem.inputs.shape = {1, 1, 1, 2, 1, 1};
  problem.inputs.query = dense_rows(query, 1, 1);
  problem.inputs.key = dense_rows(key, 2, 1);
  problem.inputs.value = dense_rows(value, 2, 1);
  const reference::AttentionResult result = reference::attention(problem);
  CHECK_CLOSE(result.output, std::vector<double>{5.0}, 1e-7);
  CHECK_CLOSE(result.logsumexp, std::vector<double>{std::log(4.0)}, 1e-7);
}

TEST_ONCE("reference: hash and Hamming k-means by hand") {
  const float inputs[] = {1, 2, -1, 0, 3, -3};         // three rows of two
  const float planes[] = {1, 0, 0, 0, 1, 0, 1, 1, 3};  // x > 0, y > 0, x + y > 3
  HashProblem hash;
  hash.rows = 3;
  hash.dim = 2;
  hash.bits = 3;
  hash.inputs = inputs;
  hash.planes = planes;
  CHECK_SAME(reference::hash(hash), (std::vector<uint64_t>{0b011, 0b000, 0b001}));

  // 0b111 and 0b110 go to the first centre, 0b000 and 0b001 to the second; majorities of two are
  // the common ones.
  const uint64_t initial[] = {0b111, 0b000};
  const auto result = reference::hamming_kmeans({0b111, 0b110, 0b000, 0b001}, 2, 10, 0, initial);
  CHECK_SAME(result.labels, (std::vector<int32_t>{0, 0, 1, 1}));
  CHECK_SAME(result.centroids, (std::vector<uint64_t>{0b110, 0b000}));
  CHECK_SAME(result.counts, (std::vector<int32_t>{2, 2}));
  CHECK_SAME(result.iterations, (std::vector<int32_t>{1}));
}

TEST_ONCE("reference: k-means by hand") {
  const float inputs[] = {0, 2, 10, 12};
  const float initial[] = {2, 100, 12};
  KMeansProblem problem;
  problem.batch = 1;
  problem.length = 4;
  problem.dim = 1;
  problem.clusters = 3;
  problem.start = KMeansStart::given;
  problem.inputs = dense_rows(inputs, 4, 1);
  problem.initial = initial;
  const reference::KMeansResult result = reference::kmeans(problem);
  CHECK_SAME(result.labels, (std::vector<int32_t>{0, 0, 2, 2}));
  CHECK_SAME(result.centroids, (std::vector<double>{1, 100, 11}));  // the empty one keeps its place
  CHECK_SAME(result.inertia, (std::vector<double>{4}));
  CHECK_SAME(result.iterations, (std::vector<int32_t>{1}));
}

TEST_ONCE("reference: clustered attention with a cluster per query is exact attention") {
  for (const char* name : {"prime", "ragged", "tile-49"}) {
    AttentionArrays data(find_case(name));
    const AttentionShape& shape = data.inputs.shape;
    ClusteredAttentionProblem problem;
    problem.inputs = data.inputs;
    problem.clusters = shape.query_length;
    reference::ClusteredChoices choices;
    for (int64_t row = 0; row < shape.batch * shape.heads * shape.query_length; ++row) {
      choices.labels.push_back(static_cast<int32_t>(row % shape.query_length));
    }
    CHECK_CLOSE(reference::clustered_attention(problem, choices),
                reference::attention(exact(data.inputs)).output, kExact);
  }
}

TEST_ONCE("reference: improved clustered attention over all keys is exact attention") {
  for (const char* name : {"prime", "ragged", "tile-49"}) {
    AttentionArrays data(find_case(name));
    ClusteredAttentionProblem problem;
    problem.inputs = data.inputs;
    problem.clusters = 3;
    problem.top_k = data.inputs.shape.key_length;
    problem.grouping = Grouping::euclidean;
    reference::ClusteredChoices choices;
    choices.labels = reference::clustered_labels(problem);
    choices.indices = reference::clustered_indices(problem, choices.labels);
    CHECK_CLOSE(reference::clustered_attention(problem, choices),
                reference::attention(exact(data.inputs)).output, kExact);
  }
}

TEST_ONCE("reference: improved is never worse than clustered, row by row (Prop. 2)") {
  for (const Case& which : cases()) {
    const Scope scope(which.name);
    AttentionArrays data(which);
    ClusteredAttentionProblem problem;
    problem.inputs = data.inputs;
    problem.clusters = which.clusters;
    problem.grouping = Grouping::euclidean;
    reference::ClusteredChoices clustered{reference::clustered_labels(problem), {}};
    ClusteredAttentionProblem improved = problem;
    improved.top_k = which.clamped_top_k();
    const reference::ClusteredChoices choices{
        clustered.labels, reference::clustered_indices(improved, clustered.labels)};
    for (int64_t sequence = 0; sequence < which.batch * which.heads; ++sequence) {
      const int64_t b = sequence / which.heads;
      const int64_t h = sequence % which.heads;
      const auto full = reference::attention_weights(exact(data.inputs), b, h);
      const auto by_cluster = reference::clustered_weights(problem, clustered, b, h);
      const auto by_top = reference::clustered_weights(improved, choices, b, h);
      for (int64_t i = 0; i < full.rows(); ++i) {
        CHECK(row_distance(by_top, full, i) <= row_distance(by_cluster, full, i) + kExact);
        double sum = 0.0;
        for (int64_t s = 0; s < full.columns(); ++s) sum += by_top(i, s);
        CHECK(std::abs(sum - (full.columns() > 0 ? 1.0 : 0.0)) < kExact);
      }
    }
  }
}

TEST_ONCE("reference: centroid attention normalised over inputs is cross-attention") {
  AttentionArrays data(find_case("ragged"));
  CentroidAttentionProblem problem;
  problem.inputs = data.inputs;
  problem.normalize = Normalize::inputs;
  CHECK_CLOSE(reference::centroid_attention(problem).output,
              reference::attention(exact(data.inputs)).output, kExact);
}

TEST_ONCE("reference: centroid attention climbs its objective") {
  // F(u) for one head with q = u, k = x and scale 1 grows by a small step along the output for
  // v = x: that output is its gradient.
  AttentionArrays data(find_case("tile-23"));
  CentroidAttentionProblem problem;
  problem.inputs = data.inputs;
  problem.inputs.value = data.inputs.key;
  problem.inputs.scale = 1.0f;
  const auto before = reference::centroid_attention(problem);
  double squared = 0.0;
  const double step = 1e-3;
  for (size_t i = 0; i < before.output.size(); ++i) {
    squared += before.output[i] * before.output[i];
    data.query[i] += static_cast<float>(step * before.output[i]);
  }
  const auto after = reference::centroid_attention(problem);
  const double rise = after.objective[0] - before.objective[0];
  CHECK(std::abs(rise / (step * squared) - 1.0) < 0.05);
}

TEST_ONCE("reference: CAST with one cluster of all tokens is exact attention") {
  AttentionArrays data(AttentionArrays::self_attention(find_case("ragged-keys")));
  const AttentionShape& shape = data.inputs.shape;
  CastAttentionProblem problem;
  problem.inputs = data.inputs;
  problem.clusters = 1;
  problem.cluster_size = shape.key_length;
  problem.surrogates = data.arrays.floats(shape.heads * shape.head_dim, 8);
  problem.gate = data.arrays.floats(shape.batch * shape.key_length, 9);
  const std::vector<int32_t> indices = reference::cast_indices(problem);
  CHECK_CLOSE(reference::cast_attention(problem, indices),
              reference::attention(exact(data.inputs)).output, kExact);
  CHECK_SAME(reference::cast_coverage(problem, indices), (std::vector<double>{1, 1, 1}));
}

}  // namespace

}  // namespace cluster_attention::test
