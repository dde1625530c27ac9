#include <cmath>
#include <utility>

#include "native/reference/centroid_encode.h"
#include "test/cuda/promises.h"
#include "test/native/compare.h"
#include "test/native/encode_arrays.h"

namespace cluster_attention::test {

namespace {

/// float32 products are made of three bfloat16 ones, four of which follow each other in a step.
constexpr double kBound = 1e-4;

CentroidEncodeProblem on_device(CentroidEncodeProblem problem, Device& device,
                                const Arrays& arrays) {
  problem.inputs = device.stored(problem.inputs, arrays);
  problem.initial = device.at(problem.initial, arrays);
  problem.query_weight = device.at(problem.query_weight, arrays);
  problem.key_weight = device.at(problem.key_weight, arrays);
  problem.value_weight = device.at(problem.value_weight, arrays);
  problem.output_weight = device.at(problem.output_weight, arrays);
  problem.weights = device.at(problem.weights, arrays);
  problem.neighbors = device.at(problem.neighbors, arrays);
  problem.output = device.stored(problem.output, arrays);
  return problem;
}

/// Runs on the device with fresh outputs, which are brought back.
Status run_there(EncodeArrays& fixture, bool* non_finite = nullptr,
                 Precision precision = Precision::float32,
                 cuda::Storage storage = cuda::Storage::float32) {
  fixture.arrays.poison();
  Device device(storage);
  const CentroidEncodeProblem there = on_device(fixture.problem, device, fixture.arrays);
  const Status status = device.run(Device::backend().operations.centroid_encode, there, precision);
  if (non_finite != nullptr) *non_finite = device.non_finite();
  if (status.ok()) device.fetch(fixture.arrays);
  return status;
}

void check_reference(EncodeArrays& fixture) {
  bool non_finite = true;
  CHECK_EQUAL(describe(run_there(fixture, &non_finite)), "ok");
  CHECK(!non_finite);
  fixture.arrays.snapshot();
  CHECK_CLOSE(fixture.result(), reference::centroid_encode(fixture.problem), kBound);
}

TEST_ONCE("CUDA centroid encode: matches the reference from every start") {
  for (const Case& one : cases()) {
    if (one.query_length > 1000) continue;
    for (PoolStart start :
         {PoolStart::stride, PoolStart::sample, PoolStart::farthest, PoolStart::given}) {
      const Scope scope(one.name + " start " + std::to_string(static_cast<int>(start)));
      EncodeArrays fixture(one, start);
      fixture.problem.aggregate = Collect::mean;
      check_reference(fixture);
    }
  }
}

TEST_ONCE("CUDA centroid encode: matches the reference under all options") {
  for (const auto& [name, start] :
       {std::pair("prime", PoolStart::given), std::pair("tile-48", PoolStart::farthest),
        std::pair("more-clusters-than-queries", PoolStart::given)}) {
    for (Normalize normalize : {Normalize::centroids, Normalize::inputs}) {
      for (Collect aggregate : {Collect::sum, Collect::mean}) {
        for (int bits = 0; bits < 4; ++bits) {
          const Scope scope(std::string(name) + (normalize == Normalize::inputs ? " inputs" : "") +
                            (aggregate == Collect::mean ? " mean" : "") +
                            (bits & 1 ? " weights" : "") + (bits & 2 ? " neighbors" : ""));
          EncodeArrays fixture(find_case(name), start);
          fixture.problem.normalize = normalize;
          fixture.problem.aggregate = aggregate;
          if (bits & 1) fixture.add_weights();
          if (bits & 2) fixture.add_neighbors(6);
          // Three steps of the plain sum let the centroids, and with them rounding, grow.
          fixture.problem.steps = aggregate == Collect::sum ? 1 : 3;
          check_reference(fixture);
        }
      }
    }
  }
}

TEST_ONCE("CUDA centroid encode: few centroids of wide inputs, many of narrow ones") {
  // The two ways of computing (keys projected, or projections absorbed) are chosen by these sizes.
  for (int64_t dim : {2, 7, 130, 200}) {
    for (int64_t centroids : {1, 2, 40, 90}) {
      for (int64_t heads : {1, 3}) {
        Case which = find_case("tile-47");
        which.value_dim = dim;
        which.clusters = centroids;
        which.heads = heads;
        const Scope scope("dim " + std::to_string(dim) + " centroids " + std::to_string(centroids) +
                          " heads " + std::to_string(heads));
        EncodeArrays fixture(which, PoolStart::stride);
        fixture.problem.aggregate = Collect::mean;
        check_reference(fixture);
      }
    }
  }
}

TEST_ONCE("CUDA centroid encode: no steps return the start") {
  EncodeArrays fixture(find_case("prime"), PoolStart::farthest);
  fixture.problem.steps = 0;
  CHECK_RUNS(fixture.problem, fixture.arrays);
  const std::vector<float> expected = fixture.result();
  CHECK_EQUAL(describe(run_there(fixture)), "ok");
  CHECK_SAME(fixture.result(), expected);
}

TEST_ONCE("CUDA centroid encode: an input of weight 0 is never read") {
  for (PoolStart start :
       {PoolStart::stride, PoolStart::sample, PoolStart::farthest, PoolStart::given}) {
    EncodeArrays fixture(find_case("prime"), start);
    fixture.add_weights();
    CHECK_EQUAL(describe(run_there(fixture)), "ok");
    const std::vector<float> expected = fixture.result();
    for (int64_t i = 2; i < fixture.problem.batch * fixture.problem.length; i += 5) {
      std::fill_n(fixture.inputs + i * fixture.problem.dim, fixture.problem.dim,
                  std::numeric_limits<float>::quiet_NaN());
    }
    bool non_finite = true;
    CHECK_EQUAL(describe(run_there(fixture, &non_finite)), "ok");
    CHECK(!non_finite);
    CHECK_SAME(fixture.result(), expected);
  }
}

TEST_ONCE("CUDA centroid encode: fewer inputs than centroids leave rows of zeros") {
  EncodeArrays fixture(find_case("prime"), PoolStart::farthest);
  fixture.add_weights();
  std::fill_n(fixture.weights, fixture.problem.length - 3, 0.0f);
  std::fill_n(fixture.weights + fixture.problem.length - 3, 3, 1.0f);
  fixture.problem.aggregate = Collect::mean;
  check_reference(fixture);
}

TEST_ONCE("CUDA centroid encode: the same bits in every order of the threads, alone, in a batch") {
  for (int64_t dim : {13, 130}) {
    for (bool weights : {false, true}) {
      Case which = find_case("prime");
      which.value_dim = dim;
      EncodeArrays fixture(which, PoolStart::farthest);
      if (weights) fixture.add_weights();
      CHECK_EQUAL(describe(run_there(fixture)), "ok");
      const auto expected = fixture.arrays.snapshot();
      in_every_thread_order([&] {
        CHECK_EQUAL(describe(run_there(fixture)), "ok");
        check_same_bytes(fixture.arrays.snapshot(), expected, "the order of the threads");
      });
      fixture.arrays.poison();
      Device device;
      const CentroidEncodeProblem there = on_device(fixture.problem, device, fixture.arrays);
      for (int64_t b = 0; b < fixture.problem.batch; ++b) {
        CHECK_EQUAL(describe(device.run(Device::backend().operations.centroid_encode,
                                        one_encode_sequence(there, b))),
                    "ok");
      }
      device.fetch(fixture.arrays);
      check_same_bytes(fixture.arrays.snapshot(), expected, "running sequences one by one");
    }
  }
}

TEST_ONCE("CUDA centroid encode: NaN, and bfloat16 operands and storage") {
  EncodeArrays fixture(find_case("prime"), PoolStart::stride);
  const CentroidEncodeProblem& problem = fixture.problem;
  const int64_t matrix = problem.heads * problem.head_dim * problem.dim;
  std::vector<float*> places = {fixture.inputs + 3};
  for (float* matrix_data : fixture.matrices) places.push_back(matrix_data + 3);
  for (float* place : places) {
    const float saved = *place;
    *place = std::numeric_limits<float>::quiet_NaN();
    bool non_finite = false;
    CHECK_EQUAL(describe(run_there(fixture, &non_finite)), "ok");
    CHECK(non_finite);
    *place = saved;
  }
  round_in_place({{fixture.inputs, problem.batch * problem.length * problem.dim}});
  for (float* matrix_data : fixture.matrices) round_in_place({{matrix_data, matrix}});
  CHECK_EQUAL(describe(run_there(fixture)), "ok");
  const std::vector<float> exact = fixture.result();
  for (const DeviceSettings& settings : kBfloat16Settings) {
    CHECK_EQUAL(describe(run_there(fixture, nullptr, settings.precision, settings.storage)), "ok");
    const double bound = settings.storage == cuda::Storage::float32 ? 0.0 : 0x1p-8;
    CHECK_CLOSE(fixture.result(), std::vector<double>(exact.begin(), exact.end()), bound);
  }
}

TEST_ONCE("CUDA centroid encode: failed allocations and cancellation") {
  for (int64_t centroids : {2, 40}) {  // absorbed, projected
    Case which = find_case("prime");
    which.value_dim = 40;
    which.clusters = centroids;
    EncodeArrays fixture(which, PoolStart::farthest);
    fixture.add_weights();
    const auto map = [&](const CentroidEncodeProblem& problem, Device& device) {
      return on_device(problem, device, fixture.arrays);
    };
    const auto operation = Device::backend().operations.centroid_encode;
    check_cancelled_on(fixture.problem, fixture.arrays, operation, map);
    check_allocation_failures_on(fixture.problem, fixture.arrays, operation, map);
  }
}

}  // namespace

}  // namespace cluster_attention::test
