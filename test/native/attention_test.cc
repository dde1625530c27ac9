#include "native/reference/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "test/native/attention_arrays.h"
#include "test/native/checks.h"
#include "test/native/compare.h"
#include "test/native/tile_register_model.h"

namespace cluster_attention::test {

namespace {

struct Fixture : AttentionArrays {
  AttentionProblem problem;

  explicit Fixture(const Case& which, bool causal = false, Fill fill = Fill::gaussian)
      : AttentionArrays(which, fill) {
    problem.inputs = inputs;
    problem.causal = causal;
    problem.output = output;
    problem.logsumexp = arrays.output<float>(which.batch * which.heads * which.query_length);
  }
  std::vector<float> result() const { return read_output(output, inputs.shape); }
  std::vector<float> logsumexp() const {
    const AttentionShape& shape = inputs.shape;
    return read(problem.logsumexp, shape.batch * shape.heads * shape.query_length);
  }
};

AttentionProblem one_sequence(AttentionProblem problem, int64_t sequence) {
  const AttentionShape shape = problem.inputs.shape;
  const int64_t b = sequence / shape.heads;
  const int64_t h = sequence % shape.heads;
  problem.inputs = alone(problem.inputs, b, h);
  problem.output = alone(problem.output, b, h);
  problem.logsumexp = part(problem.logsumexp, sequence, shape.query_length);
  return problem;
}

void check_reference(Fixture& fixture) {
  CHECK_RUNS(fixture.problem, fixture.arrays);
  fixture.arrays.snapshot();
  const reference::AttentionResult expected = reference::attention(fixture.problem);
  CHECK_CLOSE(fixture.result(), expected.output);
  CHECK_CLOSE(fixture.logsumexp(), expected.logsumexp);
}

TEST("attention: matches the reference") {
  for (const Case& one : cases()) {
    for (bool causal : {false, true}) {
      const Scope scope(one.name + (causal ? " causal" : ""));
      Fixture fixture(one, causal);
      check_reference(fixture);
    }
  }
}

TEST("attention: scales of any size and sign, and large logits") {
  for (float scale : {0.0f, -0.5f, 1.0f, 30.0f, 1e5f, 1.3e9f, -1e12f, 1e30f}) {
    const Scope scope("scale " + std::to_string(scale));
    Fixture fixture(find_case("prime"), false, Fill::integer);
    fixture.problem.inputs.scale = scale;
    check_reference(fixture);
  }
}

TEST("attention: a common shift of the logits does not matter") {
  // Every query gets a component that gives each key the same large logit.
  Fixture fixture(find_case("width-17-3"));
  const AttentionShape& shape = fixture.inputs.shape;
  for (int64_t h = 0; h < shape.heads; ++h) {
    for (int64_t l = 0; l < shape.query_length; ++l) {
      fixture.query[(h * shape.query_length + l) * shape.head_dim] =
          l % 2 == 0 ? 3000.0f : -3000.0f;
    }
    for (int64_t s = 0; s < shape.key_length; ++s) {
      fixture.key[(h * shape.key_length + s) * shape.head_dim] = 1.0f;
    }
  }
  CHECK_RUNS(fixture.problem, fixture.arrays);
  // The logits are near 730: rounding one to fp32 costs 6e-5 / 2 in its weight.
  CHECK_CLOSE(fixture.result(), reference::attention(fixture.problem).output, 1e-4);
}

TEST("attention: threads, batches, faults, cancellation") {
  for (const char* name : {"prime", "ragged", "tile-49", "no-keys", "long-queries", "long-keys"}) {
    const Scope scope(name);
    Fixture fixture(find_case(name), true);
    const AttentionShape& shape = fixture.inputs.shape;
    check_promises(fixture.problem, fixture.arrays, shape.batch * shape.heads, one_sequence);
  }
}

/// So few queries that elements lie in lanes, on some instruction sets at least, and one more.
TEST("attention: few queries of any width") {
  for (int64_t queries = 1; queries <= 5; ++queries) {
    for (int64_t dim : {1, 7, 16, 19, 64, 131}) {
      for (int64_t keys : {1, 2, 127, 129, 300}) {
        for (bool causal : {false, true}) {
          Case one = find_case("ragged");
          one.name = std::to_string(queries) + " queries, " + std::to_string(keys) + " keys, D " +
                     std::to_string(dim) + (causal ? " causal" : "");
          one.query_length = queries;
          one.key_length = keys;
          one.head_dim = dim;
          one.value_dim = 132 - dim;
          const auto last = static_cast<int32_t>(keys);
          one.query_lengths.assign(static_cast<size_t>(one.batch), static_cast<int32_t>(queries));
          one.key_lengths.assign(static_cast<size_t>(one.batch), last);
          one.query_lengths[0] = 1;
          one.key_lengths[0] = last / 2;
          const Scope scope(one.name);
          Fixture fixture(one, causal);
          check_reference(fixture);
        }
      }
    }
  }
}

/// Real queries alone decide how they are computed: padding after them does not change a bit.
TEST("attention: a padded sequence has the bits that it has alone") {
  for (int64_t queries : {1, 2, 3, 4, 5, 8, 17}) {
    for (Precision precision : {Precision::float32, Precision::bfloat16}) {
      const Scope scope(std::to_string(queries) + " queries");
      Case one = find_case("usual");
      one.heads = 1;
      one.query_lengths.assign(static_cast<size_t>(one.batch),
                               static_cast<int32_t>(one.query_length));
      one.query_lengths[0] = static_cast<int32_t>(queries);
      Fixture fixture(one, true);
      const CallSettings settings = {NonFinite::error, precision};
      CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays, 2, settings)), "ok");
      std::vector<float> padded = fixture.result();
      padded.resize(static_cast<size_t>(queries * one.value_dim));
      AttentionProblem alone = one_sequence(fixture.problem, 0);
      alone.inputs.shape.query_length = queries;
      CHECK_EQUAL(describe(run_fresh(alone, fixture.arrays, 2, settings)), "ok");
      CHECK_SAME(read(alone.output.data, queries * one.value_dim), padded);
    }
  }
}

