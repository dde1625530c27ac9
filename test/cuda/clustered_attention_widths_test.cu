// Clustered attention of every width that kernels are made for, in both precisions.

#include "cuda/clustered_attention.h"
#include "test/cuda/clustered_attention_device.h"

namespace cluster_attention::test {

namespace {

using cuda::Storage;
using Fixture = ClusteredDeviceFixture;

TEST_ONCE("CUDA clustered attention: bfloat16") {
  for (Storage storage : {Storage::float32, Storage::bfloat16}) {
    for (const char* name : {"prime", "ragged-transposed", "width-64", "width-64-130"}) {
      const Scope scope(name);
      Fixture fixture(find_case(name), Grouping::given);
      check_bfloat16(fixture, storage);
    }
  }
}

TEST_ONCE("CUDA clustered attention: every width, with tiles of clusters without queries") {
  for (Case one : width_cases(70, 1100, 140)) {
    for (int64_t top_k : {0, 5, 37, 300}) {
      const Scope scope(one.name + " k " + std::to_string(top_k));
      Fixture fixture(one, Grouping::given, top_k);
      for (int64_t i = 0; i < one.query_length; ++i) fixture.given_labels[i] %= 3;
      Device device;
      check_runs(fixture, device);
      check_bfloat16(fixture, top_k == 37 ? Storage::float32 : Storage::bfloat16);
    }
  }
}

TEST_ONCE("CUDA clustered attention: every width, with clusters that take a block several rounds") {
  for (const Case& one : width_cases(700, 90, 3)) {
    for (int64_t top_k : {5, 37}) {
      const Scope scope(one.name + " k " + std::to_string(top_k));
      Fixture fixture(one, Grouping::given, top_k);
      Device device;
      check_runs(fixture, device);
      check_bfloat16(fixture, top_k == 37 ? Storage::float32 : Storage::bfloat16);
    }
  }
}

TEST_ONCE("CUDA clustered attention: every width with little shared memory") {
  on_small_devices([] {
    for (const Case& one : width_cases(70, 530, 90)) {
      for (int64_t top_k : {0, 37}) {
        const Scope scope(one.name + " k " + std::to_string(top_k));
        Fixture fixture(one, Grouping::hamming, top_k);
        Device device;
        check_runs(fixture, device);
        check_bfloat16(fixture, Storage::bfloat16);
      }
    }
  });
}

TEST_ONCE("CUDA clustered attention: bfloat16 leaves the top keys of the rounded inputs") {
  Fixture fixture(find_case("usual"), Grouping::given);
  const AttentionShape& s = fixture.inputs.shape;
  round_in_place({{fixture.query, fixture.sequences() * s.query_length * s.head_dim},
                  {fixture.key, fixture.sequences() * s.key_length * s.head_dim},
                  {fixture.value, fixture.sequences() * s.key_length * s.value_dim}});
  CHECK_RUNS(fixture.problem, fixture.arrays);
  const std::vector<int32_t> expected = fixture.choices().indices;
  Device device(Storage::bfloat16);
  CHECK_EQUAL(describe(fixture.run(device, Precision::bfloat16)), "ok");
  const std::vector<int32_t> actual = fixture.choices().indices;
  // Mean queries are in two parts: to round them would change places everywhere.
  size_t different = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    different += actual[i] != expected[i] ? 1 : 0;
  }
  CHECK(different * 100 < expected.size());
}

}  // namespace

}  // namespace cluster_attention::test
