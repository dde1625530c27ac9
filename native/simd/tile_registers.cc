#include "native/simd/tile_registers.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace cluster_attention {

#if defined(__x86_64__) && defined(__linux__)
bool request_tile_registers() {
  constexpr unsigned kXsaveBySystem = 1u << 27;               // leaf 1, ecx
  constexpr unsigned kTilesOfBfloat16 = 1u << 24 | 1u << 22;  // leaf 7, edx: AMX-TILE, AMX-BF16
  constexpr unsigned kTileState = 1u << 18 | 1u << 17;        // XCR0: tile data and configuration
  constexpr long kRequestPermission = 0x1023;                 // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  unsigned eax, ebx, ecx, edx;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & kXsaveBySystem) == 0) return false;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & kTilesOfBfloat16) != kTilesOfBfloat16) return false;
  unsigned low, high;
  asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & kTileState) != kTileState) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
bool request_tile_registers() { return false; }
#endif

}  // namespace cluster_attention
