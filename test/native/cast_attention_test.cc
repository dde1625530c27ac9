#include "native/reference/cast_attention.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "native/reference/attention.h"
#include "test/native/cases.h"
#include "test/native/cast_arrays.h"
#include "test/native/checks.h"
#include "test/native/compare.h"
#include "test/native/tile_register_model.h"

namespace cluster_attention::test {

namespace {

using Fixture = CastArrays;

/// Padded tokens of given indices count as empty slots.
std::vector<int32_t> without_padding(const Fixture& fixture, std::vector<int32_t> indices) {
  const AttentionInputs& in = fixture.inputs;
  const int64_t per_batch = fixture.problem.clusters * fixture.problem.cluster_size;
  for (size_t i = 0; i < indices.size(); ++i) {
    const int64_t b = static_cast<int64_t>(i) / per_batch;
    if (indices[i] >= real_length(in.key_lengths, b, in.shape.key_length)) indices[i] = -1;
  }
  return indices;
}

/// The tokens chosen are the reference's. Among thousands of tokens, or of cases, some scores are
/// equal up to rounding: there each slot holds a token of the same score, and single assignment,
/// where one exchange moves all that follow, is left to the test of its properties.
void check_choices(const Fixture& fixture) {
  const CastAttentionProblem& problem = fixture.problem;
  const std::vector<int32_t> actual = without_padding(fixture, fixture.indices());
  const std::vector<int32_t> expected = without_padding(fixture, reference::cast_indices(problem));
  const bool exact = !made_cases() && fixture.inputs.shape.key_length < 1000;
  if (exact || problem.selection == Selection::given) {
    CHECK_SAME(actual, expected);
    return;
  }
  if (problem.selection != Selection::top_k) return;
  size_t i = 0;
  for (int64_t batch = 0; batch < fixture.inputs.shape.batch; ++batch) {
    const reference::Matrix scores = reference::cast_gate_scores(problem, batch);
    for (int64_t slot = 0; slot < problem.clusters * problem.cluster_size; ++slot, ++i) {
      if (actual[i] == expected[i]) continue;
      const int64_t cluster = slot / problem.cluster_size;
      const bool usable = actual[i] >= 0 && actual[i] < scores.rows() && expected[i] >= 0;
      CHECK(usable && std::abs(scores(actual[i], cluster) - scores(expected[i], cluster)) < 1e-6);
    }
  }
}

void check_reference(Fixture& fixture) {
  CHECK_RUNS(fixture.problem, fixture.arrays);
  fixture.arrays.snapshot();
  check_choices(fixture);
  const std::vector<int32_t> chosen = fixture.indices();
  // Far in the tail of the Laplace function only its magnitude is certain.
  CHECK_CLOSE(fixture.result(), reference::cast_attention(fixture.problem, chosen), kRelativeL2,
              1e-9);
  CHECK_SAME(read(fixture.problem.coverage, fixture.inputs.shape.batch),
             reference::cast_coverage(fixture.problem, chosen));
}

TEST("CAST: matches the reference") {
  for (const Case& one : cases()) {
    for (Selection selection : kSelections) {
      for (Activation activation : kActivations) {
        for (bool has_scale : {true, false}) {
          const Scope scope(one.name + cast_options_name(selection, activation) +
                            (has_scale ? "" : " default scale"));
          Fixture fixture(one, selection, activation);
          fixture.problem.has_scale = has_scale;
          check_reference(fixture);
        }
      }
    }
  }
}

/// More affinities than are held at a time; how many are, follows from the number of threads.
TEST_ONCE("CAST: tokens in stretches") {
  Case which = find_case("usual");
  which.batch = 3;
  which.heads = 2;
  which.query_length = which.key_length = 2500;
  which.query_lengths = which.key_lengths = {2500, 900, 0};
  which.head_dim = which.value_dim = 3;
  which.clusters = 1000;
  which.cluster_size = 5;
  Fixture fixture(which, Selection::top_k);
  check_reference(fixture);
  CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays, 1)), "ok");
  const auto expected = fixture.arrays.snapshot();
  CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays, 40)), "ok");
  check_same_bytes(fixture.arrays.snapshot(), expected, "40 threads");
}

