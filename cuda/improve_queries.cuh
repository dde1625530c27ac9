#pragma once

// The queries of a warp of improve.cuh, 16 of a cluster's members at once: a lane has eight
// columns, in one piece, of two rows in each block of 32 columns.
//
// Narrow ones come to shared memory while those before them are worked on: a thread copies the
// pieces that it uses itself, so that no barrier is needed. Others stay in registers from when they
// are asked for, where there are enough, or are read where they are used.

#include "cuda/primitives/async_copy.cuh"
#include "cuda/primitives/eight.cuh"
#include "cuda/primitives/warp.cuh"

namespace cluster_attention::cuda {

template <int kWidth, bool kSplit>
class ImproveQueries {
 public:
  static constexpr int kBlocks = kWidth / 32;
  static constexpr bool kAhead = kWidth <= 64 && !kSplit;
  static constexpr bool kHolds = !kAhead && kWidth * (kSplit ? 2 : 1) <= 128;
  /// Of 16 bytes, of a thread, in shared memory: those of two rounds.
  static constexpr int kPieces = kAhead ? 2 * 2 * kBlocks : 0;

  /// Of a block of columns: operands of tensor cores.
  struct Query {
    uint32_t high[2][4];
    uint32_t low[2][4];
  };

  /// `begin`: offset of the sequence. `vectors`: rows begin at multiples of 16 bytes. `pieces`:
  /// (kPieces, threads) of shared memory.
  __device__ ImproveQueries(const StoredRows& rows, int64_t begin, bool vectors, int columns,
                            uint4* pieces)
      : rows_(rows),
        begin_(begin),
        vectors_(vectors),
        columns_(columns),
        pieces_(pieces + threadIdx.x) {}

  /// Asks for rows that read() shall give; where kAhead, after wait_copies().
  __device__ void ask(const int32_t (&rows)[2], int slot) {
    if constexpr (kHolds) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) load(rows, block, held_[block]);
    }
    if constexpr (kAhead) {
      const bool whole = rows_.is_bfloat16 && vectors_ && columns_ % 8 == 0;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        if (whole) {
          copy(rows, block, slot);
        } else {
          Query query;
          load(rows, block, query);
          for (int half = 0; half < 2; ++half) {
            const uint32_t(&pairs)[4] = query.high[half];
            *piece(slot, block, half) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
          }
        }
      }
      commit_copies();
    }
  }

  __device__ void read(const int32_t (&rows)[2], int slot, int block, Query& query) const {
    if constexpr (kAhead) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4 pairs = *piece(slot, block, half);
        query.high[half][0] = pairs.x, query.high[half][1] = pairs.y;
        query.high[half][2] = pairs.z, query.high[half][3] = pairs.w;
#pragma unroll
        for (int i = 0; i < 4; ++i) query.low[half][i] = 0;
      }
    } else if constexpr (kHolds) {
      query = held_[block];
    } else {
      load(rows, block, query);
    }
  }

 private:
  __device__ static int column_of(int block) { return block * 32 + lane_index() % 4 * 8; }
  __device__ int64_t place_of(int32_t row, int column) const {
    return begin_ + row * rows_.row_stride + column;
  }
  __device__ uint4* piece(int slot, int block, int half) const {
    return pieces_ + ((slot * kBlocks + block) * 2 + half) * static_cast<int>(blockDim.x);
  }

  __device__ void load(const int32_t (&rows)[2], int block, Query& query) const {
    const int column = column_of(block);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      load_eight<kSplit>(rows_, place_of(rows[half], column), vectors_, columns_ - column,
                         query.high[half], query.low[half]);
    }
  }

  __device__ void copy(const int32_t (&rows)[2], int block, int slot) {
    const auto* data = static_cast<const bfloat16*>(rows_.data);
    const int column = column_of(block);
    const bool real = column < columns_;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      copy_async_16(piece(slot, block, half), data + (real ? place_of(rows[half], column) : 0),
                    real);
    }
  }

  const StoredRows& rows_;
  int64_t begin_;
  bool vectors_;
  int columns_;
  uint4* pieces_;
  Query held_[kHolds ? kBlocks : 1];
};

}  // namespace cluster_attention::cuda
