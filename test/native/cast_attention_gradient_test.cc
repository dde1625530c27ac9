#include <algorithm>
#include <cmath>

#include "native/reference/cast_attention.h"
#include "test/native/cast_gradient_arrays.h"
#include "test/native/checks.h"
#include "test/native/compare.h"
#include "test/native/finite_differences.h"

namespace cluster_attention::test {

namespace {

void check_reference(CastGradientArrays& fixture, double bound = kRelativeL2) {
  CHECK_RUNS(fixture.problem, fixture.gradients);
  fixture.gradients.snapshot();
  const auto expected = reference::cast_attention_gradient(fixture.problem, fixture.indices());
  // Far in the tail of the Laplace function only the magnitude is certain.
  constexpr double kTail = 1e-9;
  // The backward subtracts means: of a single partner nothing is left but rounding.
  const double magnitude = std::max(0.1 * norm(expected.value), kTail);
  CHECK_CLOSE(fixture.query_gradient(), expected.query, bound, magnitude);
  CHECK_CLOSE(fixture.key_gradient(), expected.key, bound, magnitude);
  CHECK_CLOSE(fixture.value_gradient(), expected.value, bound, kTail);
  CHECK_CLOSE(fixture.surrogates_gradient(), expected.surrogates, bound, magnitude);
  CHECK_CLOSE(fixture.gate_gradient(), expected.gate, bound, magnitude);
}

/// Clusters of three of seven tokens: tokens in several, in one and in none, and padding.
Case small_case() {
  Case which = find_case("prime");
  which.batch = 2;
  which.heads = 2;
  which.query_length = which.key_length = 7;
  which.head_dim = 3;
  which.value_dim = 2;
  which.clusters = 3;
  which.cluster_size = 3;
  which.key_lengths = {7, 4};
  return which;
}

TEST_ONCE("CAST gradient: the reference is the derivative of the reference") {
  for (Selection selection : kSelections) {
    for (Activation activation : kActivations) {
      for (bool has_scale : {true, false}) {
        const Scope scope(cast_options_name(selection, activation) +
                          (has_scale ? "" : " default scale"));
        CastGradientArrays fixture(small_case(), selection, activation, has_scale);
        const AttentionShape& shape = fixture.inputs.shape;
        if (fixture.given != nullptr) std::fill_n(fixture.given, 3, -1);  // an empty cluster
        const std::pair<float*, int64_t> inputs[] = {
            {fixture.query, fixture.rows() * shape.head_dim},
            {fixture.key, fixture.rows() * shape.head_dim},
            {fixture.value, fixture.rows() * shape.value_dim},
            {fixture.surrogates, fixture.surrogate_count()},
            {fixture.gate, shape.batch * shape.key_length}};
        for (const auto& [data, count] : inputs) round_to_grid(data, count);
        const std::vector<int32_t> indices = reference::cast_indices(fixture.problem.forward);
        std::vector<float> weights =
            read(fixture.output_gradient, fixture.rows() * shape.value_dim);
        for (float& weight : weights) weight = std::isnan(weight) ? 0.0f : weight;  // padding
        const auto loss = [&] {
          return weighted_sum(reference::cast_attention(fixture.problem.forward, indices), weights);
        };
        const auto expected = reference::cast_attention_gradient(fixture.problem, indices);
        const std::vector<double>* gradients[] = {&expected.query, &expected.key, &expected.value,
                                                  &expected.surrogates, &expected.gate};
        for (size_t i = 0; i < std::size(inputs); ++i) {
          const Scope input("input " + std::to_string(i));
          CHECK_CLOSE(finite_differences(inputs[i].first, inputs[i].second, loss), *gradients[i],
                      1e-8);
        }
      }
    }
  }
}

TEST("CAST gradient: matches the reference") {
  for (const Case& one : cases()) {
    for (Selection selection : kSelections) {
      for (Activation activation : kActivations) {
        for (bool has_scale : {true, false}) {
          const Scope scope(one.name + cast_options_name(selection, activation) +
                            (has_scale ? "" : " default scale"));
          CastGradientArrays fixture(one, selection, activation, has_scale);
          check_reference(fixture);
        }
      }
    }
  }
}

TEST("CAST gradient: every head dim, scales of any size and sign") {
  for (int64_t dim : {1, 3, 64, 65}) {
    for (float scale : {0.0f, -0.5f, 2.0f}) {
      for (Activation activation : kActivations) {
        const Scope scope("D " + std::to_string(dim) + " scale " + std::to_string(scale) +
                          cast_options_name(Selection::given, activation));
        Case which = find_case("width-64-130");
        which.head_dim = dim;
        which.value_dim = 66 - dim;
        CastGradientArrays fixture(which, Selection::given, activation);
        fixture.problem.forward.inputs.scale = scale / std::sqrt(static_cast<float>(dim));
        check_reference(fixture, 2 * kRelativeL2);
      }
    }
  }
}

TEST("CAST gradient: one cluster of all tokens, and a long sequence cut into parts") {
  Case which = find_case("usual");
  which.batch = which.heads = 1;
  which.query_length = which.key_length = 1601;
  which.query_lengths.clear();
  which.key_lengths.clear();
  for (const auto& [clusters, size] : {std::pair(1, 1601), std::pair(20, 90)}) {
    which.clusters = clusters;
    which.cluster_size = size;
    for (Activation activation : kActivations) {
      CastGradientArrays fixture(which, Selection::top_k, activation);
      check_threads(fixture.problem, fixture.gradients);
      check_reference(fixture);
    }
  }
}

/// Gradients within clusters are held for two of three batch entries, or heads, at a time.
TEST_ONCE("CAST gradient: batch entries in groups, heads in waves") {
  for (int64_t batch : {1, 3}) {
    const Scope scope(std::to_string(batch) + " entries");
    Case which = find_case("usual");
    which.batch = batch;
    which.heads = 4 - batch;
    which.query_length = which.key_length = 100;
    which.head_dim = 3;
    which.value_dim = 70;
    which.clusters = which.cluster_size = 100;
    CastGradientArrays fixture(which, Selection::top_k, Activation::softmax);
    check_reference(fixture);
  }
}

TEST("CAST gradient: what is not wanted does not change the others") {
  CastGradientArrays fixture(find_case("ragged"), Selection::top_k, Activation::softmax);
  const auto run = [&](const CastAttentionGradientProblem& problem) {
    CHECK_RUNS(problem, fixture.gradients);
  };
  check_wanted_alone(fixture, run, true);
}

TEST("CAST gradient: threads, batches, faults, cancellation") {
  for (const char* name : {"ragged", "ragged-transposed", "usual", "long-queries", "long-keys"}) {
    for (Selection selection : kSelections) {
      const Scope scope(name + cast_options_name(selection, Activation::softmax));
      CastGradientArrays fixture(find_case(name), selection, Activation::softmax);
      check_threads(fixture.problem, fixture.gradients);
      // The gradient by the surrogates is a sum over the batch.
      CastAttentionGradientProblem per_sequence = fixture.problem;
      per_sequence.surrogates = nullptr;
      check_promises(per_sequence, fixture.gradients, fixture.inputs.shape.batch,
                     one_cast_gradient_batch);
    }
  }
}

TEST("CAST gradient: the surrogates' is the sum over the batch") {
  CastGradientArrays fixture(find_case("ragged"), Selection::top_k, Activation::softmax);
  CHECK_RUNS(fixture.problem, fixture.gradients);
  const std::vector<float> together = fixture.surrogates_gradient();
  std::vector<float> sum(together.size());
  for (int64_t b = 0; b < fixture.inputs.shape.batch; ++b) {
    CHECK_RUNS(one_cast_gradient_batch(fixture.problem, b), fixture.gradients);
    const std::vector<float> alone = fixture.surrogates_gradient();
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += alone[i];
  }
  CHECK_SAME(sum, together);
}

TEST("CAST gradient: indices out of range or listed twice are named") {
  CastGradientArrays fixture(find_case("prime"), Selection::top_k, Activation::softmax);
  fixture.problem.forward.indices[80] = 53;
  CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.gradients)), "out_of_range indices[80]");
  fixture.problem.forward.indices[80] = fixture.problem.forward.indices[78];
  CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.gradients)), "duplicate indices[80]");
}

