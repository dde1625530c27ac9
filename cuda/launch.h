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

/// What a kernel's launch asks for beside its parameters.
struct LaunchShape {
  Extent grid;
  Extent block;
  int64_t shared_bytes = 0;  // anything up to session.shared_bytes()
  int64_t cluster = 1;       // blocks side by side that run together (primitives/cluster.cuh)
  bool together = false;     // all blocks do (primitives/grid.cuh)
};

/// Clusters of up to 8 blocks run on every GPU that has clusters, those of 16 where asked for.
constexpr int64_t kPortableCluster = 8;

namespace internal {

/// What must be known of a kernel before it is launched or asked about.
inline cudaError_t allow_shape(const Session& session, const LaunchShape& shape,
                               const void* function) {
  // The limit is the process's: one that fits this launch alone could fall below what another
  // thread is about to launch with.
  if (shape.shared_bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(session.shared_bytes()));
    if (error != cudaSuccess) return error;
  }
  if (shape.cluster <= kPortableCluster) return cudaSuccess;
  return cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

#if !defined(CA_CUDA_MODEL)
/// A launch whose blocks run together, all of them or in clusters, as the runtime takes it.
struct LaunchConfig {
  cudaLaunchAttribute attribute = {};
  cudaLaunchConfig_t config = {};

  LaunchConfig(const LaunchShape& shape, cudaStream_t stream) {
    const auto size = [](int64_t n) { return static_cast<unsigned>(n); };
    if (shape.together) {
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    } else {
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = size(shape.cluster);
      attribute.val.clusterDim.y = 1;
      attribute.val.clusterDim.z = 1;
    }
    config.gridDim = dim3(size(shape.grid.x), size(shape.grid.y), size(shape.grid.z));
    config.blockDim = dim3(size(shape.block.x), size(shape.block.y), size(shape.block.z));
    config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  LaunchConfig(const LaunchConfig&) = delete;
  LaunchConfig& operator=(const LaunchConfig&) = delete;
};
#endif

}  // namespace internal

/// Puts kernel(params) on the session's stream. An empty grid is no launch.
template <typename Params>
Status launch(Session& session, const LaunchShape& shape, void (*kernel)(Params),
              const Params& params) {
  const Extent& grid = shape.grid;
  const Extent& block = shape.block;
  if (session.cancelled()) return Status::cancelled();
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return Status::success();
  if (!fits_a_grid(grid) || shape.shared_bytes > session.shared_bytes()) {
    return {StatusCode::unsupported, "shape", -1};
  }
  const void* function = reinterpret_cast<const void*>(kernel);
  CA_RETURN_IF_ERROR(session.check(internal::allow_shape(session, shape, function)));
  const auto size = [](int64_t n) { return static_cast<unsigned>(n); };
#if defined(CA_CUDA_MODEL)
  return session.check(cuda_model::launch_kernel(function,
                                                 {{size(grid.x), size(grid.y), size(grid.z)},
                                                  {size(block.x), size(block.y), size(block.z)},
                                                  static_cast<size_t>(shape.shared_bytes),
                                                  [&] { kernel(params); },
                                                  size(shape.cluster),
                                                  shape.together},
                                                 session.stream()));
#else
  void* arguments[] = {const_cast<Params*>(&params)};
  if (shape.cluster > 1 || shape.together) {
    const internal::LaunchConfig config(shape, session.stream());
    return session.check(cudaLaunchKernelExC(&config.config, function, arguments));
  }
  return session.check(cudaLaunchKernel(function, dim3(size(grid.x), size(grid.y), size(grid.z)),
                                        dim3(size(block.x), size(block.y), size(block.z)),
                                        arguments, static_cast<size_t>(shape.shared_bytes),
                                        session.stream()));
#endif
}

template <typename Params>
Status launch(Session& session, const Extent& grid, const Extent& block, int64_t shared_bytes,
              void (*kernel)(Params), const Params& params) {
  return launch(session, LaunchShape{grid, block, shared_bytes, 1}, kernel, params);
}

/// Clusters of this shape that the device runs at once, 0 where it cannot run one. What is wrong
/// with the device besides shows at the launch; nothing is freed for it here, as check() would.
template <typename Params>
int count_resident_clusters(const Session& session, const LaunchShape& shape,
                            void (*kernel)(Params)) {
  int count = 0;
  const void* function = reinterpret_cast<const void*>(kernel);
  cudaError_t error = internal::allow_shape(session, shape, function);
  if (error == cudaSuccess) {
#if defined(CA_CUDA_MODEL)
    error = cuda_model::count_clusters(&count, static_cast<int>(shape.cluster));
#else
    const internal::LaunchConfig config(shape, session.stream());
    error = cudaOccupancyMaxActiveClusters(&count, function, &config.config);
#endif
  }
  if (error == cudaSuccess) return count;
  (void)cudaGetLastError();
  return 0;
}

/// As many blocks as `wanted` and as run at once, all together: kernel(params) may wait for all of
/// them. Kernels take what each block does as a share of what there is.
template <typename Params>
Status launch_together(Session& session, int64_t wanted, int64_t threads, int64_t shared_bytes,
                       void (*kernel)(Params), const Params& params) {
  if (session.cancelled()) return Status::cancelled();
  if (wanted == 0) return Status::success();
  LaunchShape shape{1, threads, shared_bytes, 1, true};
  if (shared_bytes > session.shared_bytes()) return {StatusCode::unsupported, "shape", -1};
  const void* function = reinterpret_cast<const void*>(kernel);
  CA_RETURN_IF_ERROR(session.check(internal::allow_shape(session, shape, function)));
  int blocks = 0;  // on a multiprocessor
#if defined(CA_CUDA_MODEL)
  CA_RETURN_IF_ERROR(session.check(cuda_model::count_blocks(&blocks)));
#else
  CA_RETURN_IF_ERROR(session.check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      &blocks, function, static_cast<int>(threads), static_cast<size_t>(shared_bytes))));
#endif
  const int64_t resident = blocks * session.multiprocessors();
  if (resident == 0) return {StatusCode::unsupported, "shape", -1};
  shape.grid = wanted < resident ? wanted : resident;
  return launch(session, shape, kernel, params);
}

/// Bytes for a block of so many warps with buffers_of_block(); `more` of its own come after.
template <typename Sizes>
int64_t bytes_of_block(const Session& session, int64_t warps, int64_t more = 0) {
  const int count = static_cast<int>(warps);
  const int64_t bytes = Sizes::layout(count, Sizes::kBuffers).bytes + more;
  if (bytes <= session.shared_bytes() || session.capability() >= 80) return bytes;
  return Sizes::layout(count, 1).bytes + more;
}

/// Draws 1 .. end - 1, one after the other, in launches of kernel(params) with params.draws. One
/// launch for all would be deaf to an abort, and keep the screen of a GPU still, for as long as
/// they take.
template <typename Params>
Status launch_draws(Session& session, int64_t end, int64_t blocks, int64_t threads,
                    int64_t shared_bytes, void (*kernel)(Params), Params params) {
  constexpr int64_t kDrawsOfALaunch = 256;
  for (int64_t draw = 1; draw < end; draw += kDrawsOfALaunch) {
    params.draws = {draw, draw + kDrawsOfALaunch < end ? draw + kDrawsOfALaunch : end};
    CA_RETURN_IF_ERROR(launch_together(session, blocks, threads, shared_bytes, kernel, params));
  }
  return Status::success();
}

}  // namespace cluster_attention::cuda
