#pragma once

// Runs problems of the host on the device: arrays are found by the pointers in the problem, copied
// there, and outputs copied back with their fences, so that Arrays::snapshot() sees a write
// outside on the device too.
//
//   Device device;                       // or Device device(Storage::bfloat16)
//   AttentionProblem there = problem;
//   there.inputs = device.inputs(problem.inputs, arrays);
//   there.output = device.stored(problem.output, arrays);
//   there.logsumexp = device.at(problem.logsumexp, arrays);
//   CHECK_EQUAL(describe(device.run(device.backend().operations.attention, there)), "ok");
//   device.fetch(arrays)                 // now the host's outputs hold the results

#include <map>
#include <string>
#include <vector>

#include "cuda/backend.h"
#include "native/core/gradient_problem.h"
#include "test/native/arrays.h"
#include "test/native/attention_arrays.h"
#include "test/native/checks.h"

#if defined(CA_CUDA_MODEL)
#include "test/cuda/model/faults.h"
#endif

namespace cluster_attention::test {

class Device {
 public:
  /// `index` < 0: the usual device, see on_small_devices().
  explicit Device(cuda::Storage storage = cuda::Storage::float32, int32_t index = -1);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  static const cuda::Backend& backend();
  cuda::Session* session() const { return session_; }
  cuda::Storage storage() const { return storage_; }

  /// The copy on the device of an array that `arrays` owns; nullptr stays.
  template <typename T>
  T* at(T* host, const Arrays& arrays) {
    return reinterpret_cast<T*>(find(host, arrays, cuda::Storage::float32));
  }
  /// The same for what is stored as this device's storage says.
  template <typename T>
  T* stored(T* host, const Arrays& arrays) {
    return reinterpret_cast<T*>(find(host, arrays, storage_));
  }
  template <typename T>
  RowView<T> stored(RowView<T> view, const Arrays& arrays) {
    view.data = stored(view.data, arrays);
    return view;
  }
  AttentionInputs inputs(AttentionInputs inputs, const Arrays& arrays);
  AttentionGradients gradients(AttentionGradients gradients, const Arrays& arrays);

  /// Launches, waits, and fails the test for faults of the model. The status is that of the launch
  /// or else of finish(); non-finite results show in non_finite().
  template <typename Problem>
  Status run(cuda::Operation<Problem> operation, const Problem& problem,
             Precision precision = Precision::float32, const volatile int32_t* abort = nullptr) {
    CHECK(operation != nullptr);
    cuda::Call call;
    call.storage = storage_;
    call.precision = precision;
    call.abort = abort;
    return finish(operation(session_, problem, call));
  }
  bool non_finite() const { return non_finite_; }

  /// Copies every output that was used back to its place.
  void fetch(Arrays& arrays);

 private:
  struct Copy {
    void* memory = nullptr;
    cuda::Storage storage = cuda::Storage::float32;
  };

  void* find(const void* host, const Arrays& arrays, cuda::Storage storage);
  Status finish(Status launched);

  cuda::Storage storage_;
  cuda::Session* session_ = nullptr;
  std::map<const void*, Copy> copies_;  // by the begin of the host's array
  bool non_finite_ = false;
};

/// Runs body(index) for one device of every kind there is code of its own for: on the model the
/// usual one of Hopper and an older one.
template <typename Body>
void on_every_kind_of_device(Body body) {
#if defined(CA_CUDA_MODEL)
  for (int32_t index : {0, 1}) {
    const Scope scope(index == 0 ? "Hopper" : "before Hopper");
    body(index);
  }
#else
  body(0);
#endif
}

void set_usual_device(int32_t index);

/// What clustered attention with top keys, or a gradient, gives: in float32, rows of more than 128
/// columns have no room in 64 KB of shared memory (docs/gpu.md).
std::string expected_status(const Device& device, const AttentionShape& shape,
                            Precision precision = Precision::float32);

/// Runs body() with usual devices whose blocks have little shared memory, 64 KB as those of sm_75
/// and 99 KB as those for desktops: on the model; on a GPU with that one.
template <typename Body>
void on_small_devices(Body body) {
#if defined(CA_CUDA_MODEL)
  for (cuda_model::DeviceKind kind : {cuda_model::kTuring, cuda_model::kDesktop}) {
    const Scope scope("device of kind " + std::to_string(kind));
    set_usual_device(cuda_model::index_of(kind));
    body();
  }
  set_usual_device(0);
#else
  body();
#endif
}

/// Fails the running test for every fault of a kernel that the model has noted.
void check_model_faults();

/// Runs body() with the threads of the model in ascending order and in two shuffled ones, in the
/// last with every part of a workspace in an allocation of its own, so that a write past a part
/// shows; on a GPU once.
template <typename Body>
void in_every_thread_order(Body body);

void set_thread_order(uint64_t seed);
/// Clusters of more than 8 blocks that the model runs at once.
void limit_resident_clusters(int count);

/// Runs body() where the model runs no cluster of more than 8 blocks, and where it runs one at a
/// time; on a GPU once.
template <typename Body>
void with_few_clusters(Body body) {
#if defined(CA_CUDA_MODEL)
  for (int count : {0, 1}) {
    const Scope scope(std::to_string(count) + " clusters at once");
    limit_resident_clusters(count);
    body();
  }
  limit_resident_clusters(1 << 20);
#else
  body();
#endif
}
/// Of the devices opened from here on.
void set_parts_alone(bool alone);

template <typename Body>
void in_every_thread_order(Body body) {
#if defined(CA_CUDA_MODEL)
  for (uint64_t seed : {0, 1, 2}) {
    const Scope scope("thread order " + std::to_string(seed));
    set_thread_order(seed);
    set_parts_alone(seed == 2);
    body();
  }
  set_thread_order(0);
  set_parts_alone(false);
#else
  body();
#endif
}

}  // namespace cluster_attention::test
