#include <algorithm>
#include <cmath>

#include "native/reference/centroid_attention.h"
#include "test/cuda/promises.h"
#include "test/cuda/tile_cases.h"
#include "test/native/centroid_gradient_arrays.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

namespace {

/// float32 products are made of three bfloat16 ones.
constexpr double kSplitBound = 5e-5;
/// Weights, values and gradients are rounded to bfloat16: 2^-9 each.
constexpr double kRoundedBound = 0x1p-6;

const cuda::Operation<CentroidAttentionGradientProblem> kGradient =
    Device::backend().operations.centroid_attention_gradient;

auto on_device(CentroidGradientArrays& fixture) {
  return [&](CentroidAttentionGradientProblem problem, Device& device) {
    const Arrays& arrays = fixture.arrays;
    CentroidAttentionProblem& forward = problem.forward;
    forward.inputs = device.inputs(forward.inputs, arrays);
    forward.output = device.stored(forward.output, arrays);
    forward.weights = device.at(forward.weights, arrays);
    forward.neighbors = device.at(forward.neighbors, arrays);
    forward.masses = device.at(forward.masses, arrays);
    forward.logsumexp = device.at(forward.logsumexp, arrays);
    forward.labels = nullptr;
    forward.objective = nullptr;
    problem.output_gradient = device.stored(problem.output_gradient, fixture.gradients);
    problem.gradients = device.gradients(problem.gradients, fixture.gradients);
    problem.weights = device.at(problem.weights, fixture.gradients);
    return problem;
  };
}

void check_reference(CentroidGradientArrays& fixture, double bound = kSplitBound) {
  check_runs_on(fixture.problem, fixture.gradients, kGradient, on_device(fixture));
  check_gradients(fixture, bound);
}

TEST_ONCE("CUDA centroid gradient: matches the reference under all options") {
  for (const Case& one : cases()) {
    for (const CentroidOptions& options : all_centroid_options()) {
      const bool large = one.query_length * one.key_length > 20000;
      if (large && (options.aggregate == Collect::sum || options.weights != options.neighbors)) {
        continue;
      }
      const Scope scope(one.name + options.name());
      CentroidGradientArrays fixture(one, options);
      check_reference(fixture);
    }
  }
}

TEST_ONCE("CUDA centroid gradient: sizes around the tiles") {
  for (const Case& one : centroid_tile_cases()) {
    for (const CentroidOptions& options : all_centroid_options()) {
      if (options.aggregate == Collect::sum || (options.weights && options.neighbors)) continue;
      const Scope scope(one.name + options.name());
      CentroidGradientArrays fixture(one, options);
      check_reference(fixture);
    }
  }
}

TEST_ONCE("CUDA centroid gradient: with little shared memory") {
  on_small_devices([] {
    for (const char* name : {"prime", "ragged", "width-64-130", "width-130-64", "tile-129"}) {
      for (Normalize normalize : {Normalize::centroids, Normalize::inputs}) {
        CentroidOptions options;
        options.normalize = normalize;
        const Scope scope(name + options.name());
        CentroidGradientArrays fixture(find_case(name), options);
        check_reference(fixture);
      }
    }
  });
}

TEST_ONCE("CUDA centroid gradient: scales of any sign, a sharp softmax") {
  for (float scale : {0.0f, -0.5f, 2.0f, 30.0f}) {
    for (const CentroidOptions& options : all_centroid_options()) {
      for (int64_t centroids : {61, 90}) {
        const Scope scope("scale " + std::to_string(scale) + options.name());
        Case which = find_case("prime");
        which.query_length = centroids;
        CentroidGradientArrays fixture(which, options);
        fixture.problem.forward.inputs.scale =
            scale / std::sqrt(static_cast<float>(which.head_dim));
        fixture.run_forward();
        // Rounding of the logits is a relative one of the softmax.
        check_reference(fixture, kSplitBound * std::max(1.0f, scale));
      }
    }
  }
}

TEST_ONCE("CUDA centroid gradient: keys and values that all heads share") {
  for (int64_t centroids : {20, 90}) {
    for (int64_t dim : {40, 130}) {
      for (const CentroidOptions& options : all_centroid_options()) {
        if (options.neighbors || options.aggregate == Collect::sum) continue;
        const Scope scope(std::to_string(centroids) + " centroids, dim " + std::to_string(dim) +
                          options.name());
        Case which = find_case("usual");
        which.heads = 3;
        which.query_length = centroids;
        which.key_length = 150;
        which.head_dim = which.value_dim = dim;
        which.layout = Layout::bhld;
        CentroidGradientArrays fixture(which, options);
        // Every head has the keys of the first one, and they are summed there.
        AttentionInputs& inputs = fixture.problem.forward.inputs;
        const int64_t size = which.key_length * dim;
        for (int64_t i = 0; i < which.batch * which.heads; ++i) {
          const int64_t first = i / which.heads * which.heads;
          std::copy_n(fixture.key + first * size, size, fixture.key + i * size);
          std::copy_n(fixture.value + first * size, size, fixture.value + i * size);
        }
        fixture.run_forward();
        const auto expected = reference::centroid_attention_gradient(fixture.problem);
        AttentionGradients& gradients = fixture.problem.gradients;
        inputs.key.head_stride = inputs.value.head_stride = 0;
        gradients.key.head_stride = gradients.value.head_stride = 0;
        check_runs_on(fixture.problem, fixture.gradients, kGradient, on_device(fixture));
        std::vector<double> key(which.batch * size);
        std::vector<double> value(which.batch * size);
        std::vector<float> actual_key;
        std::vector<float> actual_value;
        for (int64_t b = 0; b < which.batch; ++b) {
          for (int64_t i = 0; i < which.heads * size; ++i) {
            key[b * size + i % size] += expected.key[b * which.heads * size + i];
            value[b * size + i % size] += expected.value[b * which.heads * size + i];
          }
          const float* const keys = gradients.key.row(b, 0, 0);
          const float* const values = gradients.value.row(b, 0, 0);
          actual_key.insert(actual_key.end(), keys, keys + size);
          actual_value.insert(actual_value.end(), values, values + size);
        }
        CHECK_CLOSE(actual_key, key, kSplitBound);
        CHECK_CLOSE(actual_value, value, kSplitBound);
        CHECK_CLOSE(fixture.query_gradient(), expected.query, kSplitBound);
      }
    }
  }
}

TEST_ONCE("CUDA centroid gradient: what is not wanted does not change the others") {
  for (int64_t centroids : {50, 90}) {
    for (const CentroidOptions& options : all_centroid_options()) {
      if (options.aggregate == Collect::mean) continue;
      const Scope scope(std::to_string(centroids) + options.name());
      Case which = find_case("ragged");
      which.query_length = centroids;
      which.query_lengths.clear();
      CentroidGradientArrays fixture(which, options);
      check_wanted_alone(fixture, [&](const CentroidAttentionGradientProblem& problem) {
        check_runs_on(problem, fixture.gradients, kGradient, on_device(fixture));
      });
    }
  }
}

TEST_ONCE("CUDA centroid gradient: the same bits in every order and batch") {
  for (const char* name : {"ragged", "ragged-transposed", "tile-129"}) {
    for (const CentroidOptions& options : all_centroid_options()) {
      if (options.aggregate == Collect::sum) continue;
      const Scope scope(name + options.name());
      CentroidGradientArrays fixture(find_case(name), options);
      check_same_bits(fixture.problem, fixture.gradients, kGradient, on_device(fixture),
                      fixture.inputs.shape.batch, one_centroid_gradient_batch);
    }
  }
}

TEST_ONCE("CUDA centroid gradient: failed allocations and cancellation") {
  for (const CentroidOptions& options : all_centroid_options()) {
    if (options.aggregate == Collect::sum || !options.weights) continue;
    const Scope scope(options.name());
    CentroidGradientArrays fixture(find_case("prime"), options);
    check_cancelled_on(fixture.problem, fixture.gradients, kGradient, on_device(fixture));
    check_allocation_failures_on(fixture.problem, fixture.gradients, kGradient, on_device(fixture));
  }
}

TEST_ONCE("CUDA centroid gradient: NaN and Inf in rows that are read show") {
  for (int64_t centroids : {61, 90}) {
    for (const CentroidOptions& options : all_centroid_options()) {
      if (options.aggregate == Collect::mean) continue;
      const Scope scope(std::to_string(centroids) + options.name());
      Case which = find_case("prime");
      which.query_length = centroids;
      CentroidGradientArrays fixture(which, options);
      if (options.neighbors) std::fill_n(fixture.neighbors, centroids * 5, 3);
      fixture.run_forward();
      const auto check = [&](float* data, int64_t index) {
        check_notices_non_finite(fixture.problem, fixture.gradients, kGradient, on_device(fixture),
                                 data, index);
      };
      check(fixture.query, 17 * centroids + 3);
      check(fixture.key, 17 * 56 + 3);
      check(fixture.value, 13 * 56 + 3);
      check(fixture.output_gradient, 13 * centroids + 3);
      if (options.weights) check(fixture.weights, 3);
    }
  }
}

TEST_ONCE("CUDA centroid gradient: neighbors outside their range are named") {
  CentroidGradientArrays fixture(find_case("prime"),
                                 {Normalize::centroids, Collect::sum, false, true});
  fixture.neighbors[311] = -2;
  fixture.neighbors[320] = 1 << 30;
  CHECK_EQUAL(device_status(fixture.problem, fixture.gradients, kGradient, on_device(fixture)),
              "out_of_range neighbors[311]");
}

TEST_ONCE("CUDA centroid gradient: bfloat16 operands and storage") {
  for (const char* name : {"prime", "width-64-130", "ragged", "tile-129"}) {
    for (const CentroidOptions& options : all_centroid_options()) {
      if (options.aggregate == Collect::sum) continue;
      const Scope scope(name + options.name());
      CentroidGradientArrays fixture(find_case(name), options);
      const AttentionShape& shape = fixture.inputs.shape;
      round_in_place(
          {{fixture.query, fixture.sequences() * shape.query_length * shape.head_dim},
           {fixture.key, fixture.sequences() * shape.key_length * shape.head_dim},
           {fixture.value, fixture.sequences() * shape.key_length * shape.value_dim},
           {fixture.output_gradient, fixture.sequences() * shape.query_length * shape.value_dim}});
      if (options.weights) round_in_place({{fixture.weights, shape.batch * shape.key_length}});
      fixture.run_forward();
      for (cuda::Storage storage : {cuda::Storage::float32, cuda::Storage::bfloat16}) {
        for (Precision precision : {Precision::float32, Precision::bfloat16}) {
          if (storage == cuda::Storage::float32 && precision == Precision::float32) continue;
          check_runs_on(fixture.problem, fixture.gradients, kGradient, on_device(fixture),
                        {storage, precision});
          check_gradients(fixture, kRoundedBound);
        }
      }
    }
  }
}

}  // namespace

}  // namespace cluster_attention::test
