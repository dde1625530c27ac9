#pragma once

// Rows chosen by their distances from those chosen before: k-means++ (Arthur and Vassilvitskii,
// 2007) and farthest points (Gonzalez, 1985), as native/kernels/starts.cc makes them.
//
// Method: all blocks of a launch run at the same time, each with its share of the chunks of 256
// rows of all sequences. For every draw they lower the distances of their rows by the row chosen
// last, leave the sum (or the farthest row) of every chunk, and wait for each other once; then
// every block finds the next row of its sequences for itself. Two arrays take turns, so that none
// is written while others still read what it was before. Squared distances are one chain of float32
// products and sums in order, as on the CPU; running sums are double, added as trees. Limits:
// squared distances within float32.

#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/grid.cuh"
#include "cuda/primitives/stored_rows.cuh"
#include "cuda/primitives/warp.cuh"
#include "cuda/read_rows.cuh"
#include "cuda/start_tiles.cuh"

namespace cluster_attention::cuda {

/// a * b + c with two roundings, as the CPU's code has them.
__device__ inline float multiply_then_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(__fmul_rn(a, b), c);
#else
  return a * b + c;
#endif
}

template <Read kRead>
constexpr int kPieceElements = kRead == Read::bfloat16 ? 8 : 4;

/// Adds the squared differences of a row's pieces and the columns of `center`, in order. Both are
/// aligned to 16 bytes; `scale`: of unit rows.
template <Read kRead, bool kUnit>
__device__ float add_squares(float sum, const unsigned char* row, const float* center, int pieces,
                             double scale) {
  constexpr int kCount = kPieceElements<kRead>;
#pragma unroll 4
  for (int piece = 0; piece < pieces; ++piece) {
    float values[8];
    float columns[8];
    if constexpr (kRead == Read::bfloat16) {
      load_eight_bfloat16(row + piece * kPieceBytes, values);
      load_eight_floats(center + piece * kCount, columns);
    } else {
      const float4 own = *reinterpret_cast<const float4*>(row + piece * kPieceBytes);
      const float4 other = *reinterpret_cast<const float4*>(center + piece * kCount);
      values[0] = own.x, values[1] = own.y, values[2] = own.z, values[3] = own.w;
      columns[0] = other.x, columns[1] = other.y, columns[2] = other.z, columns[3] = other.w;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      float value = values[i];
      if constexpr (kRead == Read::rounded) value = round_to_bfloat16(value);
      if constexpr (kUnit) value = static_cast<float>(value * scale);
      const float difference = value - columns[i];
      sum = multiply_then_add(difference, difference, sum);
    }
  }
  return sum;
}

template <Read kRead>
__device__ float add_squares(const StartParams& params, float sum, const unsigned char* row,
                             const float* center, int pieces, double scale) {
  return params.unit_rows ? add_squares<kRead, true>(sum, row, center, pieces, scale)
                          : add_squares<kRead, false>(sum, row, center, pieces, scale);
}

/// One sequence at one draw: what all blocks read of it, and the row that they find there.
class StartDraw {
 public:
  __device__ StartDraw(const StartParams& params, int64_t sequence, int64_t draw)
      : params_(params),
        layout_(start_layout(params.buffers)),
        real_(params.real(sequence)),
        chunks_(start_chunks(real_)) {
    const int64_t turn = (draw % 2) * params.batch + sequence;
    distances_ = params.distances + turn * params.length;
    chunk_sums_ = params.chunk_sums + turn * start_chunks(params.length);
    chunk_farthest_ = params.chunk_farthest + turn * start_chunks(params.length);
  }

  __device__ float* distances() const { return distances_; }
  __device__ double& chunk_sum(int64_t chunk) const { return chunk_sums_[chunk]; }
  __device__ Candidate& chunk_farthest(int64_t chunk) const { return chunk_farthest_[chunk]; }

