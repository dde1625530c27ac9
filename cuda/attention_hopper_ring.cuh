#pragma once

// Of exact attention on Hopper (attention_hopper.cuh): the ring of key and value tiles in shared
// memory, and the warpgroup that fills it.

#include "cuda/attention.cuh"
#include "cuda/primitives/wgmma.cuh"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

constexpr int kWarpgroup = 4 * kWarp;
constexpr int kConsumerRows = 64;

template <int kWidth, bool kSplit>
struct HopperSizes {
  static_assert(kWidth == 64 || kWidth == 128, "one or two panels of 64 columns");
  static constexpr int kPanels = kWidth / kSwizzledColumns;
  static constexpr int kParts = kSplit ? 2 : 1;
  static constexpr int kKeys = kSplit ? 64 : 128;
  static constexpr bool kWide = kWidth == 128;
  static constexpr int kMostConsumers = kWide ? 2 : 3;
  static constexpr int kStages = !kWide ? 4 : kSplit ? 2 : 3;
  // Together what 65,536 registers give to a block of all its warpgroups, by eights: two consumers
  // of 240 leave 24, and some of a producer's addresses in memory.
  static constexpr int kConsumerRegisters = !kWide ? 160 : kSplit ? 240 : 232;
  static constexpr int kProducerRegisters = !kWide ? 32 : kSplit ? 24 : 40;
  static constexpr int kMostThreads = (kMostConsumers + 1) * kWarpgroup;

  // In elements. A tile is (kPanels, rows, 64), swizzled.
  static constexpr int kQueryTile = kPanels * kConsumerRows * kSwizzledColumns;
  static constexpr int kKeyTile = kPanels * kKeys * kSwizzledColumns;
  static constexpr int kStage = 2 * kParts * kKeyTile;  // keys (kParts), values (kParts)

  /// Ring, queries (consumers, kParts), barriers, and what aligning the begin may take.
  CA_HOST_DEVICE static int64_t bytes(int consumers) {
    return int64_t{2} * (kStages * kStage + consumers * kParts * kQueryTile) +
           2 * kStages * int64_t{sizeof(uint64_t)} + 1024;
  }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(CA_CUDA_MODEL)

/// Shared memory of a block and its barriers.
template <int kWidth, bool kSplit>
struct HopperRing {
  using Sizes = HopperSizes<kWidth, kSplit>;

  bfloat16* stages;
  bfloat16* queries;
  uint64_t* full;   // the tiles of a stage have arrived
  uint64_t* empty;  // every consumer is done with them

  __device__ explicit HopperRing(int consumers) {
    unsigned char* begin = dynamic_shared<unsigned char>();
    begin += (1024 - shared_address(begin) % 1024) % 1024;
    stages = reinterpret_cast<bfloat16*>(begin);
    queries = stages + Sizes::kStages * Sizes::kStage;
    full = reinterpret_cast<uint64_t*>(queries + consumers * Sizes::kParts * Sizes::kQueryTile);
    empty = full + Sizes::kStages;
    if (threadIdx.x == 0) {
      for (int i = 0; i < Sizes::kStages; ++i) {
        initialize_barrier(full + i, kWarpgroup);
        initialize_barrier(empty + i, consumers * kWarpgroup / kWarp);
      }
      publish_to_tensor_cores();
    }
    __syncthreads();
  }

  __device__ bfloat16* keys(int64_t block, int part) const {
    return stages + block % Sizes::kStages * Sizes::kStage + part * Sizes::kKeyTile;
  }
  __device__ bfloat16* values(int64_t block, int part) const {
    return keys(block, Sizes::kParts + part);
  }
  __device__ static uint32_t parity(int64_t block) {
    return static_cast<uint32_t>(block / Sizes::kStages % 2);
  }
};

/// The warpgroup that fetches keys and values.
template <int kWidth, bool kSplit>
class HopperProducer {
 public:
  using Sizes = HopperSizes<kWidth, kSplit>;

  __device__ HopperProducer(const AttentionParams& params, const TileTask& task,
                            const HopperRing<kWidth, kSplit>& ring)
      : params_(params),
        task_(task),
        ring_(ring),
        thread_(static_cast<int>(threadIdx.x) % kWarpgroup) {}

