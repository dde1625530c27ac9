#pragma once

// Of exact attention on Hopper (attention_hopper.cuh): the ring of key and value tiles in shared
// memory, and the warpgroup that fills it.

#include "cuda/attention.cuh"
#include "cuda/primitives/wgmma.cuh"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

constexpr int kConsumerRows = 64;

template <int kWidth, bool kSplit>
struct HopperSizes {
  static_assert(kWidth == 64 || kWidth == 128, "one or two panels of 64 columns");
  static constexpr int kPanels = kWidth / kSwizzledColumns;
  static constexpr int kParts = kSplit ? 2 : 1;
  static constexpr int kKeys = kSplit ? 64 : 128;
  static constexpr bool kWide = kWidth == 128;
  static constexpr int kMostConsumers = kWide ? 2 : 3;
  static constexpr int kSlots = !kWide ? 8 : kSplit ? 5 : 6;
  // Together what 65,536 registers give to a block of all its warpgroups, by eights.
  static constexpr int kConsumerRegisters = !kWide ? 160 : kSplit ? 240 : 232;
  static constexpr int kProducerRegisters = !kWide ? 32 : kSplit ? 24 : 40;
  static constexpr int kMostThreads = (kMostConsumers + 1) * kWarpgroup;

  // In elements. A tile is (kPanels, rows, 64), swizzled.
  static constexpr int kQueryTile = kPanels * kConsumerRows * kSwizzledColumns;
  static constexpr int kTile = kPanels * kKeys * kSwizzledColumns;  // of keys or values
  static constexpr int kSlot = kParts * kTile;

  /// Ring, queries (consumers, kParts), barriers, and what aligning the begin may take.
  CA_HOST_DEVICE static int64_t bytes(int consumers) {
    return int64_t{2} * (kSlots * kSlot + consumers * kParts * kQueryTile) +
           2 * kSlots * int64_t{sizeof(uint64_t)} + 1024;
  }
};

#if CA_HAS_WARPGROUP_PRODUCTS

/// Shared memory of a block and its barriers. Keys and values pass through the slots in the order
/// in which they are used: the keys of block 0; those of block i and the values of block i - 1, for
/// i = 1, 2, ...; the values of the last block.
template <int kWidth, bool kSplit>
struct HopperRing {
  using Sizes = HopperSizes<kWidth, kSplit>;

  bfloat16* slots;
  bfloat16* queries;
  uint64_t* full;   // what is in a slot has arrived
  uint64_t* empty;  // every consumer is done with it

  __device__ explicit HopperRing(int consumers) {
    unsigned char* begin = dynamic_shared<unsigned char>();
    begin += (1024 - shared_address(begin) % 1024) % 1024;
    slots = reinterpret_cast<bfloat16*>(begin);
    queries = slots + Sizes::kSlots * Sizes::kSlot;
    full = reinterpret_cast<uint64_t*>(queries + consumers * Sizes::kParts * Sizes::kQueryTile);
    empty = full + Sizes::kSlots;
    if (threadIdx.x == 0) {
      for (int i = 0; i < Sizes::kSlots; ++i) {
        initialize_barrier(full + i, kWarpgroup);
        initialize_barrier(empty + i, consumers * kWarpgroup / kWarp);
      }
      publish_to_tensor_cores();
    }
    __syncthreads();
  }
};

/// Goes round the slots of a ring.
template <int kSlots>
struct RingCursor {
  int slot = 0;
  uint32_t parity = 0;  // of the phase of its barriers

  __device__ void advance() {
    ++slot;
    if (slot == kSlots) {
      slot = 0;
      parity ^= 1;
    }
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
    const KeysAndValues& operands = params_.operands;
    const int64_t blocks = divide_up(task_.end_key, Sizes::kKeys);
    Source keys = source(operands.key);
    Source values = source(operands.value);
    // Once the ring is full, there is time for something else.
    const int64_t pause = blocks < Sizes::kSlots / 2 ? blocks : Sizes::kSlots / 2;
    for (int64_t block = 0; block <= blocks; ++block) {
      if (block < blocks) fill(operands.key, keys, block);
      if (block > 0) fill(operands.value, values, block - 1);
      if (block == pause || block == blocks) announce_all();
      if (block == pause) check_keys();
    }
  }