  /// The row chosen once all distances are there; `share` of their total, k-means++.
  __device__ int64_t choose(double share) const {
    const int64_t row = params_.start == PoolStart::farthest ? farthest() : draw(share);
    return row >= 0 ? row : lowest_unchosen();
  }

 private:
  /// What is reached by the running sum, the first one; else the last place that is positive.
  static constexpr int32_t kNotReached = 1 << 30;
  static constexpr int32_t kNothing = 0x7fffffff;

  __device__ int32_t lowest_key(int32_t key) const {
    return block_reduce(
        key, [](int32_t a, int32_t b) { return a < b ? a : b; },
        dynamic_shared<int32_t>(layout_.keys));
  }

  /// The row of the largest distance (tie: lowest), -1 when no distance is positive.
  __device__ int64_t farthest() const {
    Candidate best = 0;
    for (int64_t c = threadIdx.x; c < chunks_; c += kStartThreads) {
      best = chunk_farthest_[c] > best ? chunk_farthest_[c] : best;
    }
    best = block_reduce(
        best, [](Candidate a, Candidate b) { return a > b ? a : b; },
        dynamic_shared<Candidate>(layout_.candidates));
    return candidate_score(best) > 0.0f ? candidate_index(best) : -1;
  }

  /// The first row at which the running sum of the distances exceeds a share of their total, -1
  /// when no distance is positive.
  __device__ int64_t draw(double share) const {
    double* sums = dynamic_shared<double>(layout_.sums);
    double* chunk_before = dynamic_shared<double>(layout_.before);
    // A thread has `group` chunks.
    const int64_t group = divide_up(chunks_, int64_t{kStartThreads});
    const int64_t begin = threadIdx.x * group;
    const int64_t end = begin + group < chunks_ ? begin + group : chunks_;
    double mine = 0.0;
#pragma unroll 4
    for (int64_t c = begin; c < end; ++c) mine += chunk_sums_[c];
    double total = 0.0;
    double before = block_exclusive_sum(mine, sums, &total);
    const double target = share * total;
    int32_t key = kNothing;
    for (int64_t c = begin; c < end && key >= kNotReached; ++c) {
      const double sum = chunk_sums_[c];
      if (!(sum > 0.0)) continue;
      const bool reached = before + sum > target;
      key = static_cast<int32_t>(reached ? c : kNotReached + (chunks_ - 1 - c));
      if (!reached) before += sum;
    }
    const int32_t lowest = lowest_key(key);
    if (lowest == kNothing) return -1;
    if (key == lowest) *chunk_before = before;
    __syncthreads();
    const int64_t chunk = lowest < kNotReached ? lowest : chunks_ - 1 - (lowest - kNotReached);
    return draw_in_chunk(chunk, *chunk_before, lowest < kNotReached ? target : INFINITY);
  }

  __device__ int64_t draw_in_chunk(int64_t chunk, double before, double target) const {
    const int32_t place = static_cast<int32_t>(threadIdx.x);
    const int64_t row = chunk * kStartChunk + place;
    const float distance = row < real_ ? distances_[row] : 0.0f;
    double total = 0.0;
    before += block_exclusive_sum(double{distance}, dynamic_shared<double>(layout_.sums), &total);
    int32_t key = kNothing;
    // Rounding may keep the sum from the target: then it is the last row that counts.
    if (distance > 0.0f) key = kNotReached + kStartThreads - place;
    if (row < real_ && before + distance > target) key = place;
    const int32_t lowest = lowest_key(key);
    if (lowest == kNothing) return -1;
    return chunk * kStartChunk +
           (lowest < kNotReached ? lowest : kNotReached + kStartThreads - lowest);
  }

