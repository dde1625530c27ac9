#include "native/reference/kmeans.h"

#include <algorithm>
#include <cmath>

#include "native/reference/aggregate.h"
#include "test/native/attention_arrays.h"
#include "test/native/checks.h"
#include "test/native/clustering_arrays.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

namespace {

using Fixture = KMeansFixture;

KMeansProblem one_sequence(KMeansProblem problem, int64_t sequence) {
  const int64_t b = sequence / problem.heads;
  const int64_t size = problem.clusters * problem.dim;
  problem.inputs = alone(problem.inputs, b, sequence % problem.heads);
  problem.lengths = part(problem.lengths, b, 1);
  problem.initial = part(problem.initial, sequence, size);
  problem.centroids = part(problem.centroids, sequence, size);
  problem.labels = part(problem.labels, sequence, problem.length);
  problem.counts = part(problem.counts, sequence, problem.clusters);
  problem.inertia = part(problem.inertia, sequence, 1);
  problem.iterations = part(problem.iterations, sequence, 1);
  problem.batch = 1;
  problem.heads = 1;
  return problem;
}

/// Everything equals the reference: for data whose choices are clear.
void check_reference(Fixture& fixture, double bound = kRelativeL2) {
  CHECK_RUNS(fixture.problem, fixture.arrays);
  fixture.arrays.snapshot();
  const reference::KMeansResult expected = reference::kmeans(fixture.problem);
  CHECK_SAME(fixture.labels(), expected.labels);
  CHECK_SAME(fixture.counts(), expected.counts);
  CHECK_SAME(read(fixture.problem.iterations, fixture.sequences()), expected.iterations);
  CHECK_CLOSE(fixture.centroids(), expected.centroids, bound);
  // Of tight clusters the inertia is a small difference of large numbers.
  for (int64_t i = 0; i < fixture.sequences(); ++i) {
    const double allowed = 1e-4 * expected.inertia[i] + 1e-7 * fixture.problem.length;
    CHECK(std::abs(fixture.problem.inertia[i] - expected.inertia[i]) <= allowed);
  }
}

/// What must hold whatever way the iterations took: labels nearest to the centroids returned (up to
/// rounding), counts and inertia that belong to them.
void check_consistent(const Fixture& fixture) {
  const KMeansProblem& problem = fixture.problem;
  for (int64_t sequence = 0; sequence < fixture.sequences(); ++sequence) {
    const int64_t b = sequence / problem.heads;
    const int64_t real = real_length(problem.lengths, b, problem.length);
    const int64_t clusters = std::min(problem.clusters, real);
    reference::Matrix points =
        reference::read_rows(problem.inputs, b, sequence % problem.heads, real, problem.dim);
    const bool cosine = problem.metric == Metric::cosine;
    if (cosine) points = reference::normalize_rows(points);
    const reference::Matrix centroids =
        reference::read_dense(problem.centroids + sequence * problem.clusters * problem.dim,
                              problem.clusters, problem.dim);
    const auto distance = [&](int64_t i, int64_t j) {
      double sum = 0.0;
      for (int64_t d = 0; d < problem.dim; ++d) {
        const double difference = points(i, d) - centroids(j, d);
        sum += cosine ? -points(i, d) * centroids(j, d) : difference * difference;
      }
      return cosine ? 1.0 + sum : sum;
    };
    const int32_t* labels = problem.labels + sequence * problem.length;
    double inertia = 0.0;
    for (int64_t i = 0; i < problem.length; ++i) {
      if (i >= real) {
        CHECK_EQUAL(labels[i], -1);
        continue;
      }
      if (labels[i] < 0 || labels[i] >= clusters) {
        CHECK_EQUAL(labels[i], 0);
        return;
      }
      for (int64_t j = 0; j < clusters; ++j) {
        CHECK(distance(i, labels[i]) <= distance(i, j) + 1e-5 * (1.0 + distance(i, j)));
      }
      inertia += distance(i, labels[i]);
    }
    CHECK(std::abs(problem.inertia[sequence] - inertia) <= 1e-4 * inertia + 1e-7 * real);
    const auto counts =
        reference::count_labels({labels, labels + problem.length}, problem.clusters);
    CHECK_SAME(read(problem.counts + sequence * problem.clusters, problem.clusters), counts);
  }
}

TEST("k-means: the assignment to given centroids equals the reference, ties included") {
  for (const Case& one : cases()) {
    const Scope scope(one.name);
    Fixture fixture(one, Fill::integer);
    fixture.problem.start = KMeansStart::given;
    fixture.problem.max_iterations = 0;
    check_reference(fixture);
  }
}

TEST("k-means: planted clusters are found from every start") {
  for (const char* name : {"prime", "prime-transposed", "tile-129", "usual"}) {
    const Case& which = find_case(name);
    for (Metric metric : {Metric::euclidean, Metric::cosine}) {
      const Scope scope(std::string(name) + (metric == Metric::cosine ? " cosine" : ""));
      const int64_t rows = which.batch * which.heads * which.query_length;
      Fixture fixture(which, planted_clusters(rows, which.head_dim, which.clusters, 11));
      fixture.problem.metric = metric;
      check_reference(fixture);
      // Each planted group is one cluster: rows of equal groups, and only they, share a label.
      for (int64_t i = which.clusters; i < rows; ++i) {
        if (which.layout != Layout::bhld || i % which.query_length < which.clusters) continue;
        CHECK_EQUAL(fixture.problem.labels[i], fixture.problem.labels[i - which.clusters]);
      }
    }
  }
}

TEST("k-means: labels, counts and inertia belong to the centroids returned") {
  for (const Case& one : cases()) {
    for (Metric metric : {Metric::euclidean, Metric::cosine}) {
      for (KMeansStart start : {KMeansStart::plus_plus, KMeansStart::sample, KMeansStart::given}) {
        for (int64_t iterations : {1, 4}) {
          Fixture fixture(one);
          fixture.problem.metric = metric;
          fixture.problem.start = start;
          fixture.problem.max_iterations = iterations;
          const Scope scope(one.name + " metric " + std::to_string(static_cast<int>(metric)) +
                            " start " + std::to_string(static_cast<int>(start)));
          CHECK_RUNS(fixture.problem, fixture.arrays);
          fixture.arrays.snapshot();
          check_consistent(fixture);
        }
      }
    }
  }
}

TEST("k-means: one update moves the centroids to the means") {
  for (const char* name : {"prime", "ragged", "more-clusters-than-queries"}) {
    const Scope scope(name);
    Fixture fixture(find_case(name), Fill::integer);
    KMeansProblem& problem = fixture.problem;
    problem.start = KMeansStart::given;
    problem.max_iterations = 0;
    CHECK_RUNS(problem, fixture.arrays);
    const std::vector<int32_t> before = fixture.labels();
    problem.max_iterations = 1;
    CHECK_RUNS(problem, fixture.arrays);
    for (int64_t sequence = 0; sequence < fixture.sequences(); ++sequence) {
      const int64_t real = real_length(problem.lengths, sequence / problem.heads, problem.length);
      const auto first = before.begin() + sequence * problem.length;
      const std::vector<int32_t> labels(first, first + real);
      const auto means =
          reference::aggregate(reference::read_rows(problem.inputs, sequence / problem.heads,
                                                    sequence % problem.heads, real, problem.dim),
                               labels, problem.clusters, Reduce::mean);
      const std::vector<int32_t> counts = reference::count_labels(labels, problem.clusters);
      for (int64_t j = 0; j < std::min(problem.clusters, real); ++j) {
        const int64_t at = (sequence * problem.clusters + j) * problem.dim;
        for (int64_t d = 0; d < problem.dim; ++d) {
          const double expected = counts[j] > 0 ? means(j, d) : double{fixture.initial[at + d]};
          CHECK(std::abs(problem.centroids[at + d] - expected) < 1e-6);
        }
      }
    }
  }
}

TEST("k-means: a large tolerance stops after one update, none runs to the fixpoint") {
  Fixture fixture(find_case("usual"));
  fixture.problem.tolerance = 1e6;
  CHECK_RUNS(fixture.problem, fixture.arrays);
  for (int64_t i = 0; i < fixture.sequences(); ++i) {
    CHECK_EQUAL(fixture.problem.iterations[i], 1);
  }
  fixture.problem.tolerance = 0.0;
  CHECK_RUNS(fixture.problem, fixture.arrays);
  const std::vector<float> centroids = fixture.centroids();
  for (int64_t i = 0; i < fixture.sequences(); ++i) {
    CHECK(fixture.problem.iterations[i] > 1 && fixture.problem.iterations[i] < 300);
  }
  // Started again from there, nothing moves any more.
  fixture.problem.start = KMeansStart::given;
  std::copy(centroids.begin(), centroids.end(), fixture.initial);
  CHECK_RUNS(fixture.problem, fixture.arrays);
  CHECK_CLOSE(fixture.centroids(), std::vector<double>(centroids.begin(), centroids.end()), 1e-6);
}

TEST("k-means: equal points give one cluster and keep the other centroids") {
  Case which = find_case("tile-49");
  const int64_t rows = which.batch * which.heads * which.query_length;
  for (KMeansStart start : {KMeansStart::plus_plus, KMeansStart::sample}) {
    Fixture fixture(which, std::vector<float>(rows * which.head_dim, 0.25f));
    fixture.problem.start = start;
    CHECK_RUNS(fixture.problem, fixture.arrays);
    CHECK_SAME(fixture.labels(), std::vector<int32_t>(rows, 0));
    for (float value : fixture.centroids()) CHECK_EQUAL(value, 0.25f);
  }
}

TEST("k-means: rows and centroids of zeros under the cosine") {
  Fixture fixture(find_case("width-3-17"), Fill::integer);
  std::fill_n(fixture.inputs, 9, 0.0f);
  fixture.problem.metric = Metric::cosine;
  fixture.problem.start = KMeansStart::given;
  std::fill_n(fixture.initial + 3, 3, 0.0f);
  CHECK_RUNS(fixture.problem, fixture.arrays);
  check_consistent(fixture);
}

TEST("k-means: under the cosine a mean of zero but for rounding keeps the centroid") {
  for (uint64_t seed = 1; seed < 50; ++seed) {
    Fixture fixture = opposed_rows(seed);
    CHECK_RUNS(fixture.problem, fixture.arrays);
    CHECK_EQUAL(fixture.centroids()[0], fixture.initial[0]);
  }
}

TEST("k-means: a centroid whose square leaves the range of float32 is not passed over") {
  for (int64_t iterations : {0, 10}) {
    Fixture fixture(find_case("prime"));
    fixture.problem.start = KMeansStart::given;
    fixture.problem.max_iterations = iterations;
    const int64_t dim = fixture.problem.dim;
    // The row that is the centroid would be given to another one.
    std::fill_n(fixture.initial + dim, dim, 1e20f);
    std::fill_n(fixture.inputs, dim, 1e20f);
    CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays)), "overflow");
  }
  // The mean of rows, none of which has to be squared.
  Fixture moved(find_case("prime"));
  moved.problem.start = KMeansStart::given;
  moved.problem.max_iterations = 3;
  std::fill_n(moved.inputs, moved.sequences() * moved.problem.length * moved.problem.dim, 1e19f);
  CHECK_EQUAL(describe(run_fresh(moved.problem, moved.arrays)), "overflow");
}

