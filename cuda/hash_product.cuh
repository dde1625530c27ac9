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
#include "cuda/primitives/opaque.cuh"

namespace cluster_attention::cuda {

constexpr int64_t kMostProductColumns = 256;
constexpr int kHashProductThreads = 512;
constexpr int kBitTiles = kHashBits / 8;

struct HashProductParams {
  HashParams hash;
  int64_t tiles;    // of a warp's rows, per sequence
  float tolerance;  // of a sum, per length of the row and of the plane
  uint32_t zero;    // for moved()
};

/// Bound on |sum - chain of fmaf| / (|row| |plane|). The chain rounds `dim` times. Operands in two
/// parts stand for their values to 2^-17, and of each product of two low parts nothing is left. A
/// step of the tensor cores adds 16 products to a sum of 24 bits at least, and may cut each off.
template <Read kRead>
float product_tolerance(int64_t dim, bool round_planes) {
  const int products = kRead == Read::float32 ? 3 : round_planes ? 1 : 2;
  constexpr double kOperands[] = {0.0, 0x1p-17, 0x1p-15};
  const double steps = static_cast<double>(divide_up(dim, 32) * 2 * products);
  const double chain = static_cast<double>(dim) * 0x1p-24;
  return static_cast<float>(1.02 * (chain + kOperands[products - 1] + steps * 0x1p-20));
}

/// Rows and planes shorter than this are left to the chain: nothing underflows above it.
constexpr float kLeastSquare = 1e-30f;

/// Whether every row begins at a multiple of 16 bytes and is made of whole ones.
template <Read kRead>
bool has_vectors(const InputRows& rows, int64_t dim) {
  const int64_t elements = kRead == Read::bfloat16 ? 8 : 4;
  return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && dim % 8 == 0 &&
         rows.batch_stride % elements == 0 && rows.head_stride % elements == 0 &&
         rows.row_stride % elements == 0;
}

struct HashProductLayout {
  int64_t operands;  // uint4 (2 chunks of 32 columns,4,2,32): two bit tiles, high or low parts
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

/// Rows of a warp, whole tiles of 16.
template <Read kRead>
constexpr int kHashTileRows = kRead == Read::bfloat16 ? 32 : 16;

/// One warp's rows of a sequence.
struct HashTile {
  int64_t sequence;
  int64_t first_row;
  int64_t base = 0;  // offset of the first row
  int rows;          // real ones
};

template <Read kRead, bool kVectors>
class HashProduct {
 public:
  static constexpr bool kSplit = kRead == Read::float32;
  /// Operands are words as they are read, four of a row side by side.
  static constexpr bool kMoves = kRead == Read::bfloat16 && kVectors;
  static constexpr int kTiles = kHashTileRows<kRead> / 16;

  /// `shared`: offset of the layout in shared memory.
  __device__ explicit HashProduct(const HashProductParams& params, int64_t shared = 0)
      : params_(params), problem_(params.hash.sequences) {
    const HashProductLayout layout = hash_product_layout(problem_.dim);
    operands_ = dynamic_shared<uint4>(shared + layout.operands);
    limits_ = dynamic_shared<float4>(shared + layout.limits);
    planes_ = dynamic_shared<float>(shared + layout.planes);
  }

  /// The planes as second operands, and their lengths; all threads of the block call it.
  __device__ void load_planes();
  /// store(row, hash) gets the hash of every real row of the tile.
  template <typename Store>
  __device__ void hash_tile(const HashTile& tile, const Store& store);
  __device__ bool bad() const { return bad_; }

 private:
  using RowBits = uint32_t[2 * kTiles];  // of this lane's rows