  /// The lowest row that is not chosen yet: one of the first, as many as have been chosen.
  __device__ int64_t lowest_unchosen() const {
    for (int64_t first = 0; first < real_; first += kStartThreads) {
      const int64_t row = first + threadIdx.x;
      const bool is_free = row < real_ && __float_as_uint(distances_[row]) >> 31 == 0;
      const int32_t lowest = lowest_key(is_free ? static_cast<int32_t>(row) : kNothing);
      if (lowest != kNothing) return lowest;
    }
    return 0;  // not reached: fewer rows are chosen than there are
  }

  const StartParams& params_;
  const StartLayout layout_;
  const int64_t real_;
  const int64_t chunks_;
  float* distances_;
  double* chunk_sums_;
  Candidate* chunk_farthest_;
};

/// A block with its share of the rows.
class StartBlock {
 public:
  __device__ explicit StartBlock(const StartParams& params)
      : params_(params),
        share_(params),
        tiles_(params, share_),
        layout_(start_layout(params.buffers)),
        center_(dynamic_shared<float>(layout_.center)),
        piece_(piece_elements(params)) {}

  /// Chooses the row of the draw before and makes the distances of this one, which the end of a
  /// launch is not.
  __device__ void draw(int64_t draw) {
    const bool is_end = draw == params_.draws.end;
    StartPlace place = share_.first;
    int64_t sequence = -1;
    for (int64_t step = 0; step < share_.steps(); ++step) {
      const unsigned char* tile = is_end ? nullptr : tiles_.next();
      if (place.sequence != sequence) {
        sequence = place.sequence;
        open(sequence, draw, place.chunk == 0);
      }
      if (last_ >= 0 && place.chunk * kStartChunk < real_) measure(place, draw, tile);
      share_.advance(place);
    }
    // While others are waited for.
    random_ = random_uniform(params_.seed, RandomStream::plus_plus, draw);
  }

 private:
  /// Finds the row chosen last, -1 where no distances are wanted of it.
  __device__ void open(int64_t sequence, int64_t draw, bool stores) {
    const int64_t count = params_.real_count(sequence);
    int32_t* chosen = params_.chosen + sequence * params_.count + draw - 1;
    real_ = params_.real(sequence);
    center_first_ = -1;
    last_ = -1;
    if (draw > count) return;
    if (draw == 1) {
      last_ = params_.first_row(sequence);
    } else if (draw == params_.draws.begin) {
      last_ = *chosen;
    } else {
      last_ = StartDraw(params_, sequence, draw - 1).choose(random_);
      if (stores && threadIdx.x == 0) *chosen = static_cast<int32_t>(last_);
    }
    if (draw == count || draw == params_.draws.end) last_ = -1;
  }

  /// Adds a slice to the squared distances; with the last one they are stored.
  __device__ void measure(const StartPlace& place, int64_t draw, const unsigned char* tile) {
    const int64_t row = place.chunk * kStartChunk + threadIdx.x;
    const bool mine = row < real_;
    const int64_t column = place.slice * kSlicePieces * piece_;
    if (place.slice == 0) {
      squared_ = 0.0f;
      before_ = INFINITY;
      if (mine && draw > 1) before_ = StartDraw(params_, place.sequence, draw - 1).distances()[row];
      scale_ =
          mine && params_.unit_rows ? params_.scales[place.sequence * params_.length + row] : 1.0;
    }
    if (center_first_ != column / kCenterColumns * kCenterColumns) {
      load_center(place.sequence, column / kCenterColumns * kCenterColumns);
    }
    const int64_t left = divide_up(params_.dim - column, int64_t{piece_});
    if (mine) {
      add(tile + threadIdx.x * kSlicePitch, center_ + (column - center_first_),
          static_cast<int>(left < kSlicePieces ? left : kSlicePieces));
    }
    if (place.slice + 1 == share_.slices) store(place, draw, row);
  }