/// Sequences of several parts of 8192 keys, as many as one thread shares out and as it does not.
Case parts_case(int64_t heads) {
  Case one = find_case("long-keys");
  one.name = "parts of " + std::to_string(heads) + " heads";
  one.batch = 2;
  one.heads = heads;
  one.query_length = heads == 3 ? 5 : 1;
  one.key_length = 20000;
  one.query_lengths = {heads == 3 ? 5 : 1, heads == 3 ? 3 : 1};
  one.key_lengths = {20000, 8193};
  return one;
}

TEST("attention: keys in parts: threads, batches, faults, cancellation") {
  for (int64_t heads : {1, 3}) {
    for (bool causal : {false, true}) {
      const Case one = parts_case(heads);
      const Scope scope(one.name + (causal ? " causal" : ""));
      Fixture fixture(one, causal);
      check_reference(fixture);
      check_promises(fixture.problem, fixture.arrays, one.batch * one.heads, one_sequence);
    }
  }
}

TEST("attention: sums over hundreds of thousands of equal keys keep their digits") {
  Case one = find_case("long-keys");
  one.key_length = 300000;
  one.head_dim = one.value_dim = 2;
  for (int64_t queries : {1, 6}) {
    one.query_length = queries;
    Fixture fixture(one);
    std::fill_n(fixture.key, one.key_length * one.head_dim, 0.3f);
    std::fill_n(fixture.value, one.key_length * one.value_dim, 0.7f);
    check_reference(fixture);
  }
}

TEST("attention: optional outputs do not change the others") {
  Fixture fixture(find_case("ragged"));
  CHECK_RUNS(fixture.problem, fixture.arrays);
  const std::vector<float> expected = fixture.result();
  fixture.problem.logsumexp = nullptr;
  CHECK_RUNS(fixture.problem, fixture.arrays);
  CHECK_SAME(fixture.result(), expected);
}

