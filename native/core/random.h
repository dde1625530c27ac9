#pragma once

// Counter-based random numbers: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy
// as 1, 2, 3", SC 2011). A number is a function of (seed, stream, counter) alone, so it does not
// depend on threads, on the batch, or on what was drawn before.

#include <cmath>
#include <cstdint>

#include "native/core/host_device.h"

namespace cluster_attention {

/// What a draw is for; each purpose has a stream of its own.
enum class RandomStream : uint32_t {
  hash_planes = 1,
  hash_thresholds = 2,
  start_positions = 3,
  plus_plus = 4,
};

struct RandomBlock {
  uint32_t word[4];
};

/// Ten rounds of Philox 4x32 on the counter (counter, stream) with the key `seed`.
CA_HOST_DEVICE inline RandomBlock random_block(uint64_t seed, RandomStream stream,
                                               uint64_t counter) {
  RandomBlock block{{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32),
                     static_cast<uint32_t>(stream), 0u}};
  uint32_t key0 = static_cast<uint32_t>(seed);
  uint32_t key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = 0xD2511F53ull * block.word[0];
    const uint64_t product1 = 0xCD9E8D57ull * block.word[2];
    block = {{static_cast<uint32_t>(product1 >> 32) ^ block.word[1] ^ key0,
              static_cast<uint32_t>(product1),
              static_cast<uint32_t>(product0 >> 32) ^ block.word[3] ^ key1,
              static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return block;
}

/// Uniform in [0, 1), 53 bits.
CA_HOST_DEVICE inline double random_uniform(uint64_t seed, RandomStream stream, uint64_t counter) {
  const RandomBlock block = random_block(seed, stream, counter);
  const uint64_t bits = (static_cast<uint64_t>(block.word[0]) << 32) | block.word[1];
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

/// Standard normal by Box and Muller, computed in double precision.
CA_HOST_DEVICE inline double random_normal(uint64_t seed, RandomStream stream, uint64_t counter) {
  const RandomBlock block = random_block(seed, stream, counter);
  const uint64_t high = (static_cast<uint64_t>(block.word[0]) << 32) | block.word[1];
  const uint64_t low = (static_cast<uint64_t>(block.word[2]) << 32) | block.word[3];
  const double radius_uniform = (static_cast<double>(high >> 11) + 1.0) * 0x1.0p-53;  // (0, 1]
  const double angle_uniform = static_cast<double>(low >> 11) * 0x1.0p-53;
  constexpr double kTwoPi = 6.283185307179586476925;
  return std::sqrt(-2.0 * std::log(radius_uniform)) * std::cos(kTwoPi * angle_uniform);
}

/// Image of `index` under a pseudo-random permutation of [0, length): distinct indices give
/// distinct positions, without a table. A four-round Feistel network on the next even number of
/// bits, walked until it lands inside.
CA_HOST_DEVICE inline int64_t random_position(uint64_t seed, RandomStream stream, int64_t length,
                                              int64_t index) {
  int half_bits = 1;
  while ((int64_t{1} << (2 * half_bits)) < length) ++half_bits;
  const uint64_t mask = (uint64_t{1} << half_bits) - 1;
  uint64_t position = static_cast<uint64_t>(index);
  do {
    uint64_t left = position >> half_bits;
    uint64_t right = position & mask;
    for (uint64_t round = 0; round < 4; ++round) {
      const RandomBlock block = random_block(seed, stream, (round << 60) | right);
      const uint64_t mixed = left ^ (block.word[0] & mask);
      left = right;
      right = mixed;
    }
    position = (left << half_bits) | right;
  } while (position >= static_cast<uint64_t>(length));
  return static_cast<int64_t>(position);
}

}  // namespace cluster_attention
