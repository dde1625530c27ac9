#include <cmath>

#include "native/reference/sparse.h"
#include "test/native/checks.h"
#include "test/native/compare.h"
#include "test/native/gradients.h"
#include "test/native/sparse_arrays.h"

namespace cluster_attention::test {

namespace {

using Fixture = SparseGradientFixture;

SparseDotGradientProblem one_dot_gradient(SparseDotGradientProblem problem, int64_t sequence) {
  const AttentionShape shape = problem.forward.shape;
  const int64_t b = sequence / shape.heads;
  const int64_t h = sequence % shape.heads;
  problem.output_gradient =
      part(problem.output_gradient, sequence, shape.query_length * problem.forward.sparse.k);
  problem.query = alone(problem.query, b, h);
  problem.key = alone(problem.key, b, h);
  problem.forward = one_dot(problem.forward, sequence);
  return problem;
}

SparseWeightedSumGradientProblem one_sum_gradient(SparseWeightedSumGradientProblem problem,
                                                  int64_t sequence) {
  const AttentionShape shape = problem.forward.shape;
  const int64_t b = sequence / shape.heads;
  const int64_t h = sequence % shape.heads;
  problem.output_gradient = alone(problem.output_gradient, b, h);
  problem.weights = part(problem.weights, sequence, shape.query_length * problem.forward.sparse.k);
  problem.value = alone(problem.value, b, h);
  problem.forward = one_sum(problem.forward, sequence);
  return problem;
}

TEST_ONCE("sparse gradient: the references agree with finite differences") {
  for (const char* name : {"one", "more-clusters-than-queries", "ragged-transposed"}) {
    for (bool per_cluster : {false, true}) {
      const Scope scope(std::string(name) + (per_cluster ? " per cluster" : " per query"));
      Fixture fixture(find_case(name), per_cluster);
      const AttentionShape& shape = fixture.dot.shape;
      const auto dot = reference::sparse_dot_gradient(fixture.dot_gradient);
      const Loss dot_loss = [&] {
        const std::vector<double> output = reference::sparse_dot(fixture.dot);
        double sum = 0.0;
        for (size_t i = 0; i < output.size(); ++i) {
          if (std::isfinite(output[i])) {
            sum += output[i] * static_cast<double>(fixture.dot_output_gradient[i]);
          }
        }
        return sum;
      };
      check_finite_differences("query", fixture.dot.query, shape.batch, shape.heads,
                               shape.query_length, shape.head_dim, dot.query, dot_loss);
      check_finite_differences("key", fixture.dot.key, shape.batch, shape.heads, shape.key_length,
                               shape.head_dim, dot.key, dot_loss);

      const auto sum = reference::sparse_weighted_sum_gradient(fixture.sum_gradient);
      const std::vector<float> gradient =
          read_view(fixture.sum_gradient.output_gradient, shape.batch, shape.heads,
                    shape.query_length, shape.value_dim);
      const Loss sum_loss = [&] {
        return inner_product(reference::sparse_weighted_sum(fixture.sum), gradient);
      };
      check_finite_differences("weights", fixture.weights, sum.weights, sum_loss);
      check_finite_differences("value", fixture.sum.value, shape.batch, shape.heads,
                               shape.key_length, shape.value_dim, sum.value, sum_loss);
    }
  }
}

void check_reference(const Case& which, bool per_cluster) {
  const Scope scope(which.name + (per_cluster ? " per cluster" : " per query"));
  Fixture fixture(which, per_cluster);
  CHECK_RUNS(fixture.dot_gradient, fixture.arrays);
  const auto dot = reference::sparse_dot_gradient(fixture.dot_gradient);
  CHECK_CLOSE(fixture.query_gradient(), dot.query);
  CHECK_CLOSE(fixture.key_gradient(), dot.key);
  CHECK_RUNS(fixture.sum_gradient, fixture.arrays);
  const auto sum = reference::sparse_weighted_sum_gradient(fixture.sum_gradient);
  CHECK_CLOSE(fixture.weight_gradient(), sum.weights);
  CHECK_CLOSE(fixture.value_gradient(), sum.value);
  fixture.arrays.snapshot();
}

TEST("sparse gradient: matches the reference") {
  for (const Case& one : cases()) {
    for (bool per_cluster : {false, true}) check_reference(one, per_cluster);
  }
}

TEST("sparse gradient: a gradient that is not wanted changes no other") {
  Fixture fixture(find_case("prime"), true);
  CHECK_RUNS(fixture.dot_gradient, fixture.arrays);
  const std::vector<float> key = fixture.key_gradient();
  SparseDotGradientProblem only_key = fixture.dot_gradient;
  only_key.query.data = nullptr;
  CHECK_RUNS(only_key, fixture.arrays);
  CHECK_SAME(fixture.key_gradient(), key);
  CHECK_RUNS(fixture.sum_gradient, fixture.arrays);
  const std::vector<float> weights = fixture.weight_gradient();
  SparseWeightedSumGradientProblem only_weights = fixture.sum_gradient;
  only_weights.value.data = nullptr;
  CHECK_RUNS(only_weights, fixture.arrays);
  CHECK_SAME(fixture.weight_gradient(), weights);
}

TEST("sparse gradient: indices and labels outside their range are named") {
  for (bool per_cluster : {false, true}) {
    Fixture fixture(find_case("prime"), per_cluster);
    fixture.indices[41] = 53;
    CHECK_EQUAL(describe(run_fresh(fixture.dot_gradient, fixture.arrays)),
                "out_of_range indices[41]");
    CHECK_EQUAL(describe(run_fresh(fixture.sum_gradient, fixture.arrays)),
                "out_of_range indices[41]");
  }
}

TEST("sparse gradient: threads, batches, faults, cancellation") {
  for (const char* name : {"ragged", "ragged-transposed", "usual", "long-queries", "long-keys"}) {
    for (bool per_cluster : {false, true}) {
      const Scope scope(name);
      Fixture fixture(find_case(name), per_cluster);
      const int64_t sequences = fixture.dot.shape.batch * fixture.dot.shape.heads;
      check_promises(fixture.dot_gradient, fixture.arrays, sequences, one_dot_gradient);
      check_promises(fixture.sum_gradient, fixture.arrays, sequences, one_sum_gradient);
    }
  }
}

TEST("sparse gradient: NaN and Inf are named where they are read") {
  for (bool per_cluster : {false, true}) {
    const Scope scope(per_cluster ? "per cluster" : "per query");
    Fixture fixture(find_case("prime"), per_cluster);
    const AttentionShape& shape = fixture.dot.shape;
    const int64_t k = fixture.dot.sparse.k;
    std::fill_n(fixture.indices, 7 * k, 3);  // the first seven lists read key 3
    if (per_cluster) std::fill_n(fixture.labels, 3, 2);
    check_non_finite(fixture.dot_gradient, fixture.arrays, fixture.query, "query",
                     shape.head_dim + 5);
    check_non_finite(fixture.dot_gradient, fixture.arrays, fixture.key, "key",
                     3 * shape.head_dim + 5);
    check_non_finite(fixture.dot_gradient, fixture.arrays, fixture.dot_output_gradient,
                     "gradOutput", 6);
    check_non_finite(fixture.sum_gradient, fixture.arrays, fixture.weights, "weights", 6);
    check_non_finite(fixture.sum_gradient, fixture.arrays, fixture.value, "value",
                     3 * shape.value_dim + 5);
    check_non_finite(fixture.sum_gradient, fixture.arrays, fixture.sum_output_gradient,
                     "gradOutput", shape.value_dim + 5);
    // A query without a key is not read, nor is the gradient of an empty slot.
    std::fill_n(fixture.indices, 7 * k, -1);
    if (per_cluster) std::fill_n(fixture.labels, 7, 2);
    fixture.query[5 * shape.head_dim] = std::numeric_limits<float>::quiet_NaN();
    fixture.dot_output_gradient[5 * k] = std::numeric_limits<float>::quiet_NaN();
    fixture.sum_output_gradient[5 * shape.value_dim] = std::numeric_limits<float>::quiet_NaN();
    CHECK_RUNS(fixture.dot_gradient, fixture.arrays);
    CHECK_RUNS(fixture.sum_gradient, fixture.arrays);
  }
}

}  // namespace

}  // namespace cluster_attention::test
