// Products of bfloat16 values for attend(). Part of tile_kernels.inl, for targets that have
// instructions for them.
//
// The left factor lies in rows of bfloat16, the right one in pairs: the word at [k / 2][lane] holds
// elements k (low half) and k + 1 of that lane. Keys and transposed values are left factors,
// queries and weights right ones; so the product has the layout of multiply(). Queries, keys and
// values are bfloat16 already, and cutting them loses nothing; weights are rounded to nearest.

constexpr int64_t kChunk = kBfloat16Columns;

/// multiply_packed(product, rows, columns) makes the columns of whole vectors. kAddsWhole: where
/// it accumulates, the sum over the depth is added as one number, and no row past `rows` is
/// touched.
struct PairProduct {
  const uint16_t* a;  // (rows, depth), rows a_stride apart; whole tiles of kTileHeight are read
  int64_t a_stride;
  const int32_t* b;  // (depth / 2, kLanes) pairs
  int64_t depth;     // a multiple of kTileDepth
  float* product;    // (rows, up to kLanes); whole tiles of kTileHeight are written
  int64_t product_stride;
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

/// Rows of up to kLanes columns -> pairs (whole(depth, kTileDepth) / 2, kLanes).
template <bool kRound>
void pack_pairs(const float* rows, int64_t row_stride, int64_t depth, int64_t columns,
                int32_t* pairs) {
  for (int64_t k = 0; k < whole(depth, kTileDepth); k += 2) {
    for (int64_t lane = 0; lane < columns; lane += kWidth) {
      const float* row = rows + k * row_stride + lane;
      IntVec low = k < depth ? reinterpret_cast<IntVec>(load(row)) : IntVec{};
      IntVec high = k + 1 < depth ? reinterpret_cast<IntVec>(load(row + row_stride)) : IntVec{};
      if (kRound) low = nearest_bfloat16(low);
      if (kRound) high = nearest_bfloat16(high);
      store(pairs + k / 2 * kLanes + lane, pair_of(low, high));
    }
  }
}

typedef uint32_t FloatBits __attribute__((may_alias));

template <bool kRound>
inline uint16_t upper_half(uint32_t bits) {
  return static_cast<uint16_t>((kRound ? bits + ((bits >> 16 & 1u) + 0x7fffu) : bits) >> 16);
}

/// Columns [0, depth) of some rows, in rows of `stride`; what fills the last tiles up is 0.
template <bool kRound>
void pack_rows(const float* rows, int64_t row_stride, int64_t count, int64_t depth,
               uint16_t* packed, int64_t stride) {
  const int64_t used = whole(depth, kTileDepth);
  for (int64_t r = 0; r < whole(count, kTileHeight); ++r) {
    const FloatBits* row = reinterpret_cast<const FloatBits*>(rows + r * row_stride);
    uint16_t* target = packed + r * stride;
    const int64_t real = r < count ? depth : 0;
    for (int64_t d = 0; d < real; ++d) target[d] = upper_half<kRound>(row[d]);
    for (int64_t d = real; d < used; ++d) target[d] = 0;
  }
}

/// Columns [0, columns) of some rows as rows of kKeyBlock; what fills the last tiles up is 0.
template <bool kRound>
void pack_transposed(const float* rows, int64_t row_stride, int64_t count, int64_t columns,
                     uint16_t* transposed) {
  const auto load_row = [&](int64_t r, int64_t first) {
    if (r >= count) return IntVec{};
    const float* row = rows + r * row_stride + first;
    const int64_t left = columns - first;
    const IntVec bits =
        reinterpret_cast<IntVec>(left < kWidth ? load_partial(row, left) : load(row));
    return kRound ? nearest_bfloat16(bits) : bits;
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

/// multiply_packed() of at most kKeyBlock rows into memory that ends with them: what it adds is the
/// sum over the depth.
void add_packed(PairProduct t, int64_t rows, int64_t columns) {
  if (kAddsWhole) return multiply_packed(t, rows, columns);
  alignas(64) float sums[kAddsWhole ? 1 : kKeyBlock * kLanes];
  float* product = t.product;
  const int64_t stride = t.product_stride;
  const bool accumulate = t.accumulate;
  t.product = sums;
  t.product_stride = kLanes;
  t.accumulate = false;
  multiply_packed(t, rows, columns);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t lane = 0; lane < columns; lane += kWidth) {
      float* target = product + r * stride + lane;
      const Vec sum = load(sums + r * kLanes + lane);
      store(target, accumulate ? load(target) + sum : sum);
    }
  }
}

void multiply_bfloat16(const float* a, int64_t a_row, int64_t a_depth, int64_t rows, int64_t depth,
                       const float* b, int64_t b_stride, int64_t columns, float* product,
                       int64_t product_stride, bool accumulate) {
  alignas(64) uint16_t left[kKeyBlock * kKeyBlock];
  alignas(64) int32_t right[kKeyBlock / 2 * kLanes];
  const auto block_of = [](int64_t total, int64_t first, int64_t size) {
    return total - first < size ? total - first : size;
  };
  int64_t k = 0;
  do {  // once even without depth: the product is 0
    const int64_t deep = block_of(depth, k, kKeyBlock);
    for (int64_t r = 0; r < rows; r += kKeyBlock) {
      const int64_t high = block_of(rows, r, kKeyBlock);
      const float* block = a + r * a_row + k * a_depth;
      if (a_depth == 1) {
        pack_rows<true>(block, a_row, high, deep, left, kKeyBlock);
      } else {
        pack_transposed<true>(block, a_depth, deep, high, left);
      }
      for (int64_t c = 0; c < columns; c += kLanes) {
        const int64_t wide = block_of(columns, c, kLanes);
        pack_pairs<true>(b + k * b_stride + c, b_stride, deep, wide, right);
        add_packed({left, kKeyBlock, right, whole(deep, kTileDepth),
                    product + r * product_stride + c, product_stride, accumulate || k > 0},
                   high, wide);
      }
    }
    k += kKeyBlock;
  } while (k < depth);
}

void pack_bfloat16(const AttendTile& t, uint16_t* packed) {
  for (int64_t first = 0; first < t.head_dim; first += kChunk) {
    const int64_t depth = t.head_dim - first < kChunk ? t.head_dim - first : kChunk;
    pack_rows<false>(t.key + first, t.key_stride, t.keys, depth, packed, kChunk);
    packed += kKeyBlock * kChunk;
  }
  for (int64_t first = 0; first < t.value_dim; first += kChunk) {
    const int64_t columns = t.value_dim - first < kChunk ? t.value_dim - first : kChunk;
    pack_transposed<false>(t.value + first, t.value_stride, t.keys, columns, packed);
    packed += kKeyBlock * kChunk;
  }
}

/// scores = keys times queries, as attend() computes them.
void score_bfloat16(const AttendTile& t, const float* key, int64_t rows) {
  alignas(64) uint16_t keys[kKeyBlock * kChunk];
  alignas(64) int32_t queries[kChunk / 2 * kLanes];
  for (int64_t first = 0; first < t.head_dim; first += kChunk) {
    const int64_t depth = t.head_dim - first < kChunk ? t.head_dim - first : kChunk;
    if (t.packed == nullptr) pack_rows<false>(key + first, t.key_stride, rows, depth, keys, kChunk);
    pack_pairs<false>(t.packed_query + first * kLanes, kLanes, depth, t.columns, queries);
    multiply_packed({t.packed != nullptr ? t.packed + first * kKeyBlock : keys, kChunk, queries,
                     whole(depth, kTileDepth), t.scores, kLanes, first > 0},
                    rows, t.columns);
  }
}

/// output += weights times values.
void add_values_bfloat16(const AttendTile& t, const float* value, int64_t rows) {
  alignas(64) uint16_t values[kChunk * kKeyBlock];
  alignas(64) int32_t weights[kKeyBlock / 2 * kLanes];
  const uint16_t* packed =
      t.packed != nullptr ? t.packed + whole(t.head_dim, kChunk) * kKeyBlock : nullptr;
  pack_pairs<true>(t.scores, kLanes, rows, t.columns, weights);
  for (int64_t first = 0; first < t.value_dim; first += kChunk) {
    const int64_t columns = t.value_dim - first < kChunk ? t.value_dim - first : kChunk;
    if (packed == nullptr) {
      pack_transposed<false>(value + first, t.value_stride, rows, columns, values);
    }
    add_packed({packed != nullptr ? packed + first * kKeyBlock : values, kKeyBlock, weights,
                whole(rows, kTileDepth), t.output + first * kLanes, kLanes, true},
               columns, t.columns);
  }
}
