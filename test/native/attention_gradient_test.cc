#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "test/native/attention_gradients.h"
#include "test/native/tile_register_model.h"

namespace cluster_attention::test {

namespace {

using Fixture = AttentionGradientFixture;

AttentionGradientProblem one_gradient(const AttentionGradientProblem& problem, int64_t sequence) {
  return one_sequence(problem, sequence);
}

void check_reference(Fixture& fixture, double bound = kRelativeL2) {
  CHECK_RUNS(fixture.problem, fixture.outputs);
  fixture.outputs.snapshot();
  check_gradients(fixture.result(), reference::attention_gradient(fixture.problem), bound);
}

TEST_ONCE("attention gradient: the reference agrees with finite differences") {
  for (const char* name : {"one", "one-key", "tile-15", "ragged", "ragged-transposed"}) {
    for (bool causal : {false, true}) {
      const Scope scope(std::string(name) + (causal ? " causal" : ""));
      Fixture fixture(find_case(name), causal);
      const AttentionShape& shape = fixture.inputs.shape;
      const std::vector<float> gradient =
          read_view(fixture.problem.output_gradient, shape.batch, shape.heads, shape.query_length,
                    shape.value_dim);
      const Loss loss = [&] {
        return inner_product(reference::attention(fixture.problem.forward).output, gradient);
      };
      const auto expected = reference::attention_gradient(fixture.problem);
      check_differences(fixture.inputs, expected, loss);
    }
  }
}

TEST("attention gradient: matches the reference") {
  for (const Case& one : cases()) {
    for (bool causal : {false, true}) {
      const Scope scope(one.name + (causal ? " causal" : ""));
      Fixture fixture(one, causal);
      check_reference(fixture);
    }
  }
}

TEST("attention gradient: every head dim, scales of any sign") {
  for (int64_t dim : {1, 3, 16, 63, 64, 65, 130}) {
    for (float scale : {0.0f, -0.5f, 2.0f}) {
      const Scope scope("D " + std::to_string(dim) + " scale " + std::to_string(scale));
      Case which = find_case("tile-129");
      which.head_dim = dim;
      which.value_dim = 131 - dim;
      Fixture fixture(which, true);
      fixture.problem.forward.inputs.scale = scale / std::sqrt(static_cast<float>(dim));
      fixture.run_forward();
      check_reference(fixture, 2 * kRelativeL2);
    }
  }
}

TEST("attention gradient: logits beyond what a log-sum-exp can hold are refused") {
  for (float scale : {1e5f, 1.3e9f, -1e12f}) {
    const Scope scope("scale " + std::to_string(scale));
    Fixture fixture(find_case("prime"), false, Fill::integer);
    fixture.problem.forward.inputs.scale = scale;
    fixture.run_forward();
    CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.outputs)), "overflow");
  }
}

TEST("attention gradient: no weight exceeds 1 where logits are large") {
  for (float scale : {100.0f, -1000.0f}) {
    const Scope scope("scale " + std::to_string(scale));
    Fixture fixture(find_case("prime"), false, Fill::integer);
    fixture.problem.forward.inputs.scale = scale;
    fixture.run_forward();
    CHECK_RUNS(fixture.problem, fixture.outputs);
    for (float x : fixture.result().value) CHECK(std::abs(x) <= 2.0f * 61.0f);
  }
}

TEST("attention gradient: a long sequence, cut into parts") {
  Case which = find_case("usual");
  which.batch = which.heads = 1;
  which.query_length = 777;
  which.key_length = 1999;
  which.head_dim = 24;
  which.query_lengths.clear();
  which.key_lengths.clear();
  for (bool causal : {false, true}) {
    Fixture fixture(which, causal);
    check_threads(fixture.problem, fixture.outputs);
    check_reference(fixture);
  }
}

TEST("attention gradient: what is not wanted does not change the others") {
  Fixture fixture(find_case("ragged"), true);
  check_wanted_alone(fixture, [&](const AttentionGradientProblem& problem) {
    CHECK_RUNS(problem, fixture.outputs);
  });
}

TEST("attention gradient: threads, batches, faults, cancellation") {
  for (const char* name : {"prime", "ragged", "tile-49", "no-keys", "long-queries", "long-keys"}) {
    const Scope scope(name);
    Fixture fixture(find_case(name), true);
    const AttentionShape& shape = fixture.inputs.shape;
    check_promises(fixture.problem, fixture.outputs, shape.batch * shape.heads, one_gradient);
  }
}

/// Of weights and their changes rounded to bfloat16.
constexpr double kBfloat16Bound = 0x1p-7;
constexpr double kShare = 0.5;
constexpr CallSettings kBfloat16 = {NonFinite::error, Precision::bfloat16};

/// With bfloat16 products: the reference on rounded inputs, the same bits for every number of
/// threads.
void check_bfloat16_products() {
  for (const Case& one : cases()) {
    for (bool causal : {false, true}) {
      const Scope scope(one.name + (causal ? " causal" : ""));
      Fixture fixture(one, causal);
      round_in_place(rounded_inputs(fixture));
      fixture.run_forward();
      CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.outputs, 2, kBfloat16)), "ok");
      const std::vector<std::vector<float>> two_threads = fixture.results();
      check_gradients(fixture.result(), reference::attention_gradient(fixture.problem),
                      kBfloat16Bound, kShare);
      CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.outputs, 7, kBfloat16)), "ok");
      CHECK(fixture.results() == two_threads);
    }
  }
  Fixture fixture(find_case("long-keys"));
  CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.outputs, 2, kBfloat16)), "ok");
  const std::vector<std::vector<float>> rounded = fixture.results();
  round_in_place(rounded_inputs(fixture));
  CHECK_RUNS(fixture.problem, fixture.outputs);
  CHECK(fixture.results() != rounded);  // weights were rounded: the products were in use
}

