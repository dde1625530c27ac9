#pragma once

// What every operation promises on the device, checked the same way for all of them: problems are
// plain structs, map(problem, device) is the problem with the device's pointers, and outputs are
// bytes in Arrays.

#include "cuda/session.h"
#include "test/cuda/same_as_cpu.h"
#if defined(CA_CUDA_MODEL)
#include "test/cuda/model/faults.h"
#endif

namespace cluster_attention::test {

/// Runs with fresh outputs on a device of its own, which are brought back.
template <typename Problem, typename Map>
Status run_on(const Problem& problem, Arrays& arrays, cuda::Operation<Problem> operation, Map map,
              bool* non_finite = nullptr, const DeviceSettings& settings = {}) {
  arrays.poison();
  Device device(settings.storage);
  const Status status = device.run(operation, map(problem, device), settings.precision);
  if (non_finite != nullptr) *non_finite = device.non_finite();
  if (status.ok()) device.fetch(arrays);
  return status;
}

/// Runs, expects success and that nothing was NaN or Inf; no write outside the outputs.
template <typename Problem, typename Map>
void check_runs_on(const Problem& problem, Arrays& arrays, cuda::Operation<Problem> operation,
                   Map map, const DeviceSettings& settings = {}) {
  bool non_finite = true;
  CHECK_EQUAL(describe(run_on(problem, arrays, operation, map, &non_finite, settings)), "ok");
  CHECK(!non_finite);
  arrays.snapshot();
}

/// The same bits in every order of the threads, and whether sequences come in a batch or one by
/// one: part(problem, i) is the problem of sequence i, with outputs in the same places.
template <typename Problem, typename Map, typename Part>
void check_same_bits(const Problem& problem, Arrays& arrays, cuda::Operation<Problem> operation,
                     Map map, int64_t parts, Part part) {
  CHECK_EQUAL(describe(run_on(problem, arrays, operation, map)), "ok");
  const auto expected = arrays.snapshot();
  in_every_thread_order([&] {
    CHECK_EQUAL(describe(run_on(problem, arrays, operation, map)), "ok");
    check_same_bytes(arrays.snapshot(), expected, "the order of the threads");
  });
  if (parts == 0) return;
  arrays.poison();
  Device device;
  const Problem there = map(problem, device);
  for (int64_t i = 0; i < parts; ++i) {
    CHECK_EQUAL(describe(device.run(operation, part(there, i))), "ok");
  }
  device.fetch(arrays);
  check_same_bytes(arrays.snapshot(), expected, "running sequences one by one");
}

/// A raised abort flag ends the call, and the next one is right.
template <typename Problem, typename Map>
void check_cancelled_on(const Problem& problem, Arrays& arrays, cuda::Operation<Problem> operation,
                        Map map) {
  CHECK_EQUAL(describe(run_on(problem, arrays, operation, map)), "ok");
  const auto expected = arrays.snapshot();
  arrays.poison();
  Device device;
  const Problem there = map(problem, device);
  const volatile int32_t abort = 1;
  CHECK_EQUAL(describe(device.run(operation, there, Precision::float32, &abort)), "cancelled");
  CHECK_EQUAL(describe(device.run(operation, there)), "ok");
  device.fetch(arrays);
  check_same_bytes(arrays.snapshot(), expected, "a cancelled call before");
}

/// Fails the first, the second, ... allocation of a call until it succeeds: each time it reports
/// out_of_memory, nothing leaks, and the next call is right. Every part of the workspace is an
/// allocation of its own here, so that each of them fails once. At least `least` are made.
template <typename Problem, typename Map>
void check_allocation_failures_on(const Problem& problem, Arrays& arrays,
                                  cuda::Operation<Problem> operation, Map map, int64_t least = 1,
                                  const DeviceSettings& settings = {}) {
#if defined(CA_CUDA_MODEL)
  CHECK_EQUAL(describe(run_on(problem, arrays, operation, map, nullptr, settings)), "ok");
  const auto expected = arrays.snapshot();
  const int64_t objects = cuda_model::live_objects();
  for (int64_t k = 1; k < 1000; ++k) {
    const Scope scope("allocation " + std::to_string(k));
    bool done = false;
    {
      arrays.poison();
      Device device(settings.storage);
      device.session()->workspace().set_smallest_block(1);
      const Problem there = map(problem, device);
      cuda_model::fail_allocation(k);
      const Status status = device.run(operation, there, settings.precision);
      cuda_model::fail_allocation(0);
      done = status.ok();
      if (!done) {
        CHECK_EQUAL(describe(status), "out_of_memory");
        CHECK_EQUAL(describe(device.run(operation, there, settings.precision)), "ok");
      }
      device.fetch(arrays);
      check_same_bytes(arrays.snapshot(), expected, "a failed allocation");
    }
    CHECK_EQUAL(cuda_model::live_objects(), objects);
    if (!done) continue;
    CHECK(k > least);
    return;
  }
  fail(__FILE__, __LINE__, "still fails after 1000 allocations");
#else
  (void)problem, (void)arrays, (void)operation, (void)map, (void)least, (void)settings;
#endif
}

}  // namespace cluster_attention::test
