#include "cuda/clustered_attention_gradient.h"
#include "test/cuda/attention_gradient_device.h"
#include "test/cuda/cluster_limits.h"
#include "test/cuda/launches.h"
#include "test/cuda/tile_cases.h"

namespace cluster_attention::test {

namespace {

using cuda::Storage;
using Fixture = ClusteredGradientFixture;

void check_reference(Fixture& fixture) {
  Device device;
  if (!check_runs(fixture, device)) return;
  check_gradients(fixture.result(),
                  reference::clustered_attention_gradient(fixture.problem, fixture.choices()),
                  kSplitBound, kShare);
}

void check_bfloat16(Fixture& fixture, const DeviceSettings& way) {
  round_in_place(rounded_inputs(fixture));
  fixture.run_forward();
  Device device(way.storage);
  if (!check_runs(fixture, device, way.precision)) return;
  check_gradients(fixture.result(),
                  reference::clustered_attention_gradient(fixture.problem, fixture.choices()),
                  kBfloat16Bound, kShare);
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

TEST_ONCE("CUDA clustered attention gradient: more top keys than are kept at a time") {
  Fixture fixture(many_top_keys(), Grouping::given, 131);
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

TEST_ONCE("CUDA clustered attention gradient: bfloat16 in storage, in precision, and in both") {
  for (const DeviceSettings& way : kBfloat16Ways) {
    for (const char* name : {"prime", "ragged-transposed", "width-64", "usual"}) {
      for (int64_t top_k : {0, 5}) {
        const Scope scope(std::string(name) + " way " + std::to_string(&way - kBfloat16Ways) +
                          " k " + std::to_string(top_k));
        Fixture fixture(find_case(name), Grouping::given, top_k);
        check_bfloat16(fixture, way);
      }
    }
  }
}

TEST_ONCE("CUDA clustered attention gradient: every width, clusters without queries among many") {
  for (const Case& one : width_cases(70, 530, 90)) {
    for (int64_t top_k : {0, 5, 67}) {
      const Scope scope(one.name + " k " + std::to_string(top_k));
      Fixture fixture(one, Grouping::given, top_k);
      check_reference(fixture);
      check_bfloat16(fixture, kBfloat16Ways[top_k % 3]);
    }
  }
}

TEST_ONCE("CUDA clustered attention gradient: widths with little shared memory") {
  on_small_devices([] {
    for (const Case& one : width_cases(70, 130, 20)) {
      const Scope scope(one.name);
      Fixture fixture(one, Grouping::given, 67);
      check_reference(fixture);
      check_bfloat16(fixture, kBfloat16Ways[0]);
    }
  });
}

TEST_ONCE("CUDA clustered attention gradient: what is not wanted does not change the others") {
  for (int64_t top_k : {0, 5}) {
    const Scope scope("k " + std::to_string(top_k));
    Fixture fixture(find_case("ragged"), Grouping::given, top_k);
    check_wanted_alone_on(fixture);
  }
}

TEST_ONCE("CUDA clustered attention gradient: the same bits in every order, and for each alone") {
  for (const char* name : {"ragged", "tile-129", "width-65"}) {
    for (int64_t top_k : {int64_t{0}, find_case(name).clamped_top_k()}) {
      const Scope scope(std::string(name) + " k " + std::to_string(top_k));
      Fixture fixture(find_case(name), Grouping::given, top_k);
      check_same_gradients(fixture);
    }
  }
}

TEST_ONCE("CUDA clustered attention gradient: NaN and Inf are noticed") {
  for (int64_t top_k : {0, 5}) {
    Fixture fixture(find_case("ragged"), Grouping::hamming, top_k);
    check_notices_inputs(fixture);
  }
}

TEST_ONCE("CUDA clustered attention gradient: queries in no cluster are not read") {
  for (int64_t top_k : {0, 5}) {
    for (Precision precision : {Precision::float32, Precision::bfloat16}) {
      Fixture fixture(find_case("prime"), Grouping::given, top_k);
      const int64_t sequence = 1;
      const int64_t queries = fixture.inputs.shape.query_length;
      const int32_t* labels = fixture.problem.forward.labels + sequence * queries;
      std::vector<int64_t> unlabelled;
      for (int64_t row = 0; row < queries; ++row) {
        if (labels[row] < 0) unlabelled.push_back(row);
      }
      CHECK(!unlabelled.empty());
      check_unread_rows(fixture, sequence, unlabelled, precision);
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
  check_refusals(fixture);
}

TEST_ONCE(
    "CUDA clustered attention gradient: any allocation may fail, and the next call is right") {
  Fixture fixture(find_case("ragged"), Grouping::given, 5);
  check_gradient_allocations(fixture, 10);
}

TEST_ONCE("CUDA clustered gradient: the launches of docs/gpu.md") {
  for (Storage storage : {Storage::float32, Storage::bfloat16}) {
    for (int64_t top_k : {0, 32}) {
      const Scope scope("top " + std::to_string(top_k));
      Fixture fixture(find_case("usual"), Grouping::hamming, top_k);
      Device device(storage);
      const auto there = on_device(fixture.problem, device, fixture);
      const int64_t steps_apart = has_clusters() ? 0 : 2;
      CHECK_EQUAL(count_launches(device, gradient_of(there), there) - steps_apart,
                  top_k == 0 ? 6 : 11);
    }
  }
}

}  // namespace

}  // namespace cluster_attention::test