/// Two of three batch entries are worked on at a time; clusters of two of three heads.
std::vector<Case> grouped_cases() {
  Case one = find_case("usual");
  one.batch = 3;
  one.heads = 1;
  one.query_length = one.key_length = 100;
  one.head_dim = 2;
  one.value_dim = 9000;
  one.clusters = one.cluster_size = 10;
  Case other = find_case("usual");
  other.batch = 1;
  other.heads = 3;
  other.query_length = other.key_length = 100;
  other.head_dim = 3;
  other.value_dim = 70;
  other.clusters = other.cluster_size = 100;
  one.name = "entries in groups";
  other.name = "heads in waves";
  return {one, other};
}

TEST_ONCE("CAST: batch entries in groups, heads in waves") {
  for (const Case& one : grouped_cases()) {
    for (Selection selection : {Selection::top_k, Selection::single_assignment}) {
      const Scope scope(one.name + cast_options_name(selection, Activation::softmax));
      Fixture fixture(one, selection, Activation::softmax);
      check_reference(fixture);
    }
  }
}

TEST("CAST: many clusters, and many of a token, keep the bound") {
  for (const int64_t tokens : {160, 2}) {
    const Scope scope(std::to_string(tokens) + " tokens");
    Case which = find_case("usual");
    which.batch = which.heads = 1;
    which.key_length = tokens;
    which.clusters = 20'000;
    which.cluster_size = 1;
    which.head_dim = which.value_dim = 2;
    Fixture fixture(which, Selection::given);
    for (int64_t c = 0; c < which.clusters; ++c) {
      fixture.given[c] = static_cast<int32_t>(c % which.key_length);
    }
    std::fill_n(fixture.key, which.key_length * which.head_dim, 1.0f);
    std::fill_n(fixture.query, which.key_length * which.head_dim, 1.0f);
    std::fill_n(fixture.value, which.key_length * which.value_dim, 0.1f);
    std::fill_n(fixture.surrogates, which.clusters * which.head_dim, 0.5f);
    std::fill_n(fixture.surrogates, which.head_dim, 1.5f);
    CHECK_RUNS(fixture.problem, fixture.arrays);
    fixture.arrays.snapshot();
    CHECK_CLOSE(fixture.result(), reference::cast_attention(fixture.problem, fixture.indices()));
  }
}

TEST("CAST: scales of any size and sign") {
  for (float scale : {0.0f, -0.5f, 1.0f, 4.0f}) {
    for (Selection selection : kSelections) {
      for (Activation activation : kActivations) {
        const Scope scope("scale " + std::to_string(scale) +
                          cast_options_name(selection, activation));
        Fixture fixture(find_case("prime"), selection, activation);
        fixture.problem.inputs.scale = scale;
        check_reference(fixture);
      }
    }
  }
}

TEST("CAST: equal scores are taken in the order of the tokens") {
  const Case& which = find_case("ragged");
  for (Selection selection : {Selection::top_k, Selection::single_assignment}) {
    Fixture fixture(which, selection);
    std::fill_n(fixture.surrogates, which.heads * which.clusters * which.head_dim, 0.0f);
    // A gate of 1/2 mixes equal numbers without rounding.
    std::fill_n(fixture.gate, which.batch * which.key_length, 0.0f);
    check_reference(fixture);
  }
}

TEST("CAST: single assignment covers every token once") {
  for (const char* name : {"prime", "ragged", "slots-over-tokens", "long-keys"}) {
    const Scope scope(name);
    Fixture fixture(find_case(name), Selection::single_assignment);
    CHECK_RUNS(fixture.problem, fixture.arrays);
    const AttentionInputs& in = fixture.inputs;
    const std::vector<int32_t> indices = fixture.indices();
    const int64_t per_batch = fixture.problem.clusters * fixture.problem.cluster_size;
    for (int64_t b = 0; b < in.shape.batch; ++b) {
      const int64_t real = real_length(in.key_lengths, b, in.shape.key_length);
      const auto first = indices.begin() + b * per_batch;
      for (int32_t token = 0; token < in.shape.key_length; ++token) {
        CHECK_EQUAL(std::count(first, first + per_batch, token), token < real ? 1 : 0);
      }
      CHECK_EQUAL(fixture.problem.coverage[b], 1.0);
    }
  }
}

