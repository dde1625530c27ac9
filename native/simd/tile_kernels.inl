// The tile kernels of simd.h for one instruction set. Included once by each target file, which
// defines CA_WIDTH (floats per vector), CA_TILE_ROWS x CA_TILE_VECTORS (accumulators that fit its
// registers) and CA_SIMD_NAME, inside namespace cluster_attention { namespace { ... } }.

#include "native/simd/vector.inl"

constexpr int kTileRows = CA_TILE_ROWS;
constexpr int kTileVectors = CA_TILE_VECTORS;
constexpr int64_t kLanes = kWidth * kTileVectors;
static_assert(kLanes <= kMaximumLanes, "scratch is sized by kMaximumLanes");

inline int64_t vectors_of(int64_t columns) { return (columns + kWidth - 1) / kWidth; }

// ---- packing ------------------------------------------------------------------------------------

void pack(const float* rows, int64_t row_stride, const int32_t* index, int64_t columns, int64_t dim,
          float* packed) {
  // rows: (columns, dim) -> packed: (dim, kLanes)
  for (int64_t first = 0; first < columns; first += kWidth) {
    for (int64_t d = 0; d < dim; d += kWidth) {
      const int64_t depth = dim - d < kWidth ? dim - d : kWidth;
      Vec block[kWidth];
      for (int i = 0; i < kWidth; ++i) {
        block[i] = Vec{};
        if (first + i >= columns) continue;
        const int64_t source = index != nullptr ? index[first + i] : first + i;
        const float* row = rows + source * row_stride + d;
        block[i] = depth == kWidth ? load(row) : load_partial(row, depth);
      }
      transpose(block);
      for (int64_t i = 0; i < depth; ++i) store(packed + (d + i) * kLanes + first, block[i]);
    }
  }
}

bool unpack(const float* packed, int64_t columns, int64_t dim, const float* factor, float* rows,
            int64_t row_stride, const int32_t* index) {
  // packed: (dim, kLanes) -> rows: (columns, dim)
  Vec poison = {};  // stays 0 while everything written is finite
  for (int64_t first = 0; first < columns; first += kWidth) {
    const int64_t count = columns - first < kWidth ? columns - first : kWidth;
    const Vec scale = factor != nullptr ? load_partial(factor + first, count) : broadcast(1.0f);
    for (int64_t d = 0; d < dim; d += kWidth) {
      const int64_t depth = dim - d < kWidth ? dim - d : kWidth;
      Vec block[kWidth];
      for (int64_t i = 0; i < kWidth; ++i) {
        block[i] = i < depth ? load(packed + (d + i) * kLanes + first) * scale : Vec{};
      }
      transpose(block);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t target = index != nullptr ? index[first + i] : first + i;
        float* row = rows + target * row_stride + d;
        poison = poison + (block[i] - block[i]);
        if (depth == kWidth) {
          store(row, block[i]);
        } else {
          for (int64_t j = 0; j < depth; ++j) row[j] = block[i][j];
        }
      }
    }
  }
  return !any(poison != Vec{});
}

// ---- the product tile ---------------------------------------------------------------------------

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

// ---- attention ----------------------------------------------------------------------------------

/// Offers the dot products of `rows` keys to the selection of every lane.
void select_scores(const float* scores, int64_t rows, int64_t columns, TileSelector& selector,
                   int64_t first_key) {
  const int64_t vectors = vectors_of(columns);
  const Vec sign = broadcast(selector.sign);
  for (int64_t v = 0; v < vectors; ++v) {
    Vec threshold = load(selector.threshold + v * kWidth);
    for (int64_t r = 0; r < rows; ++r) {
      const Vec score = load(scores + r * kLanes + v * kWidth) * sign;
      uint32_t better = not_less_equal(score, threshold);
      if (better == 0) continue;
      do {
        const int64_t lane = v * kWidth + __builtin_ctz(better);
        better &= better - 1;
        if (lane >= columns) break;
        Candidate* candidates = selector.candidates + lane * selector.capacity;
        int32_t& count = selector.counts[lane];
        candidates[count++] = make_candidate(
            score[lane - v * kWidth], static_cast<int32_t>(selector.first_key + first_key + r));
        if (count == selector.capacity) {
          selector.threshold[lane] = prune_candidates(candidates, &count, selector.k);
        }
      } while (better != 0);
      threshold = load(selector.threshold + v * kWidth);
    }
  }
}

