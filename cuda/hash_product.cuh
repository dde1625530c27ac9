#pragma once

// Hashes on tensor cores: the bits of hash.cuh, faster.
//
// Method: a warp multiplies 16 or 32 rows with all planes as bfloat16 operands (float32 ones in a
// high and a low part) and compares the sums with the thresholds. A sum is as far from the CPU's
// chain of fmaf as product_tolerance() says at most; where the threshold is nearer than that, the
// chain itself is computed. The planes lie in shared memory as operands; rows go from memory to
// registers by 16 bytes. Lane (row, four) has columns 8 four .. 8 four + 7 of every 32: the order
// of the columns is free as long as both operands have the same.
// Limits: dim <= kMostProductColumns.

#include "cuda/hash.cuh"
#include "cuda/hash_chunk.cuh"
#include "cuda/primitives/async_copy.cuh"
#include "cuda/primitives/mma.cuh"

namespace cluster_attention::cuda {

constexpr int64_t kMostProductColumns = 256;
constexpr int kHashProductThreads = 384;
constexpr int kBitTiles = kHashBits / 8;

struct HashProductParams {
  HashParams hash;
  int64_t tiles;    // of a warp's rows, per sequence
  bool vectors;     // rows can be read by 16 bytes
  float tolerance;  // of a sum, per length of the row and of the plane
};

/// Bound on |sum - chain of fmaf| / (|row| |plane|). The chain rounds `dim` times. The operands
/// stand for their values to 2^-17, and of each product of two low parts nothing is left. A step of
/// the tensor cores adds 16 products to a sum of 24 bits at least, and may cut each off.
inline float product_tolerance(int64_t dim, bool split_rows) {
  const double steps = static_cast<double>(divide_up(dim, 32) * 2 * (split_rows ? 3 : 2));
  const double chain = static_cast<double>(dim) * 0x1p-24;
  return static_cast<float>(1.02 * (chain + (split_rows ? 0x1p-15 : 0x1p-17) + steps * 0x1p-20));
}

/// Rows and planes shorter than this are left to the chain: nothing underflows above it.
constexpr float kLeastSquare = 1e-30f;

struct HashProductLayout {
  int64_t operands;  // uint4 (2 chunks of 32 columns,8,32): high and low parts of the planes
  int64_t limits;    // float4 (bits / 2): threshold and |plane| of two bits
  int64_t planes;    // float (bits,dim + 1): as the chain takes them
  int64_t bytes;
};
CA_HOST_DEVICE inline HashProductLayout hash_product_layout(int64_t dim) {
  SharedLayout parts;
  const int64_t operands = parts.add<uint4>(divide_up(dim, 32) * 2 * kBitTiles * kWarp);
  const int64_t limits = parts.add<float4>(kHashBits / 2);
  const int64_t planes = parts.add<float>(kHashBits * (dim + 1));
  return {operands, limits, planes, parts.bytes()};
}

/// One warp's rows of a sequence.
struct HashTile {
  int64_t sequence;
  int64_t first_row;
  int64_t base = 0;  // offset of the first row
  int rows;          // real ones
};

template <Read kRead>
class HashProduct {
 public:
  static constexpr bool kSplit = kRead == Read::float32;
  static constexpr int kTiles = kRead == Read::bfloat16 ? 2 : 1;
  static constexpr int kRows = 16 * kTiles;

  __device__ explicit HashProduct(const HashProductParams& params)
      : params_(params), problem_(params.hash.sequences) {
    const HashProductLayout layout = hash_product_layout(problem_.dim);
    operands_ = dynamic_shared<uint4>(layout.operands);
    limits_ = dynamic_shared<float4>(layout.limits);
    planes_ = dynamic_shared<float>(layout.planes);
  }

  /// The planes as second operands, and their lengths; all threads of the block call it.
  __device__ void load_planes();
  __device__ void hash_tile(const HashTile& tile);
  __device__ bool bad() const { return bad_; }