TEST("k-means: threads, batches, faults, cancellation") {
  for (const char* name : {"ragged", "ragged-transposed", "usual", "long-queries"}) {
    for (Metric metric : {Metric::euclidean, Metric::cosine}) {
      for (KMeansStart start : {KMeansStart::plus_plus, KMeansStart::sample}) {
        const Scope scope(name);
        Fixture fixture(find_case(name));
        fixture.problem.metric = metric;
        fixture.problem.start = start;
        fixture.problem.max_iterations = 5;
        check_promises(fixture.problem, fixture.arrays, fixture.sequences(), one_sequence);
      }
    }
  }
}

TEST("k-means: starting centroids past the clamp are never read") {
  Fixture fixture(find_case("more-clusters-than-queries"));
  fixture.problem.start = KMeansStart::given;
  fixture.initial[5 * 8 + 2] = std::numeric_limits<float>::quiet_NaN();  // five points: five rows
  CHECK_RUNS(fixture.problem, fixture.arrays);
  check_non_finite(fixture.problem, fixture.arrays, fixture.initial, "initial", 10 * 8);
}

TEST("k-means: NaN and Inf are named") {
  Fixture fixture(find_case("prime"));
  check_non_finite(fixture.problem, fixture.arrays, fixture.inputs, "inputs", 61 * 17 + 5,
                   61 * 17 + 90);
  fixture.problem.start = KMeansStart::given;
  check_non_finite(fixture.problem, fixture.arrays, fixture.initial, "initial", 7 * 17 + 20);
}

}  // namespace

}  // namespace cluster_attention::test