 private:
  static constexpr int kChunks = 8;  // of a row of a panel
  static constexpr int kRowStep = kWarpgroup / kChunks;
  // Slots on their way. Consumers give a slot back once they have the next but one: it must have
  // been announced before this warpgroup waits for the slot.
  static constexpr int kInFlight = 3;
  static_assert(kInFlight + 2 <= Sizes::kSlots, "else both wait");

  /// What a thread copies: its chunk of its row of the next block, in both parts.
  struct Source {
    const bfloat16* part[Sizes::kParts];
  };

  __device__ Source source(const Operand& operand) const {
    const bfloat16* parts[2] = {operand.high, operand.low};
    const int64_t offset = task_.batch * operand.batch_stride + task_.head * operand.head_stride +
                           thread_ / kChunks * operand.row_stride + thread_ % kChunks * 8;
    Source result;
    for (int i = 0; i < Sizes::kParts; ++i) {
      result.part[i] = (parts[i] != nullptr ? parts[i] : operand.high) + offset;
    }
    return result;
  }

  __device__ void fill(const Operand& operand, Source& source, int64_t block) {
    wait_for(ring_.empty + filling_.slot, filling_.parity ^ 1);
    const int64_t rows = task_.end_key - block * Sizes::kKeys;
    bfloat16* to = ring_.slots + filling_.slot * Sizes::kSlot;
#pragma unroll
    for (int part = 0; part < Sizes::kParts; ++part) {
      const bool present = part == 0 || operand.low != nullptr;
      const int columns = present ? operand.columns : 0;
      if (rows >= Sizes::kKeys) {
        copy_tile<true>(source.part[part], operand.row_stride, columns, Sizes::kKeys, to);
      } else {
        copy_tile<false>(source.part[part], operand.row_stride, columns, static_cast<int>(rows),
                         to);
      }
      source.part[part] += Sizes::kKeys * operand.row_stride;
      to += Sizes::kTile;
    }
    commit_copies();
    filling_.advance();
    wait_copies<kInFlight>();
    if (unannounced_ == kInFlight) {
      announce();
    } else {
      ++unannounced_;
    }
  }

  __device__ void announce_all() {
    wait_copies<0>();
    for (; unannounced_ > 0; --unannounced_) announce();
  }
  __device__ void announce() {
    publish_to_tensor_cores();
    arrive(ring_.full + announcing_.slot);
    announcing_.advance();
  }

  /// Zeros for rows and columns that there are not. With kWhole, all rows are there.
  template <bool kWhole>
  __device__ void copy_tile(const bfloat16* from, int64_t row_stride, int columns, int rows,
                            bfloat16* to) const {
    static_assert(kRowStep % 8 == 0, "a thread's rows are swizzled alike");
    const int chunk = thread_ % kChunks;
    const int row = thread_ / kChunks;
    bfloat16* place = to + swizzled(row, chunk);
#pragma unroll
    for (int i = 0; i < Sizes::kKeys / kRowStep; ++i) {
#pragma unroll
      for (int panel = 0; panel < Sizes::kPanels; ++panel) {
        const int column = panel * kSwizzledColumns;
        const bool valid = column + chunk * 8 < columns && (kWhole || row + i * kRowStep < rows);
        copy_async_16(place + (panel * Sizes::kKeys + i * kRowStep) * kSwizzledColumns,
                      from + column, valid);
      }
      from += kRowStep * row_stride;
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
#pragma unroll 1
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
  RingCursor<Sizes::kSlots> filling_;
  RingCursor<Sizes::kSlots> announcing_;
  int unannounced_ = 0;  // slots filled but not announced
};

#endif  // sm_90a

}  // namespace cluster_attention::cuda
