#pragma once

// Of the backward of exact attention on Hopper (attention_gradient_hopper.cuh): what a block works
// on, the ring of tiles in shared memory that its rows meet, and the warpgroup that fills it.

#include "cuda/attention_hopper_ring.cuh"
#include "cuda/gradient_pass.cuh"

namespace cluster_attention::cuda {

template <int kWidth>
struct GradientRingSizes {
  static_assert(kWidth == 64 || kWidth == 128, "one or two panels of 64 columns");
  static constexpr int kRows = 64;  // of a tile, and of a consumer
  static constexpr int kPanels = kWidth / kSwizzledColumns;
  static constexpr int kPanel = kRows * kSwizzledColumns;
  // In elements. A tile is (kPanels, kRows, 64), swizzled.
  static constexpr int kTile = kPanels * kPanel;
  static constexpr bool kOwnInRegisters = kWidth == 64;  // else in shared memory
  static constexpr int kMostConsumers = 2;
  static constexpr int kStages = kWidth == 64 ? 8 : 4;
  // Together what 65,536 registers give to a block of all its warpgroups, by eights.
  static constexpr int kConsumerRegisters = 232;
  static constexpr int kProducerRegisters = 40;
  static constexpr int kMostThreads = (kMostConsumers + 1) * kWarpgroup;

  /// Tiles (kStages, 2 tensors), own rows (consumers, 2 tensors), terms (kStages, 2, kRows),
  /// barriers, and what aligning the begin may take.
  CA_HOST_DEVICE static constexpr int64_t bytes(int64_t consumers) {
    return 2 * sizeof(uint16_t) * kTile * (kStages + (kOwnInRegisters ? 0 : consumers)) +
           2 * kStages * (kRows * sizeof(float) + sizeof(uint64_t)) + 1024;
  }
};

/// Own rows from `begin` on, 64 for each consumer, and tiles of met rows.
struct GradientRingTask {
  int64_t batch;
  int64_t head;
  int64_t sequence;
  int64_t begin;
  int64_t own_end;  // of the real ones
  int64_t met_end;
  int64_t causal_offset;  // query l sees keys up to l + causal_offset
  int first_tile;
  int end_tile;
};

/// Tiles [first, end) of met rows that some of the own rows [begin, end_row) see.
struct TileRange {
  int first;
  int end;
};

template <bool kOwnsKeys>
__device__ TileRange visible_tiles(const GradientPass& pass, const GradientPlace& place,
                                   int64_t begin, int64_t end_row) {
  constexpr int64_t kRows = GradientRingSizes<64>::kRows;
  const int64_t offset = place.keys - place.rows;
  int64_t first = 0;
  int64_t end = kOwnsKeys ? place.rows : place.keys;
  if (begin >= (kOwnsKeys ? place.keys : place.rows)) end = 0;
  if (pass.causal && kOwnsKeys && begin > offset) first = begin - offset;
  if (pass.causal && !kOwnsKeys) {
    const int64_t seen = (end_row < place.rows ? end_row : place.rows) + offset;
    if (seen < end) end = seen;
  }
  const int first_tile = static_cast<int>(first / kRows);
  const int end_tile = end > first ? static_cast<int>(divide_up(end, kRows)) : first_tile;
  return {first_tile, end_tile};
}

#if CA_HAS_WARPGROUP_PRODUCTS

/// Shared memory of a block and its barriers.
template <int kWidth>
struct GradientRing {
  using Sizes = GradientRingSizes<kWidth>;

  bfloat16* tiles;
  bfloat16* own;
  float* terms;     // maxima and offsets of the met rows
  uint64_t* full;   // what is in a stage has arrived
  uint64_t* empty;  // every consumer is done with it

  __device__ explicit GradientRing(int consumers) {
    unsigned char* begin = dynamic_shared<unsigned char>();
    begin += (1024 - shared_address(begin) % 1024) % 1024;
    tiles = reinterpret_cast<bfloat16*>(begin);
    own = tiles + Sizes::kStages * 2 * Sizes::kTile;
    terms =
        reinterpret_cast<float*>(own + (Sizes::kOwnInRegisters ? 0 : consumers) * 2 * Sizes::kTile);
    full = reinterpret_cast<uint64_t*>(terms + Sizes::kStages * 2 * Sizes::kRows);
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

  __device__ bfloat16* tile(int stage, int tensor) const {
    return tiles + (stage * 2 + tensor) * Sizes::kTile;
  }
  __device__ float* terms_of(int stage) const { return terms + stage * 2 * Sizes::kRows; }
};

/// The warpgroup that fetches the met rows: queries and the gradients of their outputs with their
/// terms, or keys and values.
template <int kWidth, bool kOwnsKeys>
class GradientProducer {
 public:
  using Sizes = GradientRingSizes<kWidth>;

