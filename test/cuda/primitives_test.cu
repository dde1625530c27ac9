// The pieces that kernels are made of, each by a kernel that does little else.

#include <cmath>

#include "cuda/launch.h"
#include "cuda/operand_tile.cuh"
#include "cuda/primitives/async_copy.cuh"
#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/integer_mma.cuh"
#include "cuda/primitives/mma.cuh"
#include "cuda/primitives/shared_memory.cuh"
#include "cuda/primitives/warp.cuh"
#include "native/core/order.h"
#include "native/core/random.h"
#include "native/core/softmax_state.h"
#include "test/cuda/device.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

namespace {

using namespace cluster_attention::cuda;

// ---- products ----

struct ProductParams {
  const float* a;  // (16,16)
  const float* b;  // (16,8)
  float* d;        // (16,8), added to
  int way;         // 0: one product, 1: by shuffles, 2: split in three
};

/// The operands go through shared memory and load_tiles, as in the kernels.
__global__ void product(const ProductParams params) {
  // a (16, 16) * b (16, 8) -> d (16, 8), one warp
  bfloat16* high_a = dynamic_shared<bfloat16>();
  bfloat16* low_a = high_a + 256;
  bfloat16* high_b = low_a + 256;
  bfloat16* low_b = high_b + 128;
  const int lane = lane_index();
  for (int i = lane; i < 256; i += kWarp) split_bfloat16(params.a[i], high_a[i], low_a[i]);
  for (int i = lane; i < 128; i += kWarp) split_bfloat16(params.b[i], high_b[i], low_b[i]);
  __syncwarp();
  uint32_t a[2][4];
  uint32_t b[4];
  const int row = lane % 8 + lane / 8 % 2 * 8;  // tiles (0,0), (8,0), (0,8), (8,8)
  load_tiles(a[0], high_a + row * 16 + lane / 16 * 8);
  load_tiles(a[1], low_a + row * 16 + lane / 16 * 8);
  // Tiles 0 and 1 are of the high part, 2 and 3 of the low one.
  load_tiles_transposed(b, (lane < 16 ? high_b : low_b) + lane % 16 * 8);
  const uint32_t high[2] = {b[0], b[1]};
  const uint32_t low[2] = {b[2], b[3]};
  float d[4];
  const int group = lane / 4;
  const int pair = lane % 4 * 2;
  for (int i = 0; i < 4; ++i) d[i] = params.d[(group + i / 2 * 8) * 8 + pair + i % 2];
  if (params.way == 0) mma_bf16_16x8x16(d, a[0], high);
  if (params.way == 1) mma_bf16_16x8x16_by_shuffles(d, a[0], high);
  if (params.way == 2) mma_split_16x8x16(d, a[0], a[1], high, low);
  for (int i = 0; i < 4; ++i) params.d[(group + i / 2 * 8) * 8 + pair + i % 2] = d[i];
}

TEST_ONCE("CUDA primitives: products of a warp") {
  for (int way : {0, 1, 2}) {
    const Scope scope("way " + std::to_string(way));
    Arrays arrays;
    float* a = arrays.floats(256, 1);
    float* b = arrays.floats(128, 2);
    float* d = arrays.output<float>(128);
    for (int i = 0; i < 128; ++i) d[i] = static_cast<float>(i % 5);
    if (way != 2) round_in_place({{a, 256}, {b, 128}});
    std::vector<double> expected(128);
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 8; ++j) {
        double sum = d[i * 8 + j];
        for (int k = 0; k < 16; ++k) sum += static_cast<double>(a[i * 16 + k]) * b[k * 8 + j];
        expected[static_cast<size_t>(i * 8 + j)] = sum;
      }
    }
    Device device;
    const ProductParams params{device.at(a, arrays), device.at(b, arrays), device.at(d, arrays),
                               way};
    CHECK_EQUAL(describe(launch(*device.session(), 1, 32, 768 * 2, product, params)), "ok");
    device.fetch(arrays);
    CHECK_CLOSE(read(d, 128), expected, way == 2 ? 1e-5 : 1e-6);
  }
}

struct TileSumsParams {
  const float* weights;  // (64,64)
  const float* values;   // (64,64)
  float* output;         // (64,64)
  float* transposed;     // (64,64)
  float* totals;         // (64)
  int times;
};

struct TwoTiles {
  OperandTile<true> weights;
  OperandTile<true> values;
};