  __device__ void add(const unsigned char* own, const float* center, int pieces) {
    if (params_.inputs.storage == Storage::bfloat16) {
      squared_ = add_squares<Read::bfloat16>(params_, squared_, own, center, pieces, scale_);
    } else if (params_.inputs.round) {
      squared_ = add_squares<Read::rounded>(params_, squared_, own, center, pieces, scale_);
    } else {
      squared_ = add_squares<Read::float32>(params_, squared_, own, center, pieces, scale_);
    }
  }

  /// Columns of the row chosen last, with zeros past them up to a whole piece.
  __device__ void load_center(int64_t sequence, int64_t first) {
    const Rows rows = params_.rows(sequence);
    const int64_t row = params_.position(sequence, last_);
    const double scale =
        params_.unit_rows ? params_.scales[sequence * params_.length + last_] : 1.0;
    const int64_t left = divide_up(params_.dim - first, int64_t{piece_}) * piece_;
    const int64_t count = left < kCenterColumns ? left : kCenterColumns;
    for (int64_t d = threadIdx.x; d < count; d += kStartThreads) {
      float value = first + d < params_.dim ? rows.element(row, first + d) : 0.0f;
      if (params_.unit_rows) value = static_cast<float>(value * scale);
      center_[d] = value;
    }
    center_first_ = first;
    __syncthreads();
  }

  __device__ void store(const StartPlace& place, int64_t draw, int64_t row) {
    const StartDraw now(params_, place.sequence, draw);
    float distance = 0.0f;
    if (row < real_) {
      // What float32 cannot hold does not tell how far a row is.
      if (!(squared_ < INFINITY)) mark_non_finite(params_.flags);
      distance = squared_ < before_ ? squared_ : before_;
      if (row == last_) distance = -0.0f;  // even where it holds NaN: no row is chosen twice
      now.distances()[row] = distance;
    }
    if (params_.start == PoolStart::farthest) {
      const Candidate own = row < real_ ? make_candidate(distance, static_cast<int32_t>(row)) : 0;
      const Candidate best = join_warps(
          own, [](Candidate a, Candidate b) { return a > b ? a : b; },
          dynamic_shared<Candidate>(layout_.candidates));
      if (threadIdx.x == 0) now.chunk_farthest(place.chunk) = best;
    } else {
      const double sum = join_warps(
          double{distance}, [](double a, double b) { return a + b; },
          dynamic_shared<double>(layout_.sums));
      if (threadIdx.x == 0) now.chunk_sum(place.chunk) = sum;
    }
  }

  /// As block_reduce(), for thread 0 alone: `scratch` is free when all threads have met again.
  template <typename T, typename Combine>
  __device__ T join_warps(T value, Combine combine, T* scratch) const {
    value = warp_reduce(value, combine);
    if (lane_index() == 0) scratch[warp_index()] = value;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int warp = 1; warp < kStartThreads / kWarp; ++warp) {
        value = combine(value, scratch[warp]);
      }
    }
    return value;
  }

  const StartParams& params_;
  const StartShare share_;
  StartTiles tiles_;
  const StartLayout layout_;
  float* center_;              // (kCenterColumns)
  const int piece_;            // elements
  int64_t real_ = 0;           // rows of the sequence
  int64_t last_ = -1;          // its row chosen last
  int64_t center_first_ = -1;  // the column at which center_ begins
  float squared_ = 0.0f;       // this thread's row: its distance from the row chosen last
  float before_ = 0.0f;        // from the nearest one before
  double scale_ = 1.0;
  double random_ = 0.0;  // of the draw
};

/// The rows that a launch chooses; the blocks of the grid wait for each other after every one.
__global__ void __launch_bounds__(kStartThreads, 2)
    choose_start_rows(const __grid_constant__ StartParams params) {
  // block: rows (chunks of 256,dim) -> distances; distances (N) -> row
  StartBlock block(params);
  for (int64_t draw = params.draws.begin; draw <= params.draws.end; ++draw) {
    if (draw > params.draws.begin) sync_grid();
    block.draw(draw);
  }
}

}  // namespace cluster_attention::cuda