 private:
  __device__ float plane(int bit, int64_t d) const { return planes_[bit * (problem_.dim + 1) + d]; }
  __device__ int64_t row_at(const HashTile& tile, int row) const {
    return tile.base + row * problem_.inputs.row_stride;
  }
  __device__ void load_chunk(const HashTile& tile, int row, int column,
                             HashChunk<kRead>& chunk) const;
  __device__ void multiply(const HashTile& tile);
  __device__ void add_chunk(int chunk, const HashChunk<kRead> (&rows)[kTiles][2]);
  using RowBits = uint32_t[2 * kTiles];  // of this lane's rows
  __device__ void compare(const HashTile& rows, RowBits& result, RowBits& unsure) const;
  __device__ bool chain_exceeds(const HashTile& tile, int row, int bit) const;
  __device__ uint32_t look_at_row(const HashTile& tile, int row, uint32_t unsure);

  const HashProductParams& params_;
  const HashSequences& problem_;
  uint4* operands_;
  float4* limits_;
  float* planes_;
  FragmentD sums_[kTiles][kBitTiles];
  float squares_[kTiles][2];  // of the rows, this lane's columns at first
  bool bad_ = false;
};

template <Read kRead>
__device__ void HashProduct<kRead>::load_planes() {
  const int bits = static_cast<int>(problem_.bits);
  const int dim = static_cast<int>(problem_.dim);
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
#pragma unroll 16
  for (int i = thread; i < bits * (dim + 1); i += threads) {
    const float value = problem_.planes[i];
    const float rounded = params_.hash.round_planes ? round_to_bfloat16(value) : value;
    bad_ = bad_ || !is_finite(rounded);
    planes_[i] = rounded;
  }
  __syncthreads();
  const int steps = (dim + 31) / 32 * 2;
  for (int i = thread; i < steps * kBitTiles * kWarp; i += threads) {
    const int bit = i / kWarp % kBitTiles * 8 + i % kWarp / 4;
    const int step = i / kWarp / kBitTiles;
    const int d = step / 2 * 32 + i % 4 * 8 + step % 2 * 4;
    float value[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) value[j] = bit < bits && d + j < dim ? plane(bit, d + j) : 0.0f;
    uint4 operand;
    split_pair(value[0], value[1], operand.x, operand.z);
    split_pair(value[2], value[3], operand.y, operand.w);
    operands_[i] = operand;
  }
  for (int bit = thread; bit < kHashBits; bit += threads) {
    float square = 0.0f;
    for (int d = 0; d < dim && bit < bits; ++d) square = fmaf(plane(bit, d), plane(bit, d), square);
    // No bound where nothing is known: the chain decides.
    const float norm = square >= kLeastSquare ? sqrtf(square) : __uint_as_float(0x7f800000u);
    float* limit = reinterpret_cast<float*>(limits_) + bit * 2;
    limit[0] = bit < bits ? plane(bit, dim) : 0.0f;
    limit[1] = norm;
  }
  __syncthreads();
}

template <Read kRead>
__device__ void HashProduct<kRead>::load_chunk(const HashTile& tile, int row, int column,
                                               HashChunk<kRead>& chunk) const {
  const float* data = problem_.inputs.data;
  const int dim = static_cast<int>(problem_.dim);
  const bool real = row < tile.rows;
  if (params_.vectors) {
    if (real && column < dim) {
      chunk.load(data, row_at(tile, row) + column);
      return;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) chunk.set(i, 0.0f);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const bool inside = real && column + i < dim;
    constexpr Read kStored = kRead == Read::bfloat16 ? Read::bfloat16 : Read::float32;
    chunk.set(i, inside ? read<kStored>(data, row_at(tile, row) + column + i) : 0.0f);
  }
}

/// Adds the products of 32 columns.
template <Read kRead>
__device__ void HashProduct<kRead>::add_chunk(int chunk,
                                              const HashChunk<kRead> (&rows)[kTiles][2]) {
  uint32_t high[kTiles][2][4];
  uint32_t low[kTiles][2][4];
#pragma unroll
  for (int i = 0; i < 2 * kTiles; ++i) {
    rows[i / 2][i % 2].split(high[i / 2][i % 2], low[i / 2][i % 2], squares_[i / 2][i % 2]);
  }
#pragma unroll
  for (int step = 0; step < 2; ++step) {
#pragma unroll
    for (int n = 0; n < kBitTiles; ++n) {
      const uint4 operand = operands_[((chunk * 2 + step) * kBitTiles + n) * kWarp + lane_index()];
      const FragmentB high_b = {operand.x, operand.y};
      const FragmentB low_b = {operand.z, operand.w};
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const FragmentA a = {high[t][0][2 * step], high[t][1][2 * step], high[t][0][2 * step + 1],
                             high[t][1][2 * step + 1]};
        if constexpr (kSplit) {
          const FragmentA low_a = {low[t][0][2 * step], low[t][1][2 * step],
                                   low[t][0][2 * step + 1], low[t][1][2 * step + 1]};
          mma_split_16x8x16(sums_[t][n], a, low_a, high_b, low_b);
        } else {
          mma_bf16_16x8x16(sums_[t][n], a, low_b);
          mma_bf16_16x8x16(sums_[t][n], a, high_b);
        }
      }
    }
  }
}

