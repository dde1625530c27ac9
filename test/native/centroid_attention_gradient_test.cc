#include <algorithm>
#include <cmath>

#include "native/reference/centroid_attention.h"
#include "test/native/centroid_gradient_arrays.h"
#include "test/native/checks.h"
#include "test/native/compare.h"
#include "test/native/finite_differences.h"

namespace cluster_attention::test {

namespace {

void check_reference(CentroidGradientArrays& fixture, double bound = kRelativeL2) {
  CHECK_RUNS(fixture.problem, fixture.gradients);
  fixture.gradients.snapshot();
  check_gradients(fixture, bound);
}

Case small_case(Layout layout) {
  Case which = find_case("prime");
  which.batch = 2;
  which.heads = 2;
  which.query_length = 4;
  which.key_length = 7;
  which.head_dim = 3;
  which.value_dim = 2;
  which.top_k = 4;
  which.layout = layout;
  which.query_lengths = {3, 4};
  which.key_lengths = {7, 5};
  return which;
}

TEST_ONCE("centroid attention gradient: the reference is the derivative of the reference") {
  for (const CentroidOptions& options : all_centroid_options()) {
    const Scope scope(options.name());
    CentroidGradientArrays fixture(small_case(Layout::bhld), options);
    const AttentionShape& shape = fixture.inputs.shape;
    const int64_t queries = fixture.sequences() * shape.query_length * shape.head_dim;
    const int64_t keys = fixture.sequences() * shape.key_length * shape.head_dim;
    const int64_t values = fixture.sequences() * shape.key_length * shape.value_dim;
    round_to_grid(fixture.query, queries);
    round_to_grid(fixture.key, keys);
    round_to_grid(fixture.value, values);
    const int64_t inputs = shape.batch * shape.key_length;
    for (int64_t i = 0; options.weights && i < inputs; ++i) {
      if (fixture.weights[i] != 0.0f) fixture.weights[i] += 0.25f;
    }
    if (options.weights) round_to_grid(fixture.weights, inputs);
    std::vector<float> weights =
        read(fixture.output_gradient, fixture.sequences() * shape.query_length * shape.value_dim);
    for (float& weight : weights) weight = std::isnan(weight) ? 0.0f : weight;  // padding
    const auto loss = [&] {
      return weighted_sum(reference::centroid_attention(fixture.problem.forward).output, weights);
    };
    const auto expected = reference::centroid_attention_gradient(fixture.problem);
    CHECK_CLOSE(finite_differences(fixture.query, queries, loss), expected.query, 1e-8);
    CHECK_CLOSE(finite_differences(fixture.key, keys, loss), expected.key, 1e-8);
    CHECK_CLOSE(finite_differences(fixture.value, values, loss), expected.value, 1e-8);
    if (!options.weights) continue;
    std::vector<double> by_weights = finite_differences(fixture.weights, inputs, loss);
    for (int64_t i = 0; i < inputs; ++i) {
      if (fixture.weights[i] == 0.0f) by_weights[i] = 0.0;  // removed
    }
    CHECK_CLOSE(by_weights, expected.weights, 1e-8);
  }
}

TEST("centroid attention gradient: matches the reference under all options") {
  for (const Case& one : cases()) {
    for (const CentroidOptions& options : all_centroid_options()) {
      const Scope scope(one.name + options.name());
      CentroidGradientArrays fixture(one, options);
      check_reference(fixture);
    }
  }
}

TEST("centroid attention gradient: every head dim, scales of any sign") {
  for (int64_t dim : {1, 3, 64, 65}) {
    for (float scale : {0.0f, -0.5f, 2.0f}) {
      for (const CentroidOptions& options : all_centroid_options()) {
        const Scope scope("D " + std::to_string(dim) + " scale " + std::to_string(scale) +
                          options.name());
        Case which = find_case("tile-129");
        which.head_dim = dim;
        which.value_dim = 66 - dim;
        CentroidGradientArrays fixture(which, options);
        fixture.problem.forward.inputs.scale = scale / std::sqrt(static_cast<float>(dim));
        fixture.run_forward();
        check_reference(fixture, 2 * kRelativeL2);
      }
    }
  }
}

TEST("centroid attention gradient: neighbors that list every input change nothing") {
  for (Normalize normalize : {Normalize::centroids, Normalize::inputs}) {
    Case which = find_case("tile-25");
    which.top_k = which.key_length;
    CentroidGradientArrays fixture(which, {normalize, Collect::mean, true, true});
    for (int64_t i = 0; i < which.query_length * which.key_length; ++i) {
      fixture.neighbors[i] = static_cast<int32_t>(which.key_length - 1 - i % which.key_length);
    }
    fixture.run_forward();
    check_reference(fixture);
    fixture.problem.forward.neighbors = nullptr;
    check_reference(fixture);
  }
}

/// What so many pairs change is held for two sequences at a time: one is left.
TEST_ONCE("centroid attention gradient: many neighbors, sequences in groups") {
  const Case which = many_neighbors_case(1000);
  for (Normalize normalize : {Normalize::centroids, Normalize::inputs}) {
    CentroidGradientArrays fixture(which, {normalize, Collect::sum, true, true});
    check_reference(fixture);
  }
}

TEST("centroid attention gradient: a softmax over many centroids keeps the bound") {
  for (bool neighbors : {false, true}) {
    const Scope scope(neighbors ? "neighbors" : "all");
    CentroidGradientArrays fixture(long_softmax_case(),
                                   {Normalize::centroids, Collect::sum, false, neighbors});
    even_out(fixture);
    std::fill_n(fixture.output_gradient, fixture.inputs.shape.query_length, 0.1f);
    fixture.run_forward();
    check_reference(fixture, 2e-5);  // most of what is summed cancels
  }
}

TEST("centroid attention gradient: what is not wanted does not change the others") {
  for (const CentroidOptions& options : all_centroid_options()) {
    const Scope scope(options.name());
    CentroidGradientArrays fixture(find_case("ragged"), options);
    check_wanted_alone(fixture, [&](const CentroidAttentionGradientProblem& problem) {
      CHECK_RUNS(problem, fixture.gradients);
    });
  }
}

TEST("centroid attention gradient: threads, batches, faults, cancellation") {
  for (const char* name : {"ragged", "ragged-transposed", "usual", "long-queries", "long-keys"}) {
    for (const CentroidOptions& options : all_centroid_options()) {
      if (options.aggregate == Collect::mean) continue;
      const Scope scope(name + options.name());
      CentroidGradientArrays fixture(find_case(name), options);
      check_promises(fixture.problem, fixture.gradients, fixture.inputs.shape.batch,
                     one_centroid_gradient_batch);
    }
  }
}

TEST("centroid attention gradient: a long sequence, cut into parts") {
  Case which = find_case("usual");
  which.batch = which.heads = 1;
  which.query_length = 150;
  which.key_length = 4001;
  which.head_dim = 24;
  for (Normalize normalize : {Normalize::centroids, Normalize::inputs}) {
    CentroidGradientArrays fixture(which, {normalize, Collect::mean, true});
    check_threads(fixture.problem, fixture.gradients);
    check_reference(fixture);
  }
}

TEST("centroid attention gradient: bfloat16 rounds the inputs and the gradient of the output") {
  CentroidGradientArrays fixture(find_case("usual"), {Normalize::centroids, Collect::sum, true});
  const AttentionShape& shape = fixture.inputs.shape;
  const int64_t sequences = fixture.sequences();
  check_bfloat16(fixture.problem, fixture.gradients,
                 {{fixture.query, sequences * shape.query_length * shape.head_dim},
                  {fixture.key, sequences * shape.key_length * shape.head_dim},
                  {fixture.value, sequences * shape.key_length * shape.value_dim},
                  {fixture.weights, shape.batch * shape.key_length},
                  {fixture.output_gradient, sequences * shape.query_length * shape.value_dim}});
}

TEST("centroid attention gradient: NaN and Inf are named") {
  for (const CentroidOptions& options : all_centroid_options()) {
    const Scope scope(options.name());
    CentroidGradientArrays fixture(find_case("prime"), options);
    if (options.neighbors) std::fill_n(fixture.neighbors, 61 * 5, 3);
    fixture.run_forward();
    check_non_finite(fixture.problem, fixture.gradients, fixture.query, "query", 17 * 61 + 3,
                     17 * 62 + 3);
    check_non_finite(fixture.problem, fixture.gradients, fixture.key, "key", 17 * 56 + 3);
    check_non_finite(fixture.problem, fixture.gradients, fixture.value, "value", 13 * 56 + 3);
    check_non_finite(fixture.problem, fixture.gradients, fixture.output_gradient, "gradOutput",
                     13 * 61 + 3, 13 * 62 + 3);
    if (options.weights) {
      check_non_finite(fixture.problem, fixture.gradients, fixture.weights, "weights", 3);
    }
  }
}

}  // namespace

}  // namespace cluster_attention::test
