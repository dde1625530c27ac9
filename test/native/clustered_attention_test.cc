#include "native/reference/clustered_attention.h"

#include <algorithm>
#include <cmath>

#include "native/kernels/hash.h"
#include "native/reference/aggregate.h"
#include "native/simd/simd.h"
#include "test/native/checks.h"
#include "test/native/clustered_arrays.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

namespace {

using Fixture = ClusteredFixture;

constexpr Grouping kGroupings[] = {Grouping::hamming, Grouping::euclidean, Grouping::given};

/// Labels within the clamp, -1 for padding, counts that belong to them. False when the labels
/// cannot be used as choices.
bool check_labels(const Fixture& fixture) {
  const AttentionInputs& in = fixture.inputs;
  const std::vector<int32_t> labels = fixture.choices().labels;
  for (int64_t row = 0; row < static_cast<int64_t>(labels.size()); ++row) {
    const int64_t b = row / in.shape.query_length / in.shape.heads;
    const int64_t real = real_length(in.query_lengths, b, in.shape.query_length);
    const bool padded = row % in.shape.query_length >= real;
    const bool given = fixture.problem.grouping == Grouping::given;
    const int64_t limit =
        given ? fixture.problem.clusters : std::min(fixture.problem.clusters, real);
    if (padded || (given && fixture.given_labels[row] < 0)) {
      CHECK_EQUAL(labels[row], -1);
    } else if (labels[row] < 0 || labels[row] >= limit) {
      CHECK_EQUAL(labels[row], 0);
      return false;
    }
  }
  std::vector<int32_t> counts;
  for (int64_t sequence = 0; sequence < fixture.sequences(); ++sequence) {
    const auto first = labels.begin() + sequence * in.shape.query_length;
    const auto one =
        reference::count_labels({first, first + in.shape.query_length}, fixture.problem.clusters);
    counts.insert(counts.end(), one.begin(), one.end());
  }
  CHECK_SAME(fixture.counts(), counts);
  return true;
}

/// T_j holds min(k, real keys) distinct keys, best first, none worse than a key left out: up to
/// rounding of the scores.
bool check_indices(const Fixture& fixture) {
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
        const int32_t actual = choices.indices[at + t];
        if ((actual < 0) != (expected[at + t] < 0) || actual >= scores.columns() ||
            std::count(seen.begin(), seen.end(), actual) !=
                (actual < 0 ? t - static_cast<int64_t>(seen.size()) : 0)) {
          CHECK_EQUAL(actual, expected[at + t]);
          return false;
        }
        if (actual < 0) continue;
        seen.push_back(actual);
        CHECK(std::abs(scores(j, actual) - scores(j, expected[at + t])) < 2e-5);
      }
    }
  }
  return true;
}

void check_reference(Fixture& fixture) {
  CHECK_RUNS(fixture.problem, fixture.arrays);
  fixture.arrays.snapshot();
  if (!check_labels(fixture) || !check_indices(fixture)) return;
  CHECK_CLOSE(fixture.result(), reference::clustered_attention(fixture.problem, fixture.choices()));
}

TEST("clustered attention: matches the reference given the same choices") {
  for (const Case& one : cases()) {
    for (Grouping grouping : kGroupings) {
      for (int64_t top_k : {int64_t{0}, one.clamped_top_k()}) {
        const Scope scope(one.name + " grouping " + std::to_string(static_cast<int>(grouping)) +
                          " k " + std::to_string(top_k));
        Fixture fixture(one, grouping, top_k);
        check_reference(fixture);
      }
    }
  }
}

TEST(
    "clustered attention: as many top keys as a tile has lanes, one less, one more, and all keys") {
  Case which = find_case("prime");
  which.query_length = 61;
  which.key_length = 149;
  which.clusters = 7;
  which.query_lengths = {61, 50};
  which.key_lengths = {149, 97};
  which.batch = 2;
  const int64_t lanes = simd().lanes;
  for (int64_t top_k : {lanes - 1, lanes, lanes + 1, 2 * lanes, 2 * lanes + 1, int64_t{149}}) {
    const Scope scope("k " + std::to_string(top_k));
    which.top_k = top_k;
    Fixture fixture(which, Grouping::hamming, which.clamped_top_k());
    check_reference(fixture);
  }
}