/// Turns one vector of dot products of a key block into weights relative to the new maximum;
/// returns by how much the state so far shrinks. Hidden keys (row >= visible) get weight 0.
template <bool kHidden>
Vec weigh_block(const AttendTile& t, int64_t v, int64_t rows, IntVec visible, const float* weight) {
  float* scores = t.scores + v * kWidth;
  Vec highest = broadcast(-kInfinity);
  Vec lowest = load(t.minimum + v * kWidth);
  for (int64_t r = 0; r < rows; ++r) {
    Vec score = load(scores + r * kLanes);
    lowest = min(score, lowest);
    if (kHidden) {
      score = select(broadcast(static_cast<int32_t>(r)) < visible, score, broadcast(-kInfinity));
    }
    highest = max(score, highest);
  }
  store(t.minimum + v * kWidth, lowest);

  const Vec none = broadcast(-kInfinity);
  const Vec scale = broadcast(t.scale_log2);
  const Vec old_maximum = load(t.maximum + v * kWidth);
  const Vec maximum = max(select(highest == none, none, highest * scale), old_maximum);
  Vec sum = {};
  for (int64_t r = 0; r < rows; ++r) {
    Vec p = exp2(fma(load(scores + r * kLanes), scale, -maximum));
    if (kHidden) p = select(broadcast(static_cast<int32_t>(r)) < visible, p, Vec{});
    if (weight != nullptr) p = p * broadcast(weight[r]);
    sum = sum + p;
    store(scores + r * kLanes, p);
  }
  const Vec shrink = select(old_maximum == none, Vec{}, exp2(old_maximum - maximum));
  store(t.maximum + v * kWidth, maximum);
  store(t.sum + v * kWidth, fma(load(t.sum + v * kWidth), shrink, sum));
  return shrink;
}

/// output += weights * values with hidden keys left out one by one: a hidden value may be NaN.
void accumulate_visible(const AttendTile& t, const float* value, int64_t rows, int64_t first) {
  for (int64_t e = 0; e < t.value_dim; ++e) {
    for (int64_t lane = 0; lane < t.columns; ++lane) {
      float sum = 0.0f;
      for (int64_t r = 0; r < rows && first + r < t.visible[lane]; ++r) {
        sum += t.scores[r * kLanes + lane] * value[r * t.value_stride + e];
      }
      t.output[e * kLanes + lane] += sum;
    }
  }
}

bool rows_are_finite(const float* rows, int64_t row_stride, int64_t count, int64_t dim) {
  float poison = 0.0f;
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t d = 0; d < dim; ++d) {
      poison += rows[r * row_stride + d] - rows[r * row_stride + d];
    }
  }
  return poison == 0.0f;
}

void attend(const AttendTile& t) {
  // query: (columns, head_dim) in lanes; key: (keys, head_dim); value: (keys, value_dim)
  const int64_t vectors = vectors_of(t.columns);
  int64_t fewest = t.keys;
  int64_t most = t.keys;
  if (t.visible != nullptr) {
    most = 0;
    for (int64_t lane = 0; lane < t.columns; ++lane) {
      fewest = t.visible[lane] < fewest ? t.visible[lane] : fewest;
      most = t.visible[lane] > most ? t.visible[lane] : most;
    }
    most = most < t.keys ? most : t.keys;
  }
  for (int64_t first = 0; first < most; first += kKeyBlock) {
    const int64_t rows = most - first < kKeyBlock ? most - first : kKeyBlock;
    const bool hidden = first + rows > fewest;
    multiply(t.key + first * t.key_stride, t.key_stride, 1, rows, t.head_dim, t.packed_query,
             kLanes, t.columns, t.scores, kLanes, false);
    if (t.selector != nullptr) select_scores(t.scores, rows, t.columns, *t.selector, first);
    if (t.key_factor != nullptr) {
      for (int64_t r = 0; r < rows; ++r) {
        const Vec factor = broadcast(t.key_factor[first + r]);
        for (int64_t v = 0; v < vectors; ++v) {
          float* score = t.scores + r * kLanes + v * kWidth;
          store(score, load(score) * factor);
        }
      }
    }
    const float* weight = t.key_weight != nullptr ? t.key_weight + first : nullptr;
    for (int64_t v = 0; v < vectors; ++v) {
      const IntVec visible =
          hidden ? load(t.visible + v * kWidth) - static_cast<int32_t>(first) : IntVec{};
      const Vec shrink = hidden ? weigh_block<true>(t, v, rows, visible, weight)
                                : weigh_block<false>(t, v, rows, visible, weight);
      if (!any(shrink != broadcast(1.0f))) continue;
      for (int64_t e = 0; e < t.value_dim; ++e) {
        float* output = t.output + e * kLanes + v * kWidth;
        store(output, load(output) * shrink);
      }
    }
    const float* value = t.value + first * t.value_stride;
    if (hidden && !rows_are_finite(value, t.value_stride, rows, t.value_dim)) {
      accumulate_visible(t, value, rows, first);
    } else {
      multiply(value, 1, t.value_stride, t.value_dim, rows, t.scores, kLanes, t.columns, t.output,
               kLanes, true);
    }
  }
}

// ---- down the lanes -----------------------------------------------------------------------------

void softmax_rows(float* score, int64_t rows, int64_t columns, float scale_log2, float* maximum,
                  float* sum, float* minimum) {
  const Vec scale = broadcast(scale_log2);
  for (int64_t v = 0; v < vectors_of(columns); ++v) {
    float* lane = score + v * kWidth;
    Vec highest = broadcast(-kInfinity);
    Vec lowest = broadcast(kInfinity);
    for (int64_t r = 0; r < rows; ++r) {
      const Vec x = load(lane + r * kLanes);
      const Vec scaled = x * scale;
      highest = max(scaled, highest);
      lowest = min(x, lowest);
    }
    Vec total = {};
    for (int64_t r = 0; r < rows; ++r) {
      const Vec p = exp2(fma(load(lane + r * kLanes), scale, -highest));
      total = total + p;
      store(lane + r * kLanes, p);
    }
    const Vec inverse = broadcast(1.0f) / total;
    for (int64_t r = 0; r < rows; ++r) store(lane + r * kLanes, load(lane + r * kLanes) * inverse);
    store(maximum + v * kWidth, highest);
    store(sum + v * kWidth, total);
    store(minimum + v * kWidth, lowest);
  }
}

