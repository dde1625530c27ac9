#pragma once

// How many kernels an operation launches: what docs/gpu.md promises.

#include "cuda/session.h"
#include "test/cuda/device.h"

#if defined(CA_CUDA_MODEL)
#include "test/cuda/model/faults.h"
#endif

namespace cluster_attention::test {

/// Kernels that a call launches once its workspace has its size; on a GPU, those of its graph.
template <typename Problem>
int64_t count_launches(Device& device, cuda::Operation<Problem> operation, const Problem& there,
                       Precision precision = Precision::float32) {
  CHECK_EQUAL(describe(device.run(operation, there, precision)), "ok");
#if defined(CA_CUDA_MODEL)
  const int64_t before = cuda_model::launches();
  CHECK_EQUAL(describe(device.run(operation, there, precision)), "ok");
  return cuda_model::launches() - before;
#else
  cuda::Call call;
  call.storage = device.storage();
  call.precision = precision;
  cudaStream_t stream = device.session()->stream();
  cudaGraph_t graph = nullptr;
  CHECK_EQUAL(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  CHECK_EQUAL(describe(operation(device.session(), there, call)), "ok");
  CHECK_EQUAL(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  size_t count = 0;
  CHECK_EQUAL(cudaGraphGetNodes(graph, nullptr, &count), cudaSuccess);
  std::vector<cudaGraphNode_t> nodes(count);
  CHECK_EQUAL(cudaGraphGetNodes(graph, nodes.data(), &count), cudaSuccess);
  int64_t kernels = 0;
  for (cudaGraphNode_t node : nodes) {
    cudaGraphNodeType type;
    CHECK_EQUAL(cudaGraphNodeGetType(node, &type), cudaSuccess);
    kernels += type == cudaGraphNodeTypeKernel ? 1 : 0;
  }
  cudaGraphDestroy(graph);
  return kernels;
#endif
}

}  // namespace cluster_attention::test