/// Both kinds of sums over the same tiles again and again.
__global__ void sum_tiles(const TileSumsParams params) {
  // weights, values (64,64) -> times weights x values, times weights^T x values, and its totals
  TwoTiles& tiles = *dynamic_shared<TwoTiles>();
  for (int i = static_cast<int>(threadIdx.x); i < kTile * kTile; i += kTileThreads) {
    const int place = i / kTile * kTilePitch + i % kTile;
    split_bfloat16(params.weights[i], tiles.weights.high[place], tiles.weights.low[place]);
    split_bfloat16(params.values[i], tiles.values.high[place], tiles.values.low[place]);
  }
  __syncthreads();
  const TilePlace place;
  TileSums weights, output, transposed;
  FragmentD totals = {0.0f, 0.0f, 0.0f, 0.0f};
  clear(output);
  clear(transposed);
  for (int n = 0; n < kTileColumns; ++n) {
    for (int i = 0; i < 4; ++i) {
      weights[n][i] = params.weights[place.row(i / 2) * kTile + place.column(n, i % 2)];
    }
  }
  for (int i = 0; i < params.times; ++i) {
    add_values(output, weights, tiles.values, kTile);
    add_transposed(transposed, &totals, tiles.weights, tiles.values, kTile);
  }
  for (int half = 0; half < 2; ++half) {
    write_row(params.output + place.row(half) * kTile, kTile, output, half);
    write_row(params.transposed + place.row(half) * kTile, kTile, transposed, half);
    if (place.pair == 0) params.totals[place.row(half)] = totals[2 * half];
  }
}

TEST_ONCE("CUDA primitives: long sums of tiles have no bias") {
  constexpr int kTimes = 400;
  Arrays arrays;
  float* weights = arrays.floats(kTile * kTile, 1);
  float* values = arrays.floats(kTile * kTile, 2);
  // Of bfloat16 products are exact, so that what is seen is the error of the sums alone; of one
  // sign, since what is cut shows best there.
  round_in_place({{weights, kTile * kTile}, {values, kTile * kTile}});
  for (int i = 0; i < kTile * kTile; ++i) {
    weights[i] = std::abs(weights[i]);
    values[i] = std::abs(values[i]);
  }
  float* output = arrays.output<float>(kTile * kTile);
  float* transposed = arrays.output<float>(kTile * kTile);
  float* totals = arrays.output<float>(kTile);
  std::vector<double> expected(kTile * kTile), expected_transposed(kTile * kTile);
  std::vector<double> expected_totals(kTile);
  for (size_t i = 0; i < kTile; ++i) {
    for (size_t k = 0; k < kTile; ++k) {
      expected_totals[i] += kTimes * static_cast<double>(weights[k * kTile + i]);
      for (size_t j = 0; j < kTile; ++j) {
        const double value = kTimes * static_cast<double>(values[k * kTile + j]);
        expected[i * kTile + j] += weights[i * kTile + k] * value;
        expected_transposed[i * kTile + j] += weights[k * kTile + i] * value;
      }
    }
  }
  Device device;
  const TileSumsParams params{device.at(weights, arrays), device.at(values, arrays),
                              device.at(output, arrays),  device.at(transposed, arrays),
                              device.at(totals, arrays),  kTimes};
  CHECK_EQUAL(
      describe(launch(*device.session(), 1, kTileThreads, sizeof(TwoTiles), sum_tiles, params)),
      "ok");
  device.fetch(arrays);
  CHECK_CLOSE(read(output, kTile * kTile), expected, 5e-6);
  CHECK_CLOSE(read(transposed, kTile * kTile), expected_transposed, 5e-6);
  CHECK_CLOSE(read(totals, kTile), expected_totals, 5e-6);
}

struct ByteProductParams {
  const uint32_t* a;  // (16,32) bytes
  const uint32_t* b;  // (8,32) bytes: columns side by side
  int32_t* d;         // (16,8)
};

__global__ void byte_product(const ByteProductParams params) {
  // a (16, 32) * b (8, 32)^T -> d (16, 8), one warp
  const int group = lane_index() / 4;
  const int four = lane_index() % 4;
  uint32_t a[4];
  uint32_t b[2];
  int32_t d[4];
  for (int i = 0; i < 4; ++i) a[i] = params.a[(group + i % 2 * 8) * 8 + four + i / 2 * 4];
  for (int i = 0; i < 2; ++i) b[i] = params.b[group * 8 + four + i * 4];
  mma_u8_16x8x32(d, a, b);
  for (int i = 0; i < 4; ++i) params.d[(group + i / 2 * 8) * 8 + 2 * four + i % 2] = d[i];
}

