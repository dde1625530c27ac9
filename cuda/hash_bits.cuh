#pragma once

// The bits of hash_product.cuh: the signs of sums where they are sure, else of chains.

#include "cuda/hash_product.cuh"

namespace cluster_attention::cuda {

/// Bits that the sums leave open in a row whose length is no number or next to 0. Sums of zeros are
/// exact.
template <Read kRead, bool kVectors>
__device__ uint32_t HashProduct<kRead, kVectors>::look_at_row(const HashTile& tile, int row,
                                                              uint32_t unsure) {
  bool zero = true;
#pragma unroll 1
  for (int64_t d = 0; d < problem_.dim; ++d) {
    const float value = read<kRead>(problem_.inputs.data, row_at(tile, row) + d);
    zero = zero && value == 0.0f;
    bad_ = bad_ || !is_finite(value);
  }
  return zero ? 0u : unsure;
}

/// The bit as the CPU finds it; where the chain leaves the range of float32, in double.
template <Read kRead, bool kVectors>
__device__ bool HashProduct<kRead, kVectors>::chain_exceeds(const HashTile& tile, int row,
                                                            int bit) const {
  const int dim = static_cast<int>(problem_.dim);
  const float* plane = planes_ + bit * (dim + 1);
  float sum = 0.0f;
#pragma unroll 2
  for (int first = 0; first < dim; first += 8) {
    HashChunk<kRead> chunk;
    load_chunk(tile, row, first, chunk);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (first + i < dim) sum = fmaf(chunk.get(i), plane[first + i], sum);
    }
  }
  if (is_finite(sum)) return sum > plane[dim];
  double exact = 0.0;
#pragma unroll 1
  for (int d = 0; d < dim; ++d) {
    const float value = read<kRead>(problem_.inputs.data, row_at(tile, row) + d);
    exact += static_cast<double>(value) * plane[d];
  }
  return exact > plane[dim];
}

/// Distances from a sum to its threshold that prove nothing are up to this times |plane|.
template <Read kRead, bool kVectors>
__device__ float HashProduct<kRead, kVectors>::bound_of(int r) const {
  const float square = squares_[r / 2][r % 2];
  return square >= kLeastSquare ? params_.tolerance * (square * rsqrtf(square))
                                : __uint_as_float(0x7f800000u);
}

/// This lane's 16 bits of each of its rows: bit 2 n + side is bit 8 n + 2 four + side of the hash.
/// True where all of them are sure.
template <Read kRead, bool kVectors>
__device__ bool HashProduct<kRead, kVectors>::compare(RowBits& bits) const {
  float bound[2 * kTiles];
  bool sure[2 * kTiles];  // each row waits for its own bits alone
#pragma unroll
  for (int r = 0; r < 2 * kTiles; ++r) {
    bound[r] = bound_of(r);
    bits[r] = 0;
    sure[r] = true;
  }
#pragma unroll
  for (int n = kBitTiles - 1; n >= 0; --n) {
    const float4 limit = limits_[n * 4 + lane_index() % 4];
#pragma unroll
    for (int r = 0; r < 2 * kTiles; ++r) {
      // Negative where the sum exceeds the threshold.
      const float right = limit.z - sums_[r / 2][n][r % 2 * 2 + 1];
      const float left = limit.x - sums_[r / 2][n][r % 2 * 2];
      bits[r] = append_sign(append_sign(bits[r], right), left);
      sure[r] = sure[r] && fabsf(right) > bound[r] * limit.w && fabsf(left) > bound[r] * limit.y;
    }
  }
#pragma unroll
  for (int r = 1; r < 2 * kTiles; ++r) sure[0] = sure[0] && sure[r];
  return sure[0];
}

/// Bits of row r that compare() is not sure of.
template <Read kRead, bool kVectors>
__device__ uint32_t HashProduct<kRead, kVectors>::open_bits(int r) const {
  uint32_t open = 0;
  const float bound = bound_of(r);
#pragma unroll
  for (int n = 0; n < kBitTiles; ++n) {
    const float4 limit = limits_[n * 4 + lane_index() % 4];
    const float left = limit.x - sums_[r / 2][n][r % 2 * 2];
    const float right = limit.z - sums_[r / 2][n][r % 2 * 2 + 1];
    if (!(fabsf(left) > bound * limit.y)) open |= 1u << (2 * n);
    if (!(fabsf(right) > bound * limit.w)) open |= 2u << (2 * n);
  }
  return open;
}

