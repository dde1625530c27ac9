#include "cuda/attention_gradient.h"
#include "test/cuda/same_as_cpu.h"
#include "test/native/attention_gradients.h"

namespace cluster_attention::test {

namespace {

using cuda::Storage;
using Fixture = AttentionGradientFixture;

/// Of operands cut in two bfloat16; and of bfloat16 operands with weights rounded to it, and saved
/// outputs too where they are stored so.
constexpr double kSplitBound = 3e-5;
constexpr double kBfloat16Bound = 0x1p-7;
/// Of what cancels, see check_gradients().
constexpr double kShare = 0.5;

AttentionGradientProblem on_device(const AttentionGradientProblem& problem, Device& device,
                                   const Fixture& fixture) {
  AttentionGradientProblem there = problem;
  there.forward.inputs = device.inputs(problem.forward.inputs, fixture.arrays);
  there.forward.output = device.stored(problem.forward.output, fixture.arrays);
  there.forward.logsumexp = device.at(problem.forward.logsumexp, fixture.arrays);
  there.output_gradient = device.stored(problem.output_gradient, fixture.outputs);
  there.gradients.query = device.stored(problem.gradients.query, fixture.outputs);
  there.gradients.key = device.stored(problem.gradients.key, fixture.outputs);
  there.gradients.value = device.stored(problem.gradients.value, fixture.outputs);
  return there;
}

const cuda::Operation<AttentionGradientProblem> kGradient =
    Device::backend().operations.attention_gradient;

Status run(Fixture& fixture, Device& device, const AttentionGradientProblem& problem,
           Precision precision = Precision::float32) {
  fixture.outputs.poison();
  const Status status = device.run(kGradient, on_device(problem, device, fixture), precision);
  device.fetch(fixture.outputs);
  fixture.outputs.snapshot();
  return status;
}

Status run(Fixture& fixture, Device& device, Precision precision = Precision::float32) {
  return run(fixture, device, fixture.problem, precision);
}

TEST_ONCE("CUDA attention gradient: matches the reference") {
  for (const Case& one : cases()) {
    for (bool causal : {false, true}) {
      const Scope scope(one.name + (causal ? " causal" : ""));
      Fixture fixture(one, causal);
      Device device;
      CHECK_EQUAL(describe(run(fixture, device)), "ok");
      CHECK(!device.non_finite());
      check_gradients(fixture.result(), reference::attention_gradient(fixture.problem), kSplitBound,
                      kShare);
    }
  }
}

TEST_ONCE("CUDA attention gradient: scales of any sign, widths in several slices") {
  for (int64_t dim : {1, 33, 64, 130}) {
    for (float scale : {0.0f, -0.5f, 2.0f}) {
      const Scope scope("D " + std::to_string(dim) + " scale " + std::to_string(scale));
      Case which = find_case("tile-129");
      which.head_dim = dim;
      which.value_dim = 131 - dim;
      Fixture fixture(which, true);
      fixture.problem.forward.inputs.scale = scale / std::sqrt(static_cast<float>(dim));
      fixture.run_forward();
      Device device;
      CHECK_EQUAL(describe(run(fixture, device)), "ok");
      check_gradients(fixture.result(), reference::attention_gradient(fixture.problem), kSplitBound,
                      kShare);
    }
  }
}

TEST_ONCE("CUDA attention gradient: logits beyond float32's digits leave finite numbers") {
  for (float scale : {1e5f, 1.3e9f, -1e12f}) {
    const Scope scope("scale " + std::to_string(scale));
    Fixture fixture(find_case("prime"), false, Fill::integer);
    fixture.problem.forward.inputs.scale = scale;
    fixture.run_forward();
    Device device;
    CHECK_EQUAL(describe(run(fixture, device)), "ok");
    // Every weight is at most 1, so no element exceeds the sum of all gradients.
    for (float x : fixture.result().value) CHECK(std::abs(x) <= 2.0f * 61.0f);
  }
}

void round_inputs(Fixture& fixture) {
  const AttentionShape& s = fixture.inputs.shape;
  const int64_t sequences = s.batch * s.heads;
  round_in_place({{fixture.query, sequences * s.query_length * s.head_dim},
                  {fixture.key, sequences * s.key_length * s.head_dim},
                  {fixture.value, sequences * s.key_length * s.value_dim},
                  {fixture.made.output_gradient_data, sequences * s.query_length * s.value_dim}});
}

TEST_ONCE("CUDA attention gradient: bfloat16 in storage, in precision, and in both") {
  const struct {
    Storage storage;
    Precision precision;
  } ways[] = {{Storage::float32, Precision::bfloat16},
              {Storage::bfloat16, Precision::bfloat16},
              {Storage::bfloat16, Precision::float32}};
  for (const auto& way : ways) {
    for (const char* name :
         {"prime", "ragged-transposed", "width-64", "width-130-64", "ragged", "tile-49"}) {
      const Scope scope(std::string(name) + " way " + std::to_string(&way - ways));
      Fixture fixture(find_case(name), true);
      round_inputs(fixture);
      fixture.run_forward();
      Device device(way.storage);
      CHECK_EQUAL(describe(run(fixture, device, way.precision)), "ok");
      CHECK(!device.non_finite());
      check_gradients(fixture.result(), reference::attention_gradient(fixture.problem),
                      kBfloat16Bound, kShare);
    }
  }
}

TEST_ONCE("CUDA attention gradient: unrounded inputs are rounded by precision 'bfloat16'") {
  Fixture fixture(find_case("usual"));
  Device device;
  fixture.run_forward();
  CHECK_EQUAL(describe(run(fixture, device, Precision::bfloat16)), "ok");
  const DenseGradients actual = fixture.result();
  round_inputs(fixture);
  Device rounded;
  CHECK_EQUAL(describe(run(fixture, rounded, Precision::bfloat16)), "ok");
  CHECK_SAME(fixture.result().query, actual.query);
  CHECK_SAME(fixture.result().key, actual.key);
  CHECK_SAME(fixture.result().value, actual.value);
}

TEST_ONCE("CUDA attention gradient: what is not wanted does not change the others") {
  Fixture fixture(find_case("ragged"), true);
  const AttentionGradientProblem all = fixture.problem;
  Device device;
  CHECK_EQUAL(describe(run(fixture, device)), "ok");
  const DenseGradients expected = fixture.result();
  for (int wanted = 0; wanted < 8; ++wanted) {
    const Scope scope("wanted " + std::to_string(wanted));
    AttentionGradientProblem some = all;
    if ((wanted & 1) == 0) some.gradients.query.data = nullptr;
    if ((wanted & 2) == 0) some.gradients.key.data = nullptr;
    if ((wanted & 4) == 0) some.gradients.value.data = nullptr;
    Device another;
    CHECK_EQUAL(describe(run(fixture, another, some)), "ok");
    const DenseGradients actual = fixture.result();
    if ((wanted & 1) != 0) CHECK_SAME(actual.query, expected.query);
    if ((wanted & 2) != 0) CHECK_SAME(actual.key, expected.key);
    if ((wanted & 4) != 0) CHECK_SAME(actual.value, expected.value);
  }
}

TEST_ONCE("CUDA attention gradient: the same bits in every order of threads, and for each alone") {
  for (const char* name : {"ragged", "tile-129", "width-65"}) {
    const Scope scope(name);
    Fixture fixture(find_case(name), true);
    const AttentionShape shape = fixture.inputs.shape;
    Device device;
    CHECK_EQUAL(describe(run(fixture, device)), "ok");
    const auto expected = fixture.outputs.snapshot();
    in_every_thread_order([&] {
      CHECK_EQUAL(describe(run(fixture, device)), "ok");
      check_same_bytes(fixture.outputs.snapshot(), expected, "running again");
    });
    const AttentionGradientProblem there = on_device(fixture.problem, device, fixture);
    fixture.outputs.poison();
    for (int64_t i = 0; i < shape.batch * shape.heads; ++i) {
      CHECK_EQUAL(describe(device.run(kGradient, one_sequence(there, i))), "ok");
    }
    device.fetch(fixture.outputs);
    check_same_bytes(fixture.outputs.snapshot(), expected, "running sequences one by one");
  }
}

TEST_ONCE("CUDA attention gradient: NaN and Inf are noticed, in padding they are not read") {
  for (Storage storage : {Storage::float32, Storage::bfloat16}) {
    for (const char* name : {"ragged", "tile-48"}) {
      Fixture fixture(find_case(name), true);
      const AttentionInputs& in = fixture.inputs;
      float* places[] = {const_cast<float*>(in.query.row(0, 1, 7)),
                         const_cast<float*>(in.key.row(0, 1, 5)),
                         const_cast<float*>(in.value.row(0, 0, 3)),
                         const_cast<float*>(fixture.made.output_gradient.row(0, 0, 6))};
      for (float* place : places) {
        for (float bad :
             {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
              -std::numeric_limits<float>::infinity()}) {
          const Scope scope(std::string(name) + " " + std::to_string(bad) + " at place " +
                            std::to_string(&place - places));
          const float saved = *place;
          *place = bad;
          Device device(storage);
          CHECK_EQUAL(describe(run(fixture, device)), "ok");
          CHECK(device.non_finite());
          *place = saved;
        }
      }
    }
  }
}

TEST_ONCE("CUDA attention gradient: widths that no kernel holds, cancellation") {
  Fixture fixture(find_case("prime"));
  Device device;
  AttentionGradientProblem there = on_device(fixture.problem, device, fixture);
  const volatile int32_t abort = 1;
  CHECK_EQUAL(describe(device.run(kGradient, there, Precision::float32, &abort)), "cancelled");
  CHECK_EQUAL(describe(run(fixture, device)), "ok");
  there.forward.inputs.shape.head_dim = 257;
  CHECK_EQUAL(describe(device.run(kGradient, there)), "unsupported headDim");
  there.forward.inputs.shape.head_dim = 17;
  there.forward.inputs.shape.value_dim = 300;
  CHECK_EQUAL(describe(device.run(kGradient, there)), "unsupported valueDim");
}

TEST_ONCE("CUDA attention gradient: any allocation may fail, and the next call is right") {
  Fixture fixture(find_case("ragged"), true);
  Device device;
  CHECK_EQUAL(describe(run(fixture, device)), "ok");
  const auto expected = fixture.outputs.snapshot();
  check_device_allocations([&](Device& one, auto prepare) {
    fixture.outputs.poison();
    const auto there = on_device(fixture.problem, one, fixture);
    prepare();
    const Status status = one.run(kGradient, there);
    if (!status.ok()) return status;
    one.fetch(fixture.outputs);
    check_same_bytes(fixture.outputs.snapshot(), expected, "a failed allocation before");
    return status;
  });
}

}  // namespace

}  // namespace cluster_attention::test