/// Tokens of the same direction, which prefer the clusters in the same order, the longer ones more:
/// most choose again and again, in each batch entry other clusters.
Fixture contested_tokens(int32_t tokens, int64_t clusters, int64_t cluster_size,
                         Activation activation) {
  Case which = find_case("usual");
  which.batch = 4;
  which.heads = 2;
  which.query_length = which.key_length = tokens;
  which.query_lengths = which.key_lengths = {tokens, tokens / 10, tokens, tokens - 7};
  which.head_dim = which.value_dim = 5;
  which.clusters = clusters;
  which.cluster_size = cluster_size;
  Fixture fixture(which, Selection::single_assignment, activation);
  const std::vector<float> directions =
      random_floats(which.batch * which.heads * which.head_dim, 44);
  for (int64_t sequence = 0; sequence < which.batch * which.heads; ++sequence) {
    const float* direction = directions.data() + sequence * which.head_dim;
    for (int64_t n = 0; n < tokens; ++n) {
      // In an order of their own, apart by more than rounding.
      const float length = 1.0f + static_cast<float>(n * 8 % tokens) / static_cast<float>(tokens);
      for (int64_t d = 0; d < which.head_dim; ++d) {
        const int64_t place = (sequence * tokens + n) * which.head_dim + d;
        fixture.query[place] = fixture.key[place] = length * direction[d];
      }
    }
  }
  std::fill_n(fixture.gate, which.batch * tokens, 0.5f);
  return fixture;
}

TEST("CAST: tokens of a single assignment whose clusters are all full choose again") {
  for (Activation activation : kActivations) {
    for (const int64_t size : {10, 11, 1}) {
      const Scope scope("clusters of " + std::to_string(size) +
                        cast_options_name(Selection::single_assignment, activation));
      Fixture fixture = size == 1 ? contested_tokens(97, 97, size, activation)
                                  : contested_tokens(297, 30, size, activation);
      check_reference(fixture);
      check_promises(fixture.problem, fixture.arrays, fixture.inputs.shape.batch, one_cast_batch);
    }
  }
}

TEST("CAST: one cluster of all tokens is exact attention") {
  for (const char* name : {"prime", "ragged-keys", "tile-129"}) {
    for (Selection selection : {Selection::top_k, Selection::single_assignment}) {
      const Scope scope(name);
      Case which = find_case(name);
      which.clusters = 1;
      which.cluster_size = which.key_length;
      Fixture fixture(which, selection);
      CHECK_RUNS(fixture.problem, fixture.arrays);
      AttentionProblem exact;
      exact.inputs = fixture.inputs;
      CHECK_CLOSE(fixture.result(), reference::attention(exact).output);
    }
  }
}

TEST("CAST: a permutation of the tokens permutes the outputs") {
  const Case& which = find_case("width-64-130");
  for (Selection selection : {Selection::top_k, Selection::single_assignment}) {
    Fixture fixture(which, selection);
    const AttentionShape& shape = fixture.inputs.shape;
    CHECK_RUNS(fixture.problem, fixture.arrays);
    const std::vector<float> before = fixture.result();
    const auto reverse_rows = [&](float* data, int64_t columns) {
      for (int64_t i = 0; i < shape.key_length / 2; ++i) {
        std::swap_ranges(data + i * columns, data + (i + 1) * columns,
                         data + (shape.key_length - 1 - i) * columns);
      }
    };
    reverse_rows(fixture.query, shape.head_dim);
    reverse_rows(fixture.key, shape.head_dim);
    reverse_rows(fixture.value, shape.value_dim);
    reverse_rows(fixture.gate, 1);
    CHECK_RUNS(fixture.problem, fixture.arrays);
    std::vector<float> after = fixture.result();
    reverse_rows(after.data(), shape.value_dim);
    CHECK_CLOSE(after, std::vector<double>(before.begin(), before.end()));
  }
}

TEST("CAST: given indices out of range or listed twice are named") {
  for (int32_t bad : {-2, 53, 1 << 30}) {
    Fixture fixture(find_case("prime"), Selection::given);
    fixture.given[80] = bad;
    fixture.given[90] = bad;
    CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays)), "out_of_range indices[80]");
  }
  Fixture fixture(find_case("prime"), Selection::given);
  std::iota(fixture.given + 77, fixture.given + 88, 0);  // a cluster of eleven slots
  fixture.given[83] = 2;
  CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays)), "duplicate indices[83]");
}

