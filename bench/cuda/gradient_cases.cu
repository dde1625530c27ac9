#include "bench/cuda/cases.h"
#include "cuda/session.h"

namespace cluster_attention::bench {

namespace {

/// Rows (1,H,N,D) with elements from a seed.
InputRows given_rows(DeviceMemory& memory, int64_t length, uint64_t seed, cuda::Storage storage) {
  const float* data = memory.floats(kHeads * length * kDim, seed, storage);
  return dense_rows(data, Layout::bhld, kHeads, length, kDim);
}

OutputRows made_rows(DeviceMemory& memory, int64_t length, cuda::Storage storage) {
  const int64_t bytes = kHeads * length * kDim * cuda::storage_bytes(storage);
  return dense_rows(static_cast<float*>(memory.allocate(bytes)), Layout::bhld, kHeads, length,
                    kDim);
}

AttentionGradients made_gradients(DeviceMemory& memory, int64_t length, cuda::Storage storage) {
  return {made_rows(memory, length, storage), made_rows(memory, length, storage),
          made_rows(memory, length, storage)};
}

}  // namespace

void add_gradient_cases(cuda::Session* session, DeviceMemory& memory, const AttentionInputs& inputs,
                        const float* planes, const cuda::Call& call, std::vector<Case>& cases) {
  const int64_t length = inputs.shape.query_length;
  const double n = static_cast<double>(length);
  const double product =
      4.0 * static_cast<double>(kHeads * kDim);  // of one query and one key, twice
  AttentionGradientProblem exact;
  exact.forward.inputs = inputs;
  exact.forward.output = made_rows(memory, length, call.storage);
  exact.forward.logsumexp = memory.array<float>(kHeads * length);
  exact.output_gradient = given_rows(memory, length, 31, call.storage);
  exact.gradients = made_gradients(memory, length, call.storage);
  if (!memory.complete()) return;
  // Five products for the forward's two.
  const Status saved = backend().operations.attention(session, exact.forward, call);
  cases.push_back({"attention_gradient", length, call.storage, call.precision,
                   2.5 * product * n * n, 0.0, exact.gradients.query.data, [=] {
                     if (!saved.ok()) return saved;
                     return backend().operations.attention_gradient(session, exact, call);
                   }});
  ClusteredAttentionGradientProblem improved;
  improved.forward = make_clustered(inputs, made_rows(memory, length, call.storage), planes, kTopK);
  improved.forward.labels = memory.array<int32_t>(kHeads * length);
  improved.forward.indices = memory.array<int32_t>(kHeads * kClusters * kTopK);
  improved.forward.cluster_values = memory.array<float>(kHeads * kClusters * kDim);
  improved.forward.cluster_logsumexp = memory.array<float>(kHeads * kClusters);
  improved.output_gradient = exact.output_gradient;
  improved.gradients = made_gradients(memory, length, call.storage);
  if (!memory.complete()) return;
  const Status grouped = backend().operations.clustered_attention(session, improved.forward, call);
  cases.push_back({"improved_gradient", length, call.storage, call.precision,
                   2.5 * product * n * static_cast<double>(kClusters + kTopK), 0.0,
                   improved.gradients.query.data, [=] {
                     if (!grouped.ok()) return grouped;
                     return backend().operations.clustered_attention_gradient(session, improved,
                                                                              call);
                   }});
}

}  // namespace cluster_attention::bench
