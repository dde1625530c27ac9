#include <algorithm>
#include <cmath>

#include "native/reference/centroid_pool.h"
#include "test/cuda/promises.h"
#include "test/native/compare.h"
#include "test/native/pool_gradient_arrays.h"

namespace cluster_attention::test {

namespace {

/// float32 products are made of three bfloat16 ones, in every step and every step back.
constexpr double kBound = 5e-5;

const cuda::Operation<CentroidPoolGradientProblem> kGradient =
    Device::backend().operations.centroid_pool_gradient;

auto on_device(PoolGradientArrays& fixture) {
  return [&](CentroidPoolGradientProblem problem, Device& device) {
    CentroidPoolProblem& forward = problem.forward;
    forward.inputs = device.stored(forward.inputs, fixture.arrays);
    forward.initial = device.at(forward.initial, fixture.arrays);
    forward.lengths = device.at(forward.lengths, fixture.arrays);
    forward.output = nullptr;
    forward.labels = nullptr;
    forward.masses = nullptr;
    problem.output_gradient = device.stored(problem.output_gradient, fixture.gradients);
    problem.inputs = device.stored(problem.inputs, fixture.gradients);
    problem.initial = device.at(problem.initial, fixture.gradients);
    return problem;
  };
}

void check_reference(PoolGradientArrays& fixture, double bound = kBound) {
  check_runs_on(fixture.problem, fixture.gradients, kGradient, on_device(fixture));
  check_gradients(fixture, bound);
}

TEST_ONCE("CUDA pool gradient: matches the reference") {
  for (const Case& one : cases()) {
    if (one.query_length > 1000 || one.key_length > 1000) continue;
    for (Similarity similarity : kSimilarities) {
      for (PoolStart start : kPoolStarts) {
        const Scope scope(one.name + pool_options_name(similarity, start));
        PoolGradientArrays fixture(one, similarity, start);
        check_reference(fixture);
      }
    }
  }
}

TEST_ONCE("CUDA pool gradient: several tiles of centroids, wide rows, a sample") {
  const int64_t sizes[][3] = {{300, 70, 65}, {130, 129, 16}, {700, 64, 130}};
  for (const auto& size : sizes) {
    Case one = find_case("usual");
    one.batch = 1;
    one.key_length = size[0];
    one.clusters = size[1];
    one.head_dim = size[2];
    for (Similarity similarity : kSimilarities) {
      const Scope scope(std::to_string(size[0]) + pool_options_name(similarity, PoolStart::sample));
      PoolGradientArrays fixture(one, similarity, PoolStart::sample);
      check_reference(fixture);
    }
  }
}

TEST_ONCE("CUDA pool gradient: with little shared memory") {
  on_small_devices([] {
    for (const char* name : {"prime", "width-130-64", "tile-129"}) {
      const Scope scope(name);
      PoolGradientArrays fixture(find_case(name), Similarity::euclidean, PoolStart::stride);
      check_reference(fixture);
    }
  });
}

TEST_ONCE("CUDA pool gradient: one, eight and no steps") {
  for (Similarity similarity : kSimilarities) {
    for (int64_t steps : {0, 1, 8}) {
      const Scope scope(pool_options_name(similarity, PoolStart::given) + " steps " +
                        std::to_string(steps));
      PoolGradientArrays fixture(find_case("prime"), similarity, PoolStart::given);
      fixture.problem.forward.iterations = steps;
      check_reference(fixture, steps == 8 ? 1e-4 : kBound);
    }
  }
}

/// The labels of small integers are exact in the first step; later ones have gaps between scores.
TEST_ONCE("CUDA pool gradient: a hard assignment takes its labels as constants") {
  for (const char* name : {"prime", "ragged", "usual"}) {
    for (Similarity similarity : kSimilarities) {
      for (PoolStart start : {PoolStart::stride, PoolStart::given}) {
        const Scope scope(name + pool_options_name(similarity, start));
        PoolGradientArrays fixture(find_case(name), similarity, start);
        fixture.problem.forward.temperature = 0.0f;
        check_reference(fixture);
      }
    }
  }
}

TEST_ONCE("CUDA pool gradient: a centroid without mass passes its gradient to the start") {
  PoolGradientArrays fixture(find_case("prime"), Similarity::euclidean, PoolStart::given);
  std::fill_n(fixture.initial + 2 * 17, 17, 30.0f);
  for (float temperature : {0.0f, 1.0f}) {
    // At 1 it is so far that its softmax is 0 in float32.
    fixture.problem.forward.temperature = temperature;
    check_runs_on(fixture.problem, fixture.gradients, kGradient, on_device(fixture));
    for (int64_t i = 2 * 17; i < 3 * 17; ++i) {
      CHECK_EQUAL(fixture.problem.initial[i], fixture.output_gradient[i]);
    }
  }
}

TEST_ONCE("CUDA pool gradient: rows of zeros under the cosine have no direction") {
  PoolGradientArrays fixture(find_case("prime"), Similarity::cosine, PoolStart::given);
  std::fill_n(fixture.inputs, 3 * 17, 0.0f);
  std::fill_n(fixture.initial + 17, 17, 0.0f);
  check_reference(fixture);
}

TEST_ONCE("CUDA pool gradient: data far from the origin") {
  for (Similarity similarity : {Similarity::cosine, Similarity::euclidean}) {
    const Scope scope(pool_options_name(similarity, PoolStart::stride));
    PoolGradientArrays fixture(find_case("tile-129"), similarity, PoolStart::stride);
    for (int64_t i = 0; i < fixture.input_count(); ++i) fixture.inputs[i] += 20.0f;
    check_reference(fixture);
  }
}

TEST_ONCE("CUDA pool gradient: what is not wanted does not change the others") {
  for (float temperature : {0.0f, 0.5f}) {
    PoolGradientArrays fixture(find_case("ragged"), Similarity::cosine, PoolStart::given);
    fixture.problem.forward.temperature = temperature;
    check_wanted_alone(fixture, [&](const CentroidPoolGradientProblem& problem) {
      check_runs_on(problem, fixture.gradients, kGradient, on_device(fixture));
    });
  }
}

TEST_ONCE("CUDA pool gradient: the same bits in every order and batch") {
  for (Similarity similarity : kSimilarities) {
    for (float temperature : {0.0f, 1.5f}) {
      const Scope scope(pool_options_name(similarity, PoolStart::stride));
      PoolGradientArrays fixture(find_case("ragged"), similarity, PoolStart::stride);
      fixture.problem.forward.temperature = temperature;
      check_same_bits(fixture.problem, fixture.gradients, kGradient, on_device(fixture),
                      fixture.problem.forward.batch, one_pool_gradient_sequence);
    }
  }
}

TEST_ONCE("CUDA pool gradient: cancellation") {
  for (float temperature : {0.0f, 1.0f}) {
    PoolGradientArrays fixture(find_case("prime"), Similarity::cosine, PoolStart::farthest);
    fixture.problem.forward.temperature = temperature;
    check_cancelled_on(fixture.problem, fixture.gradients, kGradient, on_device(fixture));
  }
}

/// The options by which a pooling and its backward choose what they allocate.
void check_pool_allocations(const Case& which, Similarity similarity, PoolStart start) {
  const DeviceSettings all_settings[] = {{}, {cuda::Storage::bfloat16, Precision::bfloat16}};
  for (float temperature : {0.0f, 1.0f}) {
    for (const DeviceSettings& settings : all_settings) {
      const Scope scope(pool_options_name(similarity, start) + " temperature " +
                        std::to_string(temperature) + settings.name());
      PoolGradientArrays fixture(which, similarity, start);
      fixture.problem.forward.temperature = temperature;
      check_allocation_failures_on(fixture.problem, fixture.gradients, kGradient,
                                   on_device(fixture), 13, settings);
    }
  }
}

TEST_ONCE("CUDA pool gradient: every allocation may fail, and the next call is right") {
  Case which = find_case("prime");
  which.batch = 1;
  which.key_length = 12;
  which.head_dim = 5;
  which.clusters = 3;
  for (Similarity similarity : kSimilarities) {
    for (PoolStart start : kPoolStarts) check_pool_allocations(which, similarity, start);
  }
  which.key_length = 66;
  which.clusters = 65;  // several tiles
  check_pool_allocations(which, Similarity::euclidean, PoolStart::stride);
}

TEST_ONCE("CUDA pool gradient: NaN and Inf in rows that are read show") {
  for (Similarity similarity : kSimilarities) {
    for (float temperature : {0.0f, 2.0f}) {
      const Scope scope(pool_options_name(similarity, PoolStart::given) + " temperature " +
                        std::to_string(temperature));
      PoolGradientArrays fixture(find_case("prime"), similarity, PoolStart::given);
      fixture.problem.forward.temperature = temperature;
      const auto check = [&](float* data, int64_t index) {
        check_notices_non_finite(fixture.problem, fixture.gradients, kGradient, on_device(fixture),
                                 data, index);
      };
      check(fixture.inputs, 17 * 53 + 3);
      check(fixture.initial, 17 * 9 + 3);
      check(fixture.output_gradient, 17 * 9 + 3);
    }
  }
}

TEST_ONCE("CUDA pool gradient: bfloat16 operands and storage") {
  for (Similarity similarity : kSimilarities) {
    const Scope scope(pool_options_name(similarity, PoolStart::stride));
    PoolGradientArrays fixture(find_case("ragged"), similarity, PoolStart::stride);
    round_in_place({{fixture.inputs, fixture.input_count()},
                    {fixture.output_gradient, fixture.centroid_count()}});
    for (const DeviceSettings& settings : kBfloat16Settings) {
      check_runs_on(fixture.problem, fixture.gradients, kGradient, on_device(fixture), settings);
      // Computed in float32; stored gradients are rounded.
      check_gradients(fixture, settings.storage == cuda::Storage::float32 ? kBound : 0x1p-8);
    }
  }
}

}  // namespace

}  // namespace cluster_attention::test
