#pragma once

// Transfers between plain memory of the host and the device, through pinned memory in two halves:
// while the device copies one, the host fills or empties the other.

#include <cstdint>

#include "cuda/backend.h"
#include "cuda/primitives/platform.cuh"

namespace cluster_attention::cuda {

class Staging {
 public:
  explicit Staging(Session& session) : session_(session) {}
  ~Staging() { free_all(); }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  /// See Backend in backend.h; count of elements.
  Status upload(void* device, Storage storage, const float* host, int64_t count,
                const volatile int32_t* abort);
  Status download(float* host, const void* device, Storage storage, int64_t count,
                  const volatile int32_t* abort);
  Status upload_bytes(void* device, const void* host, int64_t bytes, const volatile int32_t* abort);
  Status download_bytes(void* host, const void* device, int64_t bytes,
                        const volatile int32_t* abort);

  /// Waits for transfers under way and gives the pinned memory back.
  void free_all();

  static constexpr int64_t kHalfBytes = int64_t{4} << 20;

 private:
  struct Half {
    char* memory = nullptr;
    cudaEvent_t copied = nullptr;  // recorded after the half's last transfer
    bool busy = false;
  };

  Status open();
  Status wait(Half& half);
  /// fill(half, first, count) writes elements of the host into a half.
  template <typename Fill>
  Status send(char* device, int64_t count, int64_t element_bytes, const volatile int32_t* abort,
              Fill fill);
  /// empty(half, first, count) reads them.
  template <typename Empty>
  Status receive(const char* device, int64_t count, int64_t element_bytes,
                 const volatile int32_t* abort, Empty empty);

  Session& session_;
  Half halves_[2];
};

}  // namespace cluster_attention::cuda
