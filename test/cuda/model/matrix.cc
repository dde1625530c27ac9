#include <algorithm>
#include <cstring>

#include "test/cuda/model/device.h"
#include "test/cuda/model/tensor_core.h"

namespace cuda_model {

namespace {

/// What a lane has of a product: where its registers are.
template <typename T>
struct Fragments {
  T* d;
  const uint32_t* a;
  const uint32_t* b;
};

struct TileRows {
  uint32_t* r;
  const uint16_t* row;
  bool transposed;
};

float low_of(uint32_t packed) { return __uint_as_float(packed << 16); }
float high_of(uint32_t packed) { return __uint_as_float(packed & 0xffff0000u); }

void multiply_bf16(void* const (&lanes)[kLanes]) {
  TileProduct product;
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& one = *static_cast<const Fragments<float>*>(lanes[lane]);
    const int group = lane / 4;
    const int pair = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      const int row = group + i % 2 * 8;
      const int k = pair + i / 2 * 8;
      product.a[row][k] = low_of(one.a[i]);
      product.a[row][k + 1] = high_of(one.a[i]);
      product.d[group + i / 2 * 8][pair + i % 2] = one.d[i];
    }
    for (int i = 0; i < 2; ++i) {
      product.b[pair + 8 * i][group] = low_of(one.b[i]);
      product.b[pair + 8 * i + 1][group] = high_of(one.b[i]);
    }
  }
  multiply_tile(product);
  for (int lane = 0; lane < kLanes; ++lane) {
    float* d = static_cast<const Fragments<float>*>(lanes[lane])->d;
    for (int i = 0; i < 4; ++i) d[i] = product.d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
  }
}

void multiply_bytes(void* const (&lanes)[kLanes]) {
  uint8_t a[16][32];
  uint8_t b[8][32];  // by columns
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& one = *static_cast<const Fragments<int32_t>*>(lanes[lane]);
    const int group = lane / 4;
    const int four = lane % 4 * 4;
    for (int i = 0; i < 4; ++i) {
      std::memcpy(a[group + i % 2 * 8] + four + i / 2 * 16, one.a + i, sizeof one.a[i]);
    }
    for (int i = 0; i < 2; ++i) std::memcpy(b[group] + four + i * 16, one.b + i, sizeof one.b[i]);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    int32_t* d = static_cast<const Fragments<int32_t>*>(lanes[lane])->d;
    for (int i = 0; i < 4; ++i) {
      const uint8_t* row = a[lane / 4 + i / 2 * 8];
      const uint8_t* column = b[lane % 4 * 2 + i % 2];
      for (int k = 0; k < 32; ++k) d[i] += row[k] * column[k];
    }
  }
}

void load_four_tiles(void* const (&lanes)[kLanes]) {
  const auto row_of = [&](int lane) { return static_cast<const TileRows*>(lanes[lane])->row; };
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& one = *static_cast<const TileRows*>(lanes[lane]);
    note_read(one.row, 16);
    const int group = lane / 4;
    const int pair = lane % 4 * 2;
    for (int tile = 0; tile < 4; ++tile) {
      const auto value = [&](int i, int j) -> uint32_t { return row_of(tile * 8 + i)[j]; };
      one.r[tile] = one.transposed ? value(pair, group) | value(pair + 1, group) << 16
                                   : value(group, pair) | value(group, pair + 1) << 16;
    }
  }
}

}  // namespace

void mma_bf16_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Fragments<float> mine{d, a, b};
  as_warp(kMatrix, &mine, multiply_bf16);
}

void mma_u8_16x8x32(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  std::fill(d, d + 4, 0);
  Fragments<int32_t> mine{d, a, b};
  as_warp(kBytes, &mine, multiply_bytes);
}

void load_tiles(uint32_t (&r)[4], const void* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) note_fault("a misaligned row of a matrix tile");
  TileRows mine{r, static_cast<const uint16_t*>(row), transposed};
  as_warp(kTiles, &mine, load_four_tiles);
}

}  // namespace cuda_model
