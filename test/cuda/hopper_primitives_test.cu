// The pieces of kernels that Hopper adds: products of warpgroups, and what the blocks of a cluster
// send each other.

#include "cuda/cluster_limits.h"
#include "cuda/launch.h"
#include "cuda/primitives/delivery.cuh"
#include "cuda/primitives/shared_memory.cuh"
#include "cuda/primitives/warp.cuh"
#include "cuda/primitives/wgmma.cuh"
#include "native/core/random.h"
#include "test/cuda/device.h"
#include "test/native/compare.h"
#include "test/native/data.h"

namespace cluster_attention::test {

namespace {

using namespace cluster_attention::cuda;

struct WarpgroupProductParams {
  const uint32_t* a;  // (64,64) bytes
  const uint32_t* b;  // (64,64) bytes: columns side by side
  int32_t* d;         // (64,64)
};

__global__ void warpgroup_byte_product(const WarpgroupProductParams params) {
  // a (64, 64) * b (64, 64)^T -> d (64, 64), one warpgroup: in two steps, the second half of a row
  // of a tile
#if CA_HAS_WARPGROUP_PRODUCTS
  constexpr int kSteps = 2;
  auto* tile = dynamic_shared<uint4>();
  tile += (1024 - shared_address(tile) % 1024) % 1024 / sizeof(uint4);
  const auto* b = reinterpret_cast<const uint4*>(params.b);
  for (int i = threadIdx.x; i < 256; i += kWarpgroup) {
    tile[swizzled(i / 4, 4 + i % 4) / 8] = b[i];
  }
  publish_to_tensor_cores();
  __syncthreads();
  const int row = warp_index() * 16 + lane_index() / 4;
  const int four = lane_index() % 4;
  uint32_t a[kSteps][4];
  int32_t d[32];
  for (int step = 0; step < kSteps; ++step) {
    for (int i = 0; i < 4; ++i) {
      a[step][i] = params.a[(row + i % 2 * 8) * 16 + step * 8 + four + i / 2 * 4];
    }
    hold(a[step]);
  }
  begin_products();
  for (int step = 0; step < kSteps; ++step) {
    multiply_bytes(d, a[step], describe_tile(locate_tile(tile), 64 + 32 * step), step > 0);
  }
  commit_products();
  wait_products<0>();
  hold(d);
  for (int i = 0; i < 32; ++i) {
    params.d[(row + i / 2 % 2 * 8) * 64 + i / 4 * 8 + 2 * four + i % 2] = d[i];
  }
#endif
}

TEST_ONCE("CUDA primitives: products of bytes by a warpgroup, the first without sign") {
  constexpr int64_t kSize = 64;
  Arrays arrays;
  Device device;
  if (!device.session()->has_warpgroup_products()) return;  // there is no such product
  const auto bytes = [&](uint64_t seed) {
    std::vector<int32_t> words(kSize * kSize / 4);
    Random random(seed);
    for (int32_t& word : words) word = static_cast<int32_t>(random.normal() * 1e9);
    return arrays.input(words);
  };
  int32_t* a = bytes(1);
  int32_t* b = bytes(2);
  auto* d = arrays.output<int32_t>(kSize * kSize);
  std::vector<int32_t> expected(kSize * kSize);
  for (int64_t i = 0; i < kSize * kSize; ++i) {
    for (int64_t k = 0; k < kSize; ++k) {
      expected[static_cast<size_t>(i)] +=
          reinterpret_cast<const uint8_t*>(a)[i / kSize * kSize + k] *
          reinterpret_cast<const int8_t*>(b)[i % kSize * kSize + k];
    }
  }
  const WarpgroupProductParams params{reinterpret_cast<uint32_t*>(device.at(a, arrays)),
                                      reinterpret_cast<uint32_t*>(device.at(b, arrays)),
                                      device.at(d, arrays)};
  constexpr int64_t kBytes = 64 * 128 + 1024;
  CHECK_EQUAL(
      describe(launch(*device.session(), 1, kWarpgroup, kBytes, warpgroup_byte_product, params)),
      "ok");
  device.fetch(arrays);
  CHECK_SAME(std::vector<int32_t>(d, d + kSize * kSize), expected);
}

struct DeliveryParams {
  int blocks;  // of a cluster
  int rounds;
  int32_t* wrong;  // (1), added to
};

/// What block `rank` sends in a round; no two are the same.
__device__ uint32_t parcel(int round, int rank) { return 100u * round + rank + 1u; }

__global__ void deliver_rounds(const DeliveryParams params) {
  // every block sends three sizes of words to all, round by round; all must be there after the wait
  struct Mail {
    uint4 sixteen[kMostClusterBlocks];
    uint64_t eight[kMostClusterBlocks];
    uint32_t four[kMostClusterBlocks];
  };
  auto* mails = dynamic_shared<Mail>();  // of rounds even and odd
  const Delivery delivery(reinterpret_cast<uint64_t*>(mails + 2), params.blocks);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) delivery.open();
  sync_cluster();
  for (int round = 0; round < params.rounds; ++round) {
    Mail& mail = mails[round % 2];
    __syncthreads();  // all have read what came two rounds before
    if (thread == 0) delivery.expect(round, params.blocks * (16 + 8 + 4));
    const int own = cluster_rank();
    const uint32_t word = parcel(round, own);
    if (thread < params.blocks) {
      delivery.send(round, &mail.four[own], thread, word);
      delivery.send(round, &mail.eight[own], thread, uint64_t{word} << 32 | word);
      delivery.send(round, &mail.sixteen[own], thread, make_uint4(word, ~word, word, ~word));
    }
    delivery.wait(round);
    for (int rank = 0; rank < params.blocks; ++rank) {
      const uint32_t expected = parcel(round, rank);
      const uint4 sixteen = mail.sixteen[rank];
      const bool right = mail.four[rank] == expected &&
                         mail.eight[rank] == (uint64_t{expected} << 32 | expected) &&
                         sixteen.x == expected && sixteen.y == ~expected && sixteen.z == expected &&
                         sixteen.w == ~expected;
      if (!right) atomicAdd(params.wrong, 1);
    }
  }
  sync_cluster();
}

TEST_ONCE("CUDA primitives: deliveries between blocks, in many orders of threads") {
  constexpr int64_t kThreads = 64;
  constexpr int64_t kBytes = 2 * kMostClusterBlocks * (16 + 8 + 4) + 2 * sizeof(uint64_t);
  for (uint64_t seed = 0; seed < 12; ++seed) {
    set_thread_order(seed);
    for (int blocks : {1, 2, 5, 8}) {
      const Scope scope(std::to_string(blocks) + " blocks, thread order " + std::to_string(seed));
      Arrays arrays;
      auto* wrong = arrays.output<int32_t>(1);
      *wrong = 0;
      Device device;
      cuda::Session& session = *device.session();
      if (blocks > 1 && session.capability() < 90) continue;  // clusters are of one block
      const DeliveryParams params{blocks, 7, device.at(wrong, arrays)};
      const LaunchShape shape{2 * blocks, kThreads, kBytes, blocks};
      CHECK_EQUAL(describe(launch(session, shape, deliver_rounds, params)), "ok");
      device.fetch(arrays);
      CHECK_EQUAL(*wrong, 0);
    }
  }
  set_thread_order(0);
}

}  // namespace

}  // namespace cluster_attention::test
