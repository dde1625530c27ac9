#pragma once

// The one total order of this project (top-k, argmin, sorting): the better value first; of equal
// values the lower index; -0 equals +0. NaN ranks above everything, so that under
// nonFinite: 'propagate' it reaches the rows that depend on it.
//
// The functions are static: files compiled for different instruction sets each keep their own.

#include <cstdint>
#include <cstring>

#include "native/core/host_device.h"

namespace cluster_attention {

/// Maps a float to an unsigned integer with the same order: larger value, larger key.
CA_HOST_DEVICE static inline uint32_t ordered_key(float value) {
  if (value != value) return 0xffffffffu;
  if (value == 0.0f) value = 0.0f;  // -0 becomes +0
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

/// The float of an ordered_key (NaN payloads and the sign of zero are not kept).
CA_HOST_DEVICE static inline float value_of_key(uint32_t key) {
  const uint32_t bits = (key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// A scored index as one integer: the better candidate is the larger integer.
using Candidate = uint64_t;

CA_HOST_DEVICE static inline Candidate make_candidate(float score, int32_t index) {
  return (static_cast<uint64_t>(ordered_key(score)) << 32) |
         static_cast<uint32_t>(~static_cast<uint32_t>(index));
}
CA_HOST_DEVICE static inline float candidate_score(Candidate candidate) {
  return value_of_key(static_cast<uint32_t>(candidate >> 32));
}
CA_HOST_DEVICE static inline int32_t candidate_index(Candidate candidate) {
  return static_cast<int32_t>(~static_cast<uint32_t>(candidate));
}

}  // namespace cluster_attention
