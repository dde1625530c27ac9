#include <algorithm>
#include <cmath>
#include <limits>

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

/// Few queries, whose blocks share the keys out in stretches.
Case few_queries_case(int64_t queries, int64_t keys, int64_t head_dim, int64_t value_dim,
                      const std::vector<int32_t>& query_lengths = {},
                      const std::vector<int32_t>& key_lengths = {}) {
  Case one = find_case("usual");
  one.name = std::to_string(queries) + " queries share " + std::to_string(keys) + " keys, D " +
             std::to_string(head_dim);
  one.query_length = queries;
  one.key_length = keys;
  one.head_dim = head_dim;
  one.value_dim = value_dim;
  one.query_lengths = query_lengths;
  one.key_lengths = key_lengths;
  one.layout = queries % 2 == 0 ? Layout::bhld : Layout::blhd;
  return one;
}

std::vector<Case> few_queries_cases() {
  return {few_queries_case(1, 1024, 64, 64),
          few_queries_case(16, 1025, 20, 33),
          few_queries_case(17, 1500, 100, 7, {17, 9}, {1500, 129}),
          few_queries_case(32, 1031, 130, 256, {32, 0}, {0, 1031}),
          few_queries_case(5, 9000, 8, 40, {1, 5}, {9000, 8}),
          few_queries_case(33, 1056, 64, 8, {33, 17}, {1056, 281}),
          few_queries_case(128, 4097, 8, 16, {128, 113}, {4097, 1030})};
}

