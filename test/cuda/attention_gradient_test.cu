#include <numeric>

#include "cuda/attention_gradient.h"
#include "test/cuda/attention_gradient_device.h"
#include "test/cuda/tile_cases.h"

namespace cluster_attention::test {

namespace {

using Fixture = AttentionGradientFixture;

void check_reference(Fixture& fixture) {
  Device device;
  if (!check_runs(fixture, device)) return;
  check_gradients(fixture.result(), reference::attention_gradient(fixture.problem), kSplitBound,
                  kShare);
}

TEST_ONCE("CUDA attention gradient: matches the reference") {
  for (const Case& one : cases()) {
    for (bool causal : {false, true}) {
      const Scope scope(one.name + (causal ? " causal" : ""));
      Fixture fixture(one, causal);
      check_reference(fixture);
    }
  }
}

TEST_ONCE("CUDA attention gradient: long sums keep the bound") {
  for (const Case& one :
       {long_case(5, 16384, 20), long_case(16384, 5, 20), long_case(5, 8192, 100)}) {
    const Scope scope(one.name);
    Fixture fixture(one);
    Device device;
    CHECK_EQUAL(describe(run(fixture, device)), "ok");
    check_gradients(fixture.result(), reference::attention_gradient(fixture.problem), kSplitBound,
                    kShare);
  }
}

/// `reach`: how many places off a NaN may come to a hidden row.
void check_reach(const Case& which, Precision precision, int64_t bad_row, int64_t reach,
                 bool in_value) {
  Fixture fixture(which, true);
  for (int64_t b = 0; b < which.batch; ++b) {
    float* row = const_cast<float*>(in_value ? fixture.inputs.value.row(b, 0, bad_row)
                                             : fixture.problem.output_gradient.row(b, 0, bad_row));
    row[3] = std::numeric_limits<float>::quiet_NaN();
  }
  check_same_gradients(fixture, precision);
  const DenseGradients result = fixture.result();
  for (int64_t i = 0; i < which.query_length * which.head_dim; ++i) {
    const int64_t l = i / which.head_dim;
    if (in_value && l < bad_row - reach) CHECK(!std::isnan(result.query[static_cast<size_t>(i)]));
    if (!in_value && l > bad_row + reach) {
      CHECK(!std::isnan(result.key[static_cast<size_t>(i)]));
      CHECK(!std::isnan(result.value[static_cast<size_t>(i)]));
    }
  }
}

/// How many rows share a block of threads depends on the batch; whom a NaN reaches must not.
TEST_ONCE("CUDA attention gradient: a NaN reaches hidden rows by the sizes of a sequence alone") {
  for (const bool in_value : {false, true}) {
    const Scope scope(in_value ? "in value" : "in the gradient of the output");
    Case which = long_case(160, 160, 24);
    which.batch = 5;
    // Rows of a warp and of a tile: at most 32 each.
    check_reach(which, Precision::float32, in_value ? 127 : 0, 62, in_value);
    // Rows of a warpgroup and of a tile: 64 each.
    for (int64_t dim : {24, 72}) {
      which = long_case(224, 224, dim);
      which.batch = 3;
      check_reach(which, Precision::bfloat16, in_value ? 191 : 0, 126, in_value);
    }
  }
}

TEST_ONCE("CUDA attention gradient: any number of tiles passes through the ring of Hopper") {
  for (const bool causal : {false, true}) {
    for (int64_t tiles = 1; tiles <= 10; ++tiles) {
      // One tile of the other side, or two, of which a consumer each has one.
      const int64_t many = 64 * tiles - tiles % 2;
      for (const Case& one : {long_case(100, many, 64), long_case(many, 60 + tiles, 40),
                              long_case(90, many, 72), long_case(many, 65, 128)}) {
        const Scope scope(one.name + (causal ? " causal" : ""));
        Fixture fixture(one, causal);
        round_in_place(rounded_inputs(fixture));
        fixture.run_forward();
        Device device;
        CHECK_EQUAL(describe(run(fixture, device, Precision::bfloat16)), "ok");
        check_gradients(fixture.result(), reference::attention_gradient(fixture.problem),
                        kBfloat16Bound, kShare);
      }
    }
  }
}

TEST_ONCE("CUDA attention gradient: widths with little shared memory") {
  on_small_devices([] {
    for (const Case& one : width_cases(70, 130, 1)) {
      const Scope scope(one.name);
      Fixture fixture(one, true);
      check_reference(fixture);
    }
  });
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
      check_reference(fixture);
    }
  }
}

