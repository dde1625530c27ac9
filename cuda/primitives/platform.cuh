#pragma once

// CUDA for every kernel. Tests put a model of it in the place of the toolkit's headers
// (CA_CUDA_MODEL is defined then): the same sources run on a machine without a GPU.

#include <cuda_runtime.h>

#include <cstdint>

#include "native/core/host_device.h"

/// Where products of warpgroups are compiled (primitives/wgmma.cuh).
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(CA_CUDA_MODEL)
#define CA_HAS_WARPGROUP_PRODUCTS 1
#else
#define CA_HAS_WARPGROUP_PRODUCTS 0
#endif

namespace cluster_attention::cuda {

constexpr int kWarp = 32;
constexpr int kWarpgroup = 4 * kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

}  // namespace cluster_attention::cuda
