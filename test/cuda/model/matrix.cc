#include "test/cuda/model/device.h"

namespace cuda_model {

namespace {

struct Operands {
  uint32_t a[4];
  uint32_t b[2];
};

float low_of(uint32_t packed) { return __uint_as_float(packed << 16); }
float high_of(uint32_t packed) { return __uint_as_float(packed & 0xffff0000u); }

double sum_of_products(double sum, uint32_t a, uint32_t b) {
  sum += static_cast<double>(low_of(a)) * static_cast<double>(low_of(b));
  return sum + static_cast<double>(high_of(a)) * static_cast<double>(high_of(b));
}

int32_t sum_of_bytes(int32_t sum, uint32_t a, uint32_t b) {
  for (int i = 0; i < 4; ++i) {
    sum += static_cast<int32_t>(static_cast<int8_t>(a >> 8 * i)) *
           static_cast<int32_t>(static_cast<int8_t>(b >> 8 * i));
  }
  return sum;
}

}  // namespace

void mma_bf16_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const Operands mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const Exchange exchange(kMatrix, 0xffffffffu, &mine, sizeof mine);
  const auto operands = [&](int lane) {
    return static_cast<const Operands*>(exchange.entry(lane));
  };
  const int lane = lane_of_running_thread();
  const int group = lane / 4;
  const int pair = lane % 4 * 2;
  for (int side = 0; side < 2; ++side) {
    double top = d[side];
    double bottom = d[side + 2];
    for (int source = 0; source < 4; ++source) {
      const uint32_t* row = operands(group * 4 + source)->a;
      const uint32_t* column = operands((pair + side) * 4 + source)->b;
      top = sum_of_products(sum_of_products(top, row[0], column[0]), row[2], column[1]);
      bottom = sum_of_products(sum_of_products(bottom, row[1], column[0]), row[3], column[1]);
    }
    d[side] = static_cast<float>(top);
    d[side + 2] = static_cast<float>(bottom);
  }
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
