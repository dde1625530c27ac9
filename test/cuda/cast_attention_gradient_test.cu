#include <algorithm>
#include <cmath>
#include <numeric>

#include "native/reference/cast_attention.h"
#include "test/cuda/cast_gradient_device.h"
#include "test/cuda/tile_cases.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

namespace {

/// float32 products are made of three bfloat16 ones; five of them follow each other, and the
/// backward subtracts means.
constexpr double kSplitBound = 2e-4;
/// Operands, weights and slopes are rounded to bfloat16: 2^-9 each.
constexpr double kRoundedBound = 0x1p-5;

void check_results(const CastGradientArrays& fixture, double bound) {
  const auto expected = reference::cast_attention_gradient(fixture.problem, fixture.indices());
  // Of a single partner nothing is left but rounding.
  const double magnitude = 0.1 * norm(expected.value);
  CHECK_CLOSE(fixture.query_gradient(), expected.query, bound, magnitude);
  CHECK_CLOSE(fixture.key_gradient(), expected.key, bound, magnitude);
  CHECK_CLOSE(fixture.value_gradient(), expected.value, bound, 1e-9);
  CHECK_CLOSE(fixture.surrogates_gradient(), expected.surrogates, bound, magnitude);
  CHECK_CLOSE(fixture.gate_gradient(), expected.gate, bound, magnitude);
}

/// Runs, and compares with the reference.
void check_reference(CastGradientArrays& fixture, double bound = kSplitBound) {
  bool non_finite = true;
  CHECK_EQUAL(describe(run_there(fixture, fixture.problem, &non_finite)), "ok");
  CHECK(!non_finite);
  fixture.gradients.snapshot();
  check_results(fixture, bound);
}

TEST_ONCE("CUDA CAST gradient: matches the reference") {
  // How tokens were chosen does not matter to the backward: not all pairs are run.
  const struct {
    Selection selection;
    Activation activation;
    bool has_scale;
  } options[] = {{Selection::top_k, Activation::softmax, true},
                 {Selection::given, Activation::softmax, true},
                 {Selection::given, Activation::laplace, true},
                 {Selection::single_assignment, Activation::laplace, false}};
  for (const Case& one : cases()) {
    for (const auto& [selection, activation, has_scale] : options) {
      const bool long_run = selection == Selection::given;
      if (one.key_length > 1000 && !long_run) continue;
      const Scope scope(one.name + cast_options_name(selection, activation));
      CastGradientArrays fixture(one, selection, activation, has_scale);
      check_reference(fixture);
    }
  }
}

TEST_ONCE("CUDA CAST gradient: sizes around the tiles") {
  std::vector<Case> list = cast_tile_cases(600);
  list.push_back(cast_tile_case({1100, 8, 8, 150, 5}));  // several parts of the tokens
  for (const Case& one : list) {
    for (Selection selection : {Selection::top_k, Selection::single_assignment}) {
      const bool laplace = selection == Selection::single_assignment;
      const Activation activation = laplace ? Activation::laplace : Activation::softmax;
      const Scope scope(one.name + cast_options_name(selection, activation));
      CastGradientArrays fixture(one, selection, activation);
      check_reference(fixture);
    }
  }
}

TEST_ONCE("CUDA CAST gradient: scales of any size and sign") {
  for (float scale : {0.0f, -0.5f, 2.0f}) {
    for (Activation activation : kActivations) {
      const Scope scope("scale " + std::to_string(scale) +
                        cast_options_name(Selection::given, activation));
      CastGradientArrays fixture(find_case("prime"), Selection::given, activation);
      fixture.problem.forward.inputs.scale = scale / std::sqrt(17.0f);
      check_reference(fixture);
    }
  }
}

TEST_ONCE("CUDA CAST gradient: clusters that are empty, alike or hold one token") {
  for (Activation activation : kActivations) {
    const Scope scope(cast_options_name(Selection::given, activation));
    CastGradientArrays fixture(find_case("prime"), Selection::given, activation);
    int32_t* indices = fixture.problem.forward.indices;  // (2,7,11)
    std::fill_n(indices, 11, -1);
    std::copy_n(indices + 11, 11, indices + 22);
    std::fill_n(indices + 33, 11, -1);
    indices[40] = 52;
    std::fill_n(indices + 7 * 11, 7 * 11, -1);  // nothing but empty ones in the second entry
    check_reference(fixture);
  }
}

TEST_ONCE("CUDA CAST gradient: what is not wanted does not change the others") {
  for (const char* name : {"ragged", "width-64-130"}) {
    for (Activation activation : kActivations) {
      const Scope scope(name + cast_options_name(Selection::top_k, activation));
      CastGradientArrays fixture(find_case(name), Selection::top_k, activation);
      const auto run = [&](const CastAttentionGradientProblem& problem) {
        CHECK_EQUAL(describe(run_there(fixture, problem)), "ok");
      };
      check_wanted_alone(fixture, run, true);
    }
  }
}

TEST_ONCE("CUDA CAST gradient: the same bits in every order of the threads, alone and in a batch") {
  for (const char* name : {"ragged", "ragged-transposed", "width-64-130"}) {
    for (Selection selection : kSelections) {
      const Activation activation =
          selection == Selection::single_assignment ? Activation::laplace : Activation::softmax;
      const Scope scope(name + cast_options_name(selection, activation));
      CastGradientArrays fixture(find_case(name), selection, activation);
      CHECK_EQUAL(describe(run_there(fixture, fixture.problem)), "ok");
      const auto expected = fixture.gradients.snapshot();
      in_every_thread_order([&] {
        CHECK_EQUAL(describe(run_there(fixture, fixture.problem)), "ok");
        check_same_bytes(fixture.gradients.snapshot(), expected, "the order of the threads");
      });
      // The gradient by the surrogates is a sum over the batch.
      const std::vector<float> together = fixture.surrogates_gradient();
      std::vector<float> sum(together.size());
      fixture.gradients.poison();
      Device device;
      const CastAttentionGradientProblem there = on_device(fixture, fixture.problem, device);
      for (int64_t b = 0; b < fixture.inputs.shape.batch; ++b) {
        CHECK_EQUAL(describe(device.run(kCastGradient, one_cast_gradient_batch(there, b))), "ok");
        device.fetch(fixture.gradients);
        const std::vector<float> alone = fixture.surrogates_gradient();
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += alone[i];
      }
      CHECK_SAME(sum, together);
      std::copy(sum.begin(), sum.end(), fixture.problem.surrogates);
      check_same_bytes(fixture.gradients.snapshot(), expected, "running sequences one by one");
    }
  }
}

/// Batch entries whose parts of the tokens differ in number.
TEST_ONCE("CUDA CAST gradient: sums cut into parts have the same bits in every order") {
  Case one = find_case("usual");
  one.batch = 3;
  one.heads = 1;
  one.query_length = one.key_length = 1100;
  one.head_dim = one.value_dim = 8;
  one.cluster_size = 9;
  one.clusters = 70;
  one.key_lengths = {1100, 300, 513};
  CastGradientArrays fixture(one, Selection::top_k, Activation::softmax);
  check_reference(fixture);
  const auto expected = fixture.gradients.snapshot();
  in_every_thread_order([&] {
    CHECK_EQUAL(describe(run_there(fixture, fixture.problem)), "ok");
    check_same_bytes(fixture.gradients.snapshot(), expected, "the order of the threads");
  });
}

TEST_ONCE("CUDA CAST gradient: indices out of range or listed twice are named") {
  CastGradientArrays fixture(find_case("prime"), Selection::top_k, Activation::softmax);
  int32_t* indices = fixture.problem.forward.indices;
  for (int32_t bad : {-2, 53, 1 << 30}) {
    indices[80] = bad;
    indices[90] = bad;
    CHECK_EQUAL(describe(run_there(fixture, fixture.problem)), "out_of_range indices[80]");
  }
  std::iota(indices + 77, indices + 88, 0);  // a cluster of eleven slots
  indices[90] = indices[89];
  indices[80] = indices[78];
  CHECK_EQUAL(describe(run_there(fixture, fixture.problem)), "duplicate indices[80]");
}

TEST_ONCE("CUDA CAST gradient: NaN and Inf in rows that are read show") {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (Activation activation : kActivations) {
    CastGradientArrays fixture(find_case("prime"), Selection::given, activation);
    // The value of a token is read where the token is in a cluster.
    const int64_t token = std::max(0, fixture.problem.forward.indices[1]);
    float* const places[] = {fixture.query + 17 * 3 + 3,
                             fixture.key + 17 * token + 3,
                             fixture.value + 13 * token + 3,
                             fixture.surrogates + 17 * 3 + 3,
                             fixture.gate + 3,
                             fixture.output_gradient + 13 * 61 + 3};
    for (size_t i = 0; i < std::size(places); ++i) {
      for (float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity}) {
        const Scope scope(cast_options_name(Selection::given, activation) + " " +
                          std::to_string(bad) + " in array " + std::to_string(i));
        const float saved = *places[i];
        *places[i] = bad;
        bool non_finite = false;
        CHECK_EQUAL(describe(run_there(fixture, fixture.problem, &non_finite)), "ok");
        CHECK(non_finite);
        *places[i] = saved;
      }
    }
  }
}

