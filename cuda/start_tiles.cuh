#pragma once

// How a block of start_rows.cuh gets its rows: 128 bytes of each row of a chunk at a time, copied
// to shared memory as they are stored while the ones before are used. A block goes through the same
// rows for every draw; where its buffers hold all of them, they stay there.

#include "cuda/primitives/async_copy.cuh"
#include "cuda/primitives/shared_memory.cuh"
#include "cuda/start_params.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

/// Rows whose distances a block lowers at a time, a thread each, and whose sum is a step of the
/// running sum.
constexpr int64_t kStartChunk = kStartThreads;

CA_HOST_DEVICE inline int64_t start_chunks(int64_t length) {
  return (length + kStartChunk - 1) / kStartChunk;
}

/// What is copied at a time; a row of it in shared memory, apart so that threads that read a row
/// each meet different banks.
constexpr int kPieceBytes = 16;
constexpr int kSlicePieces = 8;
constexpr int kSlicePitch = (kSlicePieces + 1) * kPieceBytes;
constexpr int kMostStartBuffers = 3;
/// Columns of the row chosen last that are kept at a time.
constexpr int64_t kCenterColumns = 1024;

__device__ inline int piece_elements(const StartParams& params) {
  return kPieceBytes / (params.inputs.storage == Storage::bfloat16 ? 2 : 4);
}

struct StartLayout {
  int64_t center, sums, candidates, keys, before, tiles, bytes;
};
CA_HOST_DEVICE inline StartLayout start_layout(int buffers) {
  SharedLayout parts;
  StartLayout layout;
  layout.center = parts.add<float>(kCenterColumns);
  layout.sums = parts.add<double>(kWarp);
  layout.candidates = parts.add<Candidate>(kWarp);
  layout.keys = parts.add<int32_t>(kWarp);
  layout.before = parts.add<double>(1);
  layout.tiles = parts.add<unsigned char>(buffers * kStartChunk * kSlicePitch);
  layout.bytes = parts.bytes();
  return layout;
}

/// A slice of a chunk.
struct StartPlace {
  int64_t sequence;
  int64_t chunk;  // of the sequence
  int64_t slice;
};

/// What a block goes through for every draw: the chunks [begin, end) of all sequences, by slices.
struct StartShare {
  int64_t chunks;  // of a sequence
  int64_t slices;
  int64_t begin;
  int64_t end;
  StartPlace first;

  __device__ explicit StartShare(const StartParams& params) {
    chunks = start_chunks(params.length);
    slices = divide_up(params.dim, int64_t{piece_elements(params)} * kSlicePieces);
    const int64_t all = params.batch * chunks;
    begin = all * blockIdx.x / gridDim.x;
    end = all * (blockIdx.x + int64_t{1}) / gridDim.x;
    first = {begin / chunks, begin % chunks, 0};
  }
  __device__ int64_t steps() const { return (end - begin) * slices; }
  __device__ void advance(StartPlace& place) const {
    if (++place.slice < slices) return;
    place.slice = 0;
    if (++place.chunk < chunks) return;
    place.chunk = 0;
    ++place.sequence;
  }
};

class StartTiles {
 public:
  __device__ StartTiles(const StartParams& params, const StartShare& share)
      : params_(params),
        share_(share),
        buffers_(params.buffers),
        piece_(piece_elements(params)),
        bytes_(kPieceBytes / piece_),
        stay_(share.steps() <= params.buffers),
        tiles_(dynamic_shared<unsigned char>(start_layout(params.buffers).tiles)),
        next_(share.first) {
    left_ = share.steps() * (stay_ ? 1 : params.draws.end - params.draws.begin);
  }

  /// The next tile: row r of the chunk at r * kSlicePitch. The one before is used no more.
  __device__ const unsigned char* next() {
    __syncthreads();
    // As far ahead as there are buffers, one group of copies for each.
    for (; ahead_ < buffers_; ++ahead_) load_next();
    --ahead_;
    if (buffers_ == 1 || stay_) {
      wait_copies<0>();
    } else if (buffers_ == 2) {
      wait_copies<1>();
    } else {
      wait_copies<2>();
    }
    __syncthreads();
    const unsigned char* tile = tiles_ + used_ * (kStartChunk * kSlicePitch);
    ++used_;
    if (used_ == (stay_ ? share_.steps() : buffers_)) used_ = 0;
    return tile;
  }

 private:
  __device__ void load_next() {
    if (left_ > 0) {
      load(next_, tiles_ + loaded_ * (kStartChunk * kSlicePitch));
      --left_;
      if (++loaded_ == buffers_) loaded_ = 0;
      share_.advance(next_);
      if (++step_ == share_.steps()) {
        step_ = 0;
        next_ = share_.first;
      }
    }
    commit_copies();
  }

  /// A thread copies the same piece of every 32nd row.
  __device__ void load(const StartPlace& place, unsigned char* tile) const {
    const int part = static_cast<int>(threadIdx.x) % kSlicePieces;
    const int row = static_cast<int>(threadIdx.x) / kSlicePieces;
    const int64_t column = (place.slice * kSlicePieces + part) * piece_;
    if (column >= params_.dim) return;
    const int64_t first = place.chunk * kStartChunk + row;
    const int64_t left = params_.real(place.sequence) - first;
    const Rows rows = params_.rows(place.sequence);
    const char* from = reinterpret_cast<const char*>(rows.data) + (rows.offset + column) * bytes_;
    unsigned char* to = tile + row * kSlicePitch + part * kPieceBytes;
    const int64_t stride = rows.stride * bytes_;
    if (params_.access == RowAccess::elements) {
      for (int k = 0; k < kStartChunk && k < left; k += kRowStep) {
        copy_elements(to + k * kSlicePitch, from + position(place, first + k) * stride,
                      params_.dim - column);
      }
    } else if (params_.index != nullptr) {
#pragma unroll
      for (int k = 0; k < kStartChunk; k += kRowStep) {
        if (k >= left) break;
        copy_async_16(to + k * kSlicePitch, from + position(place, first + k) * stride, true);
      }
    } else {
      from += first * stride;
#pragma unroll
      for (int k = 0; k < kStartChunk; k += kRowStep) {
        if (k < left) copy_async_16(to + k * kSlicePitch, from, true);
        from += kRowStep * stride;
      }
    }
  }

  __device__ int64_t position(const StartPlace& place, int64_t row) const {
    return params_.position(place.sequence, row);
  }

  /// A piece one by one, with zeros past the row.
  __device__ void copy_elements(unsigned char* to, const char* from, int64_t columns) const {
    for (int i = 0; i < piece_; ++i) {
      if (bytes_ == 2) {
        reinterpret_cast<uint16_t*>(to)[i] =
            i < columns ? reinterpret_cast<const uint16_t*>(from)[i] : 0;
      } else {
        reinterpret_cast<float*>(to)[i] =
            i < columns ? reinterpret_cast<const float*>(from)[i] : 0.0f;
      }
    }
  }

  static constexpr int kRowStep = kStartThreads / kSlicePieces;

  const StartParams& params_;
  const StartShare share_;
  const int buffers_;
  const int piece_;  // elements
  const int bytes_;  // of one
  const bool stay_;  // all tiles
  unsigned char* tiles_;
  StartPlace next_;   // to be copied
  int64_t step_ = 0;  // the same, of the share
  int64_t left_;      // steps to be copied in this launch
  int ahead_ = 0;     // tiles on their way or there
  int loaded_ = 0;    // buffer of the next copies
  int used_ = 0;      // buffer of the next tile
};

}  // namespace cluster_attention::cuda