TEST_ONCE("CUDA primitives: products of bytes") {
  Arrays arrays;
  const auto bytes = [&](int64_t count, uint64_t seed) {
    std::vector<int32_t> words(static_cast<size_t>(count / 4));
    Random random(seed);
    for (int32_t& word : words) word = static_cast<int32_t>(random.normal() * 1e9);
    return arrays.input(words);
  };
  int32_t* a = bytes(16 * 32, 1);
  int32_t* b = bytes(8 * 32, 2);
  auto* d = arrays.output<int32_t>(128);
  std::vector<int32_t> expected(128);
  for (int i = 0; i < 128; ++i) {
    for (int k = 0; k < 32; ++k) {
      expected[static_cast<size_t>(i)] += reinterpret_cast<const uint8_t*>(a)[i / 8 * 32 + k] *
                                          reinterpret_cast<const uint8_t*>(b)[i % 8 * 32 + k];
    }
  }
  Device device;
  const ByteProductParams params{reinterpret_cast<uint32_t*>(device.at(a, arrays)),
                                 reinterpret_cast<uint32_t*>(device.at(b, arrays)),
                                 device.at(d, arrays)};
  CHECK_EQUAL(describe(launch(*device.session(), 1, 32, 0, byte_product, params)), "ok");
  device.fetch(arrays);
  CHECK_SAME(std::vector<int32_t>(d, d + 128), expected);
}

TEST_ONCE("CUDA primitives: a value is split in two bfloat16") {
  double worst = 0.0;
  Random random(3);
  for (int i = 0; i < 100000; ++i) {
    const float value = static_cast<float>(random.normal());
    bfloat16 high;
    bfloat16 low;
    split_bfloat16(value, high, low);
    const double rest = value - static_cast<double>(cuda::to_float(high)) - cuda::to_float(low);
    worst = std::max(worst, std::abs(rest / value));
  }
  CHECK(worst < 0x1p-17 && worst > 0x1p-19);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (float value : {kInfinity, -kInfinity, 3.4e38f}) {
    bfloat16 high;
    bfloat16 low;
    split_bfloat16(value, high, low);
    CHECK(std::isinf(cuda::to_float(high)));
    CHECK_EQUAL(cuda::to_float(low), 0.0f);
  }
  CHECK(std::isnan(cuda::round_to_bfloat16(std::numeric_limits<float>::quiet_NaN())));
  for (int i = 0; i < 100000; ++i) {
    const float value = static_cast<float>(random.normal());
    CHECK_EQUAL(cuda::round_to_bfloat16(value), test::round_to_bfloat16(value));
  }
}

// ---- warps and blocks ----

struct ReduceParams {
  const int32_t* values;
  int32_t* sums;      // (blocks)
  int32_t* before;    // (blocks * threads)
  int32_t* most;      // (blocks)
  uint32_t* tickets;  // (1)
  int64_t* total;     // (1), by the last block
};

__global__ void reduce(const ReduceParams params) {
  // values (blocks, threads) -> sums (blocks), before (blocks, threads), most (blocks), total ()
  int32_t* scratch = dynamic_shared<int32_t>();
  const int64_t place = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int32_t value = params.values[place];
  const int32_t sum = block_sum(value, scratch);
  int32_t total = 0;
  params.before[place] = block_exclusive_sum(value, scratch, &total);
  const int32_t most = block_reduce(
      value, [](int32_t a, int32_t b) { return a > b ? a : b; }, scratch);
  if (threadIdx.x == 0) {
    params.sums[blockIdx.x] = sum == total ? sum : -1;
    params.most[blockIdx.x] = most;
  }
  auto* word = reinterpret_cast<uint32_t*>(scratch);
  if (!last_block_done(params.tickets, gridDim.x, word)) return;
  if (threadIdx.x != 0) return;
  int64_t all = 0;
  for (unsigned block = 0; block < gridDim.x; ++block) all += params.sums[block];
  *params.total = all;
}

TEST_ONCE("CUDA primitives: sums of a block, and the last block of a grid") {
  in_every_thread_order([] {
    constexpr int kBlocks = 5;
    constexpr int kThreads = 96;
    Arrays arrays;
    int32_t* values = arrays.input(random_indices(kBlocks * kThreads, -50, 50, 4));
    auto* sums = arrays.output<int32_t>(kBlocks);
    auto* before = arrays.output<int32_t>(kBlocks * kThreads);
    auto* most = arrays.output<int32_t>(kBlocks);
    auto* total = arrays.output<int64_t>(1);
    Device device;
    ReduceParams params{device.at(values, arrays),
                        device.at(sums, arrays),
                        device.at(before, arrays),
                        device.at(most, arrays),
                        nullptr,
                        device.at(total, arrays)};
    CHECK(device.session()->tickets(1, &params.tickets).ok());
    for (int round = 0; round < 2; ++round) {  // the ticket is 0 again afterwards
      arrays.poison();
      CHECK_EQUAL(describe(launch(*device.session(), kBlocks, kThreads, 32 * 4, reduce, params)),
                  "ok");
      device.fetch(arrays);
      int64_t all = 0;
      for (int b = 0; b < kBlocks; ++b) {
        int32_t sum = 0;
        int32_t largest = values[b * kThreads];
        for (int i = b * kThreads; i < (b + 1) * kThreads; ++i) {
          CHECK_EQUAL(before[i], sum);
          sum += values[i];
          largest = std::max(largest, values[i]);
        }
        CHECK_EQUAL(sums[b], sum);
        CHECK_EQUAL(most[b], largest);
        all += sum;
      }
      CHECK_EQUAL(*total, all);
    }
  });
}

