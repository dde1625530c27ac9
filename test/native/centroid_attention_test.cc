#include "native/reference/centroid_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "native/reference/attention.h"
#include "test/native/centroid_arrays.h"
#include "test/native/checks.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

namespace {

void check_reference(CentroidArrays& fixture) {
  CHECK_RUNS(fixture.problem, fixture.arrays);
  fixture.arrays.snapshot();
  const reference::CentroidAttentionResult expected =
      reference::centroid_attention(fixture.problem);
  CHECK_CLOSE(fixture.result(), expected.output);
  CHECK_CLOSE(fixture.masses(), expected.masses);
  // On Gaussian data no two centroids are within rounding of each other for an input.
  CHECK_SAME(fixture.labels(), expected.labels);
  if (fixture.problem.logsumexp != nullptr) {
    CHECK_CLOSE(
        read(fixture.problem.logsumexp, fixture.sequences() * fixture.inputs.shape.query_length),
        expected.logsumexp);
  }
  CHECK_CLOSE(read(fixture.problem.objective, fixture.inputs.shape.batch), expected.objective,
              1e-5);
}

TEST("centroid attention: matches the reference under all options") {
  for (const Case& one : cases()) {
    for (const CentroidOptions& options : all_centroid_options()) {
      const Scope scope(one.name + options.name());
      CentroidArrays fixture(one, options);
      check_reference(fixture);
    }
  }
}

TEST("centroid attention: labels equal the reference on integers, ties included") {
  for (const Case& one : cases()) {
    for (bool neighbors : {false, true}) {
      const Scope scope(one.name + (neighbors ? " neighbors" : ""));
      CentroidArrays fixture(one, {Normalize::centroids, Collect::sum, true, neighbors},
                             Fill::integer);
      CHECK_RUNS(fixture.problem, fixture.arrays);
      CHECK_SAME(fixture.labels(), reference::centroid_attention(fixture.problem).labels);
    }
  }
}

TEST("centroid attention: scales of any size and sign") {
  for (float scale : {0.0f, -0.5f, 1.0f, 8.0f}) {
    for (const CentroidOptions& options : all_centroid_options()) {
      const Scope scope("scale " + std::to_string(scale) + options.name());
      CentroidArrays fixture(find_case("prime"), options);
      fixture.problem.inputs.scale = scale;
      CHECK_RUNS(fixture.problem, fixture.arrays);
      const auto expected = reference::centroid_attention(fixture.problem);
      CHECK_CLOSE(fixture.result(), expected.output, 2 * kRelativeL2);
      CHECK_CLOSE(fixture.masses(), expected.masses, 2 * kRelativeL2);
    }
  }
}

TEST("centroid attention: huge scales") {
  for (float scale : {100.0f, 1.3e9f, -1e12f, 1e30f}) {
    for (const CentroidOptions& options : all_centroid_options()) {
      // The reference adds log(weight) to the logit: lost even in double beside 1e12.
      if (options.weights && std::abs(scale) > 1e10f) continue;
      const Scope scope("scale " + std::to_string(scale) + options.name());
      CentroidArrays fixture(find_case("prime"), options, Fill::integer);
      fixture.problem.inputs.scale = scale;
      CHECK_RUNS(fixture.problem, fixture.arrays);
      const auto expected = reference::centroid_attention(fixture.problem);
      CHECK_CLOSE(fixture.result(), expected.output);
      CHECK_CLOSE(fixture.masses(), expected.masses);
    }
  }
}

TEST("centroid attention: normalised over inputs it is cross-attention") {
  for (const char* name : {"prime", "ragged", "usual"}) {
    const Scope scope(name);
    CentroidArrays fixture(find_case(name), {Normalize::inputs});
    CHECK_RUNS(fixture.problem, fixture.arrays);
    AttentionProblem exact;
    exact.inputs = fixture.inputs;
    CHECK_CLOSE(fixture.result(), reference::attention(exact).output);
  }
}

TEST("centroid attention: the masses of all centroids are the weights of all inputs") {
  CentroidArrays fixture(find_case("usual"), {Normalize::centroids, Collect::sum, true});
  CHECK_RUNS(fixture.problem, fixture.arrays);
  const AttentionShape& shape = fixture.inputs.shape;
  const std::vector<float> masses = fixture.masses();
  for (int64_t sequence = 0; sequence < fixture.sequences(); ++sequence) {
    double mass = 0.0, weight = 0.0;
    for (int64_t j = 0; j < shape.query_length; ++j) {
      mass += masses[sequence * shape.query_length + j];
    }
    for (int64_t i = 0; i < shape.key_length; ++i) {
      weight += fixture.weights[sequence / shape.heads * shape.key_length + i];
    }
    CHECK(std::abs(mass - weight) < 1e-5 * weight);
  }
}

TEST("centroid attention: neighbors that list every input change nothing") {
  for (Normalize normalize : {Normalize::centroids, Normalize::inputs}) {
    CentroidArrays fixture = all_listed(normalize, Fill::gaussian);
    CHECK_RUNS(fixture.problem, fixture.arrays);
    const std::vector<float> listed = fixture.result();
    fixture.problem.neighbors = nullptr;
    CHECK_RUNS(fixture.problem, fixture.arrays);
    const std::vector<float> all = fixture.result();
    CHECK_CLOSE(listed, std::vector<double>(all.begin(), all.end()));
  }
}

/// Scores of so many pairs are held for two sequences at a time: one is left.
TEST_ONCE("centroid attention: many neighbors, sequences in groups") {
  const Case which = many_neighbors_case(1400);
  for (Normalize normalize : {Normalize::centroids, Normalize::inputs}) {
    CentroidArrays fixture(which, {normalize, Collect::sum, true, true});
    check_reference(fixture);
  }
}

TEST("centroid attention: a softmax over many centroids keeps the bound") {
  for (bool neighbors : {false, true}) {
    const Scope scope(neighbors ? "neighbors" : "all");
    CentroidArrays fixture(long_softmax_case(),
                           {Normalize::centroids, Collect::sum, false, neighbors});
    even_out(fixture);
    CHECK_RUNS(fixture.problem, fixture.arrays);
    fixture.arrays.snapshot();
    const auto expected = reference::centroid_attention(fixture.problem);
    CHECK_CLOSE(fixture.result(), expected.output, 1e-6);
    CHECK_CLOSE(fixture.masses(), expected.masses, 1e-6);
  }
}

TEST("centroid attention: labels pass over a centroid that is NaN, with neighbors too") {
  for (Normalize normalize : {Normalize::centroids, Normalize::inputs}) {
    for (int64_t bad : {0, 3}) {
      CentroidArrays fixture = all_listed(normalize);
      fixture.query[bad * fixture.inputs.shape.head_dim] = std::numeric_limits<float>::quiet_NaN();
      const CallSettings settings = {NonFinite::propagate, {}};
      CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays, 2, settings)), "ok");
      const std::vector<int32_t> listed = fixture.labels();
      fixture.problem.neighbors = nullptr;
      CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays, 2, settings)), "ok");
      CHECK_SAME(listed, fixture.labels());
      const int64_t inputs = fixture.inputs.shape.key_length;
      CHECK(std::find(listed.begin(), listed.begin() + inputs, bad) == listed.begin() + inputs);
    }
  }
}

