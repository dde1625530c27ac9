#pragma once

// CUDA for every kernel. Tests put a model of it in the place of the toolkit's headers
// (CA_CUDA_MODEL is defined then): the same sources run on a machine without a GPU.

#include <cuda_runtime.h>

#include <cstdint>

#include "native/core/host_device.h"

namespace cluster_attention::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

}  // namespace cluster_attention::cuda
