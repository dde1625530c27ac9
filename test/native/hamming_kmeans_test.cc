#include "native/reference/hamming_kmeans.h"

#include <bitset>

#include "test/native/attention_arrays.h"
#include "test/native/cases.h"
#include "test/native/checks.h"
#include "test/native/clustering_arrays.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

namespace {

using Fixture = HammingFixture;

HammingKMeansProblem one_sequence(HammingKMeansProblem problem, int64_t b) {
  problem.batch = 1;
  problem.hashes = part(problem.hashes, b, problem.length);
  problem.initial = part(problem.initial, b, problem.clusters);
  problem.lengths = part(problem.lengths, b, 1);
  problem.labels = part(problem.labels, b, problem.length);
  problem.counts = part(problem.counts, b, problem.clusters);
  problem.centroids = part(problem.centroids, b, problem.clusters);
  problem.iterations = part(problem.iterations, b, 1);
  return problem;
}

void check_reference(Fixture& fixture) {
  const HammingKMeansProblem& problem = fixture.problem;
  CHECK_RUNS(problem, fixture.arrays);
  fixture.arrays.snapshot();
  const reference::HammingKMeansResult expected = reference::hamming_kmeans(problem);
  CHECK_SAME(read(problem.labels, problem.batch * problem.length), expected.labels);
  CHECK_SAME(read(problem.counts, problem.batch * problem.clusters), expected.counts);
  CHECK_SAME(read(problem.centroids, problem.batch * problem.clusters), expected.centroids);
  CHECK_SAME(read(problem.iterations, problem.batch), expected.iterations);
}

TEST("hamming k-means: equals the reference, ties included") {
  for (const Case& one : cases()) {
    for (bool given_start : {false, true}) {
      for (int64_t iterations : {0, 1, 10}) {
        const Scope scope(one.name + (given_start ? " given start " : " drawn start ") +
                          std::to_string(iterations));
        Fixture fixture(one, given_start);
        fixture.problem.max_iterations = iterations;
        check_reference(fixture);
      }
    }
  }
}

TEST("hamming k-means: many equal hashes, clusters without members") {
  for (const char* name : {"prime", "tile-129", "usual"}) {
    for (uint64_t seed : {0, 1, 2}) {
      const Scope scope(name);
      Fixture fixture(find_case(name), false, 0);
      fixture.problem.seed = seed;
      check_reference(fixture);
    }
  }
}

TEST("hamming k-means: long sequences") {
  Case which = find_case("prime-long");
  which.query_length = 5003;
  which.clusters = 100;
  Fixture fixture(which, false, 12);
  check_reference(fixture);
}

TEST("hamming k-means: every label is nearest to the centroids returned") {
  Fixture fixture(find_case("usual"), false, 20);
  const HammingKMeansProblem& problem = fixture.problem;
  CHECK_RUNS(problem, fixture.arrays);
  for (int64_t i = 0; i < problem.batch * problem.length; ++i) {
    const uint64_t* centroids = problem.centroids + i / problem.length * problem.clusters;
    const auto distance = [&](int64_t j) {
      return std::bitset<64>(problem.hashes[i] ^ centroids[j]).count();
    };
    for (int64_t j = 0; j < problem.clusters; ++j) {
      CHECK(distance(problem.labels[i]) + (j < problem.labels[i] ? 1 : 0) <= distance(j));
    }
  }
}

TEST("hamming k-means: threads, batches, faults, cancellation") {
  for (const char* name : {"ragged", "usual", "long-queries"}) {
    const Scope scope(name);
    Fixture fixture(find_case(name), false);
    check_promises(fixture.problem, fixture.arrays, fixture.problem.batch, one_sequence);
  }
}

}  // namespace

}  // namespace cluster_attention::test
