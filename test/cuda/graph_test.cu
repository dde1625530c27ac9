// What the model has no streams for: launches that are captured in a graph and replayed. Built for
// real GPUs alone.

#if !defined(CA_CUDA_MODEL)

#include "cuda/session.h"
#include "test/cuda/device.h"
#include "test/native/clustered_arrays.h"

namespace cluster_attention::test {

namespace {

TEST_ONCE("CUDA graphs: a call can be captured once its workspace has its size") {
  ClusteredFixture fixture(find_case("usual"), Grouping::hamming);
  Device device;
  ClusteredAttentionProblem there = fixture.problem;
  there.inputs = device.inputs(fixture.problem.inputs, fixture.arrays);
  there.planes = device.at(fixture.problem.planes, fixture.arrays);
  there.output = device.stored(fixture.problem.output, fixture.arrays);
  there.labels = device.at(fixture.problem.labels, fixture.arrays);
  there.counts = device.at(fixture.problem.counts, fixture.arrays);
  there.indices = device.at(fixture.problem.indices, fixture.arrays);
  const auto operation = device.backend().operations.clustered_attention;
  CHECK_EQUAL(describe(device.run(operation, there)), "ok");
  device.fetch(fixture.arrays);
  const auto expected = fixture.arrays.snapshot();

  cudaStream_t stream = device.session()->stream();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  CHECK_EQUAL(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  CHECK_EQUAL(describe(operation(device.session(), there, {})), "ok");
  CHECK_EQUAL(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  CHECK_EQUAL(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  const int64_t bytes = fixture.sequences() * fixture.inputs.shape.query_length *
                        fixture.inputs.shape.value_dim * static_cast<int64_t>(sizeof(float));
  CHECK_EQUAL(cudaMemsetAsync(there.output.data, 0, static_cast<size_t>(bytes), stream),
              cudaSuccess);
  CHECK_EQUAL(cudaGraphLaunch(executable, stream), cudaSuccess);
  bool non_finite = false;
  CHECK_EQUAL(describe(device.backend().finish(device.session(), &non_finite)), "ok");
  device.fetch(fixture.arrays);
  check_same_bytes(fixture.arrays.snapshot(), expected, "replaying a graph");
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

}  // namespace

}  // namespace cluster_attention::test

#endif
