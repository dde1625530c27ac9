// The gradients of CAST where memory runs out, and what gradients cost that nobody wants, on the
// model, which counts and can be made to fail.

#include "test/cuda/cast_gradient_device.h"
#include "test/cuda/model/faults.h"

namespace cluster_attention::test {

namespace {

TEST_ONCE("CUDA CAST gradient: any allocation may fail, and the next call is right") {
  // Needs more than the smallest block of a workspace, so that several are allocated.
  Case one = find_case("usual");
  one.query_length = one.key_length = 700;
  CastGradientArrays fixture(one, Selection::top_k, Activation::softmax);
  CHECK_EQUAL(describe(run_there(fixture, fixture.problem)), "ok");
  const auto expected = fixture.gradients.snapshot();
  for (int64_t k = 1;; ++k) {
    const Scope scope("allocation " + std::to_string(k));
    fixture.gradients.poison();
    Device device;
    const CastAttentionGradientProblem there = on_device(fixture, fixture.problem, device);
    cuda_model::fail_allocation(k);
    const Status status = device.run(kCastGradient, there);
    cuda_model::fail_allocation(0);
    if (!status.ok()) {
      CHECK_EQUAL(describe(status), "out_of_memory");
      CHECK_EQUAL(describe(device.run(kCastGradient, there)), "ok");
    }
    device.fetch(fixture.gradients);
    check_same_bytes(fixture.gradients.snapshot(), expected, "a failed allocation before");
    if (!status.ok()) continue;
    CHECK(k > 3);
    break;
  }
}

TEST_ONCE("CUDA CAST gradient: what is not wanted is not launched") {
  CastGradientArrays fixture(find_case("ragged"), Selection::top_k, Activation::softmax);
  const auto calls_of = [&](int wanted) {
    Device device;
    const CastAttentionGradientProblem there =
        on_device(fixture, only(fixture.problem, wanted), device);
    int64_t calls = 0;
    for (int round = 0; round < 2; ++round) {  // the second one finds its memory
      calls = -cuda_model::calls();
      // With bfloat16, no kernel has to be asked for its shared memory.
      CHECK_EQUAL(describe(device.run(kCastGradient, there, Precision::bfloat16)), "ok");
      calls += cuda_model::calls();
    }
    return calls;
  };
  const int64_t none = calls_of(0);
  CHECK_EQUAL(calls_of(1) - none, 5);   // query: no columns, no surrogates, nothing to gather
  CHECK_EQUAL(calls_of(2) - none, 6);   // key: no tokens
  CHECK_EQUAL(calls_of(4) - none, 6);   // value: likewise
  CHECK_EQUAL(calls_of(8) - none, 7);   // surrogates: no columns
  CHECK_EQUAL(calls_of(16) - none, 7);  // gate: no surrogates
  CHECK_EQUAL(calls_of(31) - none, 8);
}

}  // namespace

}  // namespace cluster_attention::test