/// The bits that the sums leave open. The rows take turns, so that what few of them need is one
/// piece of code: the first call of a kernel fetches all of its code from memory.
template <Read kRead, bool kVectors>
__device__ void HashProduct<kRead, kVectors>::decide(const HashTile& tile, RowBits& bits) {
  const int four = lane_index() % 4;
  uint32_t unsure[2 * kTiles];
#pragma unroll
  for (int r = 0; r < 2 * kTiles; ++r) unsure[r] = open_bits(r);
#pragma unroll 1
  for (int r = 0; r < 2 * kTiles; ++r) {
    uint32_t open = unsure[0];
    float square = squares_[0][0];
#pragma unroll
    for (int i = 1; i < 2 * kTiles; ++i) {
      if (i == r) open = unsure[i];
      if (i == r) square = squares_[i / 2][i % 2];
    }
    const int row = r * 8 + lane_index() / 4;
    if (row >= tile.rows) open = 0;
    const bool usual = square >= kLeastSquare && is_finite(square);
    if (open != 0 && !usual) open = look_at_row(tile, row, open);
    uint32_t set = 0;
    const uint32_t decided = open;
#pragma unroll 1
    for (; open != 0; open &= open - 1) {
      const int i = __ffs(static_cast<int>(open)) - 1;
      // NaN, of sums or of bounds, leaves open even bits that there are none of.
      const int bit = i / 2 * 8 + four * 2 + i % 2;
      const bool exceeds = bit < problem_.bits && chain_exceeds(tile, row, bit);
      set |= static_cast<uint32_t>(exceeds) << i;
    }
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      if (i == r) bits[i] = (bits[i] & ~decided) | set;
    }
  }
}

template <Read kRead, bool kVectors>
template <typename Store>
__device__ void HashProduct<kRead, kVectors>::hash_tile(const HashTile& tile, const Store& store) {
  multiply(tile);
  const int group = lane_index() / 4;
  const int four = lane_index() % 4;
#pragma unroll
  for (int r = 0; r < 2 * kTiles; ++r) {
    squares_[r / 2][r % 2] = warp_sum(squares_[r / 2][r % 2], 4);
  }
  RowBits bits;
  const bool sure = compare(bits);
  if (any(!sure)) decide(tile, bits);
#pragma unroll
  for (int r = 0; r < 2 * kTiles; ++r) {
    // Pairs of bits to the places that they have in four neighbouring bytes.
    const auto spread = [&](uint32_t v) {
      return ((v | v << 6 | v << 12 | v << 18) & 0x03030303u) << (2 * four);
    };
    const auto join = [](uint32_t a, uint32_t b) { return a | b; };
    const uint32_t low = warp_reduce(spread(bits[r] & 0xffu), join, 4);
    const uint32_t high = warp_reduce(spread(bits[r] >> 8), join, 4);
    const int row = r * 8 + group;
    if (four == 0 && row < tile.rows) store(row, static_cast<uint64_t>(high) << 32 | low);
  }
}

/// The rows that are tile `index` of the launch; none past the real ones.
template <Read kRead>
__device__ HashTile hash_tile_at(const HashProductParams& params, int64_t index) {
  constexpr int64_t kRows = kHashTileRows<kRead>;
  const HashSequences& problem = params.hash.sequences;
  HashTile tile;
  tile.sequence = index / params.tiles;
  tile.first_row = index % params.tiles * kRows;
  tile.rows = 0;
  if (tile.sequence >= problem.batch * problem.heads) return tile;
  const int64_t batch = tile.sequence / problem.heads;
  const int64_t left = real_length(problem.lengths, batch, problem.length) - tile.first_row;
  tile.rows = static_cast<int>(left < 0 ? 0 : left < kRows ? left : kRows);
  tile.base = row_offset(problem.inputs, batch, tile.sequence % problem.heads, tile.first_row);
  return tile;
}

/// Rows of a tile on their way to the L2 cache, one per lane.
template <Read kRead>
__device__ void prefetch_tile(const HashSequences& problem, const HashTile& tile) {
  constexpr int64_t kElement = kRead == Read::bfloat16 ? 2 : 4;
  if (lane_index() >= tile.rows) return;
  const char* row = reinterpret_cast<const char*>(problem.inputs.data) +
                    (tile.base + lane_index() * problem.inputs.row_stride) * kElement;
  for (int64_t byte = 0; byte < problem.dim * kElement; byte += 128) prefetch_l2(row + byte);
}

template <Read kRead, bool kVectors>
__global__ void __launch_bounds__(kHashProductThreads, 1)
    hash_product_kernel(const HashProductParams params) {
  // warp: rows (16 or 32,dim) x planes (bits,dim) -> hashes
  const HashSequences& problem = params.hash.sequences;
  HashProduct<kRead, kVectors> product(params);
  const int64_t warps = static_cast<int64_t>(blockDim.x) / kWarp;
  const int64_t step = gridDim.x * warps;
  const int64_t tiles = problem.batch * problem.heads * params.tiles;
  int64_t index = blockIdx.x * warps + warp_index();
  HashTile tile = hash_tile_at<kRead>(params, index);
  prefetch_tile<kRead>(problem, tile);
  product.load_planes();
  for (; index < tiles; index += step) {
    const HashTile next = hash_tile_at<kRead>(params, index + step);
    prefetch_tile<kRead>(problem, next);
    if (tile.rows > 0) {
      product.hash_tile(tile, [&](int row, uint64_t hash) {
        uint64_t* hashes = problem.hashes + tile.sequence * problem.length + tile.first_row;
        hashes[row] = hash;
      });
    }
    tile = next;
  }
  if (product.bad()) mark_non_finite(params.hash.flags);
}

}  // namespace cluster_attention::cuda
