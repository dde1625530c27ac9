// The model reports kernels that a GPU would hang on or compute anything with.

#include <cuda_runtime.h>

#include "test/cuda/model/faults.h"
#include "test/native/harness.h"

namespace cuda_model {

namespace {

/// The faults of a launch of `threads` threads.
std::string faults_of(unsigned threads, std::function<void()> body, size_t shared_bytes = 256) {
  run_grid({{1, 1, 1}, {threads, 1, 1}, shared_bytes, std::move(body)});
  std::string text;
  for (const std::string& fault : take_faults()) text += fault;
  return text;
}

bool holds(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

TEST_ONCE("CUDA model: good kernels have no faults") {
  CHECK_EQUAL(faults_of(64,
                        [] {
                          for (int i = 0; i < 3; ++i) __syncthreads();
                          __shfl_xor_sync(0xffffffffu, 1, 1);
                          __syncwarp();
                          if (threadIdx.x < 32) __ballot_sync(0xffffffffu, 1);  // a whole warp
                        }),
              "");
}

TEST_ONCE("CUDA model: threads that miss a barrier are reported") {
  const std::string some_return = faults_of(64, [] {
    if (threadIdx.x == 40) return;
    __syncthreads();
  });
  CHECK(holds(some_return, "63 wait in __syncthreads()") && holds(some_return, "1 have ended"));
  const std::string lanes_apart = faults_of(32, [] {
    if (threadIdx.x < 16) __syncthreads();
    if (threadIdx.x >= 16) __syncwarp();
  });
  CHECK(holds(lanes_apart, "cannot go on"));
  // The model is whole afterwards.
  CHECK_EQUAL(faults_of(64, [] { __syncthreads(); }), "");
}

TEST_ONCE("CUDA model: lanes that disagree are reported") {
  CHECK(holds(faults_of(32,
                        [] {
                          if (threadIdx.x % 2 == 0) __ballot_sync(0xffffffffu, 1);
                          if (threadIdx.x % 2 == 1) __shfl_sync(0xffffffffu, 1, 0);
                        }),
              "different exchanges"));
  CHECK(holds(faults_of(32, [] { __shfl_sync(0x0000ffffu, 1, 0); }), "not full"));
  CHECK(holds(faults_of(16, [] { __syncwarp(); }), "cannot go on"));
}

TEST_ONCE("CUDA model: lanes that wait for different products are reported") {
  const auto faults_of_products = [](int wide_lanes) {
    return faults_of(
        32,
        [&] {
          float d[8] = {};
          const uint32_t a[4] = {};
          const int columns = static_cast<int>(threadIdx.x) < wide_lanes ? 16 : 8;
          start_product({d, nullptr, columns, a, 0, uint64_t{1} << 62, false, true});
          commit_products();
          wait_products(0);
        },
        16 * 128);
  };
  CHECK_EQUAL(faults_of_products(0), "");
  CHECK_EQUAL(faults_of_products(32), "");
  CHECK(holds(faults_of_products(7), "different products"));
}

TEST_ONCE("CUDA model: a missing barrier shows in some order of the threads") {
  const auto run = [](bool with_barrier) {
    int wrong = 0;
    for (uint64_t seed = 0; seed < 8; ++seed) {
      set_thread_order(seed);
      run_grid({{1, 1, 1}, {64, 1, 1}, 64 * sizeof(int), [&] {
                  auto* values = reinterpret_cast<int*>(shared_memory());
                  values[threadIdx.x] = static_cast<int>(threadIdx.x);
                  if (with_barrier) __syncthreads();
                  if (values[threadIdx.x ^ 33] != static_cast<int>(threadIdx.x ^ 33)) ++wrong;
                }});
    }
    set_thread_order(0);
    return wrong;
  };
  CHECK_EQUAL(run(true), 0);
  CHECK(run(false) > 0);
}

TEST_ONCE("CUDA model: what stands behind shared memory is watched, and it starts as NaN") {
  CHECK(holds(faults_of(32, [] { shared_memory()[256 + threadIdx.x] = 1; }), "wrote past"));
  bool nan = true;
  faults_of(32, [&] {
    const float value = reinterpret_cast<float*>(shared_memory())[threadIdx.x];
    nan = nan && value != value;
  });
  CHECK(nan);
}

TEST_ONCE("CUDA model: an asynchronous copy arrives when it is waited for") {
  alignas(16) float from[4] = {1, 2, 3, 4};
  float before = 0.0f;
  float after = 0.0f;
  faults_of(32, [&] {
    auto* to = reinterpret_cast<float*>(shared_memory()) + 4 * (threadIdx.x % 4);
    if (threadIdx.x != 0) return;
    copy_async(to, from, 16, true);
    commit_copies();
    before = to[1];
    wait_copies(0);
    after = to[1];
  });
  CHECK(before != before);
  CHECK_EQUAL(after, 2.0f);
  CHECK(
      holds(faults_of(32, [&] { copy_async(shared_memory() + 4, from, 16, true); }), "misaligned"));
}

/// A cluster of three blocks, each of which leaves its rank for the next one.
std::string faults_of_cluster(bool waits, bool ends_early, unsigned blocks, int* wrong) {
  const auto body = [&] {
    auto* value = reinterpret_cast<int*>(shared_memory());
    if (threadIdx.x == 0) *value = cluster_rank();
    if (ends_early && cluster_rank() == 1) return;
    if (waits) sync_cluster();
    const int next = (cluster_rank() + 1) % 3;
    if (*reinterpret_cast<int*>(shared_memory_of(next)) != next) ++*wrong;
    sync_cluster();
  };
  run_grid({{blocks, 1, 1}, {32, 1, 1}, 16, body, 3});
  std::string text;
  for (const std::string& fault : take_faults()) text += fault;
  return text;
}

TEST_ONCE("CUDA model: blocks of a cluster run together, and what keeps them apart is reported") {
  int wrong = 0;
  for (uint64_t seed : {0, 1, 2}) {
    set_thread_order(seed);
    CHECK_EQUAL(faults_of_cluster(true, false, 6, &wrong), "");
  }
  set_thread_order(0);
  CHECK_EQUAL(wrong, 0);
  CHECK_EQUAL(faults_of_cluster(false, false, 3, &wrong), "");
  CHECK(wrong > 0);
  CHECK(holds(faults_of_cluster(true, true, 3, &wrong), "have ended while others wait"));
  CHECK(holds(faults_of_cluster(true, false, 4, &wrong), "whole clusters"));
}

TEST_ONCE("CUDA model: blocks wait for the whole grid, where all run together") {
  const auto faults_of_grid = [](bool together, bool ends_early) {
    int arrived = 0;
    bool all = true;
    const auto body = [&] {
      if (ends_early && blockIdx.x == 2) return;
      if (threadIdx.x == 0) ++arrived;
      sync_grid();
      all = all && arrived == 5;
    };
    run_grid({{5, 1, 1}, {32, 1, 1}, 16, body, 1, together});
    std::string text = together && !ends_early && !all ? "too early" : "";
    for (const std::string& fault : take_faults()) text += fault;
    return text;
  };
  CHECK_EQUAL(faults_of_grid(true, false), "");
  CHECK(holds(faults_of_grid(true, true), "have ended while others wait"));
  CHECK(holds(faults_of_grid(false, false), "do not all run together"));
}

}  // namespace

}  // namespace cuda_model
