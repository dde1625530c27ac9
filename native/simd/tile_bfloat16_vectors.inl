// multiply_packed() in vectors, by AVX512-BF16. Part of tile_bfloat16.inl, for targets that
// define CA_BFLOAT16_VECTORS.

constexpr int64_t kTileDepth = 2;           // elements that one instruction sums
constexpr int64_t kTileHeight = kTileRows;  // rows whose sums are in registers
constexpr bool kAddsWhole = true;

inline Vec add_pair_products(Vec sum, IntVec a, IntVec b) {
  return reinterpret_cast<Vec>(_mm512_dpbf16_ps(
      reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
}

template <int kRows, int kVectors>
void multiply_pair_tile(const PairProduct& t, int64_t first_row) {
  const uint16_t* a = t.a + first_row * t.a_stride;
  Vec sum[kRows][kVectors] = {};
  const int32_t* b = t.b;
  for (int64_t k = 0; k < t.depth; k += kTileDepth, b += kLanes) {
    IntVec column[kVectors];
#pragma GCC unroll 3
    for (int64_t v = 0; v < kVectors; ++v) column[v] = load(b + v * kWidth);
#pragma GCC unroll 8
    for (int64_t r = 0; r < kRows; ++r) {
      int32_t pair;
      __builtin_memcpy(&pair, a + r * t.a_stride + k, sizeof pair);
#pragma GCC unroll 3
      for (int64_t v = 0; v < kVectors; ++v) {
        sum[r][v] = add_pair_products(sum[r][v], broadcast(pair), column[v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < kRows; ++r) {
    float* product = t.product + (first_row + r) * t.product_stride;
#pragma GCC unroll 3
    for (int64_t v = 0; v < kVectors; ++v) {
      const Vec before = t.accumulate ? load(product + v * kWidth) : Vec{};
      store(product + v * kWidth, before + sum[r][v]);
    }
  }
}

template <int kVectors>
void multiply_pair_rows(const PairProduct& t, int64_t rows) {
  int64_t row = 0;
  for (; row + kTileHeight <= rows; row += kTileHeight)
    multiply_pair_tile<kTileHeight, kVectors>(t, row);
  for (; row < rows; ++row) multiply_pair_tile<1, kVectors>(t, row);
}

void multiply_packed(const PairProduct& t, int64_t rows, int64_t columns) {
  const int64_t vectors = vectors_of(columns);
  if (vectors == 1) multiply_pair_rows<1>(t, rows);
  if (vectors == 2) multiply_pair_rows<2>(t, rows);
  if (vectors == 3) multiply_pair_rows<3>(t, rows);
}
