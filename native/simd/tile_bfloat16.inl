// Products of bfloat16 values in tile registers, for attend(). Part of tile_kernels.inl, for
// targets that define CA_TILE_REGISTERS (see tile_registers.h).
//
// The left factor lies in rows of bfloat16, the right one in pairs: the word at [k / 2][lane] holds
// elements k (low half) and k + 1 of that lane. Keys and transposed values are left factors,
// queries and weights right ones; so the product has the layout of multiply(). Queries, keys and
// values are bfloat16 already, and cutting them loses nothing; weights are rounded to nearest.

static_assert(kWidth == 16, "a tile register holds 16 lanes");

using TileRegisters = CA_TILE_REGISTERS;

constexpr int64_t kTileDepth = 32;   // elements that one product of registers sums
constexpr int64_t kTileHeight = 16;  // rows of a register
constexpr int64_t kChunk = 64;       // columns of keys and values that are converted at a time

template <int I>
struct Index {
  static constexpr int value = I;
};

/// f(Index<0>), ..., f(Index<kCount - 1>): register numbers are constants.
template <int kCount, int kFirst = 0, typename F>
inline void each(F f) {
  if constexpr (kFirst < kCount) {
    f(Index<kFirst>{});
    each<kCount, kFirst + 1>(f);
  }
}

struct PairProduct {
  const uint16_t* a;  // (rows, depth), rows a_stride apart; whole registers may be read
  int64_t a_stride;
  const int32_t* b;  // (depth / 2, kLanes) pairs
  int64_t depth;     // a multiple of kTileDepth
  float* product;    // (rows, kLanes); whole registers are written
  bool accumulate;
};

template <int kRowTiles, int kVectors>
void multiply_pairs(const PairProduct& t) {
  constexpr int kA = 6;
  constexpr int kB = 7;
  constexpr int64_t kProductBytes = kLanes * sizeof(float);
  each<kRowTiles * kVectors>([&](auto i) {
    float* source = t.product + i.value / kVectors * kTileHeight * kLanes;
    if (t.accumulate) {
      TileRegisters::load<i.value>(source + i.value % kVectors * kWidth, kProductBytes);
    } else {
      TileRegisters::zero<i.value>();
    }
  });
  for (int64_t k = 0; k < t.depth; k += kTileDepth) {
    each<kVectors>([&](auto v) {
      TileRegisters::load<kB>(t.b + k / 2 * kLanes + v.value * kWidth, kLanes * sizeof(int32_t));
      each<kRowTiles>([&](auto r) {
        TileRegisters::load<kA>(t.a + r.value * kTileHeight * t.a_stride + k,
                                t.a_stride * static_cast<int64_t>(sizeof(uint16_t)));
        TileRegisters::multiply_add<r.value * kVectors + v.value, kA, kB>();
      });
    });
  }
  each<kRowTiles * kVectors>([&](auto i) {
    float* target = t.product + i.value / kVectors * kTileHeight * kLanes;
    TileRegisters::store<i.value>(target + i.value % kVectors * kWidth, kProductBytes);
  });
}

template <int kVectors>
void multiply_pair_rows(PairProduct t, int64_t rows) {
  for (; rows > kTileHeight; rows -= 2 * kTileHeight) {
    multiply_pairs<2, kVectors>(t);
    t.a += 2 * kTileHeight * t.a_stride;
    t.product += 2 * kTileHeight * kLanes;
  }
  if (rows > 0) multiply_pairs<1, kVectors>(t);
}

void multiply_bfloat16(const PairProduct& t, int64_t rows, int64_t columns) {
  TileRegisters::open();
  const int64_t vectors = vectors_of(columns);
  if (vectors == 1) multiply_pair_rows<1>(t, rows);
  if (vectors == 2) multiply_pair_rows<2>(t, rows);
  if (vectors == 3) multiply_pair_rows<3>(t, rows);
  TileRegisters::close();
}

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

/// Columns [0, depth) of some rows, in rows of kChunk; what fills the last registers up is 0.
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

/// Columns [0, columns) of some rows as rows of kKeyBlock; what fills the last registers up is 0.
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

/// scores = keys times queries, as attend() computes them.
void score_bfloat16(const AttendTile& t, const float* key, int64_t rows) {
  alignas(64) uint16_t keys[kKeyBlock * kChunk];
  alignas(64) int32_t queries[kChunk / 2 * kLanes];
  for (int64_t first = 0; first < t.head_dim; first += kChunk) {
    const int64_t depth = t.head_dim - first < kChunk ? t.head_dim - first : kChunk;
    pack_chunk(key + first, t.key_stride, rows, depth, keys);
    pack_pairs<false>(t.packed_query + first * kLanes, depth, t.columns, queries);
    multiply_bfloat16({keys, kChunk, queries, whole(depth, kTileDepth), t.scores, first > 0}, rows,
                      t.columns);
  }
}

/// output += weights times values.
void add_values_bfloat16(const AttendTile& t, const float* value, int64_t rows) {
  alignas(64) uint16_t values[kChunk * kKeyBlock];
  alignas(64) int32_t weights[kKeyBlock / 2 * kLanes];
  alignas(64) float product[kChunk * kLanes];
  pack_pairs<true>(t.scores, rows, t.columns, weights);
  for (int64_t first = 0; first < t.value_dim; first += kChunk) {
    const int64_t columns = t.value_dim - first < kChunk ? t.value_dim - first : kChunk;
    pack_transposed(value + first, t.value_stride, rows, columns, values);
    multiply_bfloat16({values, kKeyBlock, weights, whole(rows, kTileDepth), product, false},
                      columns, t.columns);
    for (int64_t e = 0; e < columns; ++e) {
      float* output = t.output + (first + e) * kLanes;
      for (int64_t lane = 0; lane < t.columns; lane += kWidth) {
        store(output + lane, load(output + lane) + load(product + e * kLanes + lane));
      }
    }
  }
}
