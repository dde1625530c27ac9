#pragma once

// CAST on the device, for its tests.

#include "test/cuda/device.h"
#include "test/native/cast_arrays.h"

namespace cluster_attention::test {

/// float32 products are made of three bfloat16 ones; three of them follow each other.
constexpr double kSplitBound = 4e-5;
/// Weights and values are rounded to bfloat16: 2^-9 each.
constexpr double kRoundedBound = 0x1p-6;

inline CastAttentionProblem on_device(CastAttentionProblem problem, Device& device,
                                      const Arrays& arrays) {
  problem.inputs = device.inputs(problem.inputs, arrays);
  problem.output = device.stored(problem.output, arrays);
  problem.surrogates = device.at(problem.surrogates, arrays);
  problem.gate = device.at(problem.gate, arrays);
  problem.given_indices = device.at(problem.given_indices, arrays);
  problem.indices = device.at(problem.indices, arrays);
  problem.coverage = device.at(problem.coverage, arrays);
  return problem;
}

/// Runs on the device with fresh outputs, which are brought back.
inline Status run_there(CastArrays& fixture, bool* non_finite = nullptr,
                        Precision precision = Precision::float32) {
  fixture.arrays.poison();
  Device device;
  const CastAttentionProblem there = on_device(fixture.problem, device, fixture.arrays);
  const Status status = device.run(Device::backend().operations.cast_attention, there, precision);
  if (non_finite != nullptr) *non_finite = device.non_finite();
  if (status.ok()) device.fetch(fixture.arrays);
  return status;
}

inline void round_inputs(const CastArrays& fixture) {
  const AttentionShape& shape = fixture.inputs.shape;
  const int64_t rows = shape.batch * shape.heads * shape.key_length;
  round_in_place({{fixture.query, rows * shape.head_dim},
                  {fixture.key, rows * shape.head_dim},
                  {fixture.value, rows * shape.value_dim},
                  {fixture.surrogates, shape.heads * fixture.problem.clusters * shape.head_dim},
                  {fixture.gate, shape.batch * shape.key_length}});
}

}  // namespace cluster_attention::test
