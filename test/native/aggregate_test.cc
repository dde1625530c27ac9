#include "native/reference/aggregate.h"

#include "test/native/attention_arrays.h"
#include "test/native/checks.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

namespace {

/// Rows are the queries of a case; about one in eight, and padding, belongs to no cluster.
struct Fixture {
  Arrays arrays;
  AggregateProblem problem;
  float* inputs;
  int32_t* labels;

  explicit Fixture(const Case& which, Reduce reduce = Reduce::mean) {
    problem.batch = which.batch;
    problem.heads = which.heads;
    problem.length = which.query_length;
    problem.dim = which.head_dim;
    problem.clusters = which.clusters;
    problem.reduce = reduce;
    inputs = arrays.floats(sequences() * problem.length * problem.dim, 1);
    poison_padding(inputs, which, which.query_lengths, problem.length, problem.dim);
    problem.inputs =
        dense_rows<const float>(inputs, which.layout, which.heads, problem.length, problem.dim);
    std::vector<int32_t> all =
        random_indices(sequences() * problem.length, 0, static_cast<int32_t>(which.clusters), 2);
    for (int64_t i = 0; i < sequences() * problem.length; ++i) {
      const int64_t b = i / problem.length / problem.heads;
      const bool padded =
          !which.query_lengths.empty() && i % problem.length >= which.query_lengths[b];
      if (i % 8 == 5 || padded) all[i] = -1;
    }
    labels = arrays.input(all);
    problem.labels = labels;
    problem.output = arrays.output<float>(sequences() * problem.clusters * problem.dim);
  }
  int64_t sequences() const { return problem.batch * problem.heads; }
  std::vector<float> result() const {
    return read(problem.output, sequences() * problem.clusters * problem.dim);
  }
};

AggregateProblem one_sequence(AggregateProblem problem, int64_t sequence) {
  problem.inputs = alone(problem.inputs, sequence / problem.heads, sequence % problem.heads);
  problem.labels = part(problem.labels, sequence, problem.length);
  problem.output = part(problem.output, sequence, problem.clusters * problem.dim);
  problem.batch = 1;
  problem.heads = 1;
  return problem;
}

TEST("aggregate: matches the reference") {
  for (const Case& one : cases()) {
    for (Reduce reduce : {Reduce::mean, Reduce::sum}) {
      const Scope scope(one.name);
      Fixture fixture(one, reduce);
      CHECK_RUNS(fixture.problem, fixture.arrays);
      fixture.arrays.snapshot();
      CHECK_CLOSE(fixture.result(), reference::aggregate(fixture.problem), 1e-7);
    }
  }
}

TEST("aggregate: large values of opposite sign cancel exactly") {
  Case which = find_case("one");
  which.query_length = 5;
  Fixture fixture(which, Reduce::sum);
  const float values[] = {1e8f, 1.0f, -1e8f, 3e7f, -3e7f};
  std::copy_n(values, 5, fixture.inputs);
  std::fill_n(fixture.labels, 5, 0);
  CHECK_RUNS(fixture.problem, fixture.arrays);
  CHECK_EQUAL(fixture.problem.output[0], 1.0f);
}

TEST("aggregate: a row of no cluster is never read") {
  Fixture fixture(find_case("prime"));
  CHECK_EQUAL(fixture.labels[5], -1);
  fixture.inputs[5 * fixture.problem.dim] = std::numeric_limits<float>::quiet_NaN();
  CHECK_RUNS(fixture.problem, fixture.arrays);
  // ... nor named when another row holds the fault.
  check_non_finite(fixture.problem, fixture.arrays, fixture.inputs, "inputs",
                   6 * fixture.problem.dim + 3);
}

TEST("aggregate: labels outside their range are named") {
  for (int32_t bad : {-2, 7, 1 << 30}) {
    Fixture fixture(find_case("prime"));
    fixture.labels[70] = bad;
    fixture.labels[200] = bad;
    CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays)), "out_of_range labels[70]");
  }
}

TEST("aggregate: threads, batches, faults, cancellation") {
  for (const char* name : {"ragged", "ragged-transposed", "usual", "long-queries"}) {
    const Scope scope(name);
    Fixture fixture(find_case(name));
    check_promises(fixture.problem, fixture.arrays, fixture.sequences(), one_sequence);
  }
}

TEST("aggregate: NaN and Inf are named") {
  Fixture fixture(find_case("prime"));
  check_non_finite(fixture.problem, fixture.arrays, fixture.inputs, "inputs", 17 * 10 + 4,
                   17 * 11 + 1);
}

}  // namespace

}  // namespace cluster_attention::test
