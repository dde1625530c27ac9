#include "native/reference/centroid_attention.h"

#include <algorithm>
#include <cmath>

#include "native/reference/attention.h"
#include "test/native/attention_arrays.h"
#include "test/native/checks.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

namespace {

/// What the options of one run are.
struct Options {
  Normalize normalize = Normalize::centroids;
  Collect aggregate = Collect::sum;
  bool weights = false;
  bool neighbors = false;

  std::string name() const {
    return std::string(normalize == Normalize::centroids ? " centroids" : " inputs") +
           (aggregate == Collect::sum ? " sum" : " mean") + (weights ? " weights" : "") +
           (neighbors ? " neighbors" : "");
  }
};

std::vector<Options> all_options() {
  std::vector<Options> list;
  for (Normalize normalize : {Normalize::centroids, Normalize::inputs}) {
    for (Collect aggregate : {Collect::sum, Collect::mean}) {
      for (int bits = 0; bits < 4; ++bits) {
        list.push_back({normalize, aggregate, (bits & 1) != 0, (bits & 2) != 0});
      }
    }
  }
  return list;
}

/// M centroids are the queries of a case, N inputs its keys. One input in five has weight 0 and
/// NaN in its rows; lists of neighbours hold repeats, -1 and (with lengths) padded inputs.
struct Fixture : AttentionArrays {
  CentroidAttentionProblem problem;
  float* weights = nullptr;
  int32_t* neighbors = nullptr;

  Fixture(const Case& which, const Options& options, Fill fill = Fill::gaussian)
      : AttentionArrays(which, fill) {
    const AttentionShape& shape = inputs.shape;
    problem.inputs = inputs;
    problem.normalize = options.normalize;
    problem.aggregate = options.aggregate;
    if (options.weights) add_weights(which);
    if (options.neighbors) {
      problem.neighbor_count = which.top_k;
      std::vector<int32_t> lists = random_indices(shape.batch * shape.query_length * which.top_k,
                                                  -1, static_cast<int32_t>(shape.key_length), 32);
      for (size_t i = 1; i < lists.size(); i += 4) lists[i] = lists[i - 1];
      neighbors = arrays.input(lists);
      problem.neighbors = neighbors;
    }
    problem.output = output;
    problem.labels = arrays.output<int32_t>(sequences() * shape.key_length);
    problem.masses = arrays.output<float>(sequences() * shape.query_length);
    problem.objective = arrays.output<double>(shape.batch);
  }

  void add_weights(const Case& which) {
    const AttentionShape& shape = inputs.shape;
    std::vector<float> values = random_floats(shape.batch * shape.key_length, 31);
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = i % 5 == 2 ? 0.0f : std::abs(values[i]);
    }
    weights = arrays.input(values);
    problem.weights = weights;
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const OutputRows keys =
        dense_rows(key, which.layout, shape.heads, shape.key_length, shape.head_dim);
    const OutputRows inputs_of_values =
        dense_rows(value, which.layout, shape.heads, shape.key_length, shape.value_dim);
    for (int64_t i = 2; i < shape.batch * shape.key_length; i += 5) {
      for (int64_t h = 0; h < shape.heads; ++h) {
        const int64_t b = i / shape.key_length;
        std::fill_n(keys.row(b, h, i % shape.key_length), shape.head_dim, nan);
        std::fill_n(inputs_of_values.row(b, h, i % shape.key_length), shape.value_dim, nan);
      }
    }
  }

  int64_t sequences() const { return inputs.shape.batch * inputs.shape.heads; }
  std::vector<float> result() const { return read_output(output, inputs.shape); }
  std::vector<int32_t> labels() const {
    return read(problem.labels, sequences() * inputs.shape.key_length);
  }
  std::vector<float> masses() const {
    return read(problem.masses, sequences() * inputs.shape.query_length);
  }
};

CentroidAttentionProblem one_batch(CentroidAttentionProblem problem, int64_t b) {
  const AttentionShape shape = problem.inputs.shape;
  problem.inputs = alone(problem.inputs, b);
  problem.output = alone(problem.output, b);
  problem.weights = part(problem.weights, b, shape.key_length);
  problem.neighbors = part(problem.neighbors, b, shape.query_length * problem.neighbor_count);
  problem.labels = part(problem.labels, b, shape.heads * shape.key_length);
  problem.masses = part(problem.masses, b, shape.heads * shape.query_length);
  problem.objective = part(problem.objective, b, 1);
  return problem;
}