TEST("CAST: optional outputs do not change the others") {
  for (Selection selection : kSelections) {
    Fixture fixture(find_case("ragged"), selection);
    CHECK_RUNS(fixture.problem, fixture.arrays);
    const std::vector<float> expected = fixture.result();
    fixture.problem.indices = nullptr;
    fixture.problem.coverage = nullptr;
    CHECK_RUNS(fixture.problem, fixture.arrays);
    CHECK_SAME(fixture.result(), expected);
  }
}

TEST("CAST: threads, batches, faults, cancellation") {
  for (const char* name : {"ragged", "ragged-transposed", "usual", "long-queries", "long-keys"}) {
    for (Selection selection : kSelections) {
      for (Activation activation : kActivations) {
        const Scope scope(name + cast_options_name(selection, activation));
        Fixture fixture(find_case(name), selection, activation);
        check_promises(fixture.problem, fixture.arrays, fixture.inputs.shape.batch, one_cast_batch);
      }
    }
  }
}

TEST("CAST: NaN and Inf are named") {
  for (Selection selection : kSelections) {
    for (Activation activation : kActivations) {
      const Scope scope(cast_options_name(selection, activation));
      Fixture fixture(find_case("prime"), selection, activation);
      if (selection == Selection::given) std::iota(fixture.given, fixture.given + 11, 0);
      check_non_finite(fixture.problem, fixture.arrays, fixture.query, "query", 17 * 3 + 3,
                       17 * 4 + 3);
      check_non_finite(fixture.problem, fixture.arrays, fixture.key, "key", 17 * 3 + 3);
      check_non_finite(fixture.problem, fixture.arrays, fixture.surrogates, "surrogates",
                       17 * 3 + 3);
      check_non_finite(fixture.problem, fixture.arrays, fixture.gate, "gate", 3);
      // The value of a token is read where the token is in a cluster.
      CHECK_RUNS(fixture.problem, fixture.arrays);
      const int32_t token = fixture.problem.indices[0];
      check_non_finite(fixture.problem, fixture.arrays, fixture.value, "value", 13 * token + 3);
    }
  }
}

TEST("CAST: infinities that only lower the logits are found") {
  for (Selection selection : kSelections) {
    for (Activation activation : kActivations) {
      const Scope scope(cast_options_name(selection, activation));
      Case which = find_case("tile-25");
      which.cluster_size = which.key_length;
      Fixture fixture(which, selection, activation);
      fill_column(fixture.surrogates, which.heads * which.clusters, which.head_dim,
                  which.head_dim - 1, 1.0f);
      check_silent_infinity(fixture);
    }
  }
}

RoundedInputs rounded_inputs(const Fixture& fixture) {
  const AttentionShape& s = fixture.inputs.shape;
  const int64_t rows = s.batch * s.heads * s.key_length;
  return {{fixture.query, rows * s.head_dim},
          {fixture.key, rows * s.head_dim},
          {fixture.value, rows * s.value_dim},
          {fixture.surrogates, s.heads * fixture.problem.clusters * s.head_dim},
          {fixture.gate, s.batch * s.key_length}};
}

/// Where weights are rounded too, the selection is still that of rounded inputs.
void check_rounded_weights() {
  for (const char* name : {"prime", "width-65", "width-64-130", "ragged-keys", "usual"}) {
    const Scope scope(name);
    Fixture fixture(find_case(name), Selection::top_k);
    CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays, 2, {{}, Precision::bfloat16})),
                "ok");
    const std::vector<float> actual = fixture.result();
    const std::vector<int32_t> indices = fixture.indices();
    round_in_place(rounded_inputs(fixture));
    CHECK_RUNS(fixture.problem, fixture.arrays);
    const std::vector<float> expected = fixture.result();
    CHECK(actual != expected);
    CHECK_CLOSE(actual, std::vector<double>(expected.begin(), expected.end()), bfloat16_bound());
    CHECK_SAME(indices, fixture.indices());
  }
}

TEST("CAST: bfloat16 rounds the inputs") {
  if (simd().multiplies_bfloat16) return check_rounded_weights();
  Fixture fixture(find_case("prime"), Selection::top_k);
  check_bfloat16(fixture.problem, fixture.arrays, rounded_inputs(fixture));
}

TEST_ONCE("CAST: bfloat16 in tile registers, on a model of them") {
  const TileRegisterModelInUse model;
  check_rounded_weights();
}

}  // namespace

}  // namespace cluster_attention::test
