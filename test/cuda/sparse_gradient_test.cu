#include "test/cuda/same_as_cpu.h"
#include "test/native/cases.h"
#include "test/native/sparse_arrays.h"

namespace cluster_attention::test {

namespace {

/// The parts of a forward problem that its gradients read, and that both products share.
template <typename Problem>
void lists_on_device(Problem& problem, Device& device, const Arrays& arrays) {
  problem.sparse.indices = device.at(problem.sparse.indices, arrays);
  problem.sparse.labels = device.at(problem.sparse.labels, arrays);
  problem.query_lengths = device.at(problem.query_lengths, arrays);
  problem.key_lengths = device.at(problem.key_lengths, arrays);
}

auto dot_on_device(SparseGradientFixture& fixture) {
  return [&](SparseDotGradientProblem problem, Device& device) {
    const Arrays& arrays = fixture.arrays;
    lists_on_device(problem.forward, device, arrays);
    problem.forward.query = device.stored(problem.forward.query, arrays);
    problem.forward.key = device.stored(problem.forward.key, arrays);
    problem.output_gradient = device.stored(problem.output_gradient, arrays);
    problem.query = device.stored(problem.query, arrays);
    problem.key = device.stored(problem.key, arrays);
    return problem;
  };
}

auto sum_on_device(SparseGradientFixture& fixture) {
  return [&](SparseWeightedSumGradientProblem problem, Device& device) {
    const Arrays& arrays = fixture.arrays;
    lists_on_device(problem.forward, device, arrays);
    problem.forward.value = device.stored(problem.forward.value, arrays);
    problem.forward.weights = device.at(problem.forward.weights, arrays);
    problem.output_gradient = device.stored(problem.output_gradient, arrays);
    problem.weights = device.at(problem.weights, arrays);
    problem.value = device.stored(problem.value, arrays);
    return problem;
  };
}

const cuda::Operation<SparseDotGradientProblem> kDotGradient =
    Device::backend().operations.sparse_dot_gradient;
const cuda::Operation<SparseWeightedSumGradientProblem> kSumGradient =
    Device::backend().operations.sparse_weighted_sum_gradient;

TEST_ONCE("CUDA sparse gradients: the CPU's bits on integers") {
  for (const Case& one : cases()) {
    for (bool per_cluster : {false, true}) {
      const Scope scope(one.name + (per_cluster ? " per cluster" : " per query"));
      SparseGradientFixture fixture(one, per_cluster, Fill::integer);
      check_same_as_cpu(fixture.dot_gradient, fixture.arrays, kDotGradient, dot_on_device(fixture));
      check_same_as_cpu(fixture.sum_gradient, fixture.arrays, kSumGradient, sum_on_device(fixture));
    }
  }
}

/// Keys and values take their sums in the order of the CPU.
TEST_ONCE("CUDA sparse gradients: the key's side has the CPU's bits on any numbers") {
  for (const char* name : {"prime", "ragged", "tile-129"}) {
    for (bool per_cluster : {false, true}) {
      const Scope scope(name);
      SparseGradientFixture fixture(find_case(name), per_cluster, comparable_fill());
      fixture.dot_gradient.query.data = nullptr;
      fixture.sum_gradient.weights = nullptr;
      check_same_as_cpu(fixture.dot_gradient, fixture.arrays, kDotGradient, dot_on_device(fixture));
      check_same_as_cpu(fixture.sum_gradient, fixture.arrays, kSumGradient, sum_on_device(fixture));
    }
  }
}

TEST_ONCE("CUDA sparse gradients: rows rounded to bfloat16, and stored so") {
  for (const DeviceSettings& settings : kBfloat16Settings) {
    for (bool per_cluster : {false, true}) {
      SparseGradientFixture fixture(find_case("prime"), per_cluster, Fill::integer);
      // Sums of a few small integers are bfloat16 numbers.
      check_same_as_cpu(fixture.sum_gradient, fixture.arrays, kSumGradient, sum_on_device(fixture),
                        settings);
      check_same_as_cpu(fixture.dot_gradient, fixture.arrays, kDotGradient, dot_on_device(fixture),
                        settings);
    }
  }
}

TEST_ONCE("CUDA sparse gradients: the first index or label that is out of range is named") {
  for (bool per_cluster : {false, true}) {
    SparseGradientFixture fixture(find_case("prime"), per_cluster);
    fixture.indices[31] = static_cast<int32_t>(fixture.dot.shape.key_length);
    fixture.indices[60] = -2;
    CHECK_EQUAL(
        device_status(fixture.dot_gradient, fixture.arrays, kDotGradient, dot_on_device(fixture)),
        "out_of_range indices[31]");
    if (!per_cluster) continue;
    fixture.labels[100] = static_cast<int32_t>(fixture.dot.sparse.clusters);
    CHECK_EQUAL(
        device_status(fixture.sum_gradient, fixture.arrays, kSumGradient, sum_on_device(fixture)),
        "out_of_range labels[100]");
  }
}

}  // namespace

}  // namespace cluster_attention::test
