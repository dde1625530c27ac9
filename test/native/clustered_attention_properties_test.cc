// What holds of clustered attention whatever the clusters are, and of clusters that are known.

#include <algorithm>
#include <cmath>

#include "native/reference/attention.h"
#include "test/native/checks.h"
#include "test/native/clustered_arrays.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

namespace {

using Fixture = ClusteredFixture;

TEST("clustered attention: improved over all keys is exact attention") {
  for (const char* name : {"prime", "ragged", "tile-49", "usual"}) {
    const Scope scope(name);
    const Case& which = find_case(name);
    Fixture fixture(which, Grouping::hamming, which.key_length);
    CHECK_RUNS(fixture.problem, fixture.arrays);
    AttentionProblem exact;
    exact.inputs = fixture.inputs;
    CHECK_CLOSE(fixture.result(), reference::attention(exact).output);
  }
}

TEST("clustered attention: improved over many equal keys keeps the bound of exact attention") {
  Case which = find_case("prime");
  which.batch = which.heads = 1;
  which.query_length = 5;
  which.key_length = 9001;
  which.clusters = 2;
  Fixture fixture(which, Grouping::hamming, which.key_length);
  const AttentionShape& shape = fixture.inputs.shape;
  std::fill_n(fixture.key, shape.key_length * shape.head_dim, 0.5f);
  std::fill_n(fixture.value, shape.key_length * shape.value_dim, 0.1f);
  CHECK_RUNS(fixture.problem, fixture.arrays);
  const std::vector<double> expected(static_cast<size_t>(shape.query_length * shape.value_dim),
                                     double{0.1f});
  CHECK_CLOSE(fixture.result(), expected, 3e-6);
}

TEST("clustered attention: a cluster per query is exact attention") {
  for (const char* name : {"prime", "ragged", "width-130-64"}) {
    const Scope scope(name);
    Case which = find_case(name);
    which.clusters = which.query_length;
    Fixture fixture(which, Grouping::given, 0);
    for (int64_t row = 0; row < fixture.sequences() * which.query_length; ++row) {
      fixture.given_labels[row] = static_cast<int32_t>(row % which.query_length);
    }
    CHECK_RUNS(fixture.problem, fixture.arrays);
    AttentionProblem exact;
    exact.inputs = fixture.inputs;
    CHECK_CLOSE(fixture.result(), reference::attention(exact).output);
  }
}

/// The weights themselves: the output for a value matrix that is the identity.
reference::Matrix kernel_weights(Fixture& fixture, int64_t top_k) {
  const AttentionShape& shape = fixture.inputs.shape;
  for (int64_t s = 0; s < shape.key_length; ++s) {
    for (int64_t e = 0; e < shape.key_length; ++e) {
      fixture.value[s * shape.key_length + e] = s == e ? 1.0f : 0.0f;
    }
  }
  fixture.problem.top_k = top_k;
  CHECK_RUNS(fixture.problem, fixture.arrays);
  return reference::read_dense(fixture.output.data, shape.query_length, shape.key_length);
}

TEST("improved clustered attention: never worse than clustered, row by row (Prop. 2)") {
  for (const char* name : {"tile-15", "tile-127", "width-65", "prime-long"}) {
    for (Grouping grouping : {Grouping::hamming, Grouping::euclidean}) {
      const Scope scope(name);
      Case which = find_case(name);
      which.value_dim = which.key_length;
      Fixture fixture(which, grouping);
      fixture.problem.inputs.scale = 1.0f;  // peaked rows: the two differ much
      const auto clustered = kernel_weights(fixture, 0);
      const auto improved = kernel_weights(fixture, which.clamped_top_k());
      AttentionProblem exact;
      exact.inputs = fixture.problem.inputs;
      const auto full = reference::attention_weights(exact, 0, 0);
      for (int64_t i = 0; i < which.query_length; ++i) {
        double by_cluster = 0.0, by_top = 0.0, sum = 0.0;
        for (int64_t s = 0; s < which.key_length; ++s) {
          by_cluster += std::abs(clustered(i, s) - full(i, s));
          by_top += std::abs(improved(i, s) - full(i, s));
          sum += improved(i, s);
        }
        CHECK(by_top <= by_cluster + 1e-5);
        CHECK(std::abs(sum - 1.0) < 1e-5);
      }
    }
  }
}

TEST("clustered attention: equal queries share a cluster, planted groups are found") {
  const Case& which = find_case("usual");
  const AttentionShape shape{which.batch,      which.heads,    which.query_length,
                             which.key_length, which.head_dim, which.value_dim};
  Fixture fixture(which, Grouping::hamming, 0);
  const std::vector<float> planted =
      planted_clusters(which.batch * which.heads * which.query_length, which.head_dim, 8, 17);
  std::copy(planted.begin(), planted.end(), fixture.query);
  for (Grouping grouping : {Grouping::hamming, Grouping::euclidean}) {
    fixture.problem.grouping = grouping;
    fixture.problem.clusters = which.clusters;  // twice the groups: a group may be split, not mixed
    CHECK_RUNS(fixture.problem, fixture.arrays);
    const std::vector<int32_t> labels = fixture.choices().labels;
    for (int64_t sequence = 0; sequence < fixture.sequences(); ++sequence) {
      std::vector<int64_t> group_of(which.clusters, -1);
      int64_t mixed = 0;
      for (int64_t l = 0; l < shape.query_length; ++l) {
        const int64_t row = sequence * shape.query_length + l;
        int64_t& group = group_of[labels[row]];
        if (group < 0) group = row % 8;
        mixed += group != row % 8;
      }
      // Where no centre started in a group, the group joins a neighbour: at most a few do.
      CHECK(mixed <= shape.query_length / 4);
    }
  }
}

TEST("clustered attention: a permutation of the keys does not matter, of the queries permutes") {
  const Case& which = find_case("prime");
  Fixture fixture(which, Grouping::given);
  std::fill_n(fixture.given_labels, 61, 2);
  CHECK_RUNS(fixture.problem, fixture.arrays);
  const std::vector<float> before = fixture.result();
  const auto reverse_rows = [](auto* data, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows / 2; ++i) {
      std::swap_ranges(data + i * columns, data + (i + 1) * columns,
                       data + (rows - 1 - i) * columns);
    }
  };
  const AttentionShape& shape = fixture.inputs.shape;
  for (int64_t sequence = 0; sequence < fixture.sequences(); ++sequence) {
    const int64_t L = shape.query_length;
    const int64_t S = shape.key_length;
    reverse_rows(fixture.query + sequence * L * shape.head_dim, L, shape.head_dim);
    reverse_rows(fixture.given_labels + sequence * L, L, 1);
    reverse_rows(fixture.key + sequence * S * shape.head_dim, S, shape.head_dim);
    reverse_rows(fixture.value + sequence * S * shape.value_dim, S, shape.value_dim);
  }
  CHECK_RUNS(fixture.problem, fixture.arrays);
  std::vector<float> after = fixture.result();
  for (int64_t sequence = 0; sequence < fixture.sequences(); ++sequence) {
    reverse_rows(after.data() + sequence * shape.query_length * shape.value_dim, shape.query_length,
                 shape.value_dim);
  }
  CHECK_CLOSE(after, std::vector<double>(before.begin(), before.end()));
}

}  // namespace

}  // namespace cluster_attention::test