TEST("clustered attention: more clusters than sums fit in a cache") {
  Case which = find_case("prime");
  which.query_length = 901;
  which.key_length = 67;
  which.head_dim = 48;
  which.clusters = 700;
  which.query_lengths.clear();
  which.key_lengths.clear();
  for (int64_t top_k : {0, 3}) {
    Fixture fixture(which, Grouping::hamming, top_k);
    check_reference(fixture);
  }
}

TEST("clustered attention: Hamming labels equal the reference on integers") {
  for (const Case& one : cases()) {
    for (Threshold threshold : {Threshold::normal, Threshold::data}) {
      const Scope scope(one.name + (threshold == Threshold::data ? " data" : " normal"));
      Fixture fixture(one, Grouping::hamming, 0, Fill::integer);
      fixture.problem.threshold = threshold;
      fixture.problem.seed = 3;
      CHECK_RUNS(fixture.problem, fixture.arrays);
      CHECK_SAME(fixture.choices().labels, reference::clustered_labels(fixture.problem));
    }
  }
}

TEST("clustered attention: data thresholds of a long sequence") {
  Case which = find_case("one");
  which.query_length = 6007;
  which.key_length = 5;
  which.head_dim = 3;
  which.clusters = 20;
  which.bits = 63;
  Fixture fixture(which, Grouping::hamming, 2, Fill::integer);
  fixture.problem.threshold = Threshold::data;
  CHECK_RUNS(fixture.problem, fixture.arrays);
  CHECK_SAME(fixture.choices().labels, reference::clustered_labels(fixture.problem));
}

TEST("clustered attention: top-k indices equal the reference where scores are exact") {
  // Clusters of 1, 2 or 4 queries: the means of integers are exact, and full of ties.
  for (const char* name : {"tile-48", "tile-128", "prime", "prime-long"}) {
    const Scope scope(name);
    Case which = find_case(name);
    which.clusters = which.query_length;
    Fixture fixture(which, Grouping::given, -1, Fill::integer);
    for (int64_t row = 0; row < fixture.sequences() * which.query_length; ++row) {
      const int64_t l = row % which.query_length;
      fixture.given_labels[row] = static_cast<int32_t>(l < 8                            ? l
                                                       : l < which.query_length / 4 * 4 ? 8 + l / 4
                                                                                        : -1);
    }
    for (float scale : {1.0f, -1.0f, 0.0f, 100.0f, 1.3e9f, -1e12f, 1e30f}) {  // not that of T_j
      fixture.problem.inputs.scale = scale;
      CHECK_RUNS(fixture.problem, fixture.arrays);
      CHECK_SAME(fixture.choices().indices,
                 reference::clustered_indices(fixture.problem, fixture.choices().labels));
      CHECK_CLOSE(fixture.result(),
                  reference::clustered_attention(fixture.problem, fixture.choices()));
    }
  }
}

TEST("clustered attention: given labels outside their range are named, padded ones ignored") {
  for (int32_t bad : {-2, 6, 1 << 30}) {
    Fixture fixture(find_case("ragged"), Grouping::given);
    fixture.given_labels[50] = bad;
    fixture.given_labels[60] = bad;
    CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays)), "out_of_range labels[50]");
    std::fill_n(fixture.given_labels, 2 * 41, 0);
    fixture.given_labels[2 * 41] = bad;  // batch 1 has no real query
    CHECK_RUNS(fixture.problem, fixture.arrays);
  }
}

TEST(
    "clustered attention: of labels outside their range the first is named, whichever is met "
    "first") {
  Case which = find_case("prime");
  which.batch = 1;
  which.heads = 2;
  which.query_length = 700'000;  // enough for threads of their own
  which.head_dim = which.value_dim = 1;
  Fixture fixture(which, Grouping::given);
  fixture.given_labels[which.query_length - 1] = -2;
  fixture.given_labels[which.query_length] = -2;
  for (int i = 0; i < 5; ++i) {
    CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays)),
                "out_of_range labels[699999]");
  }
}

TEST("clustered attention: a query that is given no cluster is never read") {
  for (int64_t top_k : {0, 5}) {
    Fixture fixture(find_case("prime"), Grouping::given, top_k);
    CHECK_EQUAL(fixture.given_labels[7], -1);
    fixture.query[7 * 17] = std::numeric_limits<float>::quiet_NaN();
    CHECK_RUNS(fixture.problem, fixture.arrays);
    // ... nor named when another row holds the fault.
    fixture.given_labels[8] = 0;
    check_non_finite(fixture.problem, fixture.arrays, fixture.query, "query", 8 * 17 + 2);
  }
}