template <Read kRead>
__device__ void HashProduct<kRead>::multiply(const HashTile& tile) {
#pragma unroll
  for (int i = 0; i < kTiles * kBitTiles * 4; ++i) {
    sums_[i / 4 / kBitTiles][i / 4 % kBitTiles][i % 4] = 0.0f;
  }
#pragma unroll
  for (int i = 0; i < 2 * kTiles; ++i) squares_[i / 2][i % 2] = 0.0f;
  const int chunks = static_cast<int>(divide_up(problem_.dim, 32));
  for (int first = 0; first < chunks; first += 2) {  // two on their way at a time
    HashChunk<kRead> rows[2][kTiles][2];
#pragma unroll
    for (int i = 0; i < 4 * kTiles; ++i) {
      const int half = i % 2;
      const int t = i / 2 % kTiles;
      const int chunk = i / 2 / kTiles;
      load_chunk(tile, t * 16 + half * 8 + lane_index() / 4,
                 (first + chunk) * 32 + lane_index() % 4 * 8, rows[chunk][t][half]);
    }
    add_chunk(first, rows[0]);
    if (first + 1 < chunks) add_chunk(first + 1, rows[1]);
  }
}

/// Bits that the sums leave open in a row whose length is no number or next to 0. Sums of zeros are
/// exact.
template <Read kRead>
__device__ uint32_t HashProduct<kRead>::look_at_row(const HashTile& tile, int row,
                                                    uint32_t unsure) {
  bool zero = true;
  for (int64_t d = 0; d < problem_.dim; ++d) {
    const float value = read<kRead>(problem_.inputs.data, row_at(tile, row) + d);
    zero = zero && value == 0.0f;
    bad_ = bad_ || !is_finite(value);
  }
  return zero ? 0u : unsure;
}

/// The bit as the CPU finds it.
template <Read kRead>
__device__ bool HashProduct<kRead>::chain_exceeds(const HashTile& tile, int row, int bit) const {
  const int dim = static_cast<int>(problem_.dim);
  const float* plane = planes_ + bit * (dim + 1);
  float sum = 0.0f;
#pragma unroll 4
  for (int first = 0; first < dim; first += 8) {
    HashChunk<kRead> chunk;
    load_chunk(tile, row, first, chunk);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (first + i < dim) sum = fmaf(chunk.get(i), plane[first + i], sum);
    }
  }
  const float* own = params_.hash.own_thresholds;
  return sum > (own != nullptr ? own[tile.sequence * kHashBits + bit] : plane[dim]);
}