TEST("attention: NaN and Inf are named") {
  for (const char* name : {"ragged", "ragged-transposed"}) {
    const Scope scope(name);
    const Case& which = find_case(name);
    Fixture fixture(which);
    // Index of column `d` of a row, and of one that lies later in the array.
    const auto at = [&](const InputRows& view, int64_t b, int64_t h, int64_t row, int64_t d) {
      return view.row(b, h, row) - view.data + d;
    };
    const AttentionInputs& in = fixture.inputs;
    const bool transposed = which.layout == Layout::blhd;
    const int64_t b = transposed ? 1 : 0;
    check_non_finite(fixture.problem, fixture.arrays, fixture.query, "query",
                     at(in.query, b, 1, transposed ? 3 : 0, 5),
                     at(in.query, b, transposed ? 0 : 1, 7, 2));
    check_non_finite(fixture.problem, fixture.arrays, fixture.key, "key", at(in.key, b, 1, 2, 15),
                     at(in.key, b, 1, 3, 0));
    check_non_finite(fixture.problem, fixture.arrays, fixture.value, "value",
                     at(in.value, b, 0, 6, 11));
  }
}

TEST("attention: infinities that only lower the logits are found") {
  for (const char* name : {"one-query", "tile-25", "tile-129"}) {
    const Scope scope(name);
    Fixture fixture(find_case(name));
    check_silent_infinity(fixture);
  }
}

/// A NaN of these bits reaches the rows that see a key, a value or a query, and no other.
void check_propagation(uint32_t bits) {
  Fixture fixture(find_case("tile-127"), true);
  const AttentionShape& shape = fixture.inputs.shape;
  const int64_t bad = 29;
  float nan;
  std::memcpy(&nan, &bits, sizeof nan);
  for (float* data : {fixture.key + bad * shape.head_dim, fixture.value + bad * shape.value_dim}) {
    const float saved = data[3];
    data[3] = nan;
    CHECK(run_fresh(fixture.problem, fixture.arrays, 2, {NonFinite::propagate, {}}).ok());
    const std::vector<float> result = fixture.result();
    for (int64_t l = 0; l < shape.query_length; ++l) {
      const bool sees = bad <= l + shape.key_length - shape.query_length;
      CHECK_EQUAL(std::isnan(result[l * shape.value_dim + 3]), sees);
    }
    data[3] = saved;
  }
  fixture.query[100 * shape.head_dim] = nan;
  CHECK(run_fresh(fixture.problem, fixture.arrays, 2, {NonFinite::propagate, {}}).ok());
  const std::vector<float> result = fixture.result();
  for (int64_t l = 0; l < shape.query_length; ++l) {
    CHECK_EQUAL(std::isnan(result[l * shape.value_dim]), l == 100);
  }
}

TEST("attention: 'propagate' reaches exactly the rows that see the key") {
  for (uint32_t bits : {0x7fc00000u, 0xffc00000u, 0x7f800001u, 0xffc12345u, 0xffffffffu}) {
    check_propagation(bits);
  }
}

TEST("attention: hidden products past the range of float32 do not fail a call") {
  for (int64_t length : {2, 3, 5, 16, 40, 49, 200}) {
    for (float sign : {1.0f, -1.0f}) {
      const Scope scope(std::to_string(length) + " queries, sign " + std::to_string(sign));
      Case one = find_case("usual");
      one.batch = one.heads = 1;
      one.query_length = one.key_length = length;
      Fixture fixture(one, true);
      fill_column(fixture.query, length, one.head_dim, 0, 0.0f);
      fill_column(fixture.key, length, one.head_dim, 0, 0.0f);
      fixture.query[0] = 1e20f;
      fixture.key[(length - 1) * one.head_dim] = sign * 1e20f;
      check_reference(fixture);
    }
  }
}

TEST("attention: queries that see no key are not read") {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (int64_t queries : {4, 9, 130}) {
    Case one = find_case("usual");
    one.query_length = queries;
    one.key_length = 3;
    Fixture fixture(one, true);
    CHECK_RUNS(fixture.problem, fixture.arrays);
    const std::vector<float> expected = fixture.result();
    for (float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity, 3e38f}) {
      const Scope scope(std::to_string(queries) + " queries with " + std::to_string(bad));
      std::fill_n(fixture.query, (queries - 3) * one.head_dim, bad);
      CHECK_RUNS(fixture.problem, fixture.arrays);
      CHECK_SAME(fixture.result(), expected);
      // Of what is read, the first one is named.
      const int64_t place = (queries - 2) * one.head_dim + 1;
      const float saved = fixture.query[place];
      fixture.query[place] = kInfinity;
      CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays)),
                  "non_finite query[" + std::to_string(place) + "]");
      fixture.query[place] = saved;
    }
  }
}

