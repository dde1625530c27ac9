#include "native/reference/sparse.h"
#include "test/cuda/same_as_cpu.h"
#include "test/native/cases.h"
#include "test/native/sparse_arrays.h"

namespace cluster_attention::test {

namespace {

template <typename Problem>
Problem shared_on_device(Problem problem, Device& device, const Arrays& arrays) {
  problem.sparse.indices = device.at(problem.sparse.indices, arrays);
  problem.sparse.labels = device.at(problem.sparse.labels, arrays);
  problem.query_lengths = device.at(problem.query_lengths, arrays);
  problem.key_lengths = device.at(problem.key_lengths, arrays);
  problem.output = device.stored(problem.output, arrays);
  return problem;
}

auto dot_on_device(SparseFixture& fixture) {
  return [&](const SparseDotProblem& problem, Device& device) {
    SparseDotProblem there = shared_on_device(problem, device, fixture.arrays);
    there.query = device.stored(problem.query, fixture.arrays);
    there.key = device.stored(problem.key, fixture.arrays);
    return there;
  };
}

auto sum_on_device(SparseFixture& fixture) {
  return [&](const SparseWeightedSumProblem& problem, Device& device) {
    SparseWeightedSumProblem there = shared_on_device(problem, device, fixture.arrays);
    there.value = device.stored(problem.value, fixture.arrays);
    there.weights = device.at(problem.weights, fixture.arrays);
    return there;
  };
}

const cuda::Operation<SparseDotProblem> kDot = Device::backend().operations.sparse_dot;
const cuda::Operation<SparseWeightedSumProblem> kSum =
    Device::backend().operations.sparse_weighted_sum;

TEST_ONCE("CUDA sparse products: the CPU's bits on integers, in every order of threads") {
  for (const Case& one : cases()) {
    for (bool per_cluster : {false, true}) {
      const Scope scope(one.name + (per_cluster ? " per cluster" : " per query"));
      SparseFixture fixture(one, per_cluster, Fill::integer);
      check_same_as_cpu(fixture.dot, fixture.arrays, kDot, dot_on_device(fixture));
      check_same_as_cpu(fixture.sum, fixture.arrays, kSum, sum_on_device(fixture));
    }
  }
}

TEST_ONCE("CUDA sparse products: match the reference") {
  for (const char* name : {"prime", "prime-transposed", "ragged", "tile-129", "usual"}) {
    for (bool per_cluster : {false, true}) {
      const Scope scope(std::string(name) + (per_cluster ? " per cluster" : " per query"));
      SparseFixture fixture(find_case(name), per_cluster);
      CHECK_EQUAL(device_status(fixture.dot, fixture.arrays, kDot, dot_on_device(fixture)), "ok");
      CHECK_CLOSE(fixture.dots(), reference::sparse_dot(fixture.dot));
      CHECK_EQUAL(device_status(fixture.sum, fixture.arrays, kSum, sum_on_device(fixture)), "ok");
      CHECK_CLOSE(fixture.sums(), reference::sparse_weighted_sum(fixture.sum));
    }
  }
}

/// More than one tile of listed rows, of columns, of the depth, and of queries.
TEST_ONCE("CUDA sparse products: wide lists and rows") {
  Case which = find_case("prime");
  which.heads = 1;
  which.query_length = 131;
  which.head_dim = 37;
  which.value_dim = 67;
  which.top_k = 69;
  for (int64_t clusters : {1, 3, 131}) {
    which.clusters = clusters;
    for (bool per_cluster : {false, true}) {
      SparseFixture fixture(which, per_cluster, Fill::integer);
      check_same_as_cpu(fixture.dot, fixture.arrays, kDot, dot_on_device(fixture));
      check_same_as_cpu(fixture.sum, fixture.arrays, kSum, sum_on_device(fixture));
    }
  }
}

TEST_ONCE("CUDA sparse products: rows rounded to bfloat16, stored so or not") {
  for (bool per_cluster : {false, true}) {
    for (const DeviceSettings& settings : kBfloat16Settings) {
      SparseFixture fixture(find_case("prime"), per_cluster, Fill::integer);
      check_same_as_cpu(fixture.dot, fixture.arrays, kDot, dot_on_device(fixture), settings);
      check_same_as_cpu(fixture.sum, fixture.arrays, kSum, sum_on_device(fixture), settings);
    }
  }
}

TEST_ONCE("CUDA sparse products: the first index or label that is out of range is named") {
  for (bool per_cluster : {false, true}) {
    SparseFixture fixture(find_case("prime"), per_cluster);
    fixture.indices[31] = static_cast<int32_t>(fixture.dot.shape.key_length);
    fixture.indices[60] = -2;
    for (int round = 0; round < (per_cluster ? 2 : 1); ++round) {
      if (round == 1) fixture.labels[100] = static_cast<int32_t>(fixture.dot.sparse.clusters);
      const char* expected = round == 1 ? "out_of_range labels[100]" : "out_of_range indices[31]";
      CHECK_EQUAL(device_status(fixture.dot, fixture.arrays, kDot, dot_on_device(fixture)),
                  expected);
      CHECK_EQUAL(device_status(fixture.sum, fixture.arrays, kSum, sum_on_device(fixture)),
                  expected);
    }
  }
}

TEST_ONCE("CUDA sparse products: NaN and Inf are noticed where they are read, and only there") {
  for (bool per_cluster : {false, true}) {
    SparseFixture fixture(find_case("prime"), per_cluster);
    const AttentionShape& shape = fixture.dot.shape;
    const int32_t key = 11;
    std::fill(fixture.indices, fixture.indices + fixture.dot.sparse.k, key);
    if (per_cluster) fixture.labels[0] = 0;
    const auto notices = [&](const auto& problem, auto operation, auto map, float* data,
                             int64_t index) {
      check_notices_non_finite(problem, fixture.arrays, operation, map, data, index);
    };
    notices(fixture.dot, kDot, dot_on_device(fixture), fixture.key, key * shape.head_dim + 1);
    notices(fixture.sum, kSum, sum_on_device(fixture), fixture.value, key * shape.value_dim + 1);
    notices(fixture.dot, kDot, dot_on_device(fixture), fixture.query, 1);
    notices(fixture.sum, kSum, sum_on_device(fixture), fixture.weights, 1);
    // A weight beside an empty slot.
    fixture.indices[1] = -1;
    fixture.weights[1] = std::numeric_limits<float>::quiet_NaN();
    Device device;
    CHECK_EQUAL(describe(device.run(kSum, sum_on_device(fixture)(fixture.sum, device))), "ok");
    CHECK(!device.non_finite());
    const volatile int32_t abort = 1;
    CHECK_EQUAL(device_status(fixture.dot, fixture.arrays, kDot, dot_on_device(fixture), &abort),
                "cancelled");
  }
}

}  // namespace

}  // namespace cluster_attention::test
