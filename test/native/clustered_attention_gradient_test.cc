#include <algorithm>
#include <cmath>

#include "native/reference/aggregate.h"
#include "test/native/attention_gradients.h"

namespace cluster_attention::test {

namespace {

using Fixture = ClusteredGradientFixture;

std::string title(const Case& which, Grouping grouping, int64_t top_k, bool detach) {
  return which.name + (grouping == Grouping::given ? " given" : " hamming") + " k " +
         std::to_string(top_k) + (detach ? " detached" : "");
}

ClusteredAttentionGradientProblem one_gradient(const ClusteredAttentionGradientProblem& problem,
                                               int64_t sequence) {
  return one_sequence(problem, sequence);
}

void check_reference(Fixture& fixture) {
  CHECK_RUNS(fixture.problem, fixture.outputs);
  fixture.outputs.snapshot();
  check_gradients(fixture.result(),
                  reference::clustered_attention_gradient(fixture.problem, fixture.choices()));
}

/// Small and ragged, with empty clusters, queries without a cluster, and lists that overlap.
Case small_case(Layout layout) {
  Case which = find_case("ragged");
  which.batch = which.heads = 2;
  which.query_length = 9;
  which.key_length = 7;
  which.head_dim = 3;
  which.value_dim = 2;
  which.clusters = 5;
  which.layout = layout;
  which.query_lengths = {9, 6};
  which.key_lengths = {7, 4};
  return which;
}

TEST_ONCE("clustered attention gradient: the reference agrees with finite differences") {
  for (Layout layout : {Layout::bhld, Layout::blhd}) {
    for (int64_t top_k : {0, 1, 3, 5}) {
      const Scope scope("k " + std::to_string(top_k));
      Fixture fixture(small_case(layout), Grouping::given, top_k);
      const AttentionShape& shape = fixture.inputs.shape;
      const reference::ClusteredChoices choices = fixture.choices();
      std::vector<float> gradient = read_view(fixture.problem.output_gradient, shape.batch,
                                              shape.heads, shape.query_length, shape.value_dim);
      check_differences(
          fixture.inputs, reference::clustered_attention_gradient(fixture.problem, choices), [&] {
            return inner_product(reference::clustered_attention(fixture.problem.forward, choices),
                                 gradient);
          });
    }
  }
}

/// m̂ of the cluster of each real query, and x̄ = sum_t p_t g·v_t.
struct Masses {
  std::vector<double> mass;
  std::vector<double> share;
};

Masses masses_of(const Fixture& fixture, const reference::ClusteredChoices& choices) {
  const AttentionShape& shape = fixture.inputs.shape;
  const ClusteredAttentionProblem& improved = fixture.problem.forward;
  ClusteredAttentionProblem plain = improved;
  plain.top_k = 0;
  Masses masses;
  for (int64_t s = 0; s < fixture.sequences(); ++s) {
    const int64_t b = s / shape.heads;
    const int64_t h = s % shape.heads;
    const auto rows = reference::read_sequence(fixture.inputs, b, h);
    const auto cluster_weights = reference::clustered_weights(plain, choices, b, h);
    const auto weights = reference::clustered_weights(improved, choices, b, h);
    for (int64_t i = 0; i < weights.rows(); ++i) {
      const int32_t j = choices.labels[s * shape.query_length + i];
      double mass = 0.0;
      double share = 0.0;
      for (int64_t t = 0; j >= 0 && t < improved.top_k; ++t) {
        const int32_t key = choices.indices[(s * improved.clusters + j) * improved.top_k + t];
        if (key < 0) continue;
        mass += cluster_weights(i, key);
        for (int64_t e = 0; e < shape.value_dim; ++e) {
          share += weights(i, key) * rows.value(key, e) *
                   static_cast<double>(fixture.problem.output_gradient.row(b, h, i)[e]);
        }
      }
      masses.mass.push_back(mass);
      masses.share.push_back(mass > 0.0 ? share / mass : 0.0);
    }
  }
  return masses;
}

TEST_ONCE("clustered attention gradient: detachMass leaves out what goes through the mass") {
  Fixture fixture(small_case(Layout::bhld), Grouping::given, 3);
  const reference::ClusteredChoices choices = fixture.choices();
  const Masses frozen = masses_of(fixture, choices);
  auto difference = reference::clustered_attention_gradient(fixture.problem, choices);
  fixture.problem.detach_mass = true;
  const auto detached = reference::clustered_attention_gradient(fixture.problem, choices);
  const auto subtract = [](std::vector<double>& a, const std::vector<double>& b) {
    for (size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  };
  subtract(difference.query, detached.query);
  subtract(difference.key, detached.key);
  subtract(difference.value, detached.value);
  CHECK(norm(difference.query) > 0.01 * norm(detached.query));
  for (double x : difference.value) CHECK_EQUAL(x, 0.0);
  // The output depends on m̂ with the slope x̄: with x̄ held fixed, only m̂ moves.
  check_differences(fixture.inputs, difference, [&] {
    const std::vector<double> mass = masses_of(fixture, choices).mass;
    double loss = 0.0;
    for (size_t i = 0; i < mass.size(); ++i) loss += frozen.share[i] * mass[i];
    return loss;
  });
}

TEST("clustered attention gradient: the forward saves values and log-sum-exps of the clusters") {
  for (const char* name : {"prime", "ragged-transposed", "more-clusters-than-queries"}) {
    const Scope scope(name);
    Fixture fixture(find_case(name), Grouping::given, 2);
    const AttentionShape& shape = fixture.inputs.shape;
    const int64_t clusters = fixture.problem.forward.clusters;
    const auto choices = fixture.choices();
    std::vector<double> values, logsumexp;
    for (int64_t s = 0; s < fixture.sequences(); ++s) {
      const auto rows = reference::read_sequence(fixture.inputs, s / shape.heads, s % shape.heads);
      const auto first = choices.labels.begin() + s * shape.query_length;
      const std::vector<int32_t> labels(first, first + rows.query.rows());
      const auto means = reference::aggregate(rows.query, labels, clusters, Reduce::mean);
      const auto counts = reference::count_labels(labels, clusters);
      const auto logits =
          reference::scaled(reference::multiply_transposed(means, rows.key), fixture.inputs.scale);
      const auto attended = reference::multiply(reference::softmax_rows(logits), rows.value);
      const auto sums = reference::logsumexp_rows(logits);
      for (int64_t c = 0; c < clusters; ++c) {
        const bool empty = counts[c] == 0;
        logsumexp.push_back(empty ? -reference::kInfinity : sums[c]);
        for (int64_t e = 0; e < shape.value_dim; ++e) {
          values.push_back(empty ? 0.0 : attended(c, e));
        }
      }
    }
    const ClusteredAttentionProblem& forward = fixture.problem.forward;
    CHECK_CLOSE(read(forward.cluster_values, static_cast<int64_t>(values.size())), values);
    CHECK_CLOSE(read(forward.cluster_logsumexp, static_cast<int64_t>(logsumexp.size())), logsumexp);
  }
}

TEST("clustered attention gradient: matches the reference") {
  for (const Case& one : cases()) {
    for (Grouping grouping : {Grouping::hamming, Grouping::given}) {
      for (int64_t top_k : {int64_t{0}, one.clamped_top_k()}) {
        for (bool detach : {false, true}) {
          if (detach && (top_k == 0 || grouping == Grouping::hamming)) continue;
          const Scope scope(title(one, grouping, top_k, detach));
          Fixture fixture(one, grouping, top_k, detach);
          check_reference(fixture);
        }
      }
    }
  }
}

TEST("clustered attention gradient: scales of any sign") {
  for (float scale : {0.0f, -0.5f, 0.7f}) {
    for (int64_t top_k : {0, 33}) {
      const Scope scope("scale " + std::to_string(scale) + " k " + std::to_string(top_k));
      Fixture fixture(find_case("tile-49"), Grouping::given, top_k);
      fixture.problem.forward.inputs.scale = scale;
      fixture.run_forward();
      check_reference(fixture);
    }
  }
}

TEST("clustered attention gradient: with all keys selected it is that of exact attention") {
  for (const char* name : {"prime", "ragged-keys", "tile-128", "more-clusters-than-queries"}) {
    const Scope scope(name);
    const Case& which = find_case(name);
    Fixture fixture(which, Grouping::hamming, which.key_length);
    CHECK_RUNS(fixture.problem, fixture.outputs);
    AttentionGradientProblem exact;
    exact.forward.inputs = fixture.inputs;
    exact.output_gradient = fixture.problem.output_gradient;
    check_gradients(fixture.result(), reference::attention_gradient(exact));
  }
}

TEST("clustered attention gradient: more top keys than are kept at a time") {
  Fixture fixture(many_top_keys(), Grouping::given, 131);
  check_reference(fixture);
  check_promises(fixture.problem, fixture.outputs, fixture.sequences(), one_gradient);
}

TEST("clustered attention gradient: a long sequence, cut into parts") {
  Case which = find_case("usual");
  which.batch = which.heads = 1;
  which.query_length = 1201;
  which.key_length = 1999;
  which.head_dim = 24;
  which.clusters = 150;
  for (int64_t top_k : {0, 17}) {
    const Scope scope("k " + std::to_string(top_k));
    Fixture fixture(which, Grouping::hamming, top_k);
    check_threads(fixture.problem, fixture.outputs);
    check_reference(fixture);
  }
}

TEST("clustered attention gradient: what is not wanted does not change the others") {
  for (int64_t top_k : {0, 5}) {
    const Scope scope("k " + std::to_string(top_k));
    Fixture fixture(find_case("ragged"), Grouping::given, top_k);
    check_wanted_alone(fixture, [&](const ClusteredAttentionGradientProblem& problem) {
      CHECK_RUNS(problem, fixture.outputs);
    });
  }
}

TEST("clustered attention gradient: threads, batches, faults, cancellation") {
  for (const char* name : {"ragged", "ragged-transposed", "usual", "long-queries", "long-keys"}) {
    for (int64_t top_k : {int64_t{0}, find_case(name).top_k}) {
      const Scope scope(std::string(name) + " k " + std::to_string(top_k));
      Fixture fixture(find_case(name), Grouping::given, top_k);
      check_promises(fixture.problem, fixture.outputs, fixture.sequences(), one_gradient);
    }
  }
}

TEST("clustered attention gradient: bfloat16 rounds the inputs and the gradient of the output") {
  Fixture fixture(find_case("usual"), Grouping::given, 32);
  check_bfloat16(fixture.problem, fixture.outputs, rounded_inputs(fixture));
}

TEST("clustered attention gradient: NaN and Inf are named") {
  for (int64_t top_k : {0, 5}) {
    const Scope scope("k " + std::to_string(top_k));
    Fixture fixture(find_case("prime"), Grouping::given, top_k);  // (2,3,61,17), (2,3,53,17|13)
    check_non_finite(fixture.problem, fixture.outputs, fixture.query, "query", 17 * 64 + 3,
                     17 * 65);
    check_non_finite(fixture.problem, fixture.outputs, fixture.key, "key", 17 * 56 + 3);
    check_non_finite(fixture.problem, fixture.outputs, fixture.value, "value", 13 * 56 + 3);
    check_non_finite(fixture.problem, fixture.outputs, fixture.made.output_gradient_data,
                     "gradOutput", 13 * 64 + 3, 13 * 65 + 3);
  }
}

/// A key that is a top key of the first chunk of clusters alone; what the last one adds to its
/// gradient leaves the range of float32.
TEST_ONCE("clustered attention gradient: a sum over chunks of clusters that overflows is noticed") {
  Case which = small_case(Layout::bhld);
  which.batch = which.heads = which.head_dim = which.value_dim = 1;
  which.query_length = which.clusters = 5000;
  which.key_length = 2;
  which.query_lengths = {5000};
  which.key_lengths = {2};
  Fixture fixture(which, Grouping::given, 1);
  const auto last = static_cast<size_t>(which.query_length - 1);
  for (size_t i = 0; i <= last; ++i) {
    fixture.given_labels[i] = static_cast<int32_t>(i);
    fixture.query[i] = i == 0 ? 20.0f : i == last ? -0.5f : -20.0f;
    fixture.made.output_gradient_data[i] = i == 0 || i == last ? 3e38f : 0.0f;
  }
  fixture.key[0] = 1.0f;
  fixture.key[1] = -1.0f;
  fixture.value[0] = fixture.value[1] = 0.0f;
  fixture.run_forward();
  CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.outputs)), "overflow");
  fixture.made.output_gradient_data[last] = 1e37f;
  CHECK_RUNS(fixture.problem, fixture.outputs);
}

TEST("clustered attention gradient: wrong choices are named") {
  Fixture fixture(find_case("prime"), Grouping::given, 5);
  int32_t* labels = fixture.problem.forward.labels;
  int32_t* indices = fixture.problem.forward.indices;
  const auto refused = [&](int32_t* element, int32_t wrong, const char* expected) {
    const int32_t saved = *element;
    *element = wrong;
    CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.outputs)), expected);
    *element = saved;
  };
  refused(labels + 64, 7, "out_of_range labels[64]");
  refused(labels + 64, -2, "out_of_range labels[64]");
  refused(indices + 37, 53, "out_of_range indices[37]");
  refused(indices + 37, -2, "out_of_range indices[37]");
}

}  // namespace

}  // namespace cluster_attention::test