// ---- copies, flags, native/core on the device ----

struct CopyParams {
  const float* from;  // (32 * 4)
  float* to;          // (2, 32 * 4)
};

__global__ void copy_twice(const CopyParams params) {
  // from (128) -> to (2, 128): the first half through one buffer, zeros where copies are masked
  float* buffer = dynamic_shared<float>();
  const int lane = lane_index();
  copy_async_16(buffer + lane * 4, params.from + lane * 4, true);
  commit_copies();
  copy_async_16(buffer + 128 + lane * 4, params.from + lane * 4, lane % 2 == 0);
  commit_copies();
  wait_copies<1>();
  __syncwarp();
  for (int i = lane; i < 128; i += kWarp) params.to[i] = buffer[i];
  wait_copies<0>();
  __syncwarp();
  for (int i = lane; i < 128; i += kWarp) params.to[128 + i] = buffer[128 + i];
}

TEST_ONCE("CUDA primitives: asynchronous copies") {
  in_every_thread_order([] {
    Arrays arrays;
    float* from = arrays.floats(128, 5);
    float* to = arrays.output<float>(256);
    Device device;
    const CopyParams params{device.at(from, arrays), device.at(to, arrays)};
    CHECK_EQUAL(describe(launch(*device.session(), 1, 32, 1024, copy_twice, params)), "ok");
    device.fetch(arrays);
    for (int i = 0; i < 128; ++i) {
      CHECK_EQUAL(to[i], from[i]);
      CHECK_EQUAL(to[128 + i], i / 4 % 2 == 0 ? from[i] : 0.0f);
    }
  });
}

struct CoreParams {
  Flags* flags;
  const float* values;  // (32)
  uint64_t* candidates;
  double* random;
  float* softmax;
  int what;
};

__global__ void use_core(const CoreParams params) {
  const int lane = lane_index();
  params.candidates[lane] = make_candidate(params.values[lane], lane);
  params.random[lane] =
      random_uniform(7, RandomStream::plus_plus, static_cast<uint64_t>(lane)) +
      static_cast<double>(random_position(7, RandomStream::start_positions, 1000, lane));
  SoftmaxState state;
  for (int i = 0; i <= lane; ++i) state.merge(SoftmaxState{params.values[i], 1.0f});
  params.softmax[lane] = state.logsumexp();
  if (params.what == 1 && lane == 3) mark_non_finite(params.flags);
  if (params.what == 2) {
    mark_fault(params.flags, IndexFault::out_of_range, IndexArgument::indices, 100 - lane);
  }
  if (params.what == 3) {
    mark_fault(params.flags, IndexFault::out_of_range, IndexArgument::indices, 5);
    mark_fault(params.flags, IndexFault::duplicate, IndexArgument::labels, (1ll << 40) + lane);
  }
}

TEST_ONCE("CUDA primitives: native/core on the device, and what kernels report") {
  Arrays arrays;
  float* values = arrays.floats(32, 6);
  auto* candidates = arrays.output<uint64_t>(32);
  auto* random = arrays.output<double>(32);
  auto* softmax = arrays.output<float>(32);
  Device device;
  CoreParams params{device.session()->flags(),     device.at(values, arrays),
                    device.at(candidates, arrays), device.at(random, arrays),
                    device.at(softmax, arrays),    0};
  const std::string expected[] = {"ok", "ok", "out_of_range indices[69]",
                                  "duplicate labels[1099511627776]", "ok"};
  for (int what = 0; what < 5; ++what) {
    const Scope scope("case " + std::to_string(what));
    params.what = what;
    CHECK_EQUAL(describe(launch(*device.session(), 1, 32, 0, use_core, params)), "ok");
    bool non_finite = false;
    CHECK_EQUAL(describe(device.backend().finish(device.session(), &non_finite)), expected[what]);
    CHECK_EQUAL(non_finite, what == 1);
  }
  device.fetch(arrays);
  SoftmaxState state;
  for (int i = 0; i < 32; ++i) {
    CHECK_EQUAL(candidates[i], make_candidate(values[i], i));
    CHECK_EQUAL(random[i], random_uniform(7, RandomStream::plus_plus, static_cast<uint64_t>(i)) +
                               static_cast<double>(
                                   random_position(7, RandomStream::start_positions, 1000, i)));
    state.merge(SoftmaxState{values[i], 1.0f});
    CHECK(std::abs(softmax[i] - state.logsumexp()) < 1e-5f);
  }
}

}  // namespace

}  // namespace cluster_attention::test
