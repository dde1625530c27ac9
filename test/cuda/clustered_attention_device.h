#pragma once

// Clustered attention on the device, compared with the double reference given its choices.

#include <algorithm>
#include <cmath>

#include "native/reference/aggregate.h"
#include "native/reference/attention.h"
#include "test/cuda/device.h"
#include "test/cuda/tile_cases.h"
#include "test/native/clustered_arrays.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

constexpr double kSplitBound = 2e-5;
constexpr double kBfloat16Bound =
    0x1p-6;  // queries, keys, values and weights rounded, mean queries in two parts

struct ClusteredDeviceFixture : ClusteredFixture {
  ClusteredDeviceFixture(const Case& which, Grouping grouping, int64_t top_k = -1,
                         Fill fill = Fill::gaussian)
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
inline bool check_indices(const ClusteredDeviceFixture& fixture, double tolerance) {
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

inline void check_reference(ClusteredDeviceFixture& fixture, double bound, double tolerance) {
  fixture.arrays.snapshot();
  if (!check_indices(fixture, tolerance)) return;
  CHECK_CLOSE(fixture.result(), reference::clustered_attention(fixture.problem, fixture.choices()),
              bound);
}

/// In float32 the call gives the reference's result, or is refused as docs/gpu.md says; then false.
inline bool check_runs(ClusteredDeviceFixture& fixture, Device& device) {
  const std::string expected =
      fixture.problem.top_k > 0 ? expected_status(device, fixture.inputs.shape) : "ok";
  CHECK_EQUAL(describe(fixture.run(device)), expected);
  CHECK(!device.non_finite());
  if (expected != "ok") return false;
  check_reference(fixture, kSplitBound, 5e-5);
  return true;
}

inline void check_bfloat16(ClusteredDeviceFixture& fixture, cuda::Storage storage) {
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
inline void check_cluster_outputs(const ClusteredDeviceFixture& fixture) {
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

}  // namespace cluster_attention::test
