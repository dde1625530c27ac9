// Products of bfloat16 values for attend(). Part of tile_kernels.inl, for targets that have
// instructions for them.
//
// The left factor lies in rows of bfloat16, the right one in pairs: the word at [k / 2][lane] holds
// elements k (low half) and k + 1 of that lane. Keys and transposed values are left factors,
// queries and weights right ones; so the product has the layout of multiply(). Queries, keys and
// values are bfloat16 already, and cutting them loses nothing; weights are rounded to nearest.

constexpr int64_t kChunk = kBfloat16Columns;

/// multiply_bfloat16(product, rows, columns) makes the columns of whole vectors. kAddsWhole: where
/// it accumulates, the sum over the depth is added as one number, and no row past `rows` is
/// touched.
struct PairProduct {
  const uint16_t* a;  // (rows, depth), rows a_stride apart; whole tiles of kTileHeight are read
  int64_t a_stride;
  const int32_t* b;  // (depth / 2, kLanes) pairs
  int64_t depth;     // a multiple of kTileDepth
  float* product;    // (rows, kLanes); whole tiles of kTileHeight are written
  bool accumulate;
};

// clang-format off
#if defined(CA_TILE_REGISTERS)
#include "native/simd/tile_bfloat16_registers.inl"
#else
#include "native/simd/tile_bfloat16_vectors.inl"
#endif
// clang-format on

inline int64_t whole(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

/// The bfloat16 nearest to each float, ties to even, in the upper half of its bits.
inline IntVec nearest_bfloat16(IntVec floats) {
  const BitVec bits = reinterpret_cast<BitVec>(floats);
  return reinterpret_cast<IntVec>(bits + ((bits >> 16 & 1u) + 0x7fffu));
}

inline IntVec pair_of(IntVec low, IntVec high) {
  return (high & broadcast(int32_t{-65536})) | (low >> 16 & broadcast(int32_t{0xffff}));
}

/// Rows of lanes (depth, kLanes) -> pairs (whole(depth, kTileDepth) / 2, kLanes).
template <bool kRound>
void pack_pairs(const float* rows, int64_t depth, int64_t columns, int32_t* pairs) {
  for (int64_t k = 0; k < whole(depth, kTileDepth); k += 2) {
    for (int64_t lane = 0; lane < columns; lane += kWidth) {
      const float* row = rows + k * kLanes + lane;
      IntVec low = k < depth ? reinterpret_cast<IntVec>(load(row)) : IntVec{};
      IntVec high = k + 1 < depth ? reinterpret_cast<IntVec>(load(row + kLanes)) : IntVec{};
      if (kRound) low = nearest_bfloat16(low);
      if (kRound) high = nearest_bfloat16(high);
      store(pairs + k / 2 * kLanes + lane, pair_of(low, high));
    }
  }
}

typedef uint32_t FloatBits __attribute__((may_alias));

/// Columns [0, depth) of some rows, in rows of kChunk; what fills the last tiles up is 0.
void pack_chunk(const float* rows, int64_t row_stride, int64_t count, int64_t depth,
                uint16_t* chunk) {
  const int64_t used = whole(depth, kTileDepth);
  for (int64_t r = 0; r < whole(count, kTileHeight); ++r) {
    const FloatBits* row = reinterpret_cast<const FloatBits*>(rows + r * row_stride);
    uint16_t* target = chunk + r * kChunk;
    const int64_t real = r < count ? depth : 0;
    for (int64_t d = 0; d < real; ++d) target[d] = static_cast<uint16_t>(row[d] >> 16);
    for (int64_t d = real; d < used; ++d) target[d] = 0;
  }
}

/// Columns [0, columns) of some rows as rows of kKeyBlock; what fills the last tiles up is 0.
void pack_transposed(const float* rows, int64_t row_stride, int64_t count, int64_t columns,
                     uint16_t* transposed) {
  const auto load_row = [&](int64_t r, int64_t first) {
    if (r >= count) return IntVec{};
    const float* row = rows + r * row_stride + first;
    const int64_t left = columns - first;
    return reinterpret_cast<IntVec>(left < kWidth ? load_partial(row, left) : load(row));
  };
  for (int64_t first = 0; first < columns; first += kWidth) {
    for (int64_t r = 0; r < whole(count, kTileDepth); r += 2 * kWidth) {
      Vec block[kWidth];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kWidth; ++i) {
        block[i] = reinterpret_cast<Vec>(
            pair_of(load_row(r + 2 * i, first), load_row(r + 2 * i + 1, first)));
      }
      transpose(block);
#pragma GCC unroll 16
      for (int64_t e = 0; e < kWidth; ++e) {
        __builtin_memcpy(transposed + (first + e) * kKeyBlock + r, &block[e], sizeof(Vec));
      }
    }
  }
}

