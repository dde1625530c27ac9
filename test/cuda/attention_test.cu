#include "cuda/attention.h"
#include "native/reference/attention.h"
#include "test/cuda/launches.h"
#include "test/cuda/tile_cases.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

namespace {

using cuda::Storage;

/// Of operands cut in two bfloat16, and of bfloat16 operands with weights rounded to it.
constexpr double kSplitBound = 1e-5;
constexpr double kBfloat16Bound = 0x1p-8;

struct Fixture : AttentionArrays {
  AttentionProblem problem;

  explicit Fixture(const Case& which, bool causal = false) : AttentionArrays(which) {
    problem.inputs = inputs;
    problem.causal = causal;
    problem.output = output;
    problem.logsumexp = arrays.output<float>(which.batch * which.heads * which.query_length);
  }
  std::vector<float> result() const { return read_output(output, inputs.shape); }
  std::vector<float> logsumexp() const {
    const AttentionShape& shape = inputs.shape;
    return read(problem.logsumexp, shape.batch * shape.heads * shape.query_length);
  }
  void round_inputs() {
    const AttentionShape& s = inputs.shape;
    const int64_t sequences = s.batch * s.heads;
    round_in_place({{query, sequences * s.query_length * s.head_dim},
                    {key, sequences * s.key_length * s.head_dim},
                    {value, sequences * s.key_length * s.value_dim}});
  }
  Status run(Device& device, Precision precision = Precision::float32) {
    arrays.poison();
    AttentionProblem there = problem;
    there.inputs = device.inputs(problem.inputs, arrays);
    there.output = device.stored(problem.output, arrays);
    there.logsumexp = device.at(problem.logsumexp, arrays);
    const Status status = device.run(device.backend().operations.attention, there, precision);
    device.fetch(arrays);
    return status;
  }
};

TEST_ONCE("CUDA attention: matches the reference") {
  on_every_kind_of_device([](int32_t index) {
    for (const Case& one : cases()) {
      for (bool causal : {false, true}) {
        const Scope scope(one.name + (causal ? " causal" : ""));
        Fixture fixture(one, causal);
        Device device(Storage::float32, index);
        CHECK_EQUAL(describe(fixture.run(device)), "ok");
        CHECK(!device.non_finite());
        fixture.arrays.snapshot();
        const reference::AttentionResult expected = reference::attention(fixture.problem);
        CHECK_CLOSE(fixture.result(), expected.output, kSplitBound);
        CHECK_CLOSE(fixture.logsumexp(), expected.logsumexp, kSplitBound);
      }
    }
  });
}

TEST_ONCE("CUDA attention: long sums keep the bound") {
  on_every_kind_of_device([](int32_t index) {
    for (int64_t dim : {20, 100, 136}) {
      const Case one = long_case(5, 16384, dim);
      const Scope scope(one.name);
      Fixture fixture(one);
      Device device(Storage::float32, index);
      CHECK_EQUAL(describe(fixture.run(device)), "ok");
      CHECK_CLOSE(fixture.result(), reference::attention(fixture.problem).output, kSplitBound);
    }
  });
}

TEST_ONCE("CUDA attention: any number of blocks of keys passes through the rings of Hopper") {
  const struct {
    Storage storage;
    Precision precision;
    int64_t keys;  // of a block
    double bound;
  } ways[] = {{Storage::float32, Precision::float32, 64, kSplitBound},
              {Storage::bfloat16, Precision::bfloat16, 128, kBfloat16Bound}};
  for (const auto& way : ways) {
    for (int64_t dim : {64, 72, 128}) {
      for (int64_t blocks = 1; blocks <= 9; ++blocks) {
        const Case one = long_case(3, way.keys * blocks - (blocks % 2), dim);
        const Scope scope(one.name);
        Fixture fixture(one);
        Device device(way.storage);
        CHECK_EQUAL(describe(fixture.run(device, way.precision)), "ok");
        fixture.arrays.snapshot();
        if (way.storage == Storage::bfloat16) fixture.round_inputs();
        CHECK_CLOSE(fixture.result(), reference::attention(fixture.problem).output, way.bound);
      }
    }
  }
}

TEST_ONCE("CUDA attention: bfloat16 in storage, in precision, and in both") {
  on_every_kind_of_device([](int32_t index) {
    const struct {
      Storage storage;
      Precision precision;
      double bound;
    } ways[] = {{Storage::float32, Precision::bfloat16, kBfloat16Bound},
                {Storage::bfloat16, Precision::bfloat16, kBfloat16Bound},
                {Storage::bfloat16, Precision::float32, kBfloat16Bound}};
    for (const auto& way : ways) {
      for (const char* name : {"prime", "ragged-transposed", "width-64", "width-130-64", "ragged",
                               "tile-49", "long-keys"}) {
        const Scope scope(std::string(name) + " way " + std::to_string(&way - ways));
        Fixture fixture(find_case(name), true);
        Device device(way.storage, index);
        CHECK_EQUAL(describe(fixture.run(device, way.precision)), "ok");
        CHECK(!device.non_finite());
        fixture.arrays.snapshot();
        fixture.round_inputs();
        const reference::AttentionResult expected = reference::attention(fixture.problem);
        CHECK_CLOSE(fixture.result(), expected.output, way.bound);
        // Dot products of bfloat16 values keep the accuracy of float32, and so do their sums.
        CHECK_CLOSE(fixture.logsumexp(), expected.logsumexp, kSplitBound);
      }
    }
  });
}

TEST_ONCE("CUDA attention: the same bits in every order of threads, and for sequences alone") {
  on_every_kind_of_device([](int32_t index) {
    for (const char* name : {"ragged", "tile-129", "width-65"}) {
      const Scope scope(name);
      Fixture fixture(find_case(name), true);
      const AttentionShape shape = fixture.inputs.shape;
      Device device(Storage::float32, index);
      CHECK_EQUAL(describe(fixture.run(device)), "ok");
      const auto expected = fixture.arrays.snapshot();
      in_every_thread_order([&] {
        CHECK_EQUAL(describe(fixture.run(device)), "ok");
        check_same_bytes(fixture.arrays.snapshot(), expected, "running again");
      });
      AttentionProblem there = fixture.problem;
      there.inputs = device.inputs(fixture.inputs, fixture.arrays);
      there.output = device.stored(fixture.output, fixture.arrays);
      there.logsumexp = device.at(fixture.problem.logsumexp, fixture.arrays);
      fixture.arrays.poison();
      for (int64_t i = 0; i < shape.batch * shape.heads; ++i) {
        AttentionProblem one = there;
        one.inputs = alone(there.inputs, i / shape.heads, i % shape.heads);
        one.output = alone(there.output, i / shape.heads, i % shape.heads);
        one.logsumexp = part(there.logsumexp, i, shape.query_length);
        CHECK_EQUAL(describe(device.run(device.backend().operations.attention, one)), "ok");
      }
      device.fetch(fixture.arrays);
      check_same_bytes(fixture.arrays.snapshot(), expected, "running sequences one by one");
    }
  });
}

TEST_ONCE("CUDA attention: scales of any size and sign") {
  on_every_kind_of_device([](int32_t index) {
    for (float scale : {0.0f, -0.5f, 30.0f}) {
      const Scope scope("scale " + std::to_string(scale));
      Fixture fixture(find_case("prime"));
      fixture.problem.inputs.scale = scale;
      Device device(Storage::float32, index);
      CHECK_EQUAL(describe(fixture.run(device)), "ok");
      CHECK_CLOSE(fixture.result(), reference::attention(fixture.problem).output,
                  scale > 1.0f ? 2e-3 : kSplitBound);
    }
  });
}

TEST_ONCE("CUDA attention: NaN and Inf are noticed, in padding they are not read") {
  on_every_kind_of_device([](int32_t index) {
    for (Storage storage : {Storage::float32, Storage::bfloat16}) {
      for (const char* name : {"ragged", "tile-47"}) {
        Fixture fixture(find_case(name), true);
        const AttentionInputs& in = fixture.inputs;
        float* places[] = {const_cast<float*>(in.query.row(0, 1, 7)),
                           const_cast<float*>(in.key.row(0, 1, 5)),
                           const_cast<float*>(in.value.row(0, 0, 3))};
        for (float* place : places) {
          for (float bad :
               {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                -std::numeric_limits<float>::infinity()}) {
            const Scope scope(std::string(name) + " " + std::to_string(bad) + " at place " +
                              std::to_string(&place - places));
            const float saved = *place;
            *place = bad;
            Device device(storage, index);
            CHECK_EQUAL(describe(fixture.run(device)), "ok");
            CHECK(device.non_finite());
            *place = saved;
          }
        }
      }
    }
  });
}

TEST_ONCE("CUDA attention: an Inf that only lowers the logits is noticed") {
  on_every_kind_of_device([](int32_t index) {
    for (Storage storage : {Storage::float32, Storage::bfloat16}) {
      Fixture fixture(find_case("tile-129"));
      const AttentionShape& shape = fixture.inputs.shape;
      fill_column(fixture.query, shape.query_length, shape.head_dim, 0, 1.0f);
      fixture.key[20 * shape.head_dim] = -std::numeric_limits<float>::infinity();
      Device device(storage, index);
      CHECK_EQUAL(describe(fixture.run(device)), "ok");
      CHECK(device.non_finite());
    }
  });
}

TEST_ONCE("CUDA attention: widths that no kernel holds, cancellation, no log-sum-exp") {
  on_every_kind_of_device([](int32_t index) {
    Fixture fixture(find_case("prime"));
    Device device(Storage::float32, index);
    CHECK_EQUAL(describe(fixture.run(device)), "ok");
    const std::vector<float> expected = fixture.result();
    fixture.problem.logsumexp = nullptr;
    CHECK_EQUAL(describe(fixture.run(device)), "ok");
    CHECK_SAME(fixture.result(), expected);
    AttentionProblem there = fixture.problem;
    there.inputs = device.inputs(fixture.inputs, fixture.arrays);
    there.output = device.stored(fixture.output, fixture.arrays);
    const volatile int32_t abort = 1;
    const auto operation = device.backend().operations.attention;
    CHECK_EQUAL(describe(device.run(operation, there, Precision::float32, &abort)), "cancelled");
    there.inputs.shape.head_dim = 257;
    CHECK_EQUAL(describe(device.run(operation, there)), "unsupported headDim");
    there.inputs.shape.head_dim = 17;
    there.inputs.shape.value_dim = 300;
    CHECK_EQUAL(describe(device.run(operation, there)), "unsupported valueDim");
  });
}

TEST_ONCE("CUDA attention: one launch, two where operands are made") {
  for (Storage storage : {Storage::float32, Storage::bfloat16}) {
    Fixture fixture(find_case("usual"), false);
    Device device(storage);
    AttentionProblem there = fixture.problem;
    there.inputs = device.inputs(there.inputs, fixture.arrays);
    there.output = device.stored(there.output, fixture.arrays);
    there.logsumexp = device.at(there.logsumexp, fixture.arrays);
    CHECK_EQUAL(count_launches(device, device.backend().operations.attention, there),
                storage == Storage::bfloat16 ? 1 : 2);
  }
}

}  // namespace

}  // namespace cluster_attention::test