void round_inputs(CastGradientArrays& fixture) {
  const AttentionShape& shape = fixture.inputs.shape;
  round_in_place({{fixture.query, fixture.rows() * shape.head_dim},
                  {fixture.key, fixture.rows() * shape.head_dim},
                  {fixture.value, fixture.rows() * shape.value_dim},
                  {fixture.surrogates, fixture.surrogate_count()},
                  {fixture.gate, shape.batch * shape.key_length},
                  {fixture.output_gradient, fixture.rows() * shape.value_dim}});
}

TEST_ONCE("CUDA CAST gradient: bfloat16 operands and storage") {
  for (const char* name : {"prime", "width-64-130", "ragged-transposed", "tile-129"}) {
    for (Activation activation : kActivations) {
      CastGradientArrays fixture(find_case(name), Selection::top_k, activation);
      round_inputs(fixture);
      for (cuda::Storage storage : {cuda::Storage::float32, cuda::Storage::bfloat16}) {
        for (Precision precision : {Precision::float32, Precision::bfloat16}) {
          const Scope scope(name + cast_options_name(Selection::top_k, activation) +
                            (storage == cuda::Storage::bfloat16 ? " stored so" : "") +
                            (precision == Precision::bfloat16 ? " computed so" : ""));
          CHECK_EQUAL(describe(run_there(fixture, fixture.problem, nullptr, precision, storage)),
                      "ok");
          const bool exact = storage == cuda::Storage::float32 && precision == Precision::float32;
          check_results(fixture, exact ? kSplitBound : kRoundedBound);
        }
      }
    }
  }
}

