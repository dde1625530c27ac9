#include <algorithm>

#include "cuda/clustered_attention.h"
#include "test/cuda/cluster_limits.h"
#include "test/cuda/clustered_attention_device.h"
#include "test/cuda/launches.h"

namespace cluster_attention::test {

namespace {

using cuda::Storage;
using Fixture = ClusteredDeviceFixture;

TEST_ONCE("CUDA clustered attention: matches the reference given the same choices") {
  for (const Case& one : cases()) {
    for (Grouping grouping : {Grouping::hamming, Grouping::given}) {
      const int64_t top_k = grouping == Grouping::hamming ? one.clamped_top_k() : 0;
      const Scope scope(one.name + " k " + std::to_string(top_k));
      Fixture fixture(one, grouping, top_k);
      Device device;
      if (check_runs(fixture, device)) check_cluster_outputs(fixture);
    }
  }
}

TEST_ONCE("CUDA clustered attention: long sums keep the bound") {
  const std::pair<Case, int64_t> cases[] = {{long_case(20, 8192, 20), 5000},
                                            {long_case(70, 1500, 100), 90},
                                            {long_case(70, 1500, 200), 40}};
  for (auto [one, top_k] : cases) {
    const Scope scope(one.name);
    one.clusters = 2;
    Device device;
    const int64_t fits = device.session()->shared_bytes() >= 160 * 1024 ? 5000 : 1000;
    Fixture fixture(one, Grouping::given, std::min(top_k, fits));
    check_runs(fixture, device);
  }
}

TEST_ONCE("CUDA clustered attention: Euclidean groups") {
  for (const char* name : {"prime", "ragged"}) {
    Fixture fixture(find_case(name), Grouping::euclidean);
    Device device;
    CHECK_EQUAL(describe(fixture.run(device)), "ok");
    check_reference(fixture, kSplitBound, 5e-5);
  }
}

TEST_ONCE("CUDA clustered attention: choices equal the CPU's on planted groups") {
  const Case& which = find_case("usual");
  for (Grouping grouping : {Grouping::hamming, Grouping::given}) {
    const Scope scope("grouping " + std::to_string(static_cast<int>(grouping)));
    Fixture fixture(which, grouping);
    CHECK_RUNS(fixture.problem, fixture.arrays);
    const reference::ClusteredChoices expected = fixture.choices();
    const std::vector<int32_t> counts = fixture.counts();
    Device device;
    CHECK_EQUAL(describe(fixture.run(device)), "ok");
    CHECK_SAME(fixture.choices().labels, expected.labels);
    CHECK_SAME(fixture.counts(), counts);
    // Scores of operands in two parts: a few neighbours in the order may have changed places.
    size_t different = 0;
    for (size_t i = 0; i < expected.indices.size(); ++i) {
      different += fixture.choices().indices[i] != expected.indices[i] ? 1 : 0;
    }
    CHECK(different * 100 < expected.indices.size());
  }
}

TEST_ONCE("CUDA clustered attention: long keys in stretches, ties by index") {
  Case which = find_case("long-keys");
  which.key_length = 9001;
  // All scores of a cluster are equal but for the sign of its mean: the first keys win.
  Fixture fixture(which, Grouping::given, 37);
  std::fill_n(fixture.key, which.key_length * which.head_dim, 1.0f);
  Device device;
  CHECK_EQUAL(describe(fixture.run(device)), "ok");
  const reference::ClusteredChoices choices = fixture.choices();
  const std::vector<int32_t> counts = fixture.counts();
  for (size_t c = 0; c < counts.size(); ++c) {
    for (int32_t t = 0; t < 37; ++t) {
      CHECK_EQUAL(choices.indices[c * 37 + static_cast<size_t>(t)], counts[c] > 0 ? t : -1);
    }
  }
  check_reference(fixture, kSplitBound, 1e-9);
  // Ascending scores: every stretch beats the one before it, every list overflows again and again.
  for (int64_t s = 0; s < which.key_length; ++s) {
    for (int64_t d = 0; d < which.head_dim; ++d) {
      fixture.key[s * which.head_dim + d] = d == 0 ? static_cast<float>(s) / 64.0f : 0.0f;
    }
  }
  for (int64_t l = 0; l < which.query_length; ++l) fixture.query[l * which.head_dim] = 0.5f;
  Device another;
  CHECK_EQUAL(describe(fixture.run(another)), "ok");
  CHECK(check_indices(fixture, 1e-9));
}

TEST_ONCE("CUDA clustered attention: top keys of few and of many groups") {
  struct Choice {
    int64_t keys;
    int64_t top_k;
  };
  // More keys than threads; all groups chosen; groups of eight.
  for (const Choice& one : {Choice{4001, 300}, Choice{1033, 300}, Choice{17'001, 40}}) {
    const Scope scope(std::to_string(one.keys) + " keys");
    Case which = find_case("long-keys");
    which.key_length = one.keys;
    Fixture fixture(which, Grouping::given, one.top_k);
    Device device;
    CHECK_EQUAL(describe(fixture.run(device)), "ok");
    check_reference(fixture, kSplitBound, 5e-5);
  }
  // Larger groups, the last one cut short.
  for (int64_t dim : {8, 64}) {
    Case which = long_case(3, 139'999, dim);
    const Scope scope(which.name);
    which.value_dim = 8;
    which.clusters = 2;
    Fixture fixture(which, Grouping::given, 9);
    if (dim == 64) {
      check_bfloat16(fixture, Storage::bfloat16);
      continue;
    }
    Device device;
    CHECK_EQUAL(describe(fixture.run(device)), "ok");
    check_reference(fixture, kSplitBound, 5e-5);
  }
}

/// What a call before has left in the workspace must not pass for the largest score of a group: at
/// first the last keys are the worst, then they are the best.
TEST_ONCE("CUDA clustered attention: groups of two blocks of keys, the last with one of them") {
  Case which = long_case(2, (1 << 17) + 64 + 32, 8);
  which.clusters = 1;
  Fixture worst(which, Grouping::given, 9);
  Fixture best(which, Grouping::given, 9);
  Device device;
  for (Fixture* fixture : {&worst, &best}) {
    const float sign = fixture == &best ? 1.0f : -1.0f;
    std::fill_n(fixture->query, 2 * 8, 1.0f);
    for (int64_t i = 0; i < 8 * which.key_length; ++i) fixture->key[i] *= 0.01f;
    for (int64_t i = 1; i <= 7; ++i) {
      std::fill_n(fixture->key + 8 * (which.key_length - i), 8, sign * static_cast<float>(i));
    }
    CHECK_EQUAL(describe(fixture->run(device)), "ok");
    check_reference(*fixture, kSplitBound, 5e-5);
  }
}

TEST_ONCE("CUDA clustered attention: of equal keys in several groups the first ones win") {
  for (int64_t keys : {2003, 16'390}) {  // in groups of four, of eight
    Case which = find_case("long-keys");
    which.key_length = keys;
    Fixture fixture(which, Grouping::given, 37);
    const int64_t period = 100 * which.head_dim;
    for (int64_t i = period; i < which.key_length * which.head_dim; ++i) {
      fixture.key[i] = fixture.key[i - period];
    }
    Device device;
    CHECK_EQUAL(describe(fixture.run(device)), "ok");
    CHECK_SAME(fixture.choices().indices,
               reference::clustered_indices(fixture.problem, fixture.choices().labels));
  }
}

TEST_ONCE("CUDA clustered attention: the same bits in every order of threads, and alone") {
  for (const char* name : {"ragged", "usual", "more-clusters-than-queries"}) {
    const Scope scope(name);
    Fixture fixture(find_case(name), Grouping::hamming);
    Device device;
    CHECK_EQUAL(describe(fixture.run(device)), "ok");
    const auto expected = fixture.arrays.snapshot();
    in_every_thread_order([&] {
      CHECK_EQUAL(describe(fixture.run(device)), "ok");
      check_same_bytes(fixture.arrays.snapshot(), expected, "running again");
    });
    const ClusteredAttentionProblem there = fixture.there(device);
    const int64_t clusters = there.clusters;
    fixture.arrays.poison();
    for (int64_t i = 0; i < fixture.sequences(); ++i) {
      ClusteredAttentionProblem one = one_sequence(there, i);
      one.cluster_values = part(there.cluster_values, i, clusters * there.inputs.shape.value_dim);
      one.cluster_logsumexp = part(there.cluster_logsumexp, i, clusters);
      CHECK_EQUAL(describe(device.run(device.backend().operations.clustered_attention, one)), "ok");
    }
    device.fetch(fixture.arrays);
    check_same_bytes(fixture.arrays.snapshot(), expected, "running sequences one by one");
  }
}

/// Padding of rows where a launch makes all of the groups: hashes of aligned rows.
TEST_ONCE(
    "CUDA clustered attention: NaN and Inf in aligned rows are noticed, in padding not read") {
  Case which = find_case("usual");
  which.batch = which.heads = 2;  // no more sequences than the model has multiprocessors
  which.query_length = which.key_length = 41;
  which.query_lengths = which.key_lengths = {41, 20};
  which.head_dim = 16;
  for (Storage storage : {Storage::float32, Storage::bfloat16}) {
    Fixture fixture(which, Grouping::hamming, 9);
    const AttentionInputs& in = fixture.inputs;
    for (int64_t row : {int64_t{0}, in.shape.query_length - 1}) {
      float* place = const_cast<float*>(in.query.row(1, 1, row));
      const float saved = *place;
      *place = std::numeric_limits<float>::quiet_NaN();
      Device device(storage);
      CHECK_EQUAL(describe(fixture.run(device)), "ok");
      CHECK_EQUAL(device.non_finite(), row < in.query_lengths[1]);
      *place = saved;
    }
  }
}

TEST_ONCE("CUDA clustered attention: NaN and Inf are noticed") {
  for (int64_t top_k : {int64_t{0}, int64_t{9}}) {
    for (Storage storage : {Storage::float32, Storage::bfloat16}) {
      Fixture fixture(find_case("ragged"), Grouping::hamming, top_k);
      const AttentionInputs& in = fixture.inputs;
      for (float* place :
           {const_cast<float*>(in.query.row(0, 1, 7)), const_cast<float*>(in.key.row(0, 1, 5)),
            const_cast<float*>(in.value.row(0, 0, 3))}) {
        for (float bad :
             {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
          const Scope scope(std::to_string(bad) + " k " + std::to_string(top_k));
          const float saved = *place;
          *place = bad;
          Device device(storage);
          CHECK_EQUAL(describe(fixture.run(device)), "ok");
          CHECK(device.non_finite());
          *place = saved;
        }
      }
    }
  }
}

TEST_ONCE(
    "CUDA clustered attention: labels out of range are named, optional outputs are optional") {
  Fixture fixture(find_case("prime"), Grouping::given);
  Device device;
  CHECK_EQUAL(describe(fixture.run(device)), "ok");
  const std::vector<float> expected = fixture.result();
  fixture.problem.labels = nullptr;
  fixture.problem.counts = nullptr;
  fixture.problem.indices = nullptr;
  fixture.problem.cluster_values = nullptr;
  fixture.problem.cluster_logsumexp = nullptr;
  CHECK_EQUAL(describe(fixture.run(device)), "ok");
  CHECK_SAME(fixture.result(), expected);
  fixture.given_labels[70] = 7;
  fixture.given_labels[90] = -2;
  Device another;
  CHECK_EQUAL(describe(fixture.run(another)), "out_of_range labels[70]");
  fixture.problem.inputs.shape.value_dim = 257;
  ClusteredAttentionProblem wide = fixture.problem;
  CHECK_EQUAL(describe(another.run(another.backend().operations.clustered_attention, wide)),
              "unsupported valueDim");
  // The candidates of a cluster no longer fit in shared memory.
  Fixture many(find_case("long-keys"), Grouping::given, 30000);
  Device third;
  CHECK_EQUAL(describe(many.run(third)), "unsupported topK");
}

TEST_ONCE("CUDA clustered attention: the launches of docs/gpu.md") {
  const struct {
    Storage storage;
    Precision precision;
  } settings[] = {{Storage::float32, Precision::float32},
                  {Storage::float32, Precision::bfloat16},
                  {Storage::bfloat16, Precision::bfloat16}};
  for (const auto& setting : settings) {
    for (Grouping grouping : {Grouping::hamming, Grouping::given}) {
      for (int64_t top_k : {0, 32}) {
        const Scope scope("grouping " + std::to_string(static_cast<int>(grouping)) + " top " +
                          std::to_string(top_k));
        Fixture fixture(find_case("usual"), grouping, top_k);
        Device device(setting.storage);
        const int64_t steps = grouping == Grouping::given ? 6 : 7;  // by launches of their own
        CHECK_EQUAL(count_launches(device, device.backend().operations.clustered_attention,
                                   fixture.there(device), setting.precision),
                    has_clusters() ? 4 : steps - (setting.storage == Storage::bfloat16 ? 1 : 0));
      }
    }
  }
}

}  // namespace

}  // namespace cluster_attention::test
