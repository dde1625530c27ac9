// Softmax and argmax down the lanes, codes, and plain vectors. Part of tile_kernels.inl.

/// One vector of scores down the rows -> exp(logit - maximum), in place; returns their sum.
template <bool kLarge>
Vec exponentiate_rows(float* score, int64_t rows, Vec scale, Vec maximum) {
  Vec total = {};
  for (int64_t r = 0; r < rows; ++r) {
    const Vec p = weigh<kLarge>(load(score + r * kLanes), scale, maximum);
    total = total + p;
    store(score + r * kLanes, p);
  }
  return total;
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
    Vec sum = {};
    for (int64_t r = 0; r < rows; ++r) {
      Vec value = load(x + r * kLanes);
      if (offset != nullptr) {
        value = value - broadcast(offset[r]);
        store(x + r * kLanes, value);
      }
      sum = fma(load(p + r * kLanes), value, sum);
    }
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

#if defined(__AVX512BW__)
void count_bits(const uint64_t* hashes, const int32_t* labels, int64_t count, uint8_t* counts) {
  const __m512i minus_one = _mm512_set1_epi8(-1);
  for (int64_t i = 0; i < count; ++i) {
    uint8_t* row = counts + int64_t{64} * labels[i];
    const __m512i bytes = _mm512_loadu_si512(row);
    _mm512_storeu_si512(row, _mm512_mask_sub_epi8(bytes, hashes[i], bytes, minus_one));
  }
}
#else
/// One byte per bit of a byte: eight counters are raised by one addition of 64-bit words.
struct SpreadTable {
  uint8_t bytes[256][8];

  constexpr SpreadTable() : bytes() {
    for (int value = 0; value < 256; ++value) {
      for (int bit = 0; bit < 8; ++bit) {
        bytes[value][bit] = static_cast<uint8_t>(value >> bit & 1);
      }
    }
  }
};
constexpr SpreadTable kSpread;

void count_bits(const uint64_t* hashes, const int32_t* labels, int64_t count, uint8_t* counts) {
  for (int64_t i = 0; i < count; ++i) {
    uint8_t* row = counts + int64_t{64} * labels[i];
    for (int byte = 0; byte < 8; ++byte) {
      uint64_t sum, added;
      __builtin_memcpy(&sum, row + 8 * byte, 8);
      __builtin_memcpy(&added, kSpread.bytes[hashes[i] >> 8 * byte & 255], 8);
      sum += added;
      __builtin_memcpy(row + 8 * byte, &sum, 8);
    }
  }
}
#endif

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