void check_reference(Fixture& fixture) {
  CHECK_RUNS(fixture.problem, fixture.arrays);
  fixture.arrays.snapshot();
  const reference::CentroidAttentionResult expected =
      reference::centroid_attention(fixture.problem);
  CHECK_CLOSE(fixture.result(), expected.output);
  CHECK_CLOSE(fixture.masses(), expected.masses);
  // On Gaussian data no two centroids are within rounding of each other for an input.
  CHECK_SAME(fixture.labels(), expected.labels);
  CHECK_CLOSE(read(fixture.problem.objective, fixture.inputs.shape.batch), expected.objective,
              1e-5);
}

TEST("centroid attention: matches the reference under all options") {
  for (const Case& one : cases()) {
    for (const Options& options : all_options()) {
      const Scope scope(one.name + options.name());
      Fixture fixture(one, options);
      check_reference(fixture);
    }
  }
}

TEST("centroid attention: labels equal the reference on integers, ties included") {
  for (const Case& one : cases()) {
    for (bool neighbors : {false, true}) {
      const Scope scope(one.name + (neighbors ? " neighbors" : ""));
      Fixture fixture(one, {Normalize::centroids, Collect::sum, true, neighbors}, Fill::integer);
      CHECK_RUNS(fixture.problem, fixture.arrays);
      CHECK_SAME(fixture.labels(), reference::centroid_attention(fixture.problem).labels);
    }
  }
}

TEST("centroid attention: scales of any size and sign") {
  for (float scale : {0.0f, -0.5f, 1.0f, 8.0f}) {
    for (const Options& options : all_options()) {
      const Scope scope("scale " + std::to_string(scale) + options.name());
      Fixture fixture(find_case("prime"), options);
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
    for (const Options& options : all_options()) {
      // The reference adds log(weight) to the logit: lost even in double beside 1e12.
      if (options.weights && std::abs(scale) > 1e10f) continue;
      const Scope scope("scale " + std::to_string(scale) + options.name());
      Fixture fixture(find_case("prime"), options, Fill::integer);
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
    Fixture fixture(find_case(name), {Normalize::inputs});
    CHECK_RUNS(fixture.problem, fixture.arrays);
    AttentionProblem exact;
    exact.inputs = fixture.inputs;
    CHECK_CLOSE(fixture.result(), reference::attention(exact).output);
  }
}

TEST("centroid attention: the masses of all centroids are the weights of all inputs") {
  Fixture fixture(find_case("usual"), {Normalize::centroids, Collect::sum, true});
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
    Case which = find_case("tile-25");
    which.top_k = which.key_length;
    Fixture fixture(which, {normalize, Collect::sum, false, true});
    for (int64_t i = 0; i < which.query_length * which.key_length; ++i) {
      fixture.neighbors[i] = static_cast<int32_t>(which.key_length - 1 - i % which.key_length);
    }
    CHECK_RUNS(fixture.problem, fixture.arrays);
    const std::vector<float> listed = fixture.result();
    fixture.problem.neighbors = nullptr;
    CHECK_RUNS(fixture.problem, fixture.arrays);
    const std::vector<float> all = fixture.result();
    CHECK_CLOSE(listed, std::vector<double>(all.begin(), all.end()));
  }
}

TEST("centroid attention: neighbors outside their range are named") {
  for (int32_t bad : {-2, 53}) {
    Fixture fixture(find_case("prime"), {Normalize::centroids, Collect::sum, false, true});
    fixture.neighbors[311] = bad;
    fixture.neighbors[320] = bad;
    CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays)),
                "out_of_range neighbors[311]");
  }
}

TEST("centroid attention: optional outputs do not change the others") {
  for (const Options& options : all_options()) {
    const Scope scope(options.name());
    Fixture fixture(find_case("ragged"), options);
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
    for (const Options& options : all_options()) {
      if (options.aggregate == Collect::mean) continue;
      const Scope scope(name + options.name());
      Fixture fixture(find_case(name), options);
      check_promises(fixture.problem, fixture.arrays, fixture.inputs.shape.batch, one_batch);
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
    Fixture fixture(which, {normalize, Collect::sum, true});
    check_threads(fixture.problem, fixture.arrays);
    check_reference(fixture);
  }
}

TEST("centroid attention: infinities that only lower the logits are found") {
  for (const Options& options : all_options()) {
    if (options.weights || options.neighbors) continue;
    for (const char* name : {"one-query", "tile-25", "tile-129"}) {
      const Scope scope(name + options.name());
      Fixture fixture(find_case(name), options);
      check_silent_infinity(fixture);
    }
  }
}

TEST("centroid attention: NaN and Inf are named") {
  for (const Options& options : all_options()) {
    const Scope scope(options.name());
    Fixture fixture(find_case("prime"), options);
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