TEST("CAST gradient: bfloat16 rounds the inputs and the gradient of the output") {
  CastGradientArrays fixture(find_case("usual"), Selection::top_k, Activation::softmax);
  const AttentionShape& shape = fixture.inputs.shape;
  check_bfloat16(fixture.problem, fixture.gradients,
                 {{fixture.query, fixture.rows() * shape.head_dim},
                  {fixture.key, fixture.rows() * shape.head_dim},
                  {fixture.value, fixture.rows() * shape.value_dim},
                  {fixture.surrogates, fixture.surrogate_count()},
                  {fixture.gate, shape.batch * shape.key_length},
                  {fixture.output_gradient, fixture.rows() * shape.value_dim}});
}

TEST("CAST gradient: NaN and Inf are named") {
  for (Activation activation : kActivations) {
    const Scope scope(cast_options_name(Selection::given, activation));
    CastGradientArrays fixture(find_case("prime"), Selection::given, activation);
    const int64_t token = std::max(0, fixture.problem.forward.indices[1]);
    check_non_finite(fixture.problem, fixture.gradients, fixture.query, "query", 17 * 3 + 3,
                     17 * 4 + 3);
    check_non_finite(fixture.problem, fixture.gradients, fixture.key, "key", 17 * token + 3);
    check_non_finite(fixture.problem, fixture.gradients, fixture.value, "value", 13 * token + 3);
    check_non_finite(fixture.problem, fixture.gradients, fixture.surrogates, "surrogates",
                     17 * 3 + 3);
    check_non_finite(fixture.problem, fixture.gradients, fixture.gate, "gate", 3);
    check_non_finite(fixture.problem, fixture.gradients, fixture.output_gradient, "gradOutput",
                     13 * 61 + 3, 13 * 62 + 3);
  }
}

}  // namespace

}  // namespace cluster_attention::test
