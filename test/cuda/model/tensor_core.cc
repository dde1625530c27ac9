#include "test/cuda/model/tensor_core.h"

#include <cstdint>
#include <cstring>

namespace cuda_model {

namespace {

// A row of the result at once. What takes or returns such vectors is part of its caller, so that
// it becomes code for the caller's instruction set.
using Floats __attribute__((vector_size(32), may_alias)) = float;
using Integers __attribute__((vector_size(32))) = int32_t;
using Words __attribute__((vector_size(32))) = uint32_t;
#define CA_PART_OF_CALLER __attribute__((always_inline)) inline

/// That are kept below the first one of the largest term: those of float32 and one more. This is
/// A100, which sums eight products at once; Hopper sums 16 and keeps another one.
constexpr int kPlaces = 24;
constexpr int kSmallest = kPlaces + 1;
constexpr int kAtOnce = 8;

CA_PART_OF_CALLER Floats row_of(const float (&row)[kTileColumns]) {
  return *reinterpret_cast<const Floats*>(row);
}

CA_PART_OF_CALLER Integers bits_of(Floats values) {
  Integers bits;
  std::memcpy(&bits, &values, sizeof bits);
  return bits;
}

CA_PART_OF_CALLER Floats from_bits(Integers bits) {
  Floats values;
  std::memcpy(&values, &bits, sizeof values);
  return values;
}

CA_PART_OF_CALLER Words size_of(Integers values) {
  const Words words = reinterpret_cast<Words>(values);
  return values < 0 ? -words : words;
}

/// Toward 0, where a float has no room for all places.
CA_PART_OF_CALLER Floats cut(Integers values) {
  const Floats nearest = __builtin_convertvector(values, Floats);
  const Integers back = __builtin_convertvector(nearest, Integers);
  return from_bits(bits_of(nearest) + (size_of(back) > size_of(values)));
}

/// NaN, Inf, and what may become Inf.
float add_in_double(float sum, const float* a, const float (*b)[kTileColumns], int column) {
  double exact = sum;
  for (int k = 0; k < kAtOnce; ++k) {
    exact += static_cast<double>(a[k]) * static_cast<double>(b[k][column]);
  }
  return static_cast<float>(exact);
}

/// What a row of eight factors can give.
struct Factors {
  bool zero;
  bool finite;
};

CA_PART_OF_CALLER Factors factors_of(const float* row) {
  constexpr uint64_t kSizes = 0x7fffffff7fffffffu;
  constexpr uint64_t kExponents = 0x7f8000007f800000u;
  constexpr uint64_t kLowest = 0x0080000000800000u;
  uint64_t pairs[kAtOnce / 2];
  std::memcpy(pairs, row, sizeof pairs);
  uint64_t any = 0;
  uint64_t carries = 0;  // out of an exponent of ones
  for (const uint64_t pair : pairs) {
    any |= pair & kSizes;
    carries |= (pair & kExponents) + kLowest;
  }
  return {any == 0, (carries & ~kSizes) == 0};
}

/// d += the sum of eight products, all terms cut to the places that are kept of the largest.
CA_PART_OF_CALLER void add_eight(float (&d)[kTileColumns], const float* a,
                                 const float (*b)[kTileColumns]) {
  Floats terms[kAtOnce + 1];
  terms[kAtOnce] = row_of(d);
  for (int k = 0; k < kAtOnce; ++k) terms[k] = a[k] * row_of(b[k]);
  Integers largest = {};
  for (const Floats& term : terms) {
    const Integers size = bits_of(term) & 0x7fffffff;
    largest = size > largest ? size : largest;
  }
  // Biased by 127; places below the normal numbers are cut too.
  Integers exponent = largest >> 23;
  exponent = exponent > kSmallest ? exponent : kSmallest;
  const Floats unit = from_bits((exponent - kPlaces) << 23);
  const Floats units_per_one = from_bits((2 * 127 - exponent + kPlaces) << 23);
  // Without a sign, as those of NaN and Inf overflow.
  Words units = {};
  for (const Floats& term : terms) {
    units += reinterpret_cast<Words>(__builtin_convertvector(term * units_per_one, Integers));
  }
  const Floats sums = cut(reinterpret_cast<Integers>(units)) * unit;
  for (int i = 0; i < kTileColumns; ++i) {
    d[i] = exponent[i] < 250 ? sums[i] : add_in_double(d[i], a, b, i);
  }
}

CA_PART_OF_CALLER void multiply(TileProduct& product) {
  for (int k = 0; k < kTileDepth; k += kAtOnce) {
    Factors right = {true, true};
    for (int i = 0; i < kAtOnce; ++i) {
      const Factors one = factors_of(product.b[k + i]);
      right = {right.zero && one.zero, right.finite && one.finite};
    }
    for (int row = 0; row < kTileRows; ++row) {
      const Factors left = factors_of(product.a[row] + k);
      // Three of four products of the tests are of what pads a tile.
      if ((left.zero && right.finite) || (right.zero && left.finite)) continue;
      add_eight(product.d[row], product.a[row] + k, product.b + k);
    }
  }
}

void multiply_anywhere(TileProduct& product) { multiply(product); }

#if defined(__x86_64__)
__attribute__((target("avx2"))) void multiply_by_avx2(TileProduct& product) { multiply(product); }

const auto multiply_here = __builtin_cpu_supports("avx2") ? multiply_by_avx2 : multiply_anywhere;
#else
const auto multiply_here = multiply_anywhere;
#endif

}  // namespace

void multiply_tile(TileProduct& product) { multiply_here(product); }

}  // namespace cuda_model
