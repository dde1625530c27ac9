#include "native/reference/aggregate.h"

#include "test/native/attention_arrays.h"
#include "test/native/checks.h"
#include "test/native/clustering_arrays.h"
#include "test/native/compare.h"
#include "test/native/gradients.h"

namespace cluster_attention::test {

namespace {

using Fixture = AggregateFixture;

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

// ---- gradient -----------------------------------------------------------------------------------

using GradientFixture = AggregateGradientFixture;

AggregateGradientProblem one_gradient(AggregateGradientProblem problem, int64_t sequence) {
  const AggregateProblem& forward = problem.forward;
  problem.output_gradient = part(problem.output_gradient, sequence, forward.clusters * forward.dim);
  problem.inputs = alone(problem.inputs, sequence / forward.heads, sequence % forward.heads);
  problem.forward = one_sequence(forward, sequence);
  return problem;
}

TEST_ONCE("aggregate gradient: the reference agrees with finite differences") {
  for (const char* name : {"one", "more-clusters-than-queries", "ragged-transposed"}) {
    for (Reduce reduce : {Reduce::mean, Reduce::sum}) {
      const Scope scope(name);
      GradientFixture fixture(find_case(name), reduce);
      const AggregateProblem& forward = fixture.problem;
      const std::vector<float> weights =
          read(fixture.output_gradient, fixture.sequences() * forward.clusters * forward.dim);
      check_finite_differences(
          "inputs", forward.inputs, forward.batch, forward.heads, forward.length, forward.dim,
          reference::aggregate_gradient(fixture.gradient),
          [&] { return inner_product(reference::aggregate(forward), weights); });
    }
  }
}

TEST("aggregate gradient: matches the reference") {
  for (const Case& one : cases()) {
    for (Reduce reduce : {Reduce::mean, Reduce::sum}) {
      const Scope scope(one.name);
      GradientFixture fixture(one, reduce);
      CHECK_RUNS(fixture.gradient, fixture.arrays);
      fixture.arrays.snapshot();
      CHECK_CLOSE(fixture.result(), reference::aggregate_gradient(fixture.gradient), 1e-7);
    }
  }
}

TEST("aggregate gradient: threads, batches, faults, cancellation") {
  for (const char* name : {"ragged", "ragged-transposed", "usual", "long-queries"}) {
    const Scope scope(name);
    GradientFixture fixture(find_case(name));
    check_promises(fixture.gradient, fixture.arrays, fixture.sequences(), one_gradient);
  }
}

TEST("aggregate gradient: bad labels and non-finite values are named where they are read") {
  GradientFixture fixture(find_case("prime"));
  const int64_t cluster = fixture.labels[0];
  check_non_finite(fixture.gradient, fixture.arrays, fixture.output_gradient, "gradOutput",
                   cluster * fixture.problem.dim + 2);
  std::fill_n(fixture.labels, fixture.problem.length, 1);
  fixture.output_gradient[0] = std::numeric_limits<float>::quiet_NaN();  // of an empty cluster
  CHECK_RUNS(fixture.gradient, fixture.arrays);
  check_non_finite(fixture.gradient, fixture.arrays, fixture.output_gradient, "gradOutput",
                   fixture.problem.dim + 2);
  fixture.labels[70] = 7;
  CHECK_EQUAL(describe(run_fresh(fixture.gradient, fixture.arrays)), "out_of_range labels[70]");
}

}  // namespace

}  // namespace cluster_attention::test
