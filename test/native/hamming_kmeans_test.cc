#include "native/reference/hamming_kmeans.h"

#include <bitset>

#include "test/native/attention_arrays.h"
#include "test/native/cases.h"
#include "test/native/checks.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

namespace {

/// Sequences are the (batch, head) pairs of a case; the hashes of padded rows are all ones.
struct Fixture {
  Arrays arrays;
  HammingKMeansProblem problem;

  /// Hashes differ from one of a few patterns in about `noise` bits: a small number makes ties.
  Fixture(const Case& which, bool given_start, int noise = 6) {
    problem.batch = which.batch * which.heads;
    problem.length = which.query_length;
    problem.clusters = which.clusters;
    problem.bits = which.bits;
    Random random(3);
    const uint64_t mask = which.bits == 64 ? ~uint64_t{0} : (uint64_t{1} << which.bits) - 1;
    std::vector<uint64_t> patterns(5), hashes, initial;
    for (uint64_t& pattern : patterns) pattern = random.bits();
    std::vector<int32_t> lengths;
    for (int64_t b = 0; b < problem.batch; ++b) {
      const int64_t real =
          which.query_lengths.empty() ? problem.length : which.query_lengths[b / which.heads];
      if (!which.query_lengths.empty()) lengths.push_back(static_cast<int32_t>(real));
      for (int64_t i = 0; i < problem.length; ++i) {
        uint64_t hash = patterns[random.below(5)];
        for (int flip = 0; flip < noise; ++flip) hash ^= uint64_t{1} << random.below(64);
        hashes.push_back(i < real ? hash & mask : ~uint64_t{0});
      }
      for (int64_t j = 0; j < problem.clusters; ++j) initial.push_back(random.bits() & mask);
    }
    problem.hashes = arrays.input(hashes);
    problem.initial = given_start ? arrays.input(initial) : nullptr;
    problem.lengths = arrays.optional(lengths);
    problem.labels = arrays.output<int32_t>(problem.batch * problem.length);
    problem.counts = arrays.output<int32_t>(problem.batch * problem.clusters);
    problem.centroids = arrays.output<uint64_t>(problem.batch * problem.clusters);
    problem.iterations = arrays.output<int32_t>(problem.batch);
  }
};

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