  __device__ void run() {
    // Consumers give a block back once they have the next one: of two stages the one must be
    // announced before the other is waited for.
    constexpr int kInFlight = Sizes::kStages > 2 ? 1 : 0;
    const int64_t blocks = divide_up(task_.end_key, Sizes::kKeys);
    for (int64_t block = 0; block < blocks; ++block) {
      wait_for(ring_.empty + block % Sizes::kStages, ring_.parity(block) ^ 1);
      copy_block(block);
      commit_copies();
      wait_copies<kInFlight>();
      if (block >= kInFlight) announce(block - kInFlight);
    }
    wait_copies<0>();
    if (kInFlight > 0 && blocks > 0) announce(blocks - 1);
    check_keys();
  }

 private:
  __device__ void announce(int64_t block) {
    publish_to_tensor_cores();
    arrive(ring_.full + block % Sizes::kStages);
  }

  __device__ void copy_block(int64_t block) {
    const KeysAndValues& operands = params_.operands;
    copy_tensor(operands.key, operands.key.high, block, ring_.keys(block, 0));
    copy_tensor(operands.value, operands.value.high, block, ring_.values(block, 0));
    if constexpr (kSplit) {
      copy_tensor(operands.key, operands.key.low, block, ring_.keys(block, 1));
      copy_tensor(operands.value, operands.value.low, block, ring_.values(block, 1));
    }
  }

  /// Zeros for rows past the end, columns that there are not, and a part that is null.
  __device__ void copy_tensor(const Operand& operand, const bfloat16* part, int64_t block,
                              bfloat16* to) {
    constexpr int kChunks = 8;  // of a row of a panel
    constexpr int kRowStep = kWarpgroup / kChunks;
    static_assert(kRowStep % 8 == 0, "a thread's rows are swizzled alike");
    const int chunk = thread_ % kChunks;
    const int row = thread_ / kChunks;
    const int64_t first = block * Sizes::kKeys;
    const bfloat16* sequence = operand.high;
    if (part != nullptr) sequence = part;
    sequence += task_.batch * operand.batch_stride + task_.head * operand.head_stride;
#pragma unroll
    for (int panel = 0; panel < Sizes::kPanels; ++panel) {
      const int column = panel * kSwizzledColumns + chunk * 8;
      const bool wanted = part != nullptr && column < operand.columns;
      const bfloat16* from = sequence + (first + row) * operand.row_stride + column;
      bfloat16* place = to + panel * Sizes::kKeys * kSwizzledColumns + swizzled(row, chunk);
#pragma unroll
      for (int i = 0; i < Sizes::kKeys / kRowStep; ++i) {
        const bool valid = wanted && first + row + i * kRowStep < task_.end_key;
        copy_async_16(place + i * kRowStep * kSwizzledColumns, valid ? from : operand.high, valid);
        from += kRowStep * operand.row_stride;
      }
    }
  }

  /// An Inf among the keys may leave no trace in any output (a score of -Inf): each block looks at
  /// its share of the keys.
  __device__ void check_keys() {
    if (task_.queries == 0) return;
    const Operand& operand = params_.operands.key;
    const int64_t keys = real_length(params_.key_lengths, task_.batch, params_.key_length);
    const int64_t share = divide_up(keys, params_.tiles);
    const int64_t first = blockIdx.x % params_.tiles * share;
    const int64_t end = first + share < keys ? first + share : keys;
    const int chunks = operand.columns / 8;
    const bfloat16* sequence =
        operand.high + task_.batch * operand.batch_stride + task_.head * operand.head_stride;
    bool bad = false;
    for (int64_t i = thread_; i < (end - first) * chunks; i += kWarpgroup) {
      const uint4 words = *reinterpret_cast<const uint4*>(
          sequence + (first + i / chunks) * operand.row_stride + i % chunks * 8);
      for (uint32_t word : {words.x, words.y, words.z, words.w}) {
        bad = bad || (word & 0x7f80u) == 0x7f80u || (word & 0x7f800000u) == 0x7f800000u;
      }
    }
    if (bad) mark_non_finite(params_.flags);
  }

  const AttentionParams& params_;
  const TileTask& task_;
  const HopperRing<kWidth, kSplit>& ring_;
  const int thread_;
};

#endif  // sm_90a

}  // namespace cluster_attention::cuda