/// What is stored as bfloat16 is what float32 storage of the same values computes, rounded once.
TEST_ONCE("CUDA CAST gradient: storage rounds the gradients alone") {
  CastGradientArrays fixture(find_case("ragged"), Selection::top_k, Activation::softmax);
  round_inputs(fixture);
  CHECK_EQUAL(describe(run_there(fixture, fixture.problem)), "ok");
  std::vector<std::vector<float>> expected = fixture.results();
  CHECK_EQUAL(describe(run_there(fixture, fixture.problem, nullptr, Precision::float32,
                                 cuda::Storage::bfloat16)),
              "ok");
  const std::vector<std::vector<float>> actual = fixture.results();
  for (size_t i = 0; i < expected.size(); ++i) {
    if (i < 3) {
      for (float& value : expected[i]) value = round_to_bfloat16(value);
    }
    CHECK_SAME(actual[i], expected[i]);
  }
}

/// precision: 'bfloat16' of float32 arrays: the same bits as of arrays that were rounded before.
TEST_ONCE("CUDA CAST gradient: bfloat16 rounds the inputs and the gradient of the output") {
  CastGradientArrays fixture(find_case("prime"), Selection::top_k, Activation::softmax);
  CHECK_EQUAL(describe(run_there(fixture, fixture.problem, nullptr, Precision::bfloat16)), "ok");
  const auto expected = fixture.gradients.snapshot();
  round_inputs(fixture);
  CHECK_EQUAL(describe(run_there(fixture, fixture.problem, nullptr, Precision::bfloat16)), "ok");
  check_same_bytes(fixture.gradients.snapshot(), expected, "rounding the inputs before");
}

TEST_ONCE("CUDA CAST gradient: a raised flag ends the call, and the next one is right") {
  CastGradientArrays fixture(find_case("ragged"), Selection::top_k, Activation::softmax);
  CHECK_EQUAL(describe(run_there(fixture, fixture.problem)), "ok");
  const auto expected = fixture.gradients.snapshot();
  fixture.gradients.poison();
  Device device;
  const CastAttentionGradientProblem there = on_device(fixture, fixture.problem, device);
  const volatile int32_t abort = 1;
  CHECK_EQUAL(describe(device.run(kCastGradient, there, Precision::float32, &abort)), "cancelled");
  CHECK_EQUAL(describe(device.run(kCastGradient, there)), "ok");
  device.fetch(fixture.gradients);
  check_same_bytes(fixture.gradients.snapshot(), expected, "a cancelled call before");
}

}  // namespace

}  // namespace cluster_attention::test
