#include "test/native/tile_register_model.h"

#include <cmath>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "test/native/harness.h"

#define CA_SIMD_NAME "tile_register_model"
#define CA_WIDTH 16
#define CA_TILE_ROWS 8
#define CA_TILE_VECTORS 3
#define CA_TILE_REGISTERS TileRegisterModel

namespace cluster_attention {
namespace {

/// The instructions of native/simd/tile_registers.h after Intel's description of them (Software
/// Developer's Manual, volume 2, TDPBF16PS): fused products of even and of odd elements are summed
/// apart, then added to the register; denormals are 0 on the way in and out.
class TileRegisterModel {
 public:
  static void open() {
    CHECK(!open_);
    open_ = true;
    for (Register& tile : tiles_) std::memset(&tile, 0, sizeof tile);
  }
  static void close() { open_ = false; }

  template <int kTile>
  static void zero() {
    CHECK(open_);
    std::memset(&tiles_[kTile], 0, sizeof tiles_[kTile]);
  }
  template <int kTile>
  static void load(const void* rows, int64_t stride_bytes) {
    CHECK(open_);
    for (int64_t m = 0; m < kRows; ++m) {
      std::memcpy(tiles_[kTile].bytes[m], static_cast<const char*>(rows) + m * stride_bytes, 64);
    }
  }
  template <int kTile>
  static void store(void* rows, int64_t stride_bytes) {
    CHECK(open_);
    for (int64_t m = 0; m < kRows; ++m) {
      std::memcpy(static_cast<char*>(rows) + m * stride_bytes, tiles_[kTile].bytes[m], 64);
    }
  }
  template <int kSum, int kA, int kB>
  static void multiply_add() {
    CHECK(open_);
    for (int m = 0; m < kRows; ++m) {
      for (int n = 0; n < kRows; ++n) {
        float even = 0.0f;
        float odd = 0.0f;
        for (int k = 0; k < kRows; ++k) {
          even = flush(std::fma(half(kA, m, 2 * k), half(kB, k, 2 * n), even));
          odd = flush(std::fma(half(kA, m, 2 * k + 1), half(kB, k, 2 * n + 1), odd));
        }
        float sum;
        std::memcpy(&sum, tiles_[kSum].bytes[m] + 4 * n, 4);
        sum = flush(flush(sum) + flush(even + odd));
        std::memcpy(tiles_[kSum].bytes[m] + 4 * n, &sum, 4);
      }
    }
  }

 private:
  static constexpr int kRows = 16;
  struct Register {
    unsigned char bytes[kRows][64];
  };

  static float flush(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? 0.0f * x : x; }

  /// Element `column` of a row of bfloat16.
  static float half(int tile, int row, int column) {
    uint16_t high;
    std::memcpy(&high, tiles_[tile].bytes[row] + 2 * column, 2);
    const uint32_t bits = static_cast<uint32_t>(high) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return flush(value);
  }

  static thread_local Register tiles_[8];
  static thread_local bool open_;
};

thread_local TileRegisterModel::Register TileRegisterModel::tiles_[8];
thread_local bool TileRegisterModel::open_ = false;

#include "native/simd/tile_kernels.inl"

}  // namespace

const Simd& test::simd_tile_register_model() { return kSimd; }

}  // namespace cluster_attention