void argmax_rows(const float* score, int64_t rows, int64_t columns, float scale, const float* bias,
                 int64_t first_row, float* best, int32_t* best_row) {
  const Vec factor = broadcast(scale);
  for (int64_t v = 0; v < vectors_of(columns); ++v) {
    Vec value = load(best + v * kWidth);
    IntVec row = load(best_row + v * kWidth);
    for (int64_t r = 0; r < rows; ++r) {
      const Vec offset = broadcast(bias != nullptr ? bias[r] : 0.0f);
      const Vec x = fma(load(score + r * kLanes + v * kWidth), factor, offset);
      const IntVec better = x > value;
      value = select(better, x, value);
      row = select(better, broadcast(static_cast<int32_t>(first_row + r)), row);
    }
    store(best + v * kWidth, value);
    store(best_row + v * kWidth, row);
  }
}

// ---- codes --------------------------------------------------------------------------------------

void sign_bits(const float* product, int64_t rows, const float* threshold, int64_t bits,
               uint64_t* hashes) {
  float padded[64];
  for (int64_t b = 0; b < 64; ++b) padded[b] = b < bits ? threshold[b] : kInfinity;
  const int64_t used = vectors_of(bits) * kWidth;
  for (int64_t r = 0; r < rows; ++r) {
    uint64_t hash = 0;
    for (int64_t b = 0; b < used; b += kWidth) {
      hash |= static_cast<uint64_t>(greater(load(product + r * 64 + b), load(padded + b))) << b;
    }
    hashes[r] = hash;
  }
}

#if defined(__AVX512VPOPCNTDQ__)
typedef uint64_t Codes __attribute__((vector_size(64)));
typedef uint64_t UnalignedCodes __attribute__((vector_size(64), aligned(8), may_alias));

void assign_hamming(const uint64_t* hashes, int64_t count, const uint64_t* centroids,
                    int64_t clusters, int32_t* labels) {
  // (distance << 32 | cluster): the minimum is the nearest, ties at the lowest index.
  for (int64_t first = 0; first < count; first += 32) {
    const int64_t codes = count - first < 32 ? count - first : 32;
    uint64_t padded[32] = {};
    for (int64_t i = 0; i < codes; ++i) padded[i] = hashes[first + i];
    Codes code[4], nearest[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      code[j] = *reinterpret_cast<const UnalignedCodes*>(padded + 8 * j);
      nearest[j] = ~Codes{};
    }
    for (int64_t c = 0; c < clusters; ++c) {
      const Codes centroid = Codes{} + centroids[c];
      const Codes index = Codes{} + static_cast<uint64_t>(c);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const Codes distance = reinterpret_cast<Codes>(
            _mm512_popcnt_epi64(reinterpret_cast<__m512i>(code[j] ^ centroid)));
        const Codes key = (distance << 32) | index;
        nearest[j] = key < nearest[j] ? key : nearest[j];
      }
    }
    for (int64_t i = 0; i < codes; ++i) {
      labels[first + i] = static_cast<int32_t>(nearest[i / 8][i % 8]);
    }
  }
}
#else
void assign_hamming(const uint64_t* hashes, int64_t count, const uint64_t* centroids,
                    int64_t clusters, int32_t* labels) {
  for (int64_t i = 0; i < count; ++i) {
    int nearest = 65;
    int32_t label = 0;
    for (int64_t c = 0; c < clusters; ++c) {
      const int distance = __builtin_popcountll(hashes[i] ^ centroids[c]);
      label = distance < nearest ? static_cast<int32_t>(c) : label;
      nearest = distance < nearest ? distance : nearest;
    }
    labels[i] = label;
  }
}
#endif

// ---- plain vectors ------------------------------------------------------------------------------

void exp2_array(float* values, int64_t count) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(values + i, exp2(load(values + i)));
  if (i == count) return;
  const Vec last = exp2(load_partial(values + i, count - i));
  for (int64_t j = 0; i + j < count; ++j) values[i + j] = last[j];
}

float dot(const float* a, const float* b, int64_t count) {
  Vec sum = {};
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) sum = fma(load(a + i), load(b + i), sum);
  if (i < count) {
    sum = fma(load_partial(a + i, count - i), load_partial(b + i, count - i), sum);
  }
  float total = 0.0f;
  for (int lane = 0; lane < kWidth; ++lane) total += sum[lane];
  return total;
}

constexpr Simd kSimd = {CA_SIMD_NAME,   kLanes,     kWidth,       pack,        unpack,
                        multiply,       attend,     softmax_rows, argmax_rows, sign_bits,
                        assign_hamming, exp2_array, dot};
