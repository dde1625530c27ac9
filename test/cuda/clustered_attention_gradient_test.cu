#include "cuda/clustered_attention_gradient.h"
#include "test/cuda/launches.h"
#include "test/cuda/same_as_cpu.h"
#include "test/native/attention_gradients.h"

namespace cluster_attention::test {

namespace {

using cuda::Storage;
using Fixture = ClusteredGradientFixture;

/// Of operands cut in two bfloat16; and of bfloat16 operands, mean queries and sums of gradients
/// among them, with weights rounded to it.
constexpr double kSplitBound = 3e-5;
constexpr double kBfloat16Bound = 0x1p-7;
/// Of what cancels, see check_gradients().
constexpr double kShare = 0.5;

ClusteredAttentionGradientProblem on_device(const ClusteredAttentionGradientProblem& problem,
                                            Device& device, const Fixture& fixture) {
  ClusteredAttentionGradientProblem there = problem;
  ClusteredAttentionProblem& forward = there.forward;
  forward.inputs = device.inputs(forward.inputs, fixture.arrays);
  forward.output = device.stored(forward.output, fixture.arrays);
  forward.labels = device.at(forward.labels, fixture.arrays);
  forward.indices = device.at(forward.indices, fixture.arrays);
  forward.cluster_values = device.at(forward.cluster_values, fixture.arrays);
  forward.cluster_logsumexp = device.at(forward.cluster_logsumexp, fixture.arrays);
  there.output_gradient = device.stored(problem.output_gradient, fixture.outputs);
  there.gradients.query = device.stored(problem.gradients.query, fixture.outputs);
  there.gradients.key = device.stored(problem.gradients.key, fixture.outputs);
  there.gradients.value = device.stored(problem.gradients.value, fixture.outputs);
  return there;
}

const cuda::Operation<ClusteredAttentionGradientProblem> kGradient =
    Device::backend().operations.clustered_attention_gradient;

Status run(Fixture& fixture, Device& device, const ClusteredAttentionGradientProblem& problem,
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

void check_reference(Fixture& fixture) {
  Device device;
  CHECK_EQUAL(describe(run(fixture, device)), "ok");
  CHECK(!device.non_finite());
  check_gradients(fixture.result(),
                  reference::clustered_attention_gradient(fixture.problem, fixture.choices()),
                  kSplitBound, kShare);
}

TEST_ONCE("CUDA clustered attention gradient: matches the reference") {
  for (const Case& one : cases()) {
    for (Grouping grouping : {Grouping::hamming, Grouping::given}) {
      for (int64_t top_k : {int64_t{0}, one.clamped_top_k()}) {
        const bool detach = grouping == Grouping::given;
        if (grouping == Grouping::hamming && top_k == 0) continue;
        const Scope scope(one.name + " k " + std::to_string(top_k));
        Fixture fixture(one, grouping, top_k, detach);
        check_reference(fixture);
      }
    }
  }
}

TEST_ONCE("CUDA clustered attention gradient: the mass, attached") {
  for (const char* name : {"prime", "ragged-transposed", "more-clusters-than-queries"}) {
    const Scope scope(name);
    Fixture fixture(find_case(name), Grouping::given, 5);
    check_reference(fixture);
  }
}

TEST_ONCE("CUDA clustered attention gradient: scales of any sign") {
  for (float scale : {0.0f, -0.5f, 0.7f}) {
    for (int64_t top_k : {0, 33}) {
      const Scope scope("scale " + std::to_string(scale) + " k " + std::to_string(top_k));
      Fixture fixture(find_case("tile-49"), Grouping::given, top_k);
      fixture.problem.forward.inputs.scale = scale;
      fixture.run_forward();
      check_reference(fixture);
    }
  }
}

TEST_ONCE("CUDA clustered attention gradient: with all keys selected it is that of attention") {
  for (const char* name : {"prime", "ragged-keys", "tile-128"}) {
    const Scope scope(name);
    const Case& which = find_case(name);
    Fixture fixture(which, Grouping::hamming, which.key_length);
    Device device;
    CHECK_EQUAL(describe(run(fixture, device)), "ok");
    AttentionGradientProblem exact;
    exact.forward.inputs = fixture.inputs;
    exact.output_gradient = fixture.problem.output_gradient;
    check_gradients(fixture.result(), reference::attention_gradient(exact), kSplitBound, kShare);
  }
}

/// More pairs (cluster, top key) than are kept at a time, in sequences of different lengths.
Case chunked_case() {
  Case which = find_case("ragged-keys");
  which.query_length = 140;
  which.key_length = 131;
  which.head_dim = 9;
  which.value_dim = 7;
  which.clusters = 80;
  which.query_lengths = {140, 133, 20};
  which.key_lengths = {131, 90, 3};
  return which;
}

TEST_ONCE("CUDA clustered attention gradient: more top keys than are kept at a time") {
  Fixture fixture(chunked_case(), Grouping::given, 131);
  check_reference(fixture);
}

TEST_ONCE("CUDA clustered attention gradient: keys in several parts") {
  Case which = find_case("usual");
  which.batch = which.heads = 1;
  which.query_length = 301;
  which.key_length = 1201;
  which.head_dim = 24;
  which.clusters = 40;
  for (int64_t top_k : {0, 17}) {
    const Scope scope("k " + std::to_string(top_k));
    Fixture fixture(which, Grouping::hamming, top_k);
    check_reference(fixture);
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

TEST_ONCE("CUDA clustered attention gradient: bfloat16 in storage, in precision, and in both") {
  const struct {
    Storage storage;
    Precision precision;
  } ways[] = {{Storage::float32, Precision::bfloat16},
              {Storage::bfloat16, Precision::bfloat16},
              {Storage::bfloat16, Precision::float32}};
  for (const auto& way : ways) {
    for (const char* name : {"prime", "ragged-transposed", "width-64", "usual"}) {
      for (int64_t top_k : {0, 5}) {
        const Scope scope(std::string(name) + " way " + std::to_string(&way - ways) + " k " +
                          std::to_string(top_k));
        Fixture fixture(find_case(name), Grouping::given, top_k);
        round_inputs(fixture);
        fixture.run_forward();
        Device device(way.storage);
        CHECK_EQUAL(describe(run(fixture, device, way.precision)), "ok");
        CHECK(!device.non_finite());
        check_gradients(fixture.result(),
                        reference::clustered_attention_gradient(fixture.problem, fixture.choices()),
                        kBfloat16Bound, kShare);
      }
    }
  }
}

TEST_ONCE("CUDA clustered attention gradient: what is not wanted does not change the others") {
  for (int64_t top_k : {0, 5}) {
    Fixture fixture(find_case("ragged"), Grouping::given, top_k);
    const ClusteredAttentionGradientProblem all = fixture.problem;
    Device device;
    CHECK_EQUAL(describe(run(fixture, device)), "ok");
    const DenseGradients expected = fixture.result();
    for (int wanted = 0; wanted < 8; ++wanted) {
      const Scope scope("wanted " + std::to_string(wanted) + " k " + std::to_string(top_k));
      ClusteredAttentionGradientProblem some = all;
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
}

TEST_ONCE("CUDA clustered attention gradient: the same bits in every order, and for each alone") {
  for (const char* name : {"ragged", "tile-129", "width-65"}) {
    for (int64_t top_k : {int64_t{0}, find_case(name).clamped_top_k()}) {
      const Scope scope(std::string(name) + " k " + std::to_string(top_k));
      Fixture fixture(find_case(name), Grouping::given, top_k);
      Device device;
      CHECK_EQUAL(describe(run(fixture, device)), "ok");
      const auto expected = fixture.outputs.snapshot();
      in_every_thread_order([&] {
        CHECK_EQUAL(describe(run(fixture, device)), "ok");
        check_same_bytes(fixture.outputs.snapshot(), expected, "running again");
      });
      const ClusteredAttentionGradientProblem there = on_device(fixture.problem, device, fixture);
      fixture.outputs.poison();
      for (int64_t i = 0; i < fixture.sequences(); ++i) {
        CHECK_EQUAL(describe(device.run(kGradient, one_sequence(there, i))), "ok");
      }
      device.fetch(fixture.outputs);
      check_same_bytes(fixture.outputs.snapshot(), expected, "running sequences one by one");
    }
  }
}

TEST_ONCE("CUDA clustered attention gradient: NaN and Inf are noticed") {
  for (int64_t top_k : {0, 5}) {
    Fixture fixture(find_case("ragged"), Grouping::hamming, top_k);
    const AttentionInputs& in = fixture.inputs;
    float* places[] = {const_cast<float*>(in.query.row(0, 1, 7)),
                       const_cast<float*>(in.key.row(0, 1, 5)),
                       const_cast<float*>(in.value.row(0, 0, 3)),
                       const_cast<float*>(fixture.made.output_gradient.row(0, 0, 6))};
    for (Storage storage : {Storage::float32, Storage::bfloat16}) {
      for (float* place : places) {
        for (float bad :
             {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
          const Scope scope(std::to_string(bad) + " at place " + std::to_string(&place - places));
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

TEST_ONCE("CUDA clustered attention gradient: wrong choices are named") {
  Fixture fixture(find_case("prime"), Grouping::given, 5);
  const auto refused = [&](int32_t* element, int32_t wrong, const char* expected) {
    const int32_t saved = *element;
    *element = wrong;
    Device device;
    CHECK_EQUAL(describe(run(fixture, device)), expected);
    *element = saved;
  };
  int32_t* labels = fixture.problem.forward.labels;
  int32_t* indices = fixture.problem.forward.indices;
  refused(labels + 64, 7, "out_of_range labels[64]");
  refused(labels + 64, -2, "out_of_range labels[64]");
  refused(indices + 37, 53, "out_of_range indices[37]");
  refused(indices + 37, -2, "out_of_range indices[37]");
}

TEST_ONCE("CUDA clustered attention gradient: widths that no kernel holds, cancellation") {
  Fixture fixture(find_case("prime"), Grouping::given, 5);
  Device device;
  ClusteredAttentionGradientProblem there = on_device(fixture.problem, device, fixture);
  const volatile int32_t abort = 1;
  CHECK_EQUAL(describe(device.run(kGradient, there, Precision::float32, &abort)), "cancelled");
  CHECK_EQUAL(describe(run(fixture, device)), "ok");
  there.forward.inputs.shape.head_dim = 257;
  CHECK_EQUAL(describe(device.run(kGradient, there)), "unsupported headDim");
  there.forward.inputs.shape.head_dim = 17;
  there.forward.inputs.shape.value_dim = 300;
  CHECK_EQUAL(describe(device.run(kGradient, there)), "unsupported valueDim");
}

TEST_ONCE(
    "CUDA clustered attention gradient: any allocation may fail, and the next call is right") {
  Fixture fixture(find_case("ragged"), Grouping::given, 5);
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

TEST_ONCE("CUDA clustered gradient: the launches of docs/gpu.md") {
  for (Storage storage : {Storage::float32, Storage::bfloat16}) {
    for (int64_t top_k : {0, 32}) {
      const Scope scope("top " + std::to_string(top_k));
      Fixture fixture(find_case("usual"), Grouping::hamming, top_k);
      Device device(storage);
      const auto there = on_device(fixture.problem, device, fixture);
      CHECK_EQUAL(count_launches(device, kGradient, there), top_k == 0 ? 6 : 11);
    }
  }
}

}  // namespace

}  // namespace cluster_attention::test