TEST("attention: finite inputs past the range of float32 are an overflow") {
  Fixture fixture(find_case("one-query"));
  fixture.query[0] = 1e30f;
  fixture.key[0] = 1e30f;
  CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays)), "overflow");
}

RoundedInputs rounded_inputs(const Fixture& fixture) {
  const AttentionShape& s = fixture.inputs.shape;
  const int64_t sequences = s.batch * s.heads;
  return {{fixture.query, sequences * s.query_length * s.head_dim},
          {fixture.key, sequences * s.key_length * s.head_dim},
          {fixture.value, sequences * s.key_length * s.value_dim}};
}

constexpr CallSettings kBfloat16 = {NonFinite::error, Precision::bfloat16};

/// The reference on rounded inputs; dot products of bfloat16 values keep the accuracy of float32.
void check_bfloat16_reference() {
  for (const Case& one : cases()) {
    for (bool causal : {false, true}) {
      const Scope scope(one.name + (causal ? " causal" : ""));
      Fixture fixture(one, causal);
      CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays, 2, kBfloat16)), "ok");
      round_in_place(rounded_inputs(fixture));
      const reference::AttentionResult expected = reference::attention(fixture.problem);
      CHECK_CLOSE(fixture.result(), expected.output, bfloat16_bound());
      CHECK_CLOSE(fixture.logsumexp(), expected.logsumexp);
    }
  }
}

/// NaN in value `bad` of the first sequence, which only later queries see; by one thread, so that
/// tiles of queries share blocks of keys of which the earlier ones see a part.
void check_bfloat16_nan(const Case& which, int64_t bad) {
  Fixture fixture(which, true);
  const AttentionShape& shape = fixture.inputs.shape;
  fixture.value[bad * shape.value_dim] = std::numeric_limits<float>::quiet_NaN();
  CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays, 1, kBfloat16)),
              "non_finite value[" + std::to_string(bad * shape.value_dim) + "]");
  CHECK(run_fresh(fixture.problem, fixture.arrays, 1, {NonFinite::propagate, Precision::bfloat16})
            .ok());
  const std::vector<float> result = fixture.result();
  for (int64_t l = 0; l < shape.query_length; ++l) {
    const bool sees = bad <= l + shape.key_length - shape.query_length;
    CHECK_EQUAL(std::isnan(result[l * shape.value_dim]), sees);
  }
}

void check_bfloat16_nan() {
  check_bfloat16_nan(find_case("tile-129"), find_case("tile-129").key_length / 2);
  Case which = find_case("usual");
  which.key_length = which.query_length + 1;
  for (int64_t bad : {48, 49, 97, 98, 130}) {  // next to what a tile of 48 queries sees
    const Scope scope(std::to_string(bad));
    check_bfloat16_nan(which, bad);
  }
}

/// The same bits for every number of threads; weights are rounded where bfloat16 is multiplied, and
/// nothing but the inputs elsewhere.
void check_bfloat16_weights() {
  for (bool causal : {false, true}) {
    Fixture fixture(find_case("long-keys"), causal);
    CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays, 2, kBfloat16)), "ok");
    const std::vector<float> two_threads = fixture.result();
    for (int threads : {1, 8}) {
      CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays, threads, kBfloat16)), "ok");
      CHECK(fixture.result() == two_threads);
    }
    round_in_place(rounded_inputs(fixture));
    CHECK_RUNS(fixture.problem, fixture.arrays);
    const std::vector<float> expected = fixture.result();
    CHECK_EQUAL(two_threads != expected, simd().multiplies_bfloat16);
    CHECK_CLOSE(two_threads, std::vector<double>(expected.begin(), expected.end()), 1.6e-3);
  }
}

TEST("attention: bfloat16 rounds the inputs") {
  check_bfloat16_reference();
  check_bfloat16_nan();
  check_bfloat16_weights();
}

TEST_ONCE("attention: bfloat16 in tile registers, on a model of them") {
  const TileRegisterModelInUse model;
  check_bfloat16_reference();
  check_bfloat16_nan();
  check_bfloat16_weights();
}

}  // namespace

}  // namespace cluster_attention::test