TEST_ONCE("CUDA attention gradient: logits beyond what a log-sum-exp can hold are noticed") {
  for (float scale : {100.0f, -1000.0f, 1e5f, 1.3e9f, -1e12f}) {
    const Scope scope("scale " + std::to_string(scale));
    Fixture fixture(find_case("prime"), false, Fill::integer);
    fixture.problem.forward.inputs.scale = scale;
    fixture.run_forward();
    Device device;
    CHECK_EQUAL(describe(run(fixture, device)), "ok");
    CHECK_EQUAL(device.non_finite(), std::abs(scale) > 1000.0f);
    if (device.non_finite()) continue;
    // Every weight is at most 1, so no element exceeds the sum of all gradients.
    for (float x : fixture.result().value) CHECK(std::abs(x) <= 2.0f * 61.0f);
  }
}

TEST_ONCE("CUDA attention gradient: bfloat16 in storage, in precision, and in both") {
  on_every_kind_of_device([](int32_t index) {
    for (const DeviceSettings& way : kBfloat16Ways) {
      for (const char* name : {"prime", "ragged-transposed", "width-64", "width-65", "width-130-64",
                               "ragged", "tile-49", "tile-129"}) {
        const Scope scope(std::string(name) + " way " + std::to_string(&way - kBfloat16Ways));
        Fixture fixture(find_case(name), true);
        round_in_place(rounded_inputs(fixture));
        fixture.run_forward();
        Device device(way.storage, index);
        if (!check_runs(fixture, device, way.precision)) continue;
        check_gradients(fixture.result(), reference::attention_gradient(fixture.problem),
                        kBfloat16Bound, kShare);
      }
    }
  });
}

TEST_ONCE("CUDA attention gradient: unrounded inputs are rounded by precision 'bfloat16'") {
  Fixture fixture(find_case("usual"));
  Device device;
  fixture.run_forward();
  CHECK_EQUAL(describe(run(fixture, device, Precision::bfloat16)), "ok");
  const DenseGradients actual = fixture.result();
  round_in_place(rounded_inputs(fixture));
  Device rounded;
  CHECK_EQUAL(describe(run(fixture, rounded, Precision::bfloat16)), "ok");
  CHECK_SAME(fixture.result().query, actual.query);
  CHECK_SAME(fixture.result().key, actual.key);
  CHECK_SAME(fixture.result().value, actual.value);
}

TEST_ONCE("CUDA attention gradient: what is not wanted does not change the others") {
  Fixture fixture(find_case("ragged"), true);
  for (Precision precision : {Precision::float32, Precision::bfloat16}) {
    check_wanted_alone_on(fixture, precision);
  }
}

TEST_ONCE("CUDA attention gradient: the same bits in every order of threads, and for each alone") {
  for (const char* name : {"ragged", "tile-129", "width-65"}) {
    const Scope scope(name);
    Fixture fixture(find_case(name), true);
    check_same_gradients(fixture);
    check_same_gradients(fixture, Precision::bfloat16);
  }
}

TEST_ONCE("CUDA attention gradient: NaN and Inf are noticed, in padding they are not read") {
  for (const char* name : {"ragged", "tile-48"}) {
    const Scope scope(name);
    Fixture fixture(find_case(name), true);
    for (Precision precision : {Precision::float32, Precision::bfloat16}) {
      check_notices_inputs(fixture, precision);
    }
  }
}

TEST_ONCE("CUDA attention gradient: queries that see no key are not read") {
  for (Precision precision : {Precision::float32, Precision::bfloat16}) {
    Case one = find_case("usual");
    one.query_length = 150;
    one.key_length = 3;
    Fixture fixture(one, true);
    std::vector<int64_t> masked(static_cast<size_t>(one.query_length - one.key_length));
    std::iota(masked.begin(), masked.end(), 0);
    check_unread_rows(fixture, 1, masked, precision);
  }
}

TEST_ONCE("CUDA attention gradient: widths that no kernel holds, cancellation") {
  Fixture fixture(find_case("prime"));
  check_refusals(fixture);
}

TEST_ONCE("CUDA attention gradient: any allocation may fail, and the next call is right") {
  Fixture fixture(find_case("ragged"), true);
  check_gradient_allocations(fixture, 5);
}

}  // namespace

}  // namespace cluster_attention::test