  __device__ float plane(int bit, int64_t d) const { return planes_[bit * (problem_.dim + 1) + d]; }
  /// The high parts of two bit tiles, 16 columns of each; a warp further the low ones.
  __device__ uint4* operands_at(int step, int two) const {
    return operands_ + (step * kBitTiles / 2 + two) * 2 * kWarp;
  }
  __device__ int64_t row_at(const HashTile& tile, int row) const {
    return tile.base + row * problem_.inputs.row_stride;
  }
  __device__ void load_chunk(const HashTile& tile, int row, int column,
                             HashChunk<kRead>& chunk) const;
  __device__ void multiply(const HashTile& tile);
  __device__ void add_chunk(int chunk, const HashChunk<kRead> (&rows)[kTiles][2]);
  __device__ void add_parts(const uint4* operands, const FragmentA (&rows)[kTiles]);
  __device__ float bound_of(int r) const;
  __device__ bool compare(RowBits& bits) const;
  __device__ uint32_t open_bits(int r) const;
  __device__ bool chain_exceeds(const HashTile& tile, int row, int bit) const;
  __device__ void decide(const HashTile& tile, RowBits& bits);
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

template <Read kRead, bool kVectors>
__device__ void HashProduct<kRead, kVectors>::load_planes() {
  const int bits = static_cast<int>(problem_.bits);
  const int dim = static_cast<int>(problem_.dim);
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  constexpr int kAtOnce = 12;  // on their way before the first is stored
  const int count = bits * (dim + 1);
#pragma unroll 1
  for (int first = thread; first < count; first += kAtOnce * threads) {
    float values[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = first + i * threads;
      values[i] = at < count ? problem_.planes[at] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (params_.hash.round_planes) values[i] = round_to_bfloat16(values[i]);
      bad_ = bad_ || !is_finite(values[i]);
      if (first + i * threads < count) planes_[first + i * threads] = values[i];
    }
  }
  __syncthreads();
  const int steps = (dim + 31) / 32 * 2;
#pragma unroll 2
  for (int i = thread; i < steps * kBitTiles * kWarp; i += threads) {
    const int bit = i / kWarp % kBitTiles * 8 + i % kWarp / 4;
    const int step = i / kWarp / kBitTiles;
    const int d = step / 2 * 32 + i % 4 * 8 + step % 2 * 4;
    float value[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) value[j] = bit < bits && d + j < dim ? plane(bit, d + j) : 0.0f;
    uint2 high, low;
    split_pair(value[0], value[1], high.x, low.x);
    split_pair(value[2], value[3], high.y, low.y);
    const int tile = i / kWarp % kBitTiles;
    uint4* two = operands_at(step, tile / 2) + i % kWarp;
    reinterpret_cast<uint2*>(two)[tile % 2] = high;
    reinterpret_cast<uint2*>(two + kWarp)[tile % 2] = low;
  }
  constexpr int kLanes = 8;  // share a plane
  for (int i = thread; i < kHashBits * kLanes; i += threads) {
    const int bit = i / kLanes;
    const bool real = bit < bits;
    float square = 0.0f;
    for (int d = i % kLanes; real && d < dim; d += kLanes) {
      square = fmaf(plane(bit, d), plane(bit, d), square);
    }
    square = warp_sum(square, kLanes);
    if (i % kLanes != 0) continue;
    float* limit = reinterpret_cast<float*>(limits_) + bit * 2;
    limit[0] = real ? plane(bit, dim) : 0.0f;
    // No bound where nothing is known: the chain decides. Bits that there are none of are sure.
    const float known =
        square >= kLeastSquare ? square * rsqrtf(square) : __uint_as_float(0x7f800000u);
    limit[1] = real ? known : -1.0f;
  }
  __syncthreads();
}

template <Read kRead, bool kVectors>
__device__ void HashProduct<kRead, kVectors>::load_chunk(const HashTile& tile, int row, int column,
                                                         HashChunk<kRead>& chunk) const {
  const float* data = problem_.inputs.data;
  const int dim = static_cast<int>(problem_.dim);
  const bool real = row < tile.rows;
  if constexpr (kVectors) {
    if (real && column < dim) {
      chunk.load(data, row_at(tile, row) + column);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) chunk.set(i, 0.0f);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const bool inside = real && column + i < dim;
      constexpr Read kStored = kRead == Read::bfloat16 ? Read::bfloat16 : Read::float32;
      chunk.set(i, inside ? read<kStored>(data, row_at(tile, row) + column + i) : 0.0f);
    }
  }
}

/// Adds the products of 32 columns.
template <Read kRead, bool kVectors>
__device__ void HashProduct<kRead, kVectors>::add_chunk(int chunk,
                                                        const HashChunk<kRead> (&rows)[kTiles][2]) {
  uint32_t high[kTiles][2][4];
  uint32_t low[kTiles][2][4];
#pragma unroll
  for (int i = 0; i < 2 * kTiles; ++i) {
    rows[i / 2][i % 2].split(high[i / 2][i % 2], low[i / 2][i % 2], squares_[i / 2][i % 2]);
  }
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    FragmentA a[kTiles];
    FragmentA low_a[kTiles];
#pragma unroll
    for (int i = 0; i < 4 * kTiles; ++i) {
      const int t = i / 4;
      const int word = 2 * step + i % 4 / 2;
      a[t][i % 4] = kMoves ? moved(high[t][i % 2][word], params_.zero) : high[t][i % 2][word];
      low_a[t][i % 4] = low[t][i % 2][word];
    }
    const uint4* operands = operands_at(chunk * 2 + step, 0) + lane_index();
    if constexpr (kSplit) {
#pragma unroll
      for (int n = 0; n < kBitTiles; n += 2) {
        const uint4 high_of_two = operands[n * kWarp];
        const uint4 low_of_two = operands[(n + 1) * kWarp];
        const FragmentB high_b[2] = {{high_of_two.x, high_of_two.y},
                                     {high_of_two.z, high_of_two.w}};
        const FragmentB low_b[2] = {{low_of_two.x, low_of_two.y}, {low_of_two.z, low_of_two.w}};
#pragma unroll
        for (int i = 0; i < 2 * kTiles; ++i) {
          const int t = i % kTiles;
          const int tile = i / kTiles;
          mma_split_16x8x16(sums_[t][n + tile], a[t], low_a[t], high_b[tile], low_b[tile]);
        }
      }
    } else {
      // Planes that are bfloat16 themselves have no low parts. One branch: products that each have
      // a condition would be issued all the same.
      if (!params_.hash.round_planes) add_parts(operands + kWarp, a);
      add_parts(operands, a);
    }
  }
}

/// Adds the products of 16 columns with one part, high or low, of the planes.
template <Read kRead, bool kVectors>
__device__ void HashProduct<kRead, kVectors>::add_parts(const uint4* operands,
                                                        const FragmentA (&rows)[kTiles]) {
#pragma unroll
  for (int n = 0; n < kBitTiles; n += 2) {
    const uint4 two = operands[n * kWarp];
    const FragmentB part[2] = {{two.x, two.y}, {two.z, two.w}};
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      mma_bf16_16x8x16(sums_[i % kTiles][n + i / kTiles], rows[i % kTiles], part[i / kTiles]);
    }
  }
}

template <Read kRead, bool kVectors>
__device__ void HashProduct<kRead, kVectors>::multiply(const HashTile& tile) {
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

}  // namespace cluster_attention::cuda