void pack_bfloat16(const AttendTile& t, uint16_t* packed) {
  for (int64_t first = 0; first < t.head_dim; first += kChunk) {
    const int64_t depth = t.head_dim - first < kChunk ? t.head_dim - first : kChunk;
    pack_chunk(t.key + first, t.key_stride, t.keys, depth, packed);
    packed += kKeyBlock * kChunk;
  }
  for (int64_t first = 0; first < t.value_dim; first += kChunk) {
    const int64_t columns = t.value_dim - first < kChunk ? t.value_dim - first : kChunk;
    pack_transposed(t.value + first, t.value_stride, t.keys, columns, packed);
    packed += kKeyBlock * kChunk;
  }
}

/// scores = keys times queries, as attend() computes them.
void score_bfloat16(const AttendTile& t, const float* key, int64_t rows) {
  alignas(64) uint16_t keys[kKeyBlock * kChunk];
  alignas(64) int32_t queries[kChunk / 2 * kLanes];
  for (int64_t first = 0; first < t.head_dim; first += kChunk) {
    const int64_t depth = t.head_dim - first < kChunk ? t.head_dim - first : kChunk;
    if (t.packed == nullptr) pack_chunk(key + first, t.key_stride, rows, depth, keys);
    pack_pairs<false>(t.packed_query + first * kLanes, depth, t.columns, queries);
    multiply_bfloat16({t.packed != nullptr ? t.packed + first * kKeyBlock : keys, kChunk, queries,
                       whole(depth, kTileDepth), t.scores, first > 0},
                      rows, t.columns);
  }
}

/// output += weights times values.
void add_values_bfloat16(const AttendTile& t, const float* value, int64_t rows) {
  alignas(64) uint16_t values[kChunk * kKeyBlock];
  alignas(64) int32_t weights[kKeyBlock / 2 * kLanes];
  alignas(64) float product[kChunk * kLanes];
  const uint16_t* packed =
      t.packed != nullptr ? t.packed + whole(t.head_dim, kChunk) * kKeyBlock : nullptr;
  pack_pairs<true>(t.scores, rows, t.columns, weights);
  for (int64_t first = 0; first < t.value_dim; first += kChunk) {
    const int64_t columns = t.value_dim - first < kChunk ? t.value_dim - first : kChunk;
    if (packed == nullptr) pack_transposed(value + first, t.value_stride, rows, columns, values);
    PairProduct pairs = {packed != nullptr ? packed + first * kKeyBlock : values,
                         kKeyBlock,
                         weights,
                         whole(rows, kTileDepth),
                         t.output + first * kLanes,
                         true};
    if (kAddsWhole) {
      multiply_bfloat16(pairs, columns, t.columns);
      continue;
    }
    pairs.product = product;
    pairs.accumulate = false;
    multiply_bfloat16(pairs, columns, t.columns);
    for (int64_t e = 0; e < columns; ++e) {
      float* output = t.output + (first + e) * kLanes;
      for (int64_t lane = 0; lane < t.columns; lane += kWidth) {
        store(output + lane, load(output + lane) + load(product + e * kLanes + lane));
      }
    }
  }
}
