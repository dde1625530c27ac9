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
  int64_t operands;    // uint4 (2 chunks of 32 columns,8,32): high and low parts
  int64_t norms;       // float (bits): |plane|
  int64_t thresholds;  // float (bits)
  int64_t bytes;
};
CA_HOST_DEVICE inline HashProductLayout hash_product_layout(int64_t dim) {
  SharedLayout parts;
  const int64_t operands = parts.add<uint4>(divide_up(dim, 32) * 2 * kBitTiles * kWarp);
  const int64_t norms = parts.add<float>(kHashBits);
  const int64_t thresholds = parts.add<float>(kHashBits);
  return {operands, norms, thresholds, parts.bytes()};
}

/// Eight columns of a row as they are stored.
template <Read kRead>
struct HashChunk {
  float values[8];

  __device__ void load(const float* data, int64_t at) {
    const float4 first = *reinterpret_cast<const float4*>(data + at);
    const float4 second = *reinterpret_cast<const float4*>(data + at + 4);
    values[0] = first.x, values[1] = first.y, values[2] = first.z, values[3] = first.w;
    values[4] = second.x, values[5] = second.y, values[6] = second.z, values[7] = second.w;
  }
  __device__ void set(int i, float value) { values[i] = value; }
  __device__ void split(uint32_t (&high)[4], uint32_t (&low)[4], float& square) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kRead == Read::float32) {
        split_pair(values[2 * i], values[2 * i + 1], high[i], low[i]);
      } else {
        high[i] = pack_bfloat16(values[2 * i], values[2 * i + 1]);
        low[i] = 0;
      }
      square = fmaf(values[2 * i], values[2 * i], square);
      square = fmaf(values[2 * i + 1], values[2 * i + 1], square);
    }
  }
};
template <>
struct HashChunk<Read::bfloat16> {
  uint32_t words[4];

  __device__ void load(const float* data, int64_t at) {
    const uint4 all = *reinterpret_cast<const uint4*>(reinterpret_cast<const bfloat16*>(data) + at);
    words[0] = all.x, words[1] = all.y, words[2] = all.z, words[3] = all.w;
  }
  __device__ void set(int i, float value) {
    const uint32_t bits = to_bfloat16(value).bits;
    words[i / 2] = i % 2 == 0 ? bits : words[i / 2] | bits << 16;
  }
  __device__ void split(uint32_t (&high)[4], uint32_t (&low)[4], float& square) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      high[i] = words[i];
      low[i] = 0;
      square = fmaf(low_of(words[i]), low_of(words[i]), square);
      square = fmaf(high_of(words[i]), high_of(words[i]), square);
    }
  }
};

/// One warp's rows of a sequence.
struct HashTile {
  int64_t sequence;
  int64_t first_row;
  int64_t base;  // offset of the first row
  int rows;      // real ones
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
    norms_ = dynamic_shared<float>(layout.norms);
    thresholds_ = dynamic_shared<float>(layout.thresholds);
  }

  /// The planes as second operands, and their lengths; all threads of the block call it.
  __device__ void load_planes();
  __device__ void hash_tile(const HashTile& tile);
  __device__ bool bad() const { return bad_; }

 private:
  __device__ float plane(int bit, int64_t d) const {
    const float value = problem_.planes[bit * (problem_.dim + 1) + d];
    return params_.hash.round_planes ? round_to_bfloat16(value) : value;
  }
  __device__ int64_t row_at(const HashTile& tile, int row) const {
    return tile.base + row * problem_.inputs.row_stride;
  }
  __device__ void load_chunk(const HashTile& tile, int row, int column,
                             HashChunk<kRead>& chunk) const;
  __device__ void multiply(const HashTile& tile);
  __device__ void add_chunk(int chunk, const HashChunk<kRead> (&rows)[kTiles][2]);
  __device__ uint32_t compare(int tile, int half, const HashTile& rows, uint32_t& unsure) const;
  __device__ bool chain_exceeds(const HashTile& tile, int row, int bit) const;
  __device__ uint32_t look_at_row(const HashTile& tile, int row, uint32_t unsure);

  const HashProductParams& params_;
  const HashSequences& problem_;
  uint4* operands_;
  float* norms_;
  float* thresholds_;
  FragmentD sums_[kTiles][kBitTiles];
  float squares_[kTiles][2];  // of the rows, this lane's columns at first
  bool bad_ = false;
};

