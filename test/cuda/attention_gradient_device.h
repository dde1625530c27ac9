#pragma once

// The backwards of exact and of clustered attention on the device.

#include <algorithm>
#include <limits>

#include "test/cuda/promises.h"
#include "test/native/attention_gradients.h"

namespace cluster_attention::test {

/// Of operands cut in two bfloat16; and of bfloat16 operands (mean queries and sums of gradients
/// among them) with weights rounded to it, and saved outputs too where they are stored so.
constexpr double kSplitBound = 3e-5;
constexpr double kBfloat16Bound = 0x1p-7;
/// Of what cancels, see check_gradients().
constexpr double kShare = 0.5;

inline cuda::Operation<AttentionGradientProblem> gradient_of(const AttentionGradientProblem&) {
  return Device::backend().operations.attention_gradient;
}
inline cuda::Operation<ClusteredAttentionGradientProblem> gradient_of(
    const ClusteredAttentionGradientProblem&) {
  return Device::backend().operations.clustered_attention_gradient;
}

inline void put_forward(AttentionProblem& forward, Device& device, const Arrays& arrays) {
  forward.inputs = device.inputs(forward.inputs, arrays);
  forward.output = device.stored(forward.output, arrays);
  forward.logsumexp = device.at(forward.logsumexp, arrays);
}
inline void put_forward(ClusteredAttentionProblem& forward, Device& device, const Arrays& arrays) {
  forward.inputs = device.inputs(forward.inputs, arrays);
  forward.output = device.stored(forward.output, arrays);
  forward.labels = device.at(forward.labels, arrays);
  forward.indices = device.at(forward.indices, arrays);
  forward.cluster_values = device.at(forward.cluster_values, arrays);
  forward.cluster_logsumexp = device.at(forward.cluster_logsumexp, arrays);
}

template <typename Problem, typename Fixture>
Problem on_device(Problem problem, Device& device, const Fixture& fixture) {
  put_forward(problem.forward, device, fixture.arrays);
  problem.output_gradient = device.stored(problem.output_gradient, fixture.outputs);
  problem.gradients = device.gradients(problem.gradients, fixture.outputs);
  return problem;
}

/// Runs with fresh gradients, which are brought back.
template <typename Fixture, typename Problem>
Status run(Fixture& fixture, Device& device, const Problem& problem,
           Precision precision = Precision::float32) {
  fixture.outputs.poison();
  const Status status =
      device.run(gradient_of(problem), on_device(problem, device, fixture), precision);
  device.fetch(fixture.outputs);
  fixture.outputs.snapshot();
  return status;
}

template <typename Fixture>
Status run(Fixture& fixture, Device& device, Precision precision = Precision::float32) {
  return run(fixture, device, fixture.problem, precision);
}

/// Whether there is a result: the call runs, or is refused as docs/gpu.md says.
template <typename Fixture>
bool check_runs(Fixture& fixture, Device& device, Precision precision = Precision::float32) {
  const std::string expected = expected_status(device, fixture.inputs.shape, precision);
  CHECK_EQUAL(describe(run(fixture, device, precision)), expected);
  CHECK(!device.non_finite());
  return expected == "ok";
}

template <typename Fixture>
void check_wanted_alone_on(Fixture& fixture, Precision precision = Precision::float32) {
  check_wanted_alone(fixture, [&](const auto& problem) {
    Device device;
    CHECK_EQUAL(describe(run(fixture, device, problem, precision)), "ok");
  });
}

/// The same bits on a device that has run it before, and whether sequences come in a batch or one
/// by one.
template <typename Fixture>
void check_same_gradients(Fixture& fixture, Precision precision = Precision::float32) {
  Device device;
  CHECK_EQUAL(describe(run(fixture, device, precision)), "ok");
  const auto expected = fixture.outputs.snapshot();
  in_every_thread_order([&] {
    CHECK_EQUAL(describe(run(fixture, device, precision)), "ok");
    check_same_bytes(fixture.outputs.snapshot(), expected, "running again");
  });
  const auto there = on_device(fixture.problem, device, fixture);
  const AttentionShape& shape = fixture.inputs.shape;
  fixture.outputs.poison();
  for (int64_t i = 0; i < shape.batch * shape.heads; ++i) {
    CHECK_EQUAL(describe(device.run(gradient_of(there), one_sequence(there, i), precision)), "ok");
  }
  device.fetch(fixture.outputs);
  check_same_bytes(fixture.outputs.snapshot(), expected, "running sequences one by one");
}

/// NaN and Inf in a row of each input of a case "ragged" or longer, in both storages.
template <typename Fixture>
void check_notices_inputs(Fixture& fixture, Precision precision = Precision::float32) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const AttentionInputs& in = fixture.inputs;
  float* places[] = {const_cast<float*>(in.query.row(0, 1, 7)),
                     const_cast<float*>(in.key.row(0, 1, 5)),
                     const_cast<float*>(in.value.row(0, 0, 3)),
                     const_cast<float*>(fixture.made.output_gradient.row(0, 0, 6))};
  for (cuda::Storage storage : {cuda::Storage::float32, cuda::Storage::bfloat16}) {
    for (float* place : places) {
      for (float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity}) {
        const Scope scope(std::to_string(bad) + " at place " + std::to_string(&place - places));
        const float saved = *place;
        *place = bad;
        Device device(storage);
        CHECK_EQUAL(describe(run(fixture, device, precision)), "ok");
        CHECK(device.non_finite());
        *place = saved;
      }
    }
  }
}