TEST("attention gradient: bfloat16 rounds the inputs and the gradient of the output") {
  if (simd().multiplies_bfloat16) {
    check_bfloat16_products();
  } else {
    Fixture fixture(find_case("usual"));
    check_bfloat16(fixture.problem, fixture.outputs, rounded_inputs(fixture));
  }
}

TEST("attention gradient: NaN and Inf are named") {
  Fixture fixture(find_case("prime"));  // (2,3,61,17) and (2,3,53,17|13)
  check_non_finite(fixture.problem, fixture.outputs, fixture.query, "query", 17 * 61 + 3, 17 * 90);
  check_non_finite(fixture.problem, fixture.outputs, fixture.key, "key", 17 * 56 + 3);
  check_non_finite(fixture.problem, fixture.outputs, fixture.value, "value", 13 * 56 + 3);
  check_non_finite(fixture.problem, fixture.outputs, fixture.made.output_gradient_data,
                   "gradOutput", 13 * 61 + 3, 13 * 62 + 3);
}

TEST("attention gradient: queries that see no key are not read") {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (int64_t queries : {4, 70, 600}) {
    Case one = find_case("usual");
    one.query_length = queries;
    one.key_length = 3;
    const int64_t masked = queries - one.key_length;
    Fixture fixture(one, true);
    CHECK_RUNS(fixture.problem, fixture.outputs);
    const std::vector<std::vector<float>> expected = fixture.results();
    for (float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity, 3e38f}) {
      const Scope scope(std::to_string(queries) + " queries with " + std::to_string(bad));
      std::fill_n(fixture.query, masked * one.head_dim, bad);
      std::fill_n(fixture.made.output_gradient_data, masked * one.value_dim, bad);
      CHECK_RUNS(fixture.problem, fixture.outputs);
      CHECK(fixture.results() == expected);
      const int64_t place = (masked + 1) * one.value_dim + 2;
      float& read = fixture.made.output_gradient_data[place];
      const float saved = std::exchange(read, kInfinity);
      CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.outputs)),
                  "non_finite gradOutput[" + std::to_string(place) + "]");
      read = saved;
    }
  }
}

/// A NaN of these bits reaches the rows that see or are seen, and no others.
void check_propagation(uint32_t bits, Precision precision) {
  const Case& which = find_case("tile-127");
  Fixture fixture(which, true);
  const AttentionShape& shape = fixture.inputs.shape;
  const auto sees = [&](int64_t l, int64_t s) {
    return s <= l + shape.key_length - shape.query_length;
  };
  const auto bad_rows = [](const std::vector<float>& values, int64_t dim) {
    std::vector<bool> bad;
    for (size_t i = 0; i < values.size(); i += static_cast<size_t>(dim)) {
      bool any = false;
      for (int64_t d = 0; d < dim; ++d) any = any || !std::isfinite(values[i + d]);
      bad.push_back(any);
    }
    return bad;
  };
  const auto run_with = [&](float* element) {
    const float saved = *element;
    std::memcpy(element, &bits, sizeof bits);
    CHECK(run_fresh(fixture.problem, fixture.outputs, 2, {NonFinite::propagate, precision}).ok());
    *element = saved;
    return fixture.result();
  };
  const int64_t key = 29;
  for (float* data : {fixture.key + key * shape.head_dim, fixture.value + key * shape.value_dim}) {
    const DenseGradients result = run_with(data);
    const std::vector<bool> query_rows = bad_rows(result.query, shape.head_dim);
    for (int64_t l = 0; l < shape.query_length; ++l) CHECK_EQUAL(query_rows[l], sees(l, key));
    const std::vector<bool> key_rows = bad_rows(result.key, shape.head_dim);
    for (int64_t s = 0; s < shape.key_length; ++s) CHECK_EQUAL(key_rows[s], s == key);
  }
  const int64_t query = shape.query_length - 20;
  for (float* data : {fixture.query + query * shape.head_dim,
                      fixture.made.output_gradient_data + query * shape.value_dim}) {
    const DenseGradients result = run_with(data);
    const std::vector<bool> query_rows = bad_rows(result.query, shape.head_dim);
    for (int64_t l = 0; l < shape.query_length; ++l) CHECK_EQUAL(query_rows[l], l == query);
    const std::vector<bool> value_rows = bad_rows(result.value, shape.value_dim);
    for (int64_t s = 0; s < shape.key_length; ++s) CHECK_EQUAL(value_rows[s], sees(query, s));
  }
}

constexpr uint32_t kNaNs[] = {0x7fc00000u, 0xffc00000u, 0x7f800001u, 0xffc12345u, 0xffffffffu};

TEST("attention gradient: 'propagate' reaches exactly the rows that see or are seen") {
  for (uint32_t bits : kNaNs) {
    for (Precision precision : {Precision::float32, Precision::bfloat16}) {
      const Scope scope(std::to_string(bits));
      check_propagation(bits, precision);
    }
  }
}

TEST_ONCE("attention gradient: bfloat16 in tile registers, on a model of them") {
  const TileRegisterModelInUse model;
  check_bfloat16_products();
  for (uint32_t bits : kNaNs) check_propagation(bits, Precision::bfloat16);
}

}  // namespace

}  // namespace cluster_attention::test