  __device__ GradientProducer(const GradientPass& pass, const GradientRingTask& task,
                              const GradientRing<kWidth>& ring)
      : pass_(pass),
        task_(task),
        ring_(ring),
        thread_(static_cast<int>(threadIdx.x) % kWarpgroup) {}

  __device__ void run() {
    const OperandPair& met = kOwnsKeys ? pass_.row_operands : pass_.key_operands;
    const bfloat16* first = source(met.first);
    const bfloat16* second = source(met.second);
    float term = kOwnsKeys ? load_term(task_.first_tile) : 0.0f;
    for (int tile = task_.first_tile; tile < task_.end_tile; ++tile) {
      wait_for(ring_.empty + filling_.slot, filling_.parity ^ 1);
      const int64_t rows = task_.met_end - int64_t{tile} * Sizes::kRows;
      copy_tile(met.first, first, rows, ring_.tile(filling_.slot, 0));
      copy_tile(met.second, second, rows, ring_.tile(filling_.slot, 1));
      commit_copies();
      if constexpr (kOwnsKeys) {
        ring_.terms_of(filling_.slot)[thread_] = term;
        term = load_term(tile + 1);
      }
      first += Sizes::kRows * met.first.row_stride;
      second += Sizes::kRows * met.second.row_stride;
      filling_.advance();
      wait_copies<kInFlight>();
      if (tile - task_.first_tile >= kInFlight) announce();
    }
    wait_copies<0>();
    while (announcing_.slot != filling_.slot) announce();
  }

 private:
  // Stages on their way. Consumers give one back once they have the next: it must have been
  // announced before this warpgroup waits for the stage.
  static constexpr int kInFlight = Sizes::kStages > 4 ? 3 : 2;
  static_assert(kInFlight + 2 <= Sizes::kStages, "else both wait");
  static_assert(kWarpgroup == 2 * Sizes::kRows, "a thread has one term of a tile");
  static constexpr int kChunks = 8;  // of a row of a panel
  static constexpr int kRowStep = kWarpgroup / kChunks;
  static_assert(kRowStep % 8 == 0, "a thread's rows are swizzled alike");

  /// This thread's chunk of its first row of the first tile.
  __device__ const bfloat16* source(const Operand& operand) const {
    const int64_t row = int64_t{task_.first_tile} * Sizes::kRows + thread_ / kChunks;
    return operand.high + task_.batch * operand.batch_stride + task_.head * operand.head_stride +
           row * operand.row_stride + thread_ % kChunks * 8;
  }

  /// Zeros for rows and columns that there are not.
  __device__ void copy_tile(const Operand& operand, const bfloat16* from, int64_t rows,
                            bfloat16* to) const {
    const int chunk = thread_ % kChunks;
    const int row = thread_ / kChunks;
    bfloat16* place = to + swizzled(row, chunk);
#pragma unroll
    for (int i = 0; i < Sizes::kRows / kRowStep; ++i) {
#pragma unroll
      for (int panel = 0; panel < Sizes::kPanels; ++panel) {
        const int column = panel * kSwizzledColumns;
        const bool valid = column + chunk * 8 < operand.columns && row + i * kRowStep < rows;
        copy_async_16(place + panel * Sizes::kPanel + i * kRowStep * kSwizzledColumns,
                      valid ? from + column : operand.high, valid);
      }
      from += kRowStep * operand.row_stride;
    }
  }

  /// Of a query of a tile the maximum (first 64 threads) or the offset. +Inf past the end, where
  /// weights are 0 by it.
  __device__ float load_term(int tile) const {
    const bool is_maximum = thread_ < Sizes::kRows;
    const int64_t row = int64_t{tile} * Sizes::kRows + thread_ % Sizes::kRows;
    if (row >= task_.met_end) return is_maximum ? HUGE_VALF : 0.0f;
    return (is_maximum ? pass_.maximum : pass_.offset)[task_.sequence * pass_.rows + row];
  }

  __device__ void announce() {
    publish_to_tensor_cores();
    arrive(ring_.full + announcing_.slot);
    announcing_.advance();
  }

  const GradientPass& pass_;
  const GradientRingTask& task_;
  const GradientRing<kWidth>& ring_;
  const int thread_;
  RingCursor<Sizes::kStages> filling_;
  RingCursor<Sizes::kStages> announcing_;
};

#endif  // sm_90a

}  // namespace cluster_attention::cuda
