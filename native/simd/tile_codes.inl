// Binary codes: hashing, Hamming distances, bit counts. Part of tile_kernels.inl.

bool sign_bits(const float* product, int64_t rows, const float* threshold, int64_t bits,
               uint64_t* hashes) {
  float padded[64];
  for (int64_t b = 0; b < 64; ++b) padded[b] = b < bits ? threshold[b] : kInfinity;
  const int64_t used = vectors_of(bits) * kWidth;
  Vec poison = {};
  for (int64_t r = 0; r < rows; ++r) {
    uint64_t hash = 0;
    for (int64_t b = 0; b < used; b += kWidth) {
      const Vec x = load(product + r * 64 + b);
      hash |= static_cast<uint64_t>(greater(x, load(padded + b))) << b;
      poison = poison + (x - x);
    }
    hashes[r] = hash;
  }
  return !any(poison != Vec{});
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
#elif defined(__AVX512BW__) || defined(__AVX2__) || (defined(__aarch64__) && CA_WIDTH == 4)
// Codes lie in byte lanes, cut into nibbles: the distance to a centroid is the sum of one look-up
// per nibble in a table of sixteen bytes, popcount(nibble ^ centroid's nibble), which is all that
// this takes of the centroid. Without a population count of vectors nothing else is as quick.
constexpr int kBytes = CA_WIDTH * 4;
constexpr int kCodes = 2 * kBytes;  // that share the look-ups of a centroid's tables
constexpr int kNibbles = 16;
typedef int8_t Bytes __attribute__((vector_size(kBytes)));
typedef uint8_t UnsignedBytes __attribute__((vector_size(kBytes)));

/// bytes[16 * a + b] = popcount(a ^ b).
struct NibbleDistances {
  alignas(16) int8_t bytes[16 * 16];

  constexpr NibbleDistances() : bytes() {
    for (int a = 0; a < 16; ++a) {
      for (int b = 0; b < 16; ++b) {
        const int x = a ^ b;
        bytes[16 * a + b] = static_cast<int8_t>((x & 1) + (x >> 1 & 1) + (x >> 2 & 1) + (x >> 3));
      }
    }
  }
};
constexpr NibbleDistances kNibbleDistances;

/// Sixteen bytes, repeated.
inline Bytes load_table(const int8_t* table) {
#if defined(__AVX512BW__)
  const __m128i row = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
  return reinterpret_cast<Bytes>(_mm512_maskz_broadcast_i32x4(0xffff, row));
#elif defined(__AVX2__)
  const __m128i row = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
  return reinterpret_cast<Bytes>(_mm256_broadcastsi128_si256(row));
#else
  return reinterpret_cast<Bytes>(vld1q_s8(table));
#endif
}

/// table[nibbles[i]] in every lane.
inline Bytes look_up(Bytes table, Bytes nibbles) {
#if defined(__AVX512BW__)
  return reinterpret_cast<Bytes>(
      _mm512_shuffle_epi8(reinterpret_cast<__m512i>(table), reinterpret_cast<__m512i>(nibbles)));
#elif defined(__AVX2__)
  return reinterpret_cast<Bytes>(
      _mm256_shuffle_epi8(reinterpret_cast<__m256i>(table), reinterpret_cast<__m256i>(nibbles)));
#else
  return reinterpret_cast<Bytes>(
      vqtbl1q_s8(reinterpret_cast<int8x16_t>(table), reinterpret_cast<uint8x16_t>(nibbles)));
#endif
}

/// nibbles[n] = nibble n of every code.
void cut_codes(const uint64_t (&codes)[kCodes], Bytes (&nibbles)[kNibbles][2]) {
  for (int byte = 0; byte < kNibbles / 2; ++byte) {
    alignas(kBytes) uint8_t plane[kCodes];
    for (int i = 0; i < kCodes; ++i) plane[i] = static_cast<uint8_t>(codes[i] >> 8 * byte);
    for (int half = 0; half < 2; ++half) {
      UnsignedBytes both;
      __builtin_memcpy(&both, plane + half * kBytes, sizeof both);
      nibbles[2 * byte][half] = reinterpret_cast<Bytes>(both & 15);
      nibbles[2 * byte + 1][half] = reinterpret_cast<Bytes>(both >> 4);
    }
  }
}

/// Lowers `nearest` to the distances to up to 256 centroids, and says in `index` which of them was
/// the first to reach it.
template <int NIBBLES>
void nearest_centroids(const Bytes (&nibbles)[kNibbles][2], const uint64_t* centroids,
                       int64_t clusters, Bytes (&nearest)[2], Bytes (&index)[2]) {
  for (int64_t c = 0; c < clusters; ++c) {
    Bytes distance[2] = {};
#pragma GCC unroll 16
    for (int n = 0; n < NIBBLES; ++n) {
      const uint64_t offset = (n > 0 ? centroids[c] >> (4 * n - 4) : centroids[c] << 4) & 0xf0;
      const Bytes table = load_table(kNibbleDistances.bytes + offset);
      distance[0] += look_up(table, nibbles[n][0]);
      distance[1] += look_up(table, nibbles[n][1]);
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const auto nearer = distance[half] < nearest[half];
      index[half] = nearer ? Bytes{} + static_cast<int8_t>(c) : index[half];
      nearest[half] = nearer ? distance[half] : nearest[half];
    }
  }
}

void assign_hamming(const uint64_t* hashes, int64_t count, const uint64_t* centroids,
                    int64_t clusters, int32_t* labels) {
  constexpr int64_t kChunk = 256;  // as many centroids as a byte numbers
  uint64_t used = 0;
  for (int64_t i = 0; i < count; ++i) used |= hashes[i];
  if (used >> 32 == 0) {
    for (int64_t c = 0; c < clusters; ++c) used |= centroids[c];
  }
  for (int64_t first = 0; first < count; first += kCodes) {
    const int64_t codes = count - first < kCodes ? count - first : kCodes;
    uint64_t padded[kCodes] = {};
    for (int64_t i = 0; i < codes; ++i) padded[i] = hashes[first + i];
    Bytes nibbles[kNibbles][2];
    cut_codes(padded, nibbles);
    Bytes nearest[2] = {Bytes{} + INT8_MAX, Bytes{} + INT8_MAX};
    for (int64_t chunk = 0; chunk < clusters; chunk += kChunk) {
      const int64_t size = clusters - chunk < kChunk ? clusters - chunk : kChunk;
      const Bytes before[2] = {nearest[0], nearest[1]};
      Bytes index[2] = {};
      if (used >> 32 == 0) {
        nearest_centroids<8>(nibbles, centroids + chunk, size, nearest, index);
      } else {
        nearest_centroids<16>(nibbles, centroids + chunk, size, nearest, index);
      }
      for (int64_t i = 0; i < codes; ++i) {
        const int64_t half = i / kBytes;
        const int64_t lane = i % kBytes;
        if (nearest[half][lane] >= before[half][lane]) continue;
        labels[first + i] = static_cast<int32_t>(chunk) + static_cast<uint8_t>(index[half][lane]);
      }
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