TEST_ONCE("CUDA attention: matches the reference") {
  on_every_kind_of_device([](int32_t index) {
    std::vector<Case> list = cases();
    for (const Case& one : few_queries_cases()) list.push_back(one);
    for (const Case& one : list) {
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
    for (const Case& one : {long_case(33, 8192, 20), long_case(33, 8192, 100),
                            long_case(33, 8192, 136), long_case(2, 65536, 20)}) {
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
        const Case one = long_case(33, way.keys * blocks - (blocks % 2), dim);
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
      std::vector<Case> list = few_queries_cases();
      for (const char* name : {"prime", "ragged-transposed", "width-64", "width-65", "width-130-64",
                               "ragged", "tile-49", "long-keys"}) {
        list.push_back(find_case(name));
      }
      for (const Case& one : list) {
        const Scope scope(one.name + " way " + std::to_string(&way - ways));
        Fixture fixture(one, true);
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

TEST_ONCE("CUDA attention: every width with little shared memory") {
  std::vector<Case> list = width_cases(33, 300, 1);
  for (int64_t dim : {64, 128, 256}) list.push_back(few_queries_case(20, 1100, dim, dim));
  on_small_devices([&] {
    for (const Case& one : list) {
      const Scope scope(one.name);
      Fixture fixture(one, true);
      Device device;
      CHECK_EQUAL(describe(fixture.run(device)), "ok");
      CHECK_CLOSE(fixture.result(), reference::attention(fixture.problem).output, kSplitBound);
      Device rounding(Storage::bfloat16);
      CHECK_EQUAL(describe(fixture.run(rounding, Precision::bfloat16)), "ok");
      fixture.arrays.snapshot();
      fixture.round_inputs();
      CHECK_CLOSE(fixture.result(), reference::attention(fixture.problem).output, kBfloat16Bound);
    }
  });
}

/// The same bits in every order of the threads, and whether sequences come in a batch or one by
/// one.
void check_same_bits(Fixture& fixture, int32_t index, Precision precision = Precision::float32) {
  const AttentionShape shape = fixture.inputs.shape;
  Device device(Storage::float32, index);
  CHECK_EQUAL(describe(fixture.run(device, precision)), "ok");
  const auto expected = fixture.arrays.snapshot();
  in_every_thread_order([&] {
    CHECK_EQUAL(describe(fixture.run(device, precision)), "ok");
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
    CHECK_EQUAL(describe(device.run(device.backend().operations.attention, one, precision)), "ok");
  }
  device.fetch(fixture.arrays);
  check_same_bytes(fixture.arrays.snapshot(), expected, "running sequences one by one");
}

TEST_ONCE("CUDA attention: the same bits in every order of threads, and for sequences alone") {
  on_every_kind_of_device([](int32_t index) {
    for (const Case& one_case : {find_case("ragged"), find_case("tile-129"), find_case("width-65"),
                                 few_queries_cases()[2]}) {
      const Scope scope(one_case.name);
      Fixture fixture(one_case, true);
      check_same_bits(fixture, index);
    }
  });
}

/// How many queries share a block of threads depends on the batch; whom a NaN reaches must not.
TEST_ONCE(
    "CUDA attention: a NaN reaches rows that do not see it by the sizes of a sequence alone") {
  on_every_kind_of_device([](int32_t index) {
    Case which = long_case(384, 384, 16);
    which.batch = 2;
    const bool warpgroups = Device(Storage::float32, index).session()->has_warpgroup_products();
    for (Precision precision : {Precision::float32, Precision::bfloat16}) {
      for (int64_t hidden : {383, 140}) {
        const Scope scope("NaN in value " + std::to_string(hidden) +
                          (precision == Precision::float32 ? " float32" : " bfloat16"));
        Fixture fixture(which, true);
        for (int64_t b = 0; b < which.batch; ++b) {
          float* row = const_cast<float*>(fixture.inputs.value.row(b, 0, hidden));
          row[3] = std::numeric_limits<float>::quiet_NaN();
        }
        check_same_bits(fixture, index, precision);
        const std::vector<float> result = fixture.result();
        for (int64_t l = 0; l < which.query_length; ++l) {
          const float value = result[static_cast<size_t>(l * which.value_dim + 3)];
          // Blocks of at most 128 keys on Hopper, else of 64.
          const int64_t keys = warpgroups ? 128 : 64;
          if (l >= hidden || l < hidden / keys * keys) CHECK_EQUAL(std::isnan(value), l >= hidden);
        }
      }
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
      for (const Case& one : {find_case("ragged"), find_case("tile-47"),
                              few_queries_case(9, 1030, 8, 8, {9, 8}, {1030, 9})}) {
        Fixture fixture(one, true);
        const AttentionInputs& in = fixture.inputs;
        float* places[] = {const_cast<float*>(in.query.row(0, 1, 7)),
                           const_cast<float*>(in.key.row(0, 1, 5)),
                           const_cast<float*>(in.value.row(0, 0, 3))};
        for (float* place : places) {
          for (float bad :
               {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                -std::numeric_limits<float>::infinity()}) {
            const Scope scope(one.name + " " + std::to_string(bad) + " at place " +
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

TEST_ONCE("CUDA attention: queries that see no key are not read") {
  on_every_kind_of_device([](int32_t index) {
    for (const Case& one :
         {few_queries_case(70, 30, 64, 64), few_queries_case(600, 300, 20, 8),
          few_queries_case(70, 30, 130, 16), few_queries_case(100, 4000, 8, 8, {70, 3}, {30, 4000}),
          few_queries_case(100, 40, 64, 8, {70, 3}, {0, 40})}) {
      const Scope scope(one.name);
      Fixture fixture(one, one.key_lengths.empty() || one.key_lengths[0] > 0);
      const int64_t queries = real_length(fixture.inputs.query_lengths, 0, one.query_length);
      const int64_t keys = real_length(fixture.inputs.key_lengths, 0, one.key_length);
      Device clean(Storage::float32, index);
      CHECK_EQUAL(describe(fixture.run(clean)), "ok");
      const std::vector<float> expected = fixture.result();
      for (int64_t l = 0; l < queries - keys; ++l) {
        const auto* row = fixture.inputs.query.row(0, 0, l);
        std::fill_n(const_cast<float*>(row), one.head_dim, std::numeric_limits<float>::quiet_NaN());
      }
      Device device(Storage::float32, index);
      CHECK_EQUAL(describe(fixture.run(device)), "ok");
      CHECK(!device.non_finite());
      CHECK_SAME(fixture.result(), expected);
    }
  });
}

TEST_ONCE("CUDA attention: products below the range of float32 are noticed") {
  on_every_kind_of_device([](int32_t index) {
    for (Storage storage : {Storage::float32, Storage::bfloat16}) {
      for (const Case& one : {find_case("tile-129"), few_queries_cases()[0]}) {
        for (bool all : {false, true}) {
          const Scope scope(one.name + (all ? " all" : ""));
          Fixture fixture(one);
          const AttentionShape& shape = fixture.inputs.shape;
          const int64_t sequences = shape.batch * shape.heads;
          fill_column(fixture.query, sequences * shape.query_length, shape.head_dim, 0, 1e20f);
          fill_column(fixture.key, sequences * shape.key_length, shape.head_dim, 0,
                      all ? -1e20f : 0.0f);
          fixture.key[20 * shape.head_dim] = -1e20f;
          Device device(storage, index);
          CHECK_EQUAL(describe(fixture.run(device)), "ok");
          CHECK(device.non_finite());
          if (all) CHECK(std::isnan(fixture.result()[0]) && std::isnan(fixture.logsumexp()[0]));
        }
      }
    }
  });
}

TEST_ONCE("CUDA attention: an Inf that only lowers the logits is noticed") {
  on_every_kind_of_device([](int32_t index) {
    for (Storage storage : {Storage::float32, Storage::bfloat16}) {
      for (const Case& one : {find_case("tile-129"), few_queries_cases()[0]}) {
        const Scope scope(one.name);
        Fixture fixture(one);
        const AttentionShape& shape = fixture.inputs.shape;
        fill_column(fixture.query, shape.query_length, shape.head_dim, 0, 1.0f);
        fixture.key[20 * shape.head_dim] = -std::numeric_limits<float>::infinity();
        Device device(storage, index);
        CHECK_EQUAL(describe(fixture.run(device)), "ok");
        CHECK(device.non_finite());
      }
    }
  });
}

TEST_ONCE("CUDA attention: widths that no kernel holds, cancellation, no log-sum-exp") {
  on_every_kind_of_device([](int32_t index) {
    std::vector<Case> list = few_queries_cases();
    list.push_back(find_case("prime"));
    for (const Case& one : list) {
      const Scope scope(one.name);
      Fixture fixture(one);
      Device device(Storage::float32, index);
      CHECK_EQUAL(describe(fixture.run(device)), "ok");
      const std::vector<float> expected = fixture.result();
      fixture.problem.logsumexp = nullptr;
      CHECK_EQUAL(describe(fixture.run(device)), "ok");
      CHECK_SAME(fixture.result(), expected);
    }
    Fixture fixture(find_case("prime"));
    Device device(Storage::float32, index);
    AttentionProblem there = fixture.problem;
    there.inputs = device.inputs(fixture.inputs, fixture.arrays);
    there.output = device.stored(fixture.output, fixture.arrays);
    there.logsumexp = nullptr;
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

TEST_ONCE("CUDA attention: one launch, one more where operands are made or keys are shared out") {
  for (Storage storage : {Storage::float32, Storage::bfloat16}) {
    for (bool few : {false, true}) {
      Fixture fixture(few ? few_queries_cases()[0] : find_case("usual"), false);
      Device device(storage);
      AttentionProblem there = fixture.problem;
      there.inputs = device.inputs(there.inputs, fixture.arrays);
      there.output = device.stored(there.output, fixture.arrays);
      there.logsumexp = device.at(there.logsumexp, fixture.arrays);
      CHECK_EQUAL(count_launches(device, device.backend().operations.attention, there),
                  (storage == Storage::bfloat16 ? 1 : 2) + (few ? 1 : 0));
    }
  }
}

}  // namespace

}  // namespace cluster_attention::test
