// multiply_packed() in tile registers (see tile_registers.h). Part of tile_bfloat16.inl, for
// targets that define CA_TILE_REGISTERS.

static_assert(kWidth == 16, "a tile register holds 16 lanes");

using TileRegisters = CA_TILE_REGISTERS;

constexpr int64_t kTileDepth = 32;   // elements that one product of registers sums
constexpr int64_t kTileHeight = 16;  // rows of a register
constexpr bool kAddsWhole = false;   // registers are loaded with what there is

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

template <int kRowTiles, int kVectors>
void multiply_pairs(const PairProduct& t) {
  constexpr int kA = 6;
  constexpr int kB = 7;
  const int64_t product_bytes = t.product_stride * static_cast<int64_t>(sizeof(float));
  each<kRowTiles * kVectors>([&](auto i) {
    float* source = t.product + i.value / kVectors * kTileHeight * t.product_stride;
    if (t.accumulate) {
      TileRegisters::load<i.value>(source + i.value % kVectors * kWidth, product_bytes);
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
    float* target = t.product + i.value / kVectors * kTileHeight * t.product_stride;
    TileRegisters::store<i.value>(target + i.value % kVectors * kWidth, product_bytes);
  });
}

template <int kVectors>
void multiply_pair_rows(PairProduct t, int64_t rows) {
  for (; rows > kTileHeight; rows -= 2 * kTileHeight) {
    multiply_pairs<2, kVectors>(t);
    t.a += 2 * kTileHeight * t.a_stride;
    t.product += 2 * kTileHeight * t.product_stride;
  }
  if (rows > 0) multiply_pairs<1, kVectors>(t);
}

void multiply_packed(const PairProduct& t, int64_t rows, int64_t columns) {
  TileRegisters::open();
  const int64_t vectors = vectors_of(columns);
  if (vectors == 1) multiply_pair_rows<1>(t, rows);
  if (vectors == 2) multiply_pair_rows<2>(t, rows);
  if (vectors == 3) multiply_pair_rows<3>(t, rows);
  TileRegisters::close();
}
