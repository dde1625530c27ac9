#include "native/reference/centroid_pool.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "test/native/checks.h"
#include "test/native/compare.h"
#include "test/native/pool_arrays.h"

namespace cluster_attention::test {

namespace {

using Fixture = PoolArrays;

/// Labels are the most similar of the centroids returned, up to rounding; -1 for padding.
void check_labels(const Fixture& fixture) {
  const CentroidPoolProblem& problem = fixture.problem;
  const std::vector<int32_t> labels = fixture.labels();
  for (int64_t b = 0; b < problem.batch; ++b) {
    const int64_t real = real_length(problem.lengths, b, problem.length);
    const int64_t centroids = std::min(problem.centroids, real);
    const auto a = reference::pool_assignment(
        reference::read_dense(problem.output + b * problem.centroids * problem.dim, centroids,
                              problem.dim),
        reference::read_dense(problem.inputs + b * problem.length * problem.dim, real, problem.dim),
        problem.similarity, problem.temperature > 0.0f ? problem.temperature : 1.0);
    for (int64_t i = 0; i < problem.length; ++i) {
      const int32_t label = labels[b * problem.length + i];
      if (i >= real || label < 0 || label >= centroids) {
        CHECK_EQUAL(label, i >= real ? -1 : 0);
        continue;
      }
      for (int64_t j = 0; j < centroids; ++j) CHECK(a(label, i) >= a(j, i) - 1e-5);
    }
  }
}

void check_reference(Fixture& fixture, double bound = 1e-5) {
  CHECK_RUNS(fixture.problem, fixture.arrays);
  fixture.arrays.snapshot();
  const reference::CentroidPoolResult expected = reference::centroid_pool(fixture.problem);
  CHECK_CLOSE(fixture.result(), expected.output, bound);
  CHECK_CLOSE(fixture.masses(), expected.masses, bound);
  check_labels(fixture);
}

TEST("centroid pool: matches the reference") {
  for (const Case& one : cases()) {
    for (Similarity similarity : kSimilarities) {
      for (PoolStart start : kPoolStarts) {
        const Scope scope(one.name + pool_options_name(similarity, start));
        Fixture fixture(one, similarity, start);
        check_reference(fixture);
      }
    }
  }
}

TEST("centroid pool: a start without steps is returned as it is") {
  for (PoolStart start : kPoolStarts) {
    for (const char* name : {"prime", "ragged"}) {
      const Scope scope(name + pool_options_name(Similarity::cosine, start));
      Fixture fixture(find_case(name), Similarity::cosine, start);
      fixture.problem.iterations = 0;
      check_reference(fixture, kRelativeL2);
    }
  }
}

TEST("centroid pool: hard assignment finds planted clusters") {
  const Case& which = find_case("prime");
  const std::vector<float> planted =
      planted_clusters(which.batch * which.key_length, which.head_dim, which.clusters, 5);
  for (Similarity similarity : {Similarity::cosine, Similarity::euclidean}) {
    for (PoolStart start : {PoolStart::plus_plus, PoolStart::farthest}) {
      const Scope scope(pool_options_name(similarity, start));
      Fixture fixture(which, similarity, start, planted);
      fixture.problem.iterations = 8;
      fixture.problem.temperature = 0.0f;
      check_reference(fixture, kRelativeL2);
      const std::vector<int32_t> labels = fixture.labels();
      for (int64_t i = which.clusters; i < which.key_length; ++i) {
        CHECK_EQUAL(labels[i], labels[i - which.clusters]);
      }
    }
  }
}

TEST("centroid pool: the default temperatures on planted clusters, eight steps") {
  const Case& which = find_case("usual");
  const std::vector<float> planted =
      planted_clusters(which.batch * which.key_length, which.head_dim, which.clusters, 6);
  Fixture fixture(which, Similarity::cosine, PoolStart::farthest, planted);
  fixture.problem.iterations = 8;
  fixture.problem.temperature = 0.1f;
  check_reference(fixture);
}

TEST("centroid pool: a centroid without mass keeps its value") {
  Fixture fixture(find_case("prime"), Similarity::euclidean, PoolStart::given);
  fixture.problem.temperature = 0.0f;
  std::fill_n(fixture.initial + 2 * 17, 17, 1e4f);
  CHECK_RUNS(fixture.problem, fixture.arrays);
  for (int64_t d = 0; d < 17; ++d) CHECK_EQUAL(fixture.problem.output[2 * 17 + d], 1e4f);
  CHECK_EQUAL(fixture.problem.masses[2], 0.0f);
}

TEST("centroid pool: equal inputs and ties go to the lowest centroid") {
  for (Similarity similarity : kSimilarities) {
    for (PoolStart start : kPoolStarts) {
      const Scope scope(pool_options_name(similarity, start));
      const Case& which = find_case("tile-49");
      Fixture fixture(which, similarity, start,
                      std::vector<float>(which.batch * which.key_length * which.head_dim, 0.5f));
      std::fill_n(fixture.initial, which.batch * which.clusters * which.head_dim, 0.5f);
      fixture.problem.temperature = 0.0f;
      CHECK_RUNS(fixture.problem, fixture.arrays);
      CHECK_SAME(fixture.labels(), std::vector<int32_t>(which.batch * which.key_length, 0));
      for (float value : fixture.result()) CHECK_EQUAL(value, 0.5f);
    }
  }
}

TEST("centroid pool: small integers that are equally far go to the lowest centroid") {
  for (Similarity similarity : {Similarity::dot, Similarity::euclidean}) {
    for (int64_t centroids : {5, 37, 73}) {
      const Scope scope(std::to_string(centroids) + " centroids");
      PoolArrays tied = tied_pool(similarity, centroids);
      CHECK_RUNS(tied.problem, tied.arrays);
      CHECK_SAME(tied.labels(), reference::centroid_pool(tied.problem).labels);
    }
  }
}

TEST("centroid pool: rows of zeros under the cosine") {
  Fixture fixture(find_case("prime"), Similarity::cosine, PoolStart::given);
  std::fill_n(fixture.inputs, 3 * 17, 0.0f);
  std::fill_n(fixture.initial + 17, 17, 0.0f);
  check_reference(fixture);
}

TEST("centroid pool: optional outputs do not change the others") {
  Fixture fixture(find_case("ragged"), Similarity::cosine, PoolStart::stride);
  CHECK_RUNS(fixture.problem, fixture.arrays);
  const std::vector<float> expected = fixture.result();
  fixture.problem.labels = nullptr;
  fixture.problem.masses = nullptr;
  CHECK_RUNS(fixture.problem, fixture.arrays);
  CHECK_SAME(fixture.result(), expected);
}

TEST("centroid pool: threads, batches, faults, cancellation") {
  for (const char* name : {"ragged", "usual", "long-keys"}) {
    for (PoolStart start : kPoolStarts) {
      for (float temperature : {0.0f, 0.3f}) {
        const Scope scope(name + pool_options_name(Similarity::cosine, start));
        Fixture fixture(find_case(name), Similarity::cosine, start);
        fixture.problem.temperature = temperature;
        check_promises(fixture.problem, fixture.arrays, fixture.problem.batch, one_pool_sequence);
      }
    }
  }
}

TEST("centroid pool: in hard assignments NaN reaches what it is a part of, nothing else") {
  for (Similarity similarity : kSimilarities) {
    PoolArrays planted = planted_pool(similarity);
    std::vector<float*> spoiled = spoiled_centroids(planted);
    for (float* element : spoiled_inputs(planted)) spoiled.push_back(element);
    for (float* element : spoiled) {
      const float saved = std::exchange(*element, std::numeric_limits<float>::quiet_NaN());
      CHECK_EQUAL(
          describe(run_fresh(planted.problem, planted.arrays, 2, {NonFinite::propagate, {}})),
          "ok");
      const reference::CentroidPoolResult expected = reference::centroid_pool(planted.problem);
      CHECK_CLOSE(planted.result(), expected.output, kRelativeL2);
      CHECK_CLOSE(planted.masses(), expected.masses, kRelativeL2);
      CHECK_SAME(planted.labels(), expected.labels);
      *element = saved;
    }
  }
}

TEST("centroid pool: a centroid whose square leaves the range of float32 is not passed over") {
  for (float temperature : {0.0f, 0.5f}) {
    Fixture fixture(find_case("prime"), Similarity::euclidean, PoolStart::given);
    fixture.problem.temperature = temperature;
    fixture.problem.iterations = 0;
    const int64_t dim = fixture.problem.dim;
    std::fill_n(fixture.initial + dim, dim, 1e20f);
    std::fill_n(fixture.inputs, dim, 1e20f);
    CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays)), "overflow");
  }
}

TEST("centroid pool: NaN and Inf are named") {
  for (Similarity similarity : kSimilarities) {
    for (float temperature : {0.0f, 0.5f}) {
      const Scope scope(pool_options_name(similarity, PoolStart::given));
      Fixture fixture(find_case("prime"), similarity, PoolStart::given);
      fixture.problem.temperature = temperature;
      check_non_finite(fixture.problem, fixture.arrays, fixture.inputs, "inputs", 17 * 53 + 3,
                       17 * 60);
      check_non_finite(fixture.problem, fixture.arrays, fixture.initial, "initial", 17 * 9 + 3);
    }
  }
}

}  // namespace

}  // namespace cluster_attention::test
