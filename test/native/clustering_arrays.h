#pragma once

// Problems of the clustering operations (§2) from a case of the table, with all outputs.

#include <cmath>

#include "test/native/attention_arrays.h"
#include "test/native/gradients.h"

namespace cluster_attention::test {

struct HashFixture {
  Arrays arrays;
  HashProblem problem;
  float* inputs;
  float* planes;

  HashFixture(const Case& which, Fill fill) {
    problem.rows = which.batch * which.heads * which.query_length;
    problem.dim = which.head_dim;
    problem.bits = which.bits;
    inputs = arrays.floats(problem.rows * problem.dim, 1, fill);
    planes = arrays.floats(problem.bits * (problem.dim + 1), 2, fill);
    problem.inputs = inputs;
    problem.planes = planes;
    problem.hashes = arrays.output<uint64_t>(problem.rows);
  }
  std::vector<uint64_t> result() const { return read(problem.hashes, problem.rows); }
};

/// Sequences are the (batch, head) pairs of a case; the hashes of padded rows are all ones.
struct HammingFixture {
  Arrays arrays;
  HammingKMeansProblem problem;

  /// Hashes differ from one of a few patterns in about `noise` bits: a small number makes ties.
  HammingFixture(const Case& which, bool given_start, int noise = 6) {
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

/// Sequences are the queries of a case.
struct KMeansFixture {
  Arrays arrays;
  KMeansProblem problem;
  float* inputs;
  float* initial;

  explicit KMeansFixture(const Case& which, const std::vector<float>& values) {
    problem.batch = which.batch;
    problem.heads = which.heads;
    problem.length = which.query_length;
    problem.dim = which.head_dim;
    problem.clusters = which.clusters;
    inputs = arrays.input(values);
    poison_padding(inputs, which, which.query_lengths, problem.length, problem.dim);
    problem.inputs =
        dense_rows<const float>(inputs, which.layout, which.heads, problem.length, problem.dim);
    problem.lengths = arrays.optional(which.query_lengths);
    initial = arrays.floats(sequences() * problem.clusters * problem.dim, 7, Fill::integer);
    problem.initial = initial;
    problem.centroids = arrays.output<float>(sequences() * problem.clusters * problem.dim);
    problem.labels = arrays.output<int32_t>(sequences() * problem.length);
    problem.counts = arrays.output<int32_t>(sequences() * problem.clusters);
    problem.inertia = arrays.output<double>(sequences());
    problem.iterations = arrays.output<int32_t>(sequences());
  }
  explicit KMeansFixture(const Case& which, Fill fill = Fill::gaussian)
      : KMeansFixture(
            which, random_floats(which.batch * which.heads * which.query_length * which.head_dim, 5,
                                 fill)) {}

  int64_t sequences() const { return problem.batch * problem.heads; }
  std::vector<int32_t> labels() const { return read(problem.labels, sequences() * problem.length); }
  std::vector<int32_t> counts() const {
    return read(problem.counts, sequences() * problem.clusters);
  }
  std::vector<float> centroids() const {
    return read(problem.centroids, sequences() * problem.clusters * problem.dim);
  }
};

/// Rows are the queries of a case; about one in eight, and padding, belongs to no cluster.
struct AggregateFixture {
  Arrays arrays;
  AggregateProblem problem;
  float* inputs;
  int32_t* labels;

  explicit AggregateFixture(const Case& which, Reduce reduce = Reduce::mean) {
    problem.batch = which.batch;
    problem.heads = which.heads;
    problem.length = which.query_length;
    problem.dim = which.head_dim;
    problem.clusters = which.clusters;
    problem.reduce = reduce;
    inputs = arrays.floats(sequences() * problem.length * problem.dim, 1);
    poison_padding(inputs, which, which.query_lengths, problem.length, problem.dim);
    problem.inputs =
        dense_rows<const float>(inputs, which.layout, which.heads, problem.length, problem.dim);
    std::vector<int32_t> all =
        random_indices(sequences() * problem.length, 0, static_cast<int32_t>(which.clusters), 2);
    for (int64_t i = 0; i < sequences() * problem.length; ++i) {
      const int64_t b = i / problem.length / problem.heads;
      const bool padded =
          !which.query_lengths.empty() && i % problem.length >= which.query_lengths[b];
      if (i % 8 == 5 || padded) all[i] = -1;
    }
    labels = arrays.input(all);
    problem.labels = labels;
    problem.output = arrays.output<float>(sequences() * problem.clusters * problem.dim);
  }
  int64_t sequences() const { return problem.batch * problem.heads; }
  std::vector<float> result() const {
    return read(problem.output, sequences() * problem.clusters * problem.dim);
  }
};

struct BroadcastFixture {
  Arrays arrays;
  BroadcastProblem problem;
  float* inputs;
  int32_t* labels;

  explicit BroadcastFixture(const Case& which) {
    problem.batch = which.batch;
    problem.length = which.query_length;
    problem.dim = which.head_dim;
    problem.clusters = which.clusters;
    inputs = arrays.floats(problem.batch * problem.clusters * problem.dim, 1);
    labels = arrays.input(random_indices(problem.batch * problem.length, -1,
                                         static_cast<int32_t>(which.clusters), 2));
    problem.inputs = inputs;
    problem.labels = labels;
    problem.output = arrays.output<float>(problem.batch * problem.length * problem.dim);
  }
};

struct AggregateGradientFixture : AggregateFixture {
  AggregateGradientProblem gradient;
  float* output_gradient;

  explicit AggregateGradientFixture(const Case& which, Reduce reduce = Reduce::mean)
      : AggregateFixture(which, reduce) {
    const int64_t outputs = sequences() * problem.clusters * problem.dim;
    output_gradient = arrays.floats(outputs, 3);
    gradient.forward = problem;
    gradient.output_gradient = output_gradient;
    gradient.inputs =
        same_view(problem.inputs, arrays.output<float>(sequences() * problem.length * problem.dim));
  }
  std::vector<float> result() const {
    return read_view(gradient.inputs, problem.batch, problem.heads, problem.length, problem.dim);
  }
};

struct BroadcastGradientFixture : BroadcastFixture {
  BroadcastGradientProblem gradient;
  float* output_gradient;

  explicit BroadcastGradientFixture(const Case& which) : BroadcastFixture(which) {
    output_gradient = arrays.floats(problem.batch * problem.length * problem.dim, 3);
    gradient.forward = problem;
    gradient.output_gradient = output_gradient;
    gradient.inputs = arrays.output<float>(problem.batch * problem.clusters * problem.dim);
  }
};

/// Rows of one column and of either sign, as many of both, whose mean is 0 under the cosine; one
/// cluster.
inline KMeansFixture opposed_rows(uint64_t seed) {
  Case which = find_case("prime");
  which.batch = which.heads = 1;
  which.query_length = 40;
  which.head_dim = which.value_dim = 1;
  which.clusters = 1;
  Random random(seed);
  std::vector<float> rows;
  for (int64_t i = 0; i < which.query_length; ++i) {
    const float length = 0.1f + std::fabs(static_cast<float>(random.normal()));
    rows.push_back(i % 2 == 0 ? length : -length);
  }
  KMeansFixture fixture(which, rows);
  fixture.problem.metric = Metric::cosine;
  fixture.problem.start = KMeansStart::given;
  fixture.initial[0] = seed % 2 == 0 ? 1.0f : -1.0f;
  return fixture;
}

}  // namespace cluster_attention::test
