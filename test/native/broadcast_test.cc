#include "native/reference/broadcast.h"

#include "test/native/attention_arrays.h"
#include "test/native/checks.h"
#include "test/native/clustering_arrays.h"
#include "test/native/compare.h"
#include "test/native/gradients.h"

namespace cluster_attention::test {

namespace {

using Fixture = BroadcastFixture;

BroadcastProblem one_sequence(BroadcastProblem problem, int64_t b) {
  problem.inputs = part(problem.inputs, b, problem.clusters * problem.dim);
  problem.labels = part(problem.labels, b, problem.length);
  problem.output = part(problem.output, b, problem.length * problem.dim);
  problem.batch = 1;
  return problem;
}

TEST("broadcast: equals the reference") {
  for (const Case& one : cases()) {
    const Scope scope(one.name);
    Fixture fixture(one);
    const BroadcastProblem& problem = fixture.problem;
    CHECK_RUNS(problem, fixture.arrays);
    fixture.arrays.snapshot();
    CHECK_SAME(read(problem.output, problem.batch * problem.length * problem.dim),
               reference::broadcast(problem));
  }
}

TEST("broadcast: labels outside their range are named") {
  for (int32_t bad : {-2, 7}) {
    Fixture fixture(find_case("prime"));
    fixture.labels[70] = bad;
    CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays)), "out_of_range labels[70]");
  }
}

TEST("broadcast: threads, batches, faults, cancellation") {
  for (const char* name : {"prime", "usual", "long-queries"}) {
    Fixture fixture(find_case(name));
    check_promises(fixture.problem, fixture.arrays, fixture.problem.batch, one_sequence);
  }
}

TEST("broadcast: NaN and Inf are named, unless no row takes them") {
  Fixture fixture(find_case("prime"));
  const int64_t row = fixture.labels[3] >= 0 ? fixture.labels[3] : fixture.labels[4];
  check_non_finite(fixture.problem, fixture.arrays, fixture.inputs, "inputs",
                   row * fixture.problem.dim + 2);
  std::fill_n(fixture.labels, fixture.problem.batch * fixture.problem.length, 1);
  fixture.inputs[0] = std::numeric_limits<float>::quiet_NaN();
  CHECK_RUNS(fixture.problem, fixture.arrays);
}

// ---- gradient -----------------------------------------------------------------------------------

using GradientFixture = BroadcastGradientFixture;

BroadcastGradientProblem one_gradient(BroadcastGradientProblem problem, int64_t b) {
  const BroadcastProblem& forward = problem.forward;
  problem.output_gradient = part(problem.output_gradient, b, forward.length * forward.dim);
  problem.inputs = part(problem.inputs, b, forward.clusters * forward.dim);
  problem.forward = one_sequence(forward, b);
  return problem;
}

TEST_ONCE("broadcast gradient: the reference agrees with finite differences") {
  for (const char* name : {"one", "more-clusters-than-queries"}) {
    const Scope scope(name);
    GradientFixture fixture(find_case(name));
    const BroadcastProblem& forward = fixture.problem;
    const std::vector<float> weights =
        read(fixture.output_gradient, forward.batch * forward.length * forward.dim);
    check_finite_differences("inputs", fixture.inputs,
                             reference::broadcast_gradient(fixture.gradient),
                             [&] { return inner_product(reference::broadcast(forward), weights); });
  }
}

TEST("broadcast gradient: matches the reference") {
  for (const Case& one : cases()) {
    const Scope scope(one.name);
    GradientFixture fixture(one);
    CHECK_RUNS(fixture.gradient, fixture.arrays);
    fixture.arrays.snapshot();
    const BroadcastProblem& forward = fixture.problem;
    CHECK_CLOSE(read(fixture.gradient.inputs, forward.batch * forward.clusters * forward.dim),
                reference::broadcast_gradient(fixture.gradient), 1e-7);
  }
}

TEST("broadcast gradient: threads, batches, faults, cancellation") {
  for (const char* name : {"prime", "usual", "long-queries"}) {
    GradientFixture fixture(find_case(name));
    check_promises(fixture.gradient, fixture.arrays, fixture.problem.batch, one_gradient);
  }
}

TEST("broadcast gradient: bad labels and non-finite values are named where they are read") {
  GradientFixture fixture(find_case("prime"));
  fixture.labels[2] = 0;
  fixture.labels[1] = -1;
  fixture.output_gradient[fixture.problem.dim] = std::numeric_limits<float>::quiet_NaN();
  CHECK_RUNS(fixture.gradient, fixture.arrays);
  check_non_finite(fixture.gradient, fixture.arrays, fixture.output_gradient, "gradOutput",
                   2 * fixture.problem.dim + 1);
  fixture.labels[70] = 7;
  CHECK_EQUAL(describe(run_fresh(fixture.gradient, fixture.arrays)), "out_of_range labels[70]");
}

}  // namespace

}  // namespace cluster_attention::test
