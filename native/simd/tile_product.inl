// The product tile that every kernel is made of. Part of tile_kernels.inl.

struct ProductTile {
  const float* a;
  int64_t a_row;
  int64_t a_depth;
  const float* b;
  int64_t b_stride;
  int64_t depth;
  float* product;
  int64_t product_stride;
  bool accumulate;
};

/// ROWS x VECTORS accumulators in registers, each the sum over depth in order. Accumulation into
/// memory happens once per call, so sums over many calls are two-level sums.
template <int ROWS, int VECTORS>
void product_tile(const ProductTile& t) {
  Vec sum[ROWS][VECTORS] = {};
  const float* a = t.a;
  const float* b = t.b;
  for (int64_t k = 0; k < t.depth; ++k, a += t.a_depth, b += t.b_stride) {
    Vec column[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) column[v] = load(b + v * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const Vec element = broadcast(a[r * t.a_row]);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) sum[r][v] = fma(element, column[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      float* target = t.product + r * t.product_stride + v * kWidth;
      store(target, t.accumulate ? load(target) + sum[r][v] : sum[r][v]);
    }
  }
}

template <int VECTORS>
void product_rows(ProductTile t, int64_t rows) {
  using Function = void (*)(const ProductTile&);
  static constexpr Function kRemainder[8] = {
      nullptr,
      product_tile<1, VECTORS>,
      product_tile<2, VECTORS>,
      product_tile<3, VECTORS>,
      product_tile<(kTileRows > 4 ? 4 : 1), VECTORS>,
      product_tile<(kTileRows > 5 ? 5 : 1), VECTORS>,
      product_tile<(kTileRows > 6 ? 6 : 1), VECTORS>,
      product_tile<(kTileRows > 7 ? 7 : 1), VECTORS>,
  };
  for (; rows >= kTileRows; rows -= kTileRows) {
    product_tile<kTileRows, VECTORS>(t);
    t.a += kTileRows * t.a_row;
    t.product += kTileRows * t.product_stride;
  }
  if (rows > 0) kRemainder[rows](t);
}

void multiply(const float* a, int64_t a_row, int64_t a_depth, int64_t rows, int64_t depth,
              const float* b, int64_t b_stride, int64_t columns, float* product,
              int64_t product_stride, bool accumulate) {
  int64_t vectors = vectors_of(columns);
  ProductTile tile{a, a_row, a_depth, b, b_stride, depth, product, product_stride, accumulate};
  for (; vectors >= kTileVectors; vectors -= kTileVectors) {
    product_rows<kTileVectors>(tile, rows);
    tile.b += kLanes;
    tile.product += kLanes;
  }
  if (vectors == 1) product_rows<1>(tile, rows);
  if constexpr (kTileVectors > 2) {
    if (vectors == 2) product_rows<2>(tile, rows);
  }
}
