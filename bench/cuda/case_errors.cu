#include <cmath>

#include "bench/cuda/cases.h"
#include "cuda/primitives/bfloat16.cuh"
#include "native/dispatch.h"

namespace cluster_attention::bench {

namespace {

using cuda::Storage;

double relative_distance(const std::vector<float>& actual, const std::vector<float>& expected) {
  double squared = 0.0;
  double norm = 0.0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double difference = static_cast<double>(actual[i]) - expected[i];
    squared += difference * difference;
    norm += static_cast<double>(expected[i]) * expected[i];
  }
  return std::sqrt(squared / norm);
}

/// Arrays of the host, with the floats that a storage holds.
using HostFloats = std::vector<std::vector<float>>;

AttentionInputs make_inputs(HostFloats& host, int64_t queries, int64_t length, int64_t dim,
                            Storage storage) {
  const auto array = [&](int64_t count, uint64_t seed) -> const float* {
    std::vector<float>& values = host.emplace_back(normal_floats(count, seed));
    if (storage == Storage::bfloat16) {
      for (float& value : values) value = cuda::round_to_bfloat16(value);
    }
    return values.data();
  };
  return bench::make_inputs(queries, length, dim, array);
}

CallSettings settings_of(Storage storage) {
  CallSettings settings;
  settings.precision = storage == Storage::bfloat16 ? Precision::bfloat16 : Precision::float32;
  return settings;
}

/// Of exact attention over many keys, where sums are long.
double long_error(cuda::Session* session, Storage storage, int64_t dim) {
  constexpr int64_t kQueries = 64;
  constexpr int64_t kKeys = 65536;
  HostFloats host;
  AttentionProblem problem;
  problem.inputs = make_inputs(host, kQueries, kKeys, dim, storage);
  const int64_t count = kHeads * kQueries * dim;
  std::vector<float> expected(static_cast<size_t>(count));
  std::vector<float> actual(static_cast<size_t>(count));
  problem.output = dense_rows(expected.data(), Layout::bhld, kHeads, kQueries, dim);
  const CallSettings settings = settings_of(storage);
  Context context(8);
  if (!run(problem, settings, context).ok()) return HUGE_VAL;
  DeviceMemory memory(session);
  problem.inputs = make_inputs(memory, kQueries, kKeys, dim, storage);
  auto* output = static_cast<float*>(memory.allocate(count * cuda::storage_bytes(storage)));
  problem.output = dense_rows(output, Layout::bhld, kHeads, kQueries, dim);
  cuda::Call call;
  call.storage = storage;
  call.precision = settings.precision;
  bool non_finite = false;
  const bool worked =
      memory.complete() && backend().operations.attention(session, problem, call).ok() &&
      backend().finish(session, &non_finite).ok() &&
      backend().download(session, actual.data(), output, storage, count, nullptr).ok();
  return worked ? relative_distance(actual, expected) : HUGE_VAL;
}

}  // namespace

std::vector<CaseError> case_errors(cuda::Session* session, Storage storage) {
  constexpr int64_t kLength = 1024;
  const int64_t count = kHeads * kLength * kDim;
  HostFloats host;
  const AttentionInputs inputs = make_inputs(host, kLength, kLength, kDim, storage);
  const std::vector<float> planes = normal_floats(kBits * (kDim + 1), 4);
  std::vector<float> expected(static_cast<size_t>(count));
  const OutputRows rows = dense_rows(expected.data(), Layout::bhld, kHeads, kLength, kDim);
  const CallSettings settings = settings_of(storage);
  DeviceMemory memory(session);
  std::vector<CaseError> errors;
  for (const Case& one : make_cases(session, memory, kLength, storage)) {
    const bool compared =
        one.name == "attention" || one.name == "clustered" || one.name == "improved";
    if (!compared) continue;  // the others' tests are stricter than this
    Context context(8);
    AttentionProblem exact;
    exact.inputs = inputs;
    exact.output = rows;
    const int64_t top_k = one.name == "improved" ? kTopK : 0;
    const Status on_cpu =
        one.name == "attention"
            ? run(exact, settings, context)
            : run(make_clustered(inputs, rows, planes.data(), top_k), settings, context);
    bool non_finite = false;
    const bool worked = memory.complete() && on_cpu.ok() && one.run().ok() &&
                        backend().finish(session, &non_finite).ok();
    std::vector<float> actual(static_cast<size_t>(count));
    const bool fetched =
        worked &&
        backend().download(session, actual.data(), one.output, storage, count, nullptr).ok();
    errors.push_back({one.name, fetched ? relative_distance(actual, expected) : HUGE_VAL});
  }
  for (int64_t dim : {kDim, kWideDim}) {
    errors.push_back({"attention_long/" + std::to_string(dim), long_error(session, storage, dim)});
  }
  return errors;
}

}  // namespace cluster_attention::bench
