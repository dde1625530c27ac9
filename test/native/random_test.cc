#include "native/core/random.h"

#include <algorithm>
#include <array>
#include <vector>

#include "test/native/compare.h"
#include "test/native/data.h"

namespace cluster_attention::test {

namespace {

using Words = std::array<uint32_t, 4>;

/// Philox 4x32-10 with all of counter and key free, written from the paper.
Words philox(Words counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key0, static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key1, static_cast<uint32_t>(a)};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return counter;
}

TEST_ONCE("random: the known answers of the Random123 distribution") {
  CHECK((philox({0, 0, 0, 0}, 0, 0) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  CHECK((philox({~0u, ~0u, ~0u, ~0u}, ~0u, ~0u) ==
         Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  CHECK((philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0) ==
         Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST_ONCE("random: a block is Philox of (counter, stream) under the seed") {
  Random random(1);
  for (int i = 0; i < 1000; ++i) {
    const uint64_t seed = i == 0 ? 0 : random.bits();
    const uint64_t counter = i == 0 ? 0 : random.bits();
    const uint32_t stream = static_cast<uint32_t>(i % 5);
    const RandomBlock block = random_block(seed, static_cast<RandomStream>(stream), counter);
    const Words expected =
        philox({static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), stream, 0},
               static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
    CHECK(std::equal(expected.begin(), expected.end(), block.word));
  }
}

TEST_ONCE("random: uniform draws lie in [0, 1) and are spread evenly") {
  constexpr int kDraws = 20000;
  std::vector<int> bins(10, 0);
  for (uint64_t i = 0; i < kDraws; ++i) {
    const double u = random_uniform(7, RandomStream::plus_plus, i);
    CHECK(u >= 0.0 && u < 1.0);
    ++bins[static_cast<size_t>(u * 10.0)];
  }
  for (int count : bins) CHECK(std::abs(count - kDraws / 10) < 250);  // 6 standard deviations
}

TEST_ONCE("random: normal draws have the moments of N(0,1)") {
  constexpr int kDraws = 20000;
  double sum = 0.0, squares = 0.0, fourth = 0.0;
  for (uint64_t i = 0; i < kDraws; ++i) {
    const double z = random_normal(7, RandomStream::hash_planes, i);
    sum += z;
    squares += z * z;
    fourth += z * z * z * z;
  }
  CHECK(std::abs(sum / kDraws) < 0.04);
  CHECK(std::abs(squares / kDraws - 1.0) < 0.06);
  CHECK(std::abs(fourth / kDraws - 3.0) < 0.4);
}

TEST_ONCE("random: positions are a permutation of every length") {
  for (int64_t length : {1, 2, 3, 4, 5, 16, 17, 61, 64, 65, 509, 1024}) {
    for (uint64_t seed : {0, 1, 99}) {
      std::vector<bool> seen(length, false);
      for (int64_t i = 0; i < length; ++i) {
        const int64_t p = random_position(seed, RandomStream::start_positions, length, i);
        CHECK(p >= 0 && p < length && !seen[p]);
        seen[p] = true;
      }
    }
  }
}

TEST_ONCE("random: seeds and streams draw differently") {
  const auto first = [](uint64_t seed, RandomStream stream) {
    return random_block(seed, stream, 0).word[0];
  };
  CHECK(first(0, RandomStream::hash_planes) != first(1, RandomStream::hash_planes));
  CHECK(first(0, RandomStream::hash_planes) != first(uint64_t{1} << 32, RandomStream::hash_planes));
  CHECK(first(0, RandomStream::hash_planes) != first(0, RandomStream::hash_thresholds));
}

}  // namespace

}  // namespace cluster_attention::test
