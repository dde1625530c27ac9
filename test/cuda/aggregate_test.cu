// Aggregate and its counterpart, broadcast.

#include "test/cuda/same_as_cpu.h"
#include "test/native/cases.h"
#include "test/native/clustering_arrays.h"

namespace cluster_attention::test {

namespace {

auto on_device(AggregateFixture& fixture) {
  return [&](AggregateProblem problem, Device& device) {
    problem.inputs = device.stored(problem.inputs, fixture.arrays);
    problem.labels = device.at(problem.labels, fixture.arrays);
    problem.output = device.stored(problem.output, fixture.arrays);
    return problem;
  };
}

auto on_device(BroadcastFixture& fixture) {
  return [&](BroadcastProblem problem, Device& device) {
    problem.inputs = device.stored(problem.inputs, fixture.arrays);
    problem.labels = device.at(problem.labels, fixture.arrays);
    problem.output = device.stored(problem.output, fixture.arrays);
    return problem;
  };
}

const cuda::Operation<AggregateProblem> kAggregate = Device::backend().operations.aggregate;
const cuda::Operation<BroadcastProblem> kBroadcast = Device::backend().operations.broadcast;

TEST_ONCE("CUDA aggregate: the CPU's bits") {
  for (const Case& one : cases()) {
    for (Reduce reduce : {Reduce::mean, Reduce::sum}) {
      const Scope scope(one.name);
      AggregateFixture fixture(one, reduce);
      check_same_as_cpu(fixture.problem, fixture.arrays, kAggregate, on_device(fixture));
    }
  }
}

/// More clusters than a block scans at a time, and parts of a sort that are longer than usual.
TEST_ONCE("CUDA aggregate: long sequences, many clusters") {
  Case which = find_case("prime-long");
  which.query_length = 6001;
  which.head_dim = 3;
  for (int64_t clusters : {1, 255, 257, 2600}) {
    const Scope scope(std::to_string(clusters));
    which.clusters = clusters;
    AggregateFixture fixture(which);
    check_same_as_cpu(fixture.problem, fixture.arrays, kAggregate, on_device(fixture));
  }
}

TEST_ONCE("CUDA aggregate and broadcast: rows stored as bfloat16") {
  AggregateFixture aggregate(find_case("prime"));
  CHECK_EQUAL(
      describe(run_fresh(aggregate.problem, aggregate.arrays, 2, {{}, Precision::bfloat16})), "ok");
  std::vector<float> expected = aggregate.result();
  for (float& value : expected) value = round_to_bfloat16(value);
  aggregate.arrays.poison();
  Device device(cuda::Storage::bfloat16);
  CHECK_EQUAL(describe(device.run(kAggregate, on_device(aggregate)(aggregate.problem, device))),
              "ok");
  device.fetch(aggregate.arrays);
  CHECK_SAME(aggregate.result(), expected);

  for (const DeviceSettings& settings : kBfloat16Settings) {
    BroadcastFixture broadcast(find_case("prime"));
    const BroadcastProblem& problem = broadcast.problem;
    if (settings.precision == Precision::float32) {
      round_in_place({{broadcast.inputs, problem.batch * problem.clusters * problem.dim}});
    }
    check_same_as_cpu(problem, broadcast.arrays, kBroadcast, on_device(broadcast), settings);
  }
}

TEST_ONCE("CUDA broadcast: the CPU's bits") {
  for (const Case& one : cases()) {
    const Scope scope(one.name);
    BroadcastFixture fixture(one);
    check_same_as_cpu(fixture.problem, fixture.arrays, kBroadcast, on_device(fixture));
  }
}

TEST_ONCE("CUDA aggregate and broadcast: the first label that is out of range is named") {
  AggregateFixture aggregate(find_case("prime"));
  aggregate.labels[70] = 7;
  aggregate.labels[200] = -2;
  CHECK_EQUAL(device_status(aggregate.problem, aggregate.arrays, kAggregate, on_device(aggregate)),
              "out_of_range labels[70]");
  BroadcastFixture broadcast(find_case("prime"));
  broadcast.labels[60] = -2;
  broadcast.labels[100] = 7;
  CHECK_EQUAL(device_status(broadcast.problem, broadcast.arrays, kBroadcast, on_device(broadcast)),
              "out_of_range labels[60]");
}

TEST_ONCE("CUDA aggregate and broadcast: NaN and Inf are noticed, and cancellation is heard") {
  AggregateFixture aggregate(find_case("prime"));
  check_notices_non_finite(aggregate.problem, aggregate.arrays, kAggregate, on_device(aggregate),
                           aggregate.inputs, 17 * 40 + 16);
  BroadcastFixture broadcast(find_case("prime"));
  broadcast.labels[0] = 3;
  check_notices_non_finite(broadcast.problem, broadcast.arrays, kBroadcast, on_device(broadcast),
                           broadcast.inputs, 17 * 3 + 16);
  const volatile int32_t abort = 1;
  CHECK_EQUAL(
      device_status(aggregate.problem, aggregate.arrays, kAggregate, on_device(aggregate), &abort),
      "cancelled");
  CHECK_EQUAL(
      device_status(broadcast.problem, broadcast.arrays, kBroadcast, on_device(broadcast), &abort),
      "cancelled");
}

}  // namespace

}  // namespace cluster_attention::test
