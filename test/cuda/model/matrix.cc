#include <algorithm>
#include <cstring>

#include "test/cuda/model/device.h"

namespace cuda_model {

namespace {

struct Operands {
  uint32_t a[4];
  uint32_t b[2];
};

/// That are kept below the first one of the largest term: those of float32 and one more. This is
/// A100, which sums eight products at once; Hopper sums 16 and keeps another one.
constexpr int kPlaces = 24;
constexpr int kSmallest = kPlaces + 1;

float low_of(uint32_t packed) { return __uint_as_float(packed << 16); }
float high_of(uint32_t packed) { return __uint_as_float(packed & 0xffff0000u); }

FourIntegers bits_of(FourFloats values) {
  FourIntegers bits;
  std::memcpy(&bits, &values, sizeof bits);
  return bits;
}
FourFloats from_bits(FourIntegers bits) {
  FourFloats values;
  std::memcpy(&values, &bits, sizeof values);
  return values;
}
FourIntegers size_of(FourIntegers values) { return values < 0 ? -values : values; }

/// Toward 0, where a float has no room for all places.
FourFloats cut(FourIntegers values) {
  const FourFloats nearest = __builtin_convertvector(values, FourFloats);
  const FourIntegers back = __builtin_convertvector(nearest, FourIntegers);
  return from_bits(bits_of(nearest) + (size_of(back) > size_of(values)));
}

/// d += the sum of eight products, all terms cut to the places that are kept of the largest.
void add_eight(float (&d)[4], const FourFloats* a, const FourFloats* b) {
  FourFloats terms[9];
  FourIntegers largest = {};
  std::memcpy(&terms[8], d, sizeof terms[8]);
  for (int i = 0; i < 8; ++i) terms[i] = a[i] * b[i];
  for (const FourFloats& term : terms) {
    const FourIntegers size = bits_of(term) & 0x7fffffff;
    largest = size > largest ? size : largest;
  }
  // Biased by 127; places below the normal numbers are cut too.
  FourIntegers exponent = largest >> 23;
  exponent = exponent > kSmallest ? exponent : kSmallest;
  const FourFloats unit = from_bits((exponent - kPlaces) << 23);
  const FourFloats units_per_one = from_bits((2 * 127 - exponent + kPlaces) << 23);
  FourIntegers units = {};
  for (const FourFloats& term : terms) {
    units += __builtin_convertvector(term * units_per_one, FourIntegers);
  }
  const FourFloats sums = cut(units) * unit;
  for (int i = 0; i < 4; ++i) {
    if (exponent[i] < 250) {
      d[i] = sums[i];
      continue;
    }
    // NaN, Inf, and what may become Inf.
    double sum = d[i];
    for (int k = 0; k < 8; ++k) sum += static_cast<double>(a[k][i]) * static_cast<double>(b[k][i]);
    d[i] = static_cast<float>(sum);
  }
}

int32_t sum_of_bytes(int32_t sum, uint32_t a, uint32_t b) {
  for (int i = 0; i < 4; ++i) {
    sum += static_cast<int32_t>(static_cast<int8_t>(a >> 8 * i)) *
           static_cast<int32_t>(static_cast<int8_t>(b >> 8 * i));
  }
  return sum;
}

}  // namespace

void add_products(float (&d)[4], const FourFloats (&a)[16], const FourFloats (&b)[16]) {
  add_eight(d, a, b);
  add_eight(d, a + 8, b + 8);
}

void mma_bf16_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const Operands mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const Exchange exchange(kMatrix, 0xffffffffu, &mine, sizeof mine);
  const auto operands = [&](int lane) {
    return static_cast<const Operands*>(exchange.entry(lane));
  };
  const int group = lane_of_running_thread() / 4;
  const int pair = lane_of_running_thread() % 4 * 2;
  FourFloats rows[16];
  FourFloats columns[16];
  for (int quad = 0; quad < 4; ++quad) {
    const uint32_t* row = operands(group * 4 + quad)->a;
    const uint32_t* left = operands(pair * 4 + quad)->b;
    const uint32_t* right = operands((pair + 1) * 4 + quad)->b;
    for (int half = 0; half < 2; ++half) {
      const uint32_t top = row[2 * half];
      const uint32_t bottom = row[2 * half + 1];
      const int k = 8 * half + 2 * quad;
      rows[k] = FourFloats{low_of(top), low_of(top), low_of(bottom), low_of(bottom)};
      rows[k + 1] = FourFloats{high_of(top), high_of(top), high_of(bottom), high_of(bottom)};
      columns[k] = FourFloats{low_of(left[half]), low_of(right[half]), low_of(left[half]),
                              low_of(right[half])};
      columns[k + 1] = FourFloats{high_of(left[half]), high_of(right[half]), high_of(left[half]),
                                  high_of(right[half])};
    }
  }
  add_products(d, rows, columns);
}

void mma_s8_16x8x32(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                    const int32_t (&c)[4]) {
  const Operands mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const Exchange exchange(kBytes, 0xffffffffu, &mine, sizeof mine);
  const auto operands = [&](int lane) {
    return static_cast<const Operands*>(exchange.entry(lane));
  };
  const int group = lane_of_running_thread() / 4;
  const int pair = lane_of_running_thread() % 4 * 2;
  for (int i = 0; i < 4; ++i) d[i] = c[i];
  for (int side = 0; side < 2; ++side) {
    for (int source = 0; source < 4; ++source) {
      const uint32_t* row = operands(group * 4 + source)->a;
      const uint32_t* column = operands((pair + side) * 4 + source)->b;
      d[side] = sum_of_bytes(sum_of_bytes(d[side], row[0], column[0]), row[2], column[1]);
      d[side + 2] = sum_of_bytes(sum_of_bytes(d[side + 2], row[1], column[0]), row[3], column[1]);
    }
  }
}

void load_tiles(uint32_t (&r)[4], const void* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) note_fault("a misaligned row of a matrix tile");
  const Exchange exchange(kTiles, 0xffffffffu, &row, sizeof row);
  const int lane = lane_of_running_thread();
  const auto value = [&](int tile, int i, int j) {
    const uint16_t* from = *static_cast<uint16_t* const*>(exchange.entry(tile * 8 + i));
    return static_cast<uint32_t>(from[j]);
  };
  for (int tile = 0; tile < 4; ++tile) {
    const int group = lane / 4;
    const int pair = lane % 4 * 2;
    r[tile] = transposed ? value(tile, pair, group) | value(tile, pair + 1, group) << 16
                         : value(tile, group, pair) | value(tile, group, pair + 1) << 16;
  }
}

}  // namespace cuda_model
