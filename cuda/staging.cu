#include <algorithm>
#include <cstring>

#include "cuda/primitives/bfloat16.cuh"
#include "cuda/session.h"
#include "cuda/staging.h"
#include "native/core/abort.h"

namespace cluster_attention::cuda {

Status Staging::open() {
  if (halves_[1].copied != nullptr) return Status::success();
  for (Half& half : halves_) {
    if (half.memory == nullptr) {
      void* memory = nullptr;
      CA_RETURN_IF_ERROR(session_.check(cudaHostAlloc(&memory, kHalfBytes, cudaHostAllocDefault)));
      half.memory = static_cast<char*>(memory);
    }
    if (half.copied == nullptr) {
      CA_RETURN_IF_ERROR(
          session_.check(cudaEventCreateWithFlags(&half.copied, cudaEventDisableTiming)));
    }
  }
  return Status::success();
}

Status Staging::wait(Half& half) {
  if (!half.busy) return Status::success();
  half.busy = false;
  return session_.check(cudaEventSynchronize(half.copied));
}

void Staging::free_all() {
  for (Half& half : halves_) {
    if (half.busy) (void)cudaEventSynchronize(half.copied);
    if (half.copied != nullptr) (void)cudaEventDestroy(half.copied);
    if (half.memory != nullptr) (void)cudaFreeHost(half.memory);
    half = Half();
  }
}

template <typename Fill>
Status Staging::send(char* device, int64_t count, int64_t element_bytes,
                     const volatile int32_t* abort, Fill fill) {
  if (count == 0) return Status::success();
  CA_RETURN_IF_ERROR(open());
  const int64_t piece = kHalfBytes / element_bytes;
  int turn = 0;
  for (int64_t first = 0; first < count; first += piece, turn ^= 1) {
    if (is_raised(abort)) return Status::cancelled();
    Half& half = halves_[turn];
    CA_RETURN_IF_ERROR(wait(half));
    const int64_t size = std::min(piece, count - first);
    fill(half.memory, first, size);
    CA_RETURN_IF_ERROR(session_.check(cudaMemcpyAsync(device + first * element_bytes, half.memory,
                                                      static_cast<size_t>(size * element_bytes),
                                                      cudaMemcpyHostToDevice, session_.stream())));
    half.busy = true;
    CA_RETURN_IF_ERROR(session_.check(cudaEventRecord(half.copied, session_.stream())));
  }
  return Status::success();
}

template <typename Empty>
Status Staging::receive(const char* device, int64_t count, int64_t element_bytes,
                        const volatile int32_t* abort, Empty empty) {
  if (count == 0) return Status::success();
  CA_RETURN_IF_ERROR(open());
  const int64_t piece = kHalfBytes / element_bytes;
  const int64_t pieces = (count + piece - 1) / piece;
  // Piece i is on its way while piece i - 1 is read.
  for (int64_t i = 0; i <= pieces; ++i) {
    if (is_raised(abort)) return Status::cancelled();
    if (i < pieces) {
      Half& half = halves_[i % 2];
      CA_RETURN_IF_ERROR(wait(half));
      const int64_t size = std::min(piece, count - i * piece);
      CA_RETURN_IF_ERROR(session_.check(cudaMemcpyAsync(
          half.memory, device + i * piece * element_bytes,
          static_cast<size_t>(size * element_bytes), cudaMemcpyDeviceToHost, session_.stream())));
      half.busy = true;
      CA_RETURN_IF_ERROR(session_.check(cudaEventRecord(half.copied, session_.stream())));
    }
    if (i > 0) {
      Half& half = halves_[(i - 1) % 2];
      CA_RETURN_IF_ERROR(wait(half));
      const int64_t first = (i - 1) * piece;
      empty(half.memory, first, std::min(piece, count - first));
    }
  }
  return Status::success();
}

Status Staging::upload(void* device, Storage storage, const float* host, int64_t count,
                       const volatile int32_t* abort) {
  if (storage == Storage::float32) return upload_bytes(device, host, count * 4, abort);
  return send(static_cast<char*>(device), count, 2, abort,
              [&](char* half, int64_t first, int64_t size) {
                auto* rounded = reinterpret_cast<bfloat16*>(half);
                for (int64_t i = 0; i < size; ++i) rounded[i] = to_bfloat16(host[first + i]);
              });
}

Status Staging::download(float* host, const void* device, Storage storage, int64_t count,
                         const volatile int32_t* abort) {
  if (storage == Storage::float32) return download_bytes(host, device, count * 4, abort);
  return receive(static_cast<const char*>(device), count, 2, abort,
                 [&](const char* half, int64_t first, int64_t size) {
                   const auto* values = reinterpret_cast<const bfloat16*>(half);
                   for (int64_t i = 0; i < size; ++i) host[first + i] = to_float(values[i]);
                 });
}

Status Staging::upload_bytes(void* device, const void* host, int64_t bytes,
                             const volatile int32_t* abort) {
  return send(
      static_cast<char*>(device), bytes, 1, abort, [&](char* half, int64_t first, int64_t size) {
        std::memcpy(half, static_cast<const char*>(host) + first, static_cast<size_t>(size));
      });
}

Status Staging::download_bytes(void* host, const void* device, int64_t bytes,
                               const volatile int32_t* abort) {
  return receive(static_cast<const char*>(device), bytes, 1, abort,
                 [&](const char* half, int64_t first, int64_t size) {
                   std::memcpy(static_cast<char*>(host) + first, half, static_cast<size_t>(size));
                 });
}

}  // namespace cluster_attention::cuda
