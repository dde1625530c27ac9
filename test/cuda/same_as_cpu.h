#pragma once

// Operations whose results on the device must have the CPU's bits.

#include "native/simd/simd.h"
#include "test/cuda/device.h"
#include "test/native/checks.h"

namespace cluster_attention::test {

/// Whether the CPU's tiles fuse a product and its sum into one rounding, as the GPU does.
inline bool cpu_fuses_products() {
  const float a[2] = {-(1.0f + 0x1p-11f), 1.0f + 0x1p-12f};
  alignas(64) float b[2 * kMaximumLanes] = {};
  alignas(64) float product[kMaximumLanes];
  b[0] = 1.0f;
  b[kMaximumLanes] = a[1];
  simd().multiply(a, 0, 1, 1, 2, b, kMaximumLanes, 1, product, kMaximumLanes, false);
  return product[0] != 0.0f;
}

/// Data on which sums have the same bits with and without fused products, where that matters.
inline Fill comparable_fill() { return cpu_fuses_products() ? Fill::gaussian : Fill::integer; }

struct DeviceSettings {
  cuda::Storage storage = cuda::Storage::float32;
  Precision precision = Precision::float32;
  int32_t device = -1;  // the usual one

  /// For a Scope.
  const char* name() const { return storage == cuda::Storage::bfloat16 ? " bfloat16" : " float32"; }
};

/// The ways in which a call meets bfloat16: asked for, with arrays stored so or not, and in arrays
/// stored so alone. Without rounding by precision the host's inputs must be such numbers.
constexpr DeviceSettings kBfloat16Settings[] = {
    {cuda::Storage::float32, Precision::bfloat16},
    {cuda::Storage::bfloat16, Precision::bfloat16},
    {cuda::Storage::bfloat16, Precision::float32},
};

/// Runs on the CPU, then on the device in several orders of threads, and expects the same bytes in
/// all outputs. map(problem, device) is the problem with the device's pointers.
template <typename Problem, typename Map>
void check_same_as_cpu(const Problem& problem, Arrays& arrays, cuda::Operation<Problem> operation,
                       Map map, const DeviceSettings& settings = {}) {
  CHECK_EQUAL(describe(run_fresh(problem, arrays, 2, {{}, settings.precision})), "ok");
  const auto expected = arrays.snapshot();
  in_every_thread_order([&] {
    arrays.poison();
    Device device(settings.storage, settings.device);
    CHECK_EQUAL(describe(device.run(operation, map(problem, device), settings.precision)), "ok");
    CHECK(!device.non_finite());
    device.fetch(arrays);
    check_same_bytes(arrays.snapshot(), expected, "the device");
  });
}

/// A NaN, an Inf and a -Inf at data[index] are each noticed by the device.
template <typename Problem, typename Map>
void check_notices_non_finite(const Problem& problem, Arrays& arrays,
                              cuda::Operation<Problem> operation, Map map, float* data,
                              int64_t index) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity}) {
    const Scope scope("with " + std::to_string(bad));
    const float saved = data[index];
    data[index] = bad;
    arrays.poison();
    Device device;
    CHECK_EQUAL(describe(device.run(operation, map(problem, device))), "ok");
    CHECK(device.non_finite());
    device.fetch(arrays);
    arrays.snapshot();
    data[index] = saved;
  }
}

/// The status of a run on the device.
template <typename Problem, typename Map>
std::string device_status(const Problem& problem, Arrays& arrays,
                          cuda::Operation<Problem> operation, Map map,
                          const volatile int32_t* abort = nullptr) {
  arrays.poison();
  Device device;
  const Status status = device.run(operation, map(problem, device), Precision::float32, abort);
  device.fetch(arrays);
  arrays.snapshot();
  return describe(status);
}

}  // namespace cluster_attention::test
