#pragma once

// Functions about devices rather than about a problem.

#include <node_api.h>

namespace cluster_attention {
namespace binding {

/// allocate({ device, type, elements }) -> the number of new device memory, or an outcome that says
/// why there is none (errors.h).
napi_value allocate_memory(napi_env env, napi_callback_info info);
/// release({ memory }): JavaScript is done with it; calls in progress keep it until they are too.
napi_value release_memory(napi_env env, napi_callback_info info);
/// cudaInfo() -> { reason, targets, runtime, driver, devices: [{ name, major, minor,
/// multiprocessors, memory, reason }] }: reasons are '' where all is well. Starts CUDA.
napi_value cuda_info(napi_env env, napi_callback_info info);

}  // namespace binding
}  // namespace cluster_attention
