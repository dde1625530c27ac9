// Online softmax of a tile of queries. Part of tile_kernels.inl.

/// Turns one vector of dot products of a key block into weights, in place; returns their sum.
template <bool kHidden, bool kLarge>
Vec weigh_rows(float* scores, int64_t rows, Vec scale, Vec maximum, IntVec visible,
               const float* weight) {
  Vec sum = {};
  for (int64_t r = 0; r < rows; ++r) {
    Vec p = weigh<kLarge>(load(scores + r * kLanes), scale, maximum);
    if (kHidden) p = select(broadcast(static_cast<int32_t>(r)) < visible, p, Vec{});
    if (weight != nullptr) p = p * broadcast(weight[r]);
    sum = sum + p;
    store(scores + r * kLanes, p);
  }
  return sum;
}

/// Turns one vector of dot products of a key block into weights relative to the new maximum;
/// returns by how much the state so far shrinks. Hidden keys (row >= visible) get weight 0.
template <bool kHidden>
Vec weigh_block(const AttendTile& t, int64_t v, int64_t rows, IntVec visible, const float* weight) {
  float* scores = t.scores + v * kWidth;
  Vec highest = broadcast(-kInfinity);
  Vec lowest = load(t.minimum + v * kWidth);
  for (int64_t r = 0; r < rows; ++r) {
    const Vec score = load(scores + r * kLanes);
    const IntVec seen = broadcast(static_cast<int32_t>(r)) < visible;
    lowest = min(kHidden ? select(seen, score, broadcast(kInfinity)) : score, lowest);
    highest = max(kHidden ? select(seen, score, broadcast(-kInfinity)) : score, highest);
  }
  store(t.minimum + v * kWidth, lowest);

  const Vec none = broadcast(-kInfinity);
  const Vec scale = broadcast(t.scale_log2);
  const Vec old_maximum = load(t.maximum + v * kWidth);
  const Vec maximum = max(select(highest == none, none, highest * scale), old_maximum);
  const Vec sum = any_large(maximum)
                      ? weigh_rows<kHidden, true>(scores, rows, scale, maximum, visible, weight)
                      : weigh_rows<kHidden, false>(scores, rows, scale, maximum, visible, weight);
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

/// scores = keys times queries.
void score_block(const AttendTile& t, const float* key, int64_t rows) {
  if (t.few) return score_few(t, key, rows);
#if defined(CA_MULTIPLIES_BFLOAT16)
  if (t.bfloat16) return score_bfloat16(t, key, rows);
#endif
  multiply(key, t.key_stride, 1, rows, t.head_dim, t.packed_query, kLanes, t.columns, t.scores,
           kLanes, false);
}

/// output += weights times values.
void add_values(const AttendTile& t, const float* value, int64_t rows) {
  if (t.few) return add_few_values(t, value, rows);
#if defined(CA_MULTIPLIES_BFLOAT16)
  if (t.bfloat16) return add_values_bfloat16(t, value, rows);
#endif
  multiply(value, 1, t.value_stride, t.value_dim, rows, t.scores, kLanes, t.columns, t.output,
           kLanes, true);
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
    score_block(t, t.key + first * t.key_stride, rows);
    if (t.selector != nullptr) select_scores(t.scores, rows, t.columns, *t.selector, first);
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
      add_values(t, value, rows);
    }
  }
}
