// Softmax and argmax down the lanes, codes, and plain vectors. Part of tile_kernels.inl.

/// The sum over the rows of term(r, sum so far), in blocks whose sums are added in order: a long
/// chain of floats loses digits.
template <typename Term>
inline __attribute__((always_inline)) Vec sum_in_blocks(int64_t rows, Term term) {
  Vec total = {};
  for (int64_t first = 0; first < rows; first += kKeyBlock) {
    const int64_t end = first + kKeyBlock < rows ? first + kKeyBlock : rows;
    Vec block = {};
    for (int64_t r = first; r < end; ++r) block = term(r, block);
    total = total + block;
  }
  return total;
}

/// One vector of scores down the rows -> exp(logit - maximum), in place; returns their sum.
template <bool kLarge>
Vec exponentiate_rows(float* score, int64_t rows, Vec scale, Vec maximum) {
  return sum_in_blocks(rows, [=](int64_t r, Vec sum) {
    const Vec p = weigh<kLarge>(load(score + r * kLanes), scale, maximum);
    store(score + r * kLanes, p);
    return sum + p;
  });
}

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
    const Vec total = any_large(highest) ? exponentiate_rows<true>(lane, rows, scale, highest)
                                         : exponentiate_rows<false>(lane, rows, scale, highest);
    const Vec inverse = broadcast(1.0f) / total;
    for (int64_t r = 0; r < rows; ++r) store(lane + r * kLanes, load(lane + r * kLanes) * inverse);
    store(maximum + v * kWidth, highest);
    store(sum + v * kWidth, total);
    store(minimum + v * kWidth, lowest);
  }
}

void softmax_gradient(float* share, float* change, int64_t rows, int64_t columns,
                      const float* offset, const float* weight, bool centred, float* total) {
  for (int64_t v = 0; v < vectors_of(columns); ++v) {
    float* p = share + v * kWidth;
    float* x = change + v * kWidth;
    const Vec sum = sum_in_blocks(rows, [=](int64_t r, Vec block) {
      Vec value = load(x + r * kLanes);
      if (offset != nullptr) {
        value = value - broadcast(offset[r]);
        store(x + r * kLanes, value);
      }
      return fma(load(p + r * kLanes), value, block);
    });
    store(total + v * kWidth, sum);
    const Vec centre = centred ? sum : Vec{};
    const Vec factor = weight != nullptr ? load(weight + v * kWidth) : broadcast(1.0f);
    for (int64_t r = 0; r < rows; ++r) {
      const Vec weighted = load(p + r * kLanes) * factor;
      store(p + r * kLanes, weighted);
      store(x + r * kLanes, weighted * (load(x + r * kLanes) - centre));
    }
  }
}

/// The lane numbers of vector `v` of a tile.
template <int... I>
inline IntVec lane_numbers(int64_t v, Lanes<I...>) {
  return IntVec{I...} + broadcast(static_cast<int32_t>(v * kWidth));
}

/// One row of softmax_lanes().
template <bool kLarge>
void softmax_lane_row(float* score, int64_t columns, Vec scale, Vec maximum, Vec factor) {
  const int64_t vectors = vectors_of(columns);
  const IntVec count = broadcast(static_cast<int32_t>(columns));
  Vec total = {};
  for (int64_t v = 0; v < vectors; ++v) {
    const Vec p = weigh<kLarge>(load(score + v * kWidth), scale, maximum);
    const Vec weight =
        select(lane_numbers(v, typename MakeLanes<kWidth>::Type{}) < count, p, Vec{});
    total = total + weight;
    store(score + v * kWidth, weight);
  }
  const Vec share = factor / sum_lanes(total);
  for (int64_t v = 0; v < vectors; ++v) {
    store(score + v * kWidth, load(score + v * kWidth) * share);
  }
}

bool softmax_lanes(float* score, int64_t rows, int64_t row_stride, int64_t columns,
                   float scale_log2, float factor) {
  const Vec scale = broadcast(scale_log2);
  const IntVec count = broadcast(static_cast<int32_t>(columns));
  Vec poison = {};
  for (int64_t r = 0; r < rows; ++r, score += row_stride) {
    Vec highest = broadcast(-kInfinity);
    for (int64_t v = 0; v < vectors_of(columns); ++v) {
      const IntVec exists = lane_numbers(v, typename MakeLanes<kWidth>::Type{}) < count;
      const Vec x = load(score + v * kWidth);
      poison = poison + select(exists, x - x, Vec{});
      highest = max(highest, select(exists, x * scale, broadcast(-kInfinity)));
    }
    highest = highest_lane(highest);
    if (any_large(highest)) {
      softmax_lane_row<true>(score, columns, scale, highest, broadcast(factor));
    } else {
      softmax_lane_row<false>(score, columns, scale, highest, broadcast(factor));
    }
  }
  return !any(poison != Vec{});
}

void softmax_lanes_gradient(float* share, float* change, int64_t rows, int64_t row_stride,
                            int64_t columns, float factor, float* total) {
  for (int64_t r = 0; r < rows; ++r, share += row_stride, change += row_stride) {
    // Lanes past the columns have no share.
    Vec sum = {};
    for (int64_t v = 0; v < vectors_of(columns); ++v) {
      sum = fma(load(share + v * kWidth), load(change + v * kWidth), sum);
    }
    sum = sum_lanes(sum);
    for (int64_t v = 0; v < vectors_of(columns); ++v) {
      const Vec weighted = load(share + v * kWidth) * broadcast(factor);
      store(share + v * kWidth, weighted);
      store(change + v * kWidth, weighted * (load(change + v * kWidth) - sum));
    }
    total[r] = sum[0];
  }
}

