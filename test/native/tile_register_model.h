#pragma once

#include "native/simd/simd.h"

namespace cluster_attention::test {

/// The kernels of the target avx512_amx on a model of its tile registers, which runs on any
/// machine.
const Simd& simd_tile_register_model();

/// Puts the model in the place of the instruction set in use, for the lifetime of a test.
class TileRegisterModelInUse {
 public:
  TileRegisterModelInUse() { set_simd(simd_tile_register_model()); }
  ~TileRegisterModelInUse() { set_simd(before_); }
  TileRegisterModelInUse(const TileRegisterModelInUse&) = delete;
  TileRegisterModelInUse& operator=(const TileRegisterModelInUse&) = delete;

 private:
  const Simd& before_ = simd();
};

}  // namespace cluster_attention::test