template <Read kRead>
__device__ void HashProduct<kRead>::load_planes() {
  const int bits = static_cast<int>(problem_.bits);
  const int steps = static_cast<int>(divide_up(problem_.dim, 32)) * 2;
#pragma unroll 4
  for (int i = threadIdx.x; i < steps * kBitTiles * kWarp; i += blockDim.x) {
    const int bit = i / kWarp % kBitTiles * 8 + i % kWarp / 4;
    const int step = i / kWarp / kBitTiles;
    const int64_t d = step / 2 * 32 + i % 4 * 8 + step % 2 * 4;
    float value[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      value[j] = bit < bits && d + j < problem_.dim ? plane(bit, d + j) : 0.0f;
      bad_ = bad_ || !is_finite(value[j]);
    }
    uint4 operand;
    split_pair(value[0], value[1], operand.x, operand.z);
    split_pair(value[2], value[3], operand.y, operand.w);
    operands_[i] = operand;
  }
  for (int bit = threadIdx.x; bit < kHashBits; bit += blockDim.x) {
    thresholds_[bit] = bit < bits ? plane(bit, problem_.dim) : 0.0f;
    bad_ = bad_ || !is_finite(thresholds_[bit]);
  }
  __syncthreads();
  for (int tile = warp_index(); tile < kBitTiles; tile += static_cast<int>(blockDim.x) / kWarp) {
    float square = 0.0f;
    for (int step = 0; step < steps; ++step) {
      const uint4 operand = operands_[(step * kBitTiles + tile) * kWarp + lane_index()];
      const float values[4] = {
          low_of(operand.x) + low_of(operand.z), high_of(operand.x) + high_of(operand.z),
          low_of(operand.y) + low_of(operand.w), high_of(operand.y) + high_of(operand.w)};
#pragma unroll
      for (int j = 0; j < 4; ++j) square = fmaf(values[j], values[j], square);
    }
    square = warp_sum(square, 4);
    // No bound where nothing is known: the chain decides.
    const float norm = square >= kLeastSquare ? sqrtf(square) : __uint_as_float(0x7f800000u);
    if (lane_index() % 4 == 0) norms_[tile * 8 + lane_index() / 4] = norm;
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
  float sum = 0.0f;
#pragma unroll 8
  for (int64_t d = 0; d < problem_.dim; ++d) {
    sum = fmaf(read<kRead>(problem_.inputs.data, row_at(tile, row) + d), plane(bit, d), sum);
  }
  const float* own = params_.hash.own_thresholds;
  return sum > (own != nullptr ? own[tile.sequence * kHashBits + bit] : thresholds_[bit]);
}

/// This lane's 16 bits of a row: bit 2 n + side is bit 8 n + 2 four + side of the hash. `unsure`
/// gets those that the sum does not decide.
template <Read kRead>
__device__ uint32_t HashProduct<kRead>::compare(int tile, int half, const HashTile& rows,
                                                uint32_t& unsure) const {
  const float* own = params_.hash.own_thresholds;
  const float* thresholds = own != nullptr ? own + rows.sequence * kHashBits : thresholds_;
  const int bits = static_cast<int>(problem_.bits);
  const int row = tile * 16 + half * 8 + lane_index() / 4;
  const float square = squares_[tile][half];
  float bound = params_.tolerance * sqrtf(square);
  if (!(square >= kLeastSquare)) bound = __uint_as_float(0x7f800000u);
  uint32_t result = 0;
  unsure = 0;
#pragma unroll
  for (int i = 0; i < 2 * kBitTiles; ++i) {
    const int bit = i / 2 * 8 + lane_index() % 4 * 2 + i % 2;
    if (bit >= bits) continue;
    const float sum = sums_[tile][i / 2][half * 2 + i % 2];
    const float distance = sum - thresholds[bit];
    if (distance > 0.0f) result |= 1u << i;
    if (!(fabsf(distance) > bound * norms_[bit])) unsure |= 1u << i;
  }
  if (row >= rows.rows) unsure = 0;
  return result;
}

template <Read kRead>
__device__ void HashProduct<kRead>::hash_tile(const HashTile& tile) {
  multiply(tile);
  const int group = lane_index() / 4;
  const int four = lane_index() % 4;
  uint64_t* hashes = problem_.hashes + tile.sequence * problem_.length + tile.first_row;
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = t * 16 + half * 8 + group;
      squares_[t][half] = warp_sum(squares_[t][half], 4);
      uint32_t unsure;
      uint32_t mine = compare(t, half, tile, unsure);
      const bool usual = squares_[t][half] >= kLeastSquare && is_finite(squares_[t][half]);
      if (unsure != 0 && !usual) unsure = look_at_row(tile, row, unsure);
      for (; unsure != 0; unsure &= unsure - 1) {
        const int i = __ffs(static_cast<int>(unsure)) - 1;
        const bool set = chain_exceeds(tile, row, i / 2 * 8 + four * 2 + i % 2);
        mine = (mine & ~(1u << i)) | static_cast<uint32_t>(set) << i;
      }
      uint32_t words[2] = {0, 0};
#pragma unroll
      for (int n = 0; n < kBitTiles; ++n) {
        words[n / 4] |= (mine >> (2 * n) & 3u) << (n % 4 * 8 + 2 * four);
      }
      const auto join = [](uint32_t a, uint32_t b) { return a | b; };
      const uint32_t low = warp_reduce(words[0], join, 4);
      const uint32_t high = warp_reduce(words[1], join, 4);
      if (four == 0 && row < tile.rows) {
        hashes[row] = static_cast<uint64_t>(high) << 32 | low;
      }
    }
  }
}

template <Read kRead>
__global__ void __launch_bounds__(kHashProductThreads, 1)
    hash_product_kernel(const HashProductParams params) {
  // warp: rows (16 or 32,dim) x planes (bits,dim) -> hashes
  const HashSequences& problem = params.hash.sequences;
  HashProduct<kRead> product(params);
  product.load_planes();
  const int64_t warps = static_cast<int64_t>(blockDim.x) / kWarp;
  const int64_t tiles = problem.batch * problem.heads * params.tiles;
  for (int64_t i = blockIdx.x * warps + warp_index(); i < tiles; i += gridDim.x * warps) {
    HashTile tile;
    tile.sequence = i / params.tiles;
    tile.first_row = i % params.tiles * HashProduct<kRead>::kRows;
    const int64_t batch = tile.sequence / problem.heads;
    const int64_t left = real_length(problem.lengths, batch, problem.length) - tile.first_row;
    if (left <= 0) continue;
    tile.rows =
        static_cast<int>(left < HashProduct<kRead>::kRows ? left : HashProduct<kRead>::kRows);
    tile.base = row_offset(problem.inputs, batch, tile.sequence % problem.heads, tile.first_row);
    product.hash_tile(tile);
  }
  if (product.bad()) mark_non_finite(params.hash.flags);
}

}  // namespace cluster_attention::cuda
