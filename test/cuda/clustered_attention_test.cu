#include <algorithm>
#include <cmath>

#include "cuda/clustered_attention.h"
#include "native/reference/aggregate.h"
#include "native/reference/attention.h"
#include "test/cuda/launches.h"
#include "test/cuda/tile_cases.h"
#include "test/native/clustered_arrays.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

namespace {

using cuda::Storage;

constexpr double kSplitBound = 2e-5;
constexpr double kBfloat16Bound =
    0x1p-6;  // queries, keys, values and weights rounded, mean queries in two parts

struct Fixture : ClusteredFixture {
  std::vector<float> given_values;

  Fixture(const Case& which, Grouping grouping, int64_t top_k = -1, Fill fill = Fill::gaussian)
      : ClusteredFixture(which, grouping, top_k, fill) {
    const int64_t clusters = sequences() * problem.clusters;
    problem.cluster_values = arrays.output<float>(clusters * inputs.shape.value_dim);
    problem.cluster_logsumexp = arrays.output<float>(clusters);
  }

  ClusteredAttentionProblem there(Device& device) {
    ClusteredAttentionProblem there = problem;
    there.inputs = device.inputs(problem.inputs, arrays);
    there.planes = device.at(problem.planes, arrays);
    there.given_labels = device.at(problem.given_labels, arrays);
    there.output = device.stored(problem.output, arrays);
    there.labels = device.at(problem.labels, arrays);
    there.counts = device.at(problem.counts, arrays);
    there.indices = device.at(problem.indices, arrays);
    there.cluster_values = device.at(problem.cluster_values, arrays);
    there.cluster_logsumexp = device.at(problem.cluster_logsumexp, arrays);
    return there;
  }
  Status run(Device& device, Precision precision = Precision::float32) {
    arrays.poison();
    const Status status =
        device.run(device.backend().operations.clustered_attention, there(device), precision);
    device.fetch(arrays);
    return status;
  }
};

/// T_j holds min(k, real keys) distinct keys, best first, none worse than a key left out, up to
/// `tolerance` in the scores, of those above 1 relative to them.
bool check_indices(const Fixture& fixture, double tolerance) {
  const ClusteredAttentionProblem& problem = fixture.problem;
  const reference::ClusteredChoices choices = fixture.choices();
  const AttentionShape& shape = problem.inputs.shape;
  const std::vector<int32_t> expected = reference::clustered_indices(problem, choices.labels);
  for (int64_t sequence = 0; sequence < fixture.sequences(); ++sequence) {
    const auto rows =
        reference::read_sequence(problem.inputs, sequence / shape.heads, sequence % shape.heads);
    const auto first = choices.labels.begin() + sequence * shape.query_length;
    const auto means = reference::aggregate(rows.query, {first, first + rows.query.rows()},
                                            problem.clusters, Reduce::mean);
    const auto scores = reference::multiply_transposed(means, rows.key);
    for (int64_t j = 0; j < problem.clusters; ++j) {
      const int64_t at = (sequence * problem.clusters + j) * problem.top_k;
      std::vector<int32_t> seen;
      for (int64_t t = 0; t < problem.top_k; ++t) {
        const int32_t actual = choices.indices[static_cast<size_t>(at + t)];
        const int32_t wanted = expected[static_cast<size_t>(at + t)];
        const bool repeated = std::count(seen.begin(), seen.end(), actual) > 0;
        if ((actual < 0) != (wanted < 0) || actual >= scores.columns() ||
            (actual >= 0 && repeated)) {
          CHECK_EQUAL(actual, wanted);
          return false;
        }
        if (actual < 0) continue;
        seen.push_back(actual);
        const double best = scores(j, wanted);
        CHECK(std::abs(scores(j, actual) - best) < tolerance * std::max(1.0, std::abs(best)));
      }
    }
  }
  return true;
}

void check_reference(Fixture& fixture, double bound, double tolerance) {
  fixture.arrays.snapshot();
  if (!check_indices(fixture, tolerance)) return;
  CHECK_CLOSE(fixture.result(), reference::clustered_attention(fixture.problem, fixture.choices()),
              bound);
}

void check_bfloat16(Fixture& fixture, Storage storage) {
  Device device(storage);
  CHECK_EQUAL(describe(fixture.run(device, Precision::bfloat16)), "ok");
  CHECK(!device.non_finite());
  fixture.arrays.snapshot();
  const AttentionShape& s = fixture.inputs.shape;
  round_in_place({{fixture.query, fixture.sequences() * s.query_length * s.head_dim},
                  {fixture.key, fixture.sequences() * s.key_length * s.head_dim},
                  {fixture.value, fixture.sequences() * s.key_length * s.value_dim}});
  check_reference(fixture, kBfloat16Bound, 0.2);
}

/// V^c of the clusters and its log-sum-exp: attention of the reference's mean queries.
void check_cluster_outputs(const Fixture& fixture) {
  const ClusteredAttentionProblem& problem = fixture.problem;
  const AttentionShape& shape = problem.inputs.shape;
  const std::vector<int32_t> labels = fixture.choices().labels;
  std::vector<double> values;
  std::vector<double> logsumexp;
  for (int64_t sequence = 0; sequence < fixture.sequences(); ++sequence) {
    const auto rows =
        reference::read_sequence(problem.inputs, sequence / shape.heads, sequence % shape.heads);
    const auto first = labels.begin() + sequence * shape.query_length;
    const auto means = reference::aggregate(rows.query, {first, first + rows.query.rows()},
                                            problem.clusters, Reduce::mean);
    const auto scores = reference::multiply_transposed(means, rows.key);
    for (int64_t j = 0; j < problem.clusters; ++j) {
      const bool empty = std::count(first, first + rows.query.rows(), static_cast<int32_t>(j)) == 0;
      double sum = 0.0;
      std::vector<double> value(static_cast<size_t>(shape.value_dim));
      for (int64_t s = 0; s < rows.key.rows() && !empty; ++s) {
        const double weight = std::exp(problem.inputs.scale * scores(j, s));
        sum += weight;
        for (int64_t e = 0; e < shape.value_dim; ++e) {
          value[static_cast<size_t>(e)] += weight * rows.value(s, e);
        }
      }
      for (double one : value) values.push_back(sum > 0.0 ? one / sum : 0.0);
      logsumexp.push_back(std::log(sum));
    }
  }
  const int64_t clusters = fixture.sequences() * problem.clusters;
  CHECK_CLOSE(read(problem.cluster_values, clusters * shape.value_dim), values, kSplitBound);
  CHECK_CLOSE(read(problem.cluster_logsumexp, clusters), logsumexp, kSplitBound);
}

TEST_ONCE("CUDA clustered attention: matches the reference given the same choices") {
  for (const Case& one : cases()) {
    for (Grouping grouping : {Grouping::hamming, Grouping::given}) {
      const int64_t top_k = grouping == Grouping::hamming ? one.clamped_top_k() : 0;
      const Scope scope(one.name + " k " + std::to_string(top_k));
      Fixture fixture(one, grouping, top_k);
      Device device;
      CHECK_EQUAL(describe(fixture.run(device)), "ok");
      CHECK(!device.non_finite());
      check_reference(fixture, kSplitBound, 5e-5);
      check_cluster_outputs(fixture);
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
    Fixture fixture(one, Grouping::given, top_k);
    Device device;
    CHECK_EQUAL(describe(fixture.run(device)), "ok");
    check_reference(fixture, kSplitBound, 5e-5);
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
  // More keys than threads; all groups chosen.
  for (const Choice& one : {Choice{4001, 300}, Choice{1033, 200}}) {
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

TEST_ONCE("CUDA clustered attention: of equal keys in several groups the first ones win") {
  Case which = find_case("long-keys");
  which.key_length = 2003;
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
      CHECK_EQUAL(describe(fixture.run(device)), "ok");
      CHECK(!device.non_finite());
      check_reference(fixture, kSplitBound, 5e-5);
      check_bfloat16(fixture, top_k == 37 ? Storage::float32 : Storage::bfloat16);
    }
  }
}

TEST_ONCE("CUDA clustered attention: every width with 64 KB of shared memory") {
  on_a_small_device([](bool small) {
    for (const Case& one : width_cases(70, 530, 90)) {
      for (int64_t top_k : {0, 37}) {
        const Scope scope(one.name + " k " + std::to_string(top_k));
        Fixture fixture(one, Grouping::hamming, top_k);
        Device device;
        if (small && one.head_dim > 128 && top_k > 0) {
          CHECK_EQUAL(describe(fixture.run(device)), "unsupported shape");
        } else {
          CHECK_EQUAL(describe(fixture.run(device)), "ok");
          check_reference(fixture, kSplitBound, 5e-5);
        }
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

TEST_ONCE("CUDA clustered attention: four launches") {
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
        CHECK_EQUAL(count_launches(device, device.backend().operations.clustered_attention,
                                   fixture.there(device), setting.precision),
                    4);
      }
    }
  }
}

}  // namespace

}  // namespace cluster_attention::test
