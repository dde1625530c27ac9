#include <algorithm>
#include <cmath>
#include <utility>

#include "native/core/absorption.h"
#include "native/reference/centroid_encode.h"
#include "test/cuda/promises.h"
#include "test/native/cases.h"
#include "test/native/compare.h"
#include "test/native/encode_gradient_arrays.h"

namespace cluster_attention::test {

namespace {

constexpr PoolStart kStarts[] = {PoolStart::stride, PoolStart::sample, PoolStart::farthest,
                                 PoolStart::given};
/// float32 products are made of three bfloat16 ones, in every step and every step back.
constexpr double kBound = 1e-4;

const cuda::Operation<CentroidEncodeGradientProblem> kGradient =
    Device::backend().operations.centroid_encode_gradient;

auto on_device(EncodeGradientArrays& fixture) {
  return [&](CentroidEncodeGradientProblem problem, Device& device) {
    const Arrays& arrays = fixture.arrays;
    const Arrays& gradients = fixture.gradients;
    CentroidEncodeProblem& forward = problem.forward;
    forward.inputs = device.stored(forward.inputs, arrays);
    forward.initial = device.at(forward.initial, arrays);
    forward.query_weight = device.at(forward.query_weight, arrays);
    forward.key_weight = device.at(forward.key_weight, arrays);
    forward.value_weight = device.at(forward.value_weight, arrays);
    forward.output_weight = device.at(forward.output_weight, arrays);
    forward.weights = device.at(forward.weights, arrays);
    forward.neighbors = device.at(forward.neighbors, arrays);
    forward.output = nullptr;
    problem.output_gradient = device.stored(problem.output_gradient, gradients);
    problem.inputs = device.stored(problem.inputs, gradients);
    problem.initial = device.at(problem.initial, gradients);
    problem.query_weight = device.at(problem.query_weight, gradients);
    problem.key_weight = device.at(problem.key_weight, gradients);
    problem.value_weight = device.at(problem.value_weight, gradients);
    problem.output_weight = device.at(problem.output_weight, gradients);
    return problem;
  };
}

void check_reference(EncodeGradientArrays& fixture, double bound = kBound) {
  check_runs_on(fixture.problem, fixture.gradients, kGradient, on_device(fixture));
  check_gradients(fixture, bound);
}

/// Calls body for both normalisations, with and without weights and neighbors.
template <typename Body>
void for_all_options(const Case& which, PoolStart start, Body body) {
  for (Normalize normalize : {Normalize::centroids, Normalize::inputs}) {
    for (int bits = 0; bits < 4; ++bits) {
      const Scope scope(which.name + " start " + std::to_string(static_cast<int>(start)) +
                        (normalize == Normalize::inputs ? " inputs" : "") +
                        (bits & 1 ? " weights" : "") + (bits & 2 ? " neighbors" : ""));
      EncodeGradientArrays fixture(which, start);
      fixture.problem.forward.normalize = normalize;
      fixture.problem.forward.aggregate = bits == 0 ? Collect::sum : Collect::mean;
      // The plain sum lets the centroids, and with them rounding, grow.
      fixture.problem.forward.steps = bits == 0 ? 1 : 3;
      if (bits & 1) fixture.add_weights();
      if (bits & 2) fixture.add_neighbors(which.key_length < 6 ? which.key_length : 6);
      body(fixture);
    }
  }
}

TEST_ONCE("CUDA encode gradient: matches the reference from every start") {
  for (const Case& one : cases()) {
    if (one.key_length > 1000) continue;
    for (PoolStart start : kStarts) {
      const Scope scope(one.name + " start " + std::to_string(static_cast<int>(start)));
      EncodeGradientArrays fixture(one, start);
      fixture.problem.forward.aggregate = Collect::mean;
      check_reference(fixture);
    }
  }
}

TEST_ONCE("CUDA encode gradient: matches the reference under all options") {
  for (const auto& [name, start] :
       {std::pair("prime", PoolStart::given), std::pair("width-1", PoolStart::stride),
        std::pair("usual", PoolStart::sample),
        std::pair("more-clusters-than-queries", PoolStart::given)}) {
    for_all_options(find_case(name), start,
                    [](EncodeGradientArrays& fixture) { check_reference(fixture, 3e-4); });
  }
}

TEST_ONCE("CUDA encode gradient: few centroids of wide inputs, many of narrow ones") {
  // The two ways of computing (keys projected, or projections absorbed) are chosen by these sizes.
  for (int64_t dim : {2, 130}) {
    for (int64_t centroids : {1, 2, 70}) {
      for (int64_t heads : {1, 3}) {
        Case which = find_case("tile-129");
        which.batch = 1;
        which.value_dim = dim;
        which.clusters = centroids;
        which.heads = heads;
        const Scope scope("dim " + std::to_string(dim) + " centroids " + std::to_string(centroids) +
                          " heads " + std::to_string(heads));
        EncodeGradientArrays fixture(which, PoolStart::stride);
        fixture.problem.forward.aggregate = Collect::mean;
        check_reference(fixture);
      }
    }
  }
}

TEST_ONCE("CUDA encode gradient: with little shared memory") {
  on_small_devices([] {
    for (const char* name : {"prime", "width-130-64", "tile-129"}) {
      const Scope scope(name);
      EncodeGradientArrays fixture(find_case(name), PoolStart::stride);
      fixture.problem.forward.aggregate = Collect::mean;
      check_reference(fixture);
    }
  });
}

TEST_ONCE("CUDA encode gradient: an input of weight 0 is never read and has none") {
  check_weight_zero(PoolStart::sample, [](EncodeGradientArrays& fixture) {
    check_runs_on(fixture.problem, fixture.gradients, kGradient, on_device(fixture));
  });
}

TEST_ONCE("CUDA encode gradient: rows of zeros have none") {
  EncodeGradientArrays fixture(find_case("prime"), PoolStart::stride);
  fixture.remove_most_inputs();
  fixture.problem.forward.aggregate = Collect::mean;
  check_reference(fixture);
}

TEST_ONCE("CUDA encode gradient: without steps the start's alone is left") {
  for (PoolStart start : kStarts) {
    EncodeGradientArrays fixture(find_case("prime"), start);
    fixture.problem.forward.steps = 0;
    check_reference(fixture, kRelativeL2);
  }
}

TEST_ONCE("CUDA encode gradient: what is not wanted does not change the others") {
  for (int64_t centroids : {2, 40}) {  // absorbed, projected
    Case which = find_case("tile-47");
    which.value_dim = 130;
    which.clusters = centroids;
    EncodeGradientArrays fixture(which, PoolStart::given);
    check_wanted_alone(fixture, [&](const CentroidEncodeGradientProblem& problem) {
      check_runs_on(problem, fixture.gradients, kGradient, on_device(fixture));
    });
  }
}

TEST_ONCE("CUDA encode gradient: the same bits in every order and batch") {
  for (bool neighbors : {false, true}) {
    const Scope scope(neighbors ? "neighbors" : "all inputs");
    EncodeGradientArrays fixture(find_case("ragged"), PoolStart::farthest);
    fixture.add_weights();
    if (neighbors) fixture.add_neighbors(6);
    const int64_t batch = fixture.problem.forward.batch;
    check_same_bits(fixture.problem, fixture.gradients, kGradient, on_device(fixture), 0,
                    one_encode_gradient_sequence);
    // Gradients of the weights are sums over the batch.
    CentroidEncodeGradientProblem alone = fixture.problem;
    alone.query_weight = alone.key_weight = alone.value_weight = alone.output_weight = nullptr;
    check_same_bits(alone, fixture.gradients, kGradient, on_device(fixture), batch,
                    one_encode_gradient_sequence);
  }
}

TEST_ONCE("CUDA encode gradient: cancellation") {
  for (int64_t centroids : {2, 40}) {  // absorbed, projected
    Case which = find_case("prime");
    which.value_dim = 40;
    which.clusters = centroids;
    EncodeGradientArrays fixture(which, PoolStart::farthest);
    fixture.add_weights();
    check_cancelled_on(fixture.problem, fixture.gradients, kGradient, on_device(fixture));
  }
}

constexpr DeviceSettings kStorages[] = {{}, {cuda::Storage::bfloat16, Precision::bfloat16}};

/// At least `least` allocations are made.
void check_encode_allocations(EncodeGradientArrays& fixture, int64_t least,
                              const DeviceSettings& settings) {
  const Scope scope(settings.name());
  check_allocation_failures_on(fixture.problem, fixture.gradients, kGradient, on_device(fixture),
                               least, settings);
}

TEST_ONCE("CUDA encode gradient: every allocation may fail, and the next call is right") {
  Case which = find_case("prime");
  which.batch = 1;
  which.heads = 2;
  which.key_length = 12;
  which.head_dim = 3;
  which.value_dim = 5;
  int64_t turn = 0;                   // the storages take turns, which keeps the model's time short
  for (int64_t centroids : {1, 5}) {  // absorbed, projected
    which.clusters = centroids;
    for_all_options(which, PoolStart::stride, [&](EncodeGradientArrays& fixture) {
      CHECK_EQUAL(absorbing_is_cheaper(fixture.problem.forward), centroids == 1);
      check_encode_allocations(fixture, 19, kStorages[turn++ % 2]);
    });
    for (const DeviceSettings& settings : kStorages) {
      EncodeGradientArrays farthest(which, PoolStart::farthest);
      check_encode_allocations(farthest, 25, settings);
    }
  }
  which.key_length = 66;
  which.clusters = 65;  // several tiles
  for (const DeviceSettings& settings : kStorages) {
    EncodeGradientArrays fixture(which, PoolStart::given);
    check_encode_allocations(fixture, 19, settings);
  }
}

TEST_ONCE("CUDA encode gradient: NaN and Inf in rows that are read show") {
  EncodeGradientArrays fixture(find_case("prime"), PoolStart::given);
  const int64_t row = fixture.problem.forward.dim;
  const auto check = [&](float* data, int64_t index) {
    check_notices_non_finite(fixture.problem, fixture.gradients, kGradient, on_device(fixture),
                             data, index);
  };
  check(fixture.inputs, 60 * row + 3);
  check(fixture.initial, 9 * row + 3);
  for (float* matrix : fixture.matrices) check(matrix, 70);
  check(fixture.output_gradient, 9 * row + 3);
  fixture.add_neighbors(6);
  fixture.neighbors[50] = 53;
  CHECK_EQUAL(device_status(fixture.problem, fixture.gradients, kGradient, on_device(fixture)),
              "out_of_range neighbors[50]");
}

TEST_ONCE("CUDA encode gradient: bfloat16 operands and storage") {
  for (int64_t centroids : {2, 40}) {  // absorbed, projected
    Case which = find_case("tile-47");
    which.value_dim = 70;
    which.clusters = centroids;
    EncodeGradientArrays fixture(which, PoolStart::given);
    fixture.problem.forward.aggregate = Collect::mean;
    round_in_place({{fixture.inputs, fixture.input_count()},
                    {fixture.initial, fixture.centroid_count()},
                    {fixture.output_gradient, fixture.centroid_count()}});
    for (float* matrix : fixture.matrices) round_in_place({{matrix, fixture.weight_count()}});
    for (const DeviceSettings& settings : kBfloat16Settings) {
      check_runs_on(fixture.problem, fixture.gradients, kGradient, on_device(fixture), settings);
      // Computed in float32; stored gradients are rounded.
      check_gradients(fixture, settings.storage == cuda::Storage::float32 ? kBound : 0x1p-8);
    }
  }
}

}  // namespace

}  // namespace cluster_attention::test
