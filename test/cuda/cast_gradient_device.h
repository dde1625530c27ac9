#pragma once

// Gradients of CAST on the device.

#include "test/cuda/device.h"
#include "test/native/cast_gradient_arrays.h"

namespace cluster_attention::test {

inline const cuda::Operation<CastAttentionGradientProblem> kCastGradient =
    Device::backend().operations.cast_attention_gradient;

inline CastAttentionGradientProblem on_device(CastGradientArrays& fixture,
                                              CastAttentionGradientProblem problem,
                                              Device& device) {
  CastAttentionProblem& forward = problem.forward;
  forward.inputs = device.inputs(forward.inputs, fixture.arrays);
  forward.output = device.stored(forward.output, fixture.arrays);
  forward.surrogates = device.at(forward.surrogates, fixture.arrays);
  forward.gate = device.at(forward.gate, fixture.arrays);
  forward.given_indices = nullptr;  // the tokens chosen are in `indices`
  forward.indices = device.at(forward.indices, fixture.arrays);
  forward.coverage = nullptr;
  const Arrays& gradients = fixture.gradients;
  problem.output_gradient = device.stored(problem.output_gradient, gradients);
  problem.gradients = device.gradients(problem.gradients, gradients);
  problem.surrogates = device.at(problem.surrogates, gradients);
  problem.gate = device.at(problem.gate, gradients);
  return problem;
}

/// Runs with fresh gradients, which are brought back.
inline Status run_there(CastGradientArrays& fixture, const CastAttentionGradientProblem& problem,
                        bool* non_finite = nullptr, Precision precision = Precision::float32,
                        cuda::Storage storage = cuda::Storage::float32) {
  fixture.gradients.poison();
  Device device(storage);
  const Status status = device.run(kCastGradient, on_device(fixture, problem, device), precision);
  if (non_finite != nullptr) *non_finite = device.non_finite();
  if (status.ok()) device.fetch(fixture.gradients);
  return status;
}

}  // namespace cluster_attention::test