/// Queries and gradients of these rows of a sequence may be NaN: they are not read.
template <typename Fixture>
void check_unread_rows(Fixture& fixture, int64_t sequence, const std::vector<int64_t>& rows,
                       Precision precision) {
  Device clean;
  CHECK_EQUAL(describe(run(fixture, clean, precision)), "ok");
  const auto expected = fixture.outputs.snapshot();
  const AttentionShape& shape = fixture.inputs.shape;
  const int64_t batch = sequence / shape.heads;
  const int64_t head = sequence % shape.heads;
  for (int64_t row : rows) {
    std::fill_n(const_cast<float*>(fixture.inputs.query.row(batch, head, row)), shape.head_dim,
                std::numeric_limits<float>::quiet_NaN());
    std::fill_n(const_cast<float*>(fixture.made.output_gradient.row(batch, head, row)),
                shape.value_dim, std::numeric_limits<float>::quiet_NaN());
  }
  Device device;
  CHECK_EQUAL(describe(run(fixture, device, precision)), "ok");
  CHECK(!device.non_finite());
  check_same_bytes(fixture.outputs.snapshot(), expected, "rows that are not read");
}

/// Widths that no kernel holds, and cancellation; `fixture` is of the case "prime".
template <typename Fixture>
void check_refusals(Fixture& fixture) {
  Device device;
  auto there = on_device(fixture.problem, device, fixture);
  const auto operation = gradient_of(there);
  const volatile int32_t abort = 1;
  CHECK_EQUAL(describe(device.run(operation, there, Precision::float32, &abort)), "cancelled");
  CHECK_EQUAL(describe(run(fixture, device)), "ok");
  there.forward.inputs.shape.head_dim = 257;
  CHECK_EQUAL(describe(device.run(operation, there)), "unsupported headDim");
  there.forward.inputs.shape.head_dim = 17;
  there.forward.inputs.shape.value_dim = 300;
  CHECK_EQUAL(describe(device.run(operation, there)), "unsupported valueDim");
}

template <typename Fixture>
void check_gradient_allocations(Fixture& fixture, int64_t least) {
  check_allocation_failures_on(
      fixture.problem, fixture.outputs, gradient_of(fixture.problem),
      [&](const auto& problem, Device& device) { return on_device(problem, device, fixture); },
      least);
}

/// Storage and precision: one of them is bfloat16, or both are.
constexpr DeviceSettings kBfloat16Ways[] = {{cuda::Storage::float32, Precision::bfloat16},
                                            {cuda::Storage::bfloat16, Precision::bfloat16},
                                            {cuda::Storage::bfloat16, Precision::float32}};

}  // namespace cluster_attention::test