/// This lane's 16 bits of each of its rows: bit 2 n + side is bit 8 n + 2 four + side of the hash.
/// `unsure` gets those that the sum does not decide.
template <Read kRead>
__device__ void HashProduct<kRead>::compare(const HashTile& rows, RowBits& result,
                                            RowBits& unsure) const {
  const float no_bound = __uint_as_float(0x7f800000u);
  const float* own = params_.hash.own_thresholds;
  const int bits = static_cast<int>(problem_.bits);
  const int four = lane_index() % 4;
  float bound[2 * kTiles];
#pragma unroll
  for (int r = 0; r < 2 * kTiles; ++r) {
    const float square = squares_[r / 2][r % 2];
    bound[r] = square >= kLeastSquare ? params_.tolerance * sqrtf(square) : no_bound;
    result[r] = 0;
    unsure[r] = 0;
  }
#pragma unroll
  for (int n = 0; n < kBitTiles; ++n) {
    float4 limit = limits_[n * 4 + four];
    const int bit = n * 8 + four * 2;
    if (own != nullptr) {
      limit.x = bit < bits ? own[rows.sequence * kHashBits + bit] : 0.0f;
      limit.z = bit + 1 < bits ? own[rows.sequence * kHashBits + bit + 1] : 0.0f;
    }
#pragma unroll
    for (int r = 0; r < 2 * kTiles; ++r) {
      const float left = sums_[r / 2][n][r % 2 * 2] - limit.x;
      const float right = sums_[r / 2][n][r % 2 * 2 + 1] - limit.z;
      if (left > 0.0f) result[r] |= 1u << (2 * n);
      if (right > 0.0f) result[r] |= 2u << (2 * n);
      if (!(fabsf(left) > bound[r] * limit.y)) unsure[r] |= 1u << (2 * n);
      if (!(fabsf(right) > bound[r] * limit.w)) unsure[r] |= 2u << (2 * n);
    }
  }
  // Bits that there are of this lane: all of a tile but the last.
  const int left = bits - four * 2;
  const int whole = left <= 0 ? 0 : left / 8;
  const int rest = left - whole * 8;
  uint32_t valid = (1u << (2 * whole)) - 1u;
  if (left > 0 && rest > 0) valid |= (rest > 1 ? 3u : 1u) << (2 * whole);
#pragma unroll
  for (int r = 0; r < 2 * kTiles; ++r) {
    const int row = r * 8 + lane_index() / 4;
    result[r] &= valid;
    unsure[r] &= row < rows.rows ? valid : 0u;
  }
}

template <Read kRead>
__device__ void HashProduct<kRead>::hash_tile(const HashTile& tile) {
  multiply(tile);
  const int group = lane_index() / 4;
  const int four = lane_index() % 4;
  uint64_t* hashes = problem_.hashes + tile.sequence * problem_.length + tile.first_row;
#pragma unroll
  for (int r = 0; r < 2 * kTiles; ++r) {
    squares_[r / 2][r % 2] = warp_sum(squares_[r / 2][r % 2], 4);
  }
  RowBits bits;
  RowBits unsure;
  compare(tile, bits, unsure);
#pragma unroll
  for (int r = 0; r < 2 * kTiles; ++r) {
    const int row = r * 8 + group;
    const float square = squares_[r / 2][r % 2];
    const bool usual = square >= kLeastSquare && is_finite(square);
    if (unsure[r] != 0 && !usual) unsure[r] = look_at_row(tile, row, unsure[r]);
    for (; unsure[r] != 0; unsure[r] &= unsure[r] - 1) {
      const int i = __ffs(static_cast<int>(unsure[r])) - 1;
      const bool set = chain_exceeds(tile, row, i / 2 * 8 + four * 2 + i % 2);
      bits[r] = (bits[r] & ~(1u << i)) | static_cast<uint32_t>(set) << i;
    }
    uint32_t words[2] = {0, 0};
#pragma unroll
    for (int n = 0; n < kBitTiles; ++n) {
      words[n / 4] |= (bits[r] >> (2 * n) & 3u) << (n % 4 * 8 + 2 * four);
    }
    const auto join = [](uint32_t a, uint32_t b) { return a | b; };
    const uint32_t low = warp_reduce(words[0], join, 4);
    const uint32_t high = warp_reduce(words[1], join, 4);
    if (four == 0 && row < tile.rows) hashes[row] = static_cast<uint64_t>(high) << 32 | low;
  }
}

/// The rows that are tile `index` of the launch; none past the real ones.
template <Read kRead>
__device__ HashTile hash_tile_at(const HashProductParams& params, int64_t index) {
  constexpr int64_t kRows = HashProduct<kRead>::kRows;
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

template <Read kRead>
__global__ void __launch_bounds__(kHashProductThreads, 1)
    hash_product_kernel(const HashProductParams params) {
  // warp: rows (16 or 32,dim) x planes (bits,dim) -> hashes
  const HashSequences& problem = params.hash.sequences;
  HashProduct<kRead> product(params);
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
    if (tile.rows > 0) product.hash_tile(tile);
    tile = next;
  }
  if (product.bad()) mark_non_finite(params.hash.flags);
}

}  // namespace cluster_attention::cuda