TEST("centroid attention: neighbors outside their range are named") {
  for (int32_t bad : {-2, 53}) {
    CentroidArrays fixture(find_case("prime"), {Normalize::centroids, Collect::sum, false, true});
    fixture.neighbors[311] = bad;
    fixture.neighbors[320] = bad;
    CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays)),
                "out_of_range neighbors[311]");
  }
}

TEST("centroid attention: optional outputs do not change the others") {
  for (const CentroidOptions& options : all_centroid_options()) {
    const Scope scope(options.name());
    CentroidArrays fixture(find_case("ragged"), options);
    CHECK_RUNS(fixture.problem, fixture.arrays);
    const std::vector<float> expected = fixture.result();
    fixture.problem.labels = nullptr;
    fixture.problem.masses = nullptr;
    fixture.problem.objective = nullptr;
    CHECK_RUNS(fixture.problem, fixture.arrays);
    CHECK_SAME(fixture.result(), expected);
  }
}

TEST("centroid attention: threads, batches, faults, cancellation") {
  for (const char* name : {"ragged", "ragged-transposed", "usual", "long-queries", "long-keys"}) {
    for (const CentroidOptions& options : all_centroid_options()) {
      if (options.aggregate == Collect::mean) continue;
      const Scope scope(name + options.name());
      CentroidArrays fixture(find_case(name), options);
      check_promises(fixture.problem, fixture.arrays, fixture.inputs.shape.batch,
                     one_centroid_batch);
    }
  }
}

TEST("centroid attention: a long sequence gives the same bits for every number of threads") {
  Case which = find_case("usual");
  which.batch = which.heads = 1;
  which.query_length = 20;
  which.key_length = 4001;
  which.head_dim = 24;
  for (Normalize normalize : {Normalize::centroids, Normalize::inputs}) {
    CentroidArrays fixture(which, {normalize, Collect::sum, true});
    check_threads(fixture.problem, fixture.arrays);
    check_reference(fixture);
  }
}

TEST("centroid attention: infinities that only lower the logits are found") {
  for (const CentroidOptions& options : all_centroid_options()) {
    if (options.weights || options.neighbors) continue;
    for (const char* name : {"one-query", "tile-25", "tile-129"}) {
      const Scope scope(name + options.name());
      CentroidArrays fixture(find_case(name), options);
      check_silent_infinity(fixture);
    }
  }
}

TEST("centroid attention: NaN and Inf are named") {
  for (const CentroidOptions& options : all_centroid_options()) {
    const Scope scope(options.name());
    CentroidArrays fixture(find_case("prime"), options);
    if (options.neighbors) std::fill_n(fixture.neighbors, 61 * 5, 3);
    check_non_finite(fixture.problem, fixture.arrays, fixture.query, "query", 17 * 61 + 3,
                     17 * 62 + 3);
    check_non_finite(fixture.problem, fixture.arrays, fixture.key, "key", 17 * 56 + 3);
    check_non_finite(fixture.problem, fixture.arrays, fixture.value, "value", 13 * 56 + 3);
    if (options.weights) {
      check_non_finite(fixture.problem, fixture.arrays, fixture.weights, "weights", 3);
    }
  }
}

}  // namespace

}  // namespace cluster_attention::test
