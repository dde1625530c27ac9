#pragma once

// AMX tile registers: eight matrices of 16 rows of 64 bytes, and the product of two that hold
// bfloat16. Spelt in assembly because the intrinsics want register numbers as literals. The same
// five operations are modelled by test/native/tile_register_model.h, so that the code on top of
// them is tested on machines without AMX.

#include <cstdint>

namespace cluster_attention {

/// Whether processor and system offer AMX with bfloat16. Asks Linux for the permission to use the
/// registers, which it grants a process once and for all of its threads.
bool request_tile_registers();

#if defined(__x86_64__)
struct AmxRegisters {
  struct alignas(64) Configuration {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };

  /// Makes all eight registers 16 x 64 bytes; their content is then 0.
  static void open() {
    static constexpr Configuration kConfiguration;
    asm volatile("ldtilecfg %0" : : "m"(kConfiguration));
  }
  /// Gives the registers back: a thread that holds none is switched faster.
  static void close() { asm volatile("tilerelease"); }

  template <int kTile>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" : : "n"(kTile));
  }
  template <int kTile>
  static void load(const void* rows, int64_t stride_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2"
                 :
                 : "r"(rows), "r"(stride_bytes), "n"(kTile)
                 : "memory");
  }
  template <int kTile>
  static void store(void* rows, int64_t stride_bytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)"
                 :
                 : "r"(rows), "r"(stride_bytes), "n"(kTile)
                 : "memory");
  }
  /// sum[m][n] += a[m][2k] b[k][2n] + a[m][2k+1] b[k][2n+1] over the 16 k; sum in float32, a and b
  /// in bfloat16. Denormals count as 0.
  template <int kSum, int kA, int kB>
  static void multiply_add() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "n"(kSum), "n"(kA), "n"(kB));
  }
};
#endif

}  // namespace cluster_attention