TEST("clustered attention: optional outputs do not change the others") {
  Fixture fixture(find_case("ragged"), Grouping::hamming);
  CHECK_RUNS(fixture.problem, fixture.arrays);
  const std::vector<float> expected = fixture.result();
  fixture.problem.labels = nullptr;
  fixture.problem.counts = nullptr;
  fixture.problem.indices = nullptr;
  CHECK_RUNS(fixture.problem, fixture.arrays);
  CHECK_SAME(fixture.result(), expected);
}

TEST("clustered attention: planes that are not given are drawn from the seed") {
  for (bool hash_bias : {true, false}) {
    for (Precision precision : {Precision::float32, Precision::bfloat16}) {
      const CallSettings settings{NonFinite::error, precision};
      Fixture fixture(find_case("prime"), Grouping::hamming, 3);
      ClusteredAttentionProblem& problem = fixture.problem;
      Context context(1);
      CHECK(lsh_planes(problem.bits, problem.inputs.shape.head_dim, problem.seed, hash_bias,
                       context, fixture.planes)
                .ok());
      CHECK_EQUAL(describe(run_fresh(problem, fixture.arrays, 2, settings)), "ok");
      const auto expected = fixture.arrays.snapshot();
      problem.planes = nullptr;
      problem.hash_bias = hash_bias;
      CHECK_EQUAL(describe(run_fresh(problem, fixture.arrays, 2, settings)), "ok");
      check_same_bytes(fixture.arrays.snapshot(), expected, "drawing the planes");
      check_allocation_failures(problem, fixture.arrays, 0, settings);
      check_cancelled(problem);
    }
  }
}

TEST("clustered attention: threads, batches, faults, cancellation") {
  for (const char* name : {"ragged", "ragged-transposed", "usual", "long-queries", "long-keys"}) {
    for (Grouping grouping : kGroupings) {
      for (int64_t top_k : {0, 5}) {
        const Scope scope(std::string(name) + " k " + std::to_string(top_k));
        Fixture fixture(find_case(name), grouping, top_k);
        if (top_k > 0) fixture.problem.threshold = Threshold::data;
        check_promises(fixture.problem, fixture.arrays, fixture.sequences(), one_sequence);
      }
    }
  }
}

TEST("clustered attention: NaN and Inf are named") {
  for (Grouping grouping : kGroupings) {
    for (int64_t top_k : {0, 5}) {
      const Scope scope("grouping " + std::to_string(static_cast<int>(grouping)));
      Fixture fixture(find_case("prime"), grouping, top_k);
      check_non_finite(fixture.problem, fixture.arrays, fixture.query, "query", 17 * 61 + 3,
                       17 * 62 + 3);
      check_non_finite(fixture.problem, fixture.arrays, fixture.key, "key", 17 * 53 + 3,
                       17 * 60 + 1);
      check_non_finite(fixture.problem, fixture.arrays, fixture.value, "value", 13 * 53 + 3);
      if (grouping == Grouping::hamming) {
        check_non_finite(fixture.problem, fixture.arrays, fixture.planes, "planes", 18 * 4 + 3);
      }
    }
  }
}

TEST("clustered attention: infinities that only lower the logits are found") {
  for (Grouping grouping : kGroupings) {
    for (int64_t top_k : {0, 5}) {
      for (const char* name : {"one-query", "tile-25", "tile-129"}) {
        const Scope scope(std::string(name) + " grouping " +
                          std::to_string(static_cast<int>(grouping)) + " k " +
                          std::to_string(top_k));
        Fixture fixture(find_case(name), grouping, top_k);
        std::fill_n(fixture.given_labels, fixture.sequences() * fixture.inputs.shape.query_length,
                    0);
        check_silent_infinity(fixture);
      }
    }
  }
}

TEST("clustered attention: bfloat16 rounds the inputs, planes among them") {
  for (Grouping grouping : kGroupings) {
    Fixture fixture(find_case("prime"), grouping);
    const AttentionShape& s = fixture.inputs.shape;
    check_bfloat16(fixture.problem, fixture.arrays,
                   {{fixture.query, fixture.sequences() * s.query_length * s.head_dim},
                    {fixture.key, fixture.sequences() * s.key_length * s.head_dim},
                    {fixture.value, fixture.sequences() * s.key_length * s.value_dim},
                    {fixture.planes, fixture.problem.bits * (s.head_dim + 1)}});
  }
}

}  // namespace

}  // namespace cluster_attention::test