template <bool kHidden, bool kChange>
void attend_gradient_rows(float* score, float* change, int64_t rows, int64_t vectors, Vec scale,
                          const float* maximum, const float* offset, const int32_t* visible) {
  for (int64_t r = 0; r < rows; ++r) {
    const Vec top = broadcast(maximum[r]);
    const Vec centre = broadcast(kChange ? offset[r] : 0.0f);
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t at = r * kLanes + v * kWidth;
      // A rounded log-sum-exp may lie below its largest term; NaN stays NaN.
      Vec p = exp2(min(Vec{}, fma(load(score + at), scale, -top)));
      Vec x = {};
      if (kChange) x = p * (load(change + at) - centre);
      if (kHidden) {
        const IntVec seen =
            lane_numbers(v, typename MakeLanes<kWidth>::Type{}) < broadcast(visible[r]);
        p = select(seen, p, Vec{});
        x = select(seen, x, Vec{});
      }
      store(score + at, p);
      if (kChange) store(change + at, x);
    }
  }
}

void attend_gradient(float* score, float* change, int64_t rows, int64_t columns, float scale_log2,
                     const float* maximum, const float* offset, const int32_t* visible) {
  const auto kernel = change != nullptr ? (visible != nullptr ? attend_gradient_rows<true, true>
                                                              : attend_gradient_rows<false, true>)
                                        : (visible != nullptr ? attend_gradient_rows<true, false>
                                                              : attend_gradient_rows<false, false>);
  kernel(score, change, rows, vectors_of(columns), broadcast(scale_log2), maximum, offset, visible);
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

// ---- plain vectors ------------------------------------------------------------------------------

void weigh_array(float* values, int64_t count, float scale_log2, float maximum) {
  const Vec scale = broadcast(scale_log2);
  const Vec top = broadcast(maximum);
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    store(values + i, weigh<true>(load(values + i), scale, top));
  }
  const Vec last = weigh<true>(load_partial(values + i, count - i), scale, top);
  for (int64_t j = 0; i + j < count; ++j) values[i + j] = last[j];
}

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

typedef double Doubles __attribute__((vector_size(CA_WIDTH * 4)));

/// kWidth / 2 floats in double precision.
inline Doubles load_doubles(const float* p) {
#if defined(__AVX512F__) && CA_WIDTH == 16
  return _mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(p));
#elif defined(__AVX2__) && CA_WIDTH == 8
  return _mm256_cvtps_pd(_mm_loadu_ps(p));
#else
  Doubles x;
  for (int i = 0; i < kWidth / 2; ++i) x[i] = static_cast<double>(p[i]);
  return x;
#endif
}

void sum_rows(const float* rows, int64_t row_stride, const int32_t* index, int64_t count,
              int64_t dim, double* sums) {
  constexpr int64_t kHalf = kWidth / 2;
  constexpr int64_t kVectors = 8;  // columns whose sums stay in registers
  constexpr int64_t kAhead = 8;    // rows that the memory is asked ahead: they lie scattered
  int64_t first = 0;
  for (; first + kVectors * kHalf <= dim; first += kVectors * kHalf) {
    Doubles sum[kVectors] = {};
    for (int64_t i = 0; i < count; ++i) {
      const float* row = rows + index[i] * row_stride + first;
      if (i + kAhead < count) {
        const float* ahead = rows + index[i + kAhead] * row_stride + first;
        for (int64_t d = 0; d < kVectors * kHalf; d += 16) __builtin_prefetch(ahead + d);
      }
#pragma GCC unroll 8
      for (int64_t v = 0; v < kVectors; ++v) sum[v] = sum[v] + load_doubles(row + v * kHalf);
    }
#pragma GCC unroll 8
    for (int64_t v = 0; v < kVectors; ++v) {
      __builtin_memcpy(sums + first + v * kHalf, &sum[v], sizeof sum[v]);
    }
  }
  for (; first < dim; ++first) {
    double sum = 0.0;
    for (int64_t i = 0; i < count; ++i) {
      sum += static_cast<double>(rows[index[i] * row_stride + first]);
    }
    sums[first] = sum;
  }
}

void sum_labelled_rows(const float* rows, int64_t row_stride, const int32_t* labels, int64_t count,
                       int32_t first, int32_t clusters, int64_t dim, double* sums) {
  constexpr int64_t kHalf = kWidth / 2;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t cluster = labels[i] - first;
    if (cluster < 0 || cluster >= clusters) continue;
    const float* row = rows + i * row_stride;
    double* sum = sums + cluster * dim;
    int64_t d = 0;
    for (; d + kHalf <= dim; d += kHalf) {
      Doubles total;
      __builtin_memcpy(&total, sum + d, sizeof total);
      total = total + load_doubles(row + d);
      __builtin_memcpy(sum + d, &total, sizeof total);
    }
    for (; d < dim; ++d) sum[d] += static_cast<double>(row[d]);
  }
}
