#include "test/cuda/same_as_cpu.h"
#include "test/native/cases.h"
#include "test/native/clustering_arrays.h"

namespace cluster_attention::test {

namespace {

auto on_device(AggregateGradientFixture& fixture) {
  return [&](AggregateGradientProblem problem, Device& device) {
    problem.forward.labels = device.at(problem.forward.labels, fixture.arrays);
    problem.output_gradient = device.stored(problem.output_gradient, fixture.arrays);
    problem.inputs = device.stored(problem.inputs, fixture.arrays);
    return problem;
  };
}

auto on_device(BroadcastGradientFixture& fixture) {
  return [&](BroadcastGradientProblem problem, Device& device) {
    problem.forward.labels = device.at(problem.forward.labels, fixture.arrays);
    problem.output_gradient = device.stored(problem.output_gradient, fixture.arrays);
    problem.inputs = device.stored(problem.inputs, fixture.arrays);
    return problem;
  };
}

const cuda::Operation<AggregateGradientProblem> kAggregateGradient =
    Device::backend().operations.aggregate_gradient;
const cuda::Operation<BroadcastGradientProblem> kBroadcastGradient =
    Device::backend().operations.broadcast_gradient;

/// Outputs of the forward call are not written: they stay poisoned on both sides.
TEST_ONCE("CUDA aggregate gradient: the CPU's bits") {
  for (const Case& one : cases()) {
    for (Reduce reduce : {Reduce::mean, Reduce::sum}) {
      const Scope scope(one.name);
      AggregateGradientFixture fixture(one, reduce);
      check_same_as_cpu(fixture.gradient, fixture.arrays, kAggregateGradient, on_device(fixture));
    }
  }
}

TEST_ONCE("CUDA aggregate gradient: bfloat16 in precision and in storage") {
  for (const DeviceSettings& settings : kBfloat16Settings) {
    AggregateGradientFixture fixture(find_case("prime"), Reduce::sum);
    const AggregateProblem& problem = fixture.problem;
    if (settings.precision == Precision::float32) {
      round_in_place({{fixture.output_gradient,
                       problem.batch * problem.heads * problem.clusters * problem.dim}});
    }
    check_same_as_cpu(fixture.gradient, fixture.arrays, kAggregateGradient, on_device(fixture),
                      settings);
  }
}

TEST_ONCE("CUDA broadcast gradient: the CPU's bits") {
  for (const Case& one : cases()) {
    const Scope scope(one.name);
    BroadcastGradientFixture fixture(one);
    check_same_as_cpu(fixture.gradient, fixture.arrays, kBroadcastGradient, on_device(fixture));
  }
}

/// Sums of a few small integers are bfloat16 numbers.
TEST_ONCE("CUDA broadcast gradient: bfloat16 in precision and in storage") {
  for (const DeviceSettings& settings : kBfloat16Settings) {
    BroadcastGradientFixture fixture(find_case("prime"));
    const BroadcastProblem& problem = fixture.problem;
    for (int64_t i = 0; i < problem.batch * problem.length * problem.dim; ++i) {
      fixture.output_gradient[i] = static_cast<float>(i % 5 - 2);
    }
    check_same_as_cpu(fixture.gradient, fixture.arrays, kBroadcastGradient, on_device(fixture),
                      settings);
  }
}

TEST_ONCE("CUDA aggregate and broadcast gradients: faults are named, NaN is noticed") {
  AggregateGradientFixture aggregate(find_case("prime"));
  aggregate.labels[0] = 3;
  check_notices_non_finite(aggregate.gradient, aggregate.arrays, kAggregateGradient,
                           on_device(aggregate), aggregate.output_gradient, 17 * 3 + 2);
  aggregate.labels[70] = 7;
  CHECK_EQUAL(
      device_status(aggregate.gradient, aggregate.arrays, kAggregateGradient, on_device(aggregate)),
      "out_of_range labels[70]");
  BroadcastGradientFixture broadcast(find_case("prime"));
  broadcast.labels[60] = -2;
  CHECK_EQUAL(
      device_status(broadcast.gradient, broadcast.arrays, kBroadcastGradient, on_device(broadcast)),
      "out_of_range labels[60]");
}

}  // namespace

}  // namespace cluster_attention::test
