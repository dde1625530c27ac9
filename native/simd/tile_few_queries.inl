// Attention of so few queries that most lanes of a tile would be empty: the elements of a row lie
// in lanes, one query after the other. Part of tile_kernels.inl.

/// Elements of a query that meet the keys at a time.
constexpr int64_t kFewElements = 8 * kWidth;

/// Dot products of kWidth rows, of which `count` are there, with `query`, in the lanes of the
/// result; query has zeros up to a whole vector.
inline Vec dot_rows(const float* rows, int64_t stride, int64_t count, const float* query,
                    int64_t dim) {
  const int64_t whole = dim / kWidth * kWidth;
  Vec sums[kWidth];
  for (int64_t r = 0; r < kWidth; ++r) {
    Vec sum = {};
    if (r < count) {
      const float* row = rows + r * stride;
      for (int64_t d = 0; d < whole; d += kWidth) sum = fma(load(row + d), load(query + d), sum);
      if (whole < dim) {
        sum = fma(load_partial(row + whole, dim - whole), load(query + whole), sum);
      }
    }
    sums[r] = sum;
  }
  transpose(sums);
  Vec total = sums[0];
#pragma GCC unroll 16
  for (int i = 1; i < kWidth; ++i) total = total + sums[i];
  return total;
}

/// scores = keys times queries, as multiply() leaves them.
void score_few(const AttendTile& t, const float* key, int64_t rows) {
  for (int64_t column = 0; column < t.columns; ++column) {
    for (int64_t first = 0; first < t.head_dim; first += kFewElements) {
      const int64_t dim = t.head_dim - first < kFewElements ? t.head_dim - first : kFewElements;
      alignas(64) float query[kFewElements] = {};
      for (int64_t d = 0; d < dim; ++d) query[d] = t.packed_query[(first + d) * kLanes + column];
      for (int64_t r = 0; r < rows; r += kWidth) {
        const int64_t count = rows - r < kWidth ? rows - r : kWidth;
        const Vec scores =
            dot_rows(key + r * t.key_stride + first, t.key_stride, count, query, dim);
        for (int64_t i = 0; i < count; ++i) {
          float* score = t.scores + (r + i) * kLanes;
          const float sum = first > 0 ? score[column] + scores[i] : scores[i];
          // The first one for all lanes, so that none is left undefined.
          if (column == 0) {
            store(score, broadcast(sum));
          } else {
            score[column] = sum;
          }
        }
      }
    }
  }
}

/// output += weights times VECTORS vectors of the values' columns, in two chains.
template <int VECTORS>
void add_few_columns(const float* weight, const float* value, int64_t stride, int64_t rows,
                     float* output) {
  Vec sums[2][VECTORS] = {};
  for (int64_t r = 0; r + 1 < rows; r += 2) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const Vec p = broadcast(weight[(r + i) * kLanes]);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) {
        sums[i][v] = fma(p, load(value + (r + i) * stride + v * kWidth), sums[i][v]);
      }
    }
  }
  if (rows % 2 != 0) {
    const Vec p = broadcast(weight[(rows - 1) * kLanes]);
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      sums[0][v] = fma(p, load(value + (rows - 1) * stride + v * kWidth), sums[0][v]);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) {
    const Vec sum = sums[0][v] + sums[1][v];
    for (int i = 0; i < kWidth; ++i) output[(v * kWidth + i) * kLanes] += sum[i];
  }
}

/// output += weights times values.
void add_few_values(const AttendTile& t, const float* value, int64_t rows) {
  for (int64_t column = 0; column < t.columns; ++column) {
    const float* weight = t.scores + column;
    float* output = t.output + column;
    int64_t e = 0;
    for (; e + 4 * kWidth <= t.value_dim; e += 4 * kWidth) {
      add_few_columns<4>(weight, value + e, t.value_stride, rows, output + e * kLanes);
    }
    for (; e + kWidth <= t.value_dim; e += kWidth) {
      add_few_columns<1>(weight, value + e, t.value_stride, rows, output + e * kLanes);
    }
    if (e == t.value_dim) continue;
    Vec sum = {};
    for (int64_t r = 0; r < rows; ++r) {
      const Vec last = load_partial(value + r * t.value_stride + e, t.value_dim - e);
      sum = fma(broadcast(weight[r * kLanes]), last, sum);
    }
    for (int64_t i = 0; e + i < t.value_dim; ++i) output[(e + i) * kLanes] += sum[i];
  }
}
