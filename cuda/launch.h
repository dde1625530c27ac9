#pragma once

// The one way in which kernels are started.

#include <cstdint>

#include "cuda/session.h"

namespace cluster_attention::cuda {

/// Sizes of a grid or a block.
struct Extent {
  int64_t x = 1;
  int64_t y = 1;
  int64_t z = 1;
  Extent(int64_t x, int64_t y = 1, int64_t z = 1) : x(x), y(y), z(z) {}
};

inline bool fits_a_grid(const Extent& grid) {
  return grid.x <= 0x7fffffff && grid.y <= 65535 && grid.z <= 65535;
}

/// Puts kernel(params) on the session's stream. An empty grid is no launch. `shared_bytes` may be
/// anything up to session.shared_bytes().
template <typename Params>
Status launch(Session& session, const Extent& grid, const Extent& block, int64_t shared_bytes,
              void (*kernel)(Params), const Params& params) {
  if (session.cancelled()) return Status::cancelled();
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return Status::success();
  if (!fits_a_grid(grid) || shared_bytes > session.shared_bytes()) {
    return {StatusCode::unsupported, "shape", -1};
  }
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > 48 * 1024) {
    CA_RETURN_IF_ERROR(session.check(cudaFuncSetAttribute(
        function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes))));
  }
  const auto size = [](int64_t n) { return static_cast<unsigned>(n); };
#if defined(CA_CUDA_MODEL)
  return session.check(cuda_model::launch_kernel(function,
                                                 {{size(grid.x), size(grid.y), size(grid.z)},
                                                  {size(block.x), size(block.y), size(block.z)},
                                                  static_cast<size_t>(shared_bytes),
                                                  [&] { kernel(params); }},
                                                 session.stream()));
#else
  void* arguments[] = {const_cast<Params*>(&params)};
  return session.check(cudaLaunchKernel(function, dim3(size(grid.x), size(grid.y), size(grid.z)),
                                        dim3(size(block.x), size(block.y), size(block.z)),
                                        arguments, static_cast<size_t>(shared_bytes),
                                        session.stream()));
#endif
}

}  // namespace cluster_attention::cuda
