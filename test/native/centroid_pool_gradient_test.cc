#include <algorithm>
#include <cmath>
#include <utility>

#include "native/reference/centroid_pool.h"
#include "test/native/checks.h"
#include "test/native/compare.h"
#include "test/native/data.h"
#include "test/native/finite_differences.h"
#include "test/native/pool_gradient_arrays.h"

namespace cluster_attention::test {

namespace {

void check_reference(PoolGradientArrays& fixture, double bound = 1e-5) {
  CHECK_RUNS(fixture.problem, fixture.gradients);
  fixture.gradients.snapshot();
  check_gradients(fixture, bound);
}

Case small_case() {
  Case which = find_case("prime");
  which.batch = 2;
  which.key_length = 7;
  which.head_dim = 3;
  which.clusters = 3;
  which.key_lengths = {7, 2};
  return which;
}

/// The data of the plain test run, whatever seed was asked for.
class PlainData {
 public:
  PlainData() { set_data_seed(0); }
  ~PlainData() { set_data_seed(seed_); }

 private:
  const uint64_t seed_ = data_seed();
};

TEST_ONCE("centroid pool gradient: the reference is the derivative of the reference") {
  // A start picks rows: with other data a difference may pick another one, and is no derivative.
  const PlainData plain;
  for (Similarity similarity : kSimilarities) {
    for (PoolStart start : kPoolStarts) {
      for (int64_t steps : {0, 1, 3}) {
        for (float temperature : {0.0f, 0.5f}) {
          const Scope scope(pool_options_name(similarity, start) + " steps " +
                            std::to_string(steps) + " temperature " + std::to_string(temperature));
          PoolGradientArrays fixture(small_case(), similarity, start);
          CentroidPoolProblem& forward = fixture.problem.forward;
          forward.iterations = steps;
          forward.temperature = temperature;
          // Every input has another nearest centroid than this one.
          if (temperature == 0.0f && similarity == Similarity::euclidean) {
            std::fill_n(fixture.initial + 3, 3, 50.0f);
          }
          round_to_grid(fixture.inputs, fixture.input_count());
          round_to_grid(fixture.initial, fixture.centroid_count());
          std::vector<float> weights = read(fixture.output_gradient, fixture.centroid_count());
          for (float& weight : weights) weight = std::isnan(weight) ? 0.0f : weight;
          const auto loss = [&] {
            return weighted_sum(reference::centroid_pool(forward).output, weights);
          };
          const auto expected = reference::centroid_pool_gradient(fixture.problem);
          CHECK_CLOSE(finite_differences(fixture.inputs, fixture.input_count(), loss),
                      expected.inputs, 1e-7);
          if (start != PoolStart::given) continue;
          CHECK_CLOSE(finite_differences(fixture.initial, fixture.centroid_count(), loss),
                      expected.initial, 1e-7);
        }
      }
    }
  }
}

TEST("centroid pool gradient: matches the reference") {
  for (const Case& one : cases()) {
    for (Similarity similarity : kSimilarities) {
      for (PoolStart start : kPoolStarts) {
        const Scope scope(one.name + pool_options_name(similarity, start));
        PoolGradientArrays fixture(one, similarity, start);
        check_reference(fixture);
      }
    }
  }
}

TEST("centroid pool gradient: one, eight and no steps") {
  for (Similarity similarity : kSimilarities) {
    for (PoolStart start : kPoolStarts) {
      for (int64_t steps : {0, 1, 8}) {
        const Scope scope(pool_options_name(similarity, start) + " steps " + std::to_string(steps));
        PoolGradientArrays fixture(find_case("prime"), similarity, start);
        fixture.problem.forward.iterations = steps;
        check_reference(fixture, steps == 8 ? 1e-4 : 1e-5);
      }
    }
  }
}

TEST("centroid pool gradient: a hard assignment takes its labels as constants") {
  for (const char* name : {"prime", "ragged", "usual"}) {
    for (Similarity similarity : kSimilarities) {
      for (PoolStart start : kPoolStarts) {
        const Scope scope(name + pool_options_name(similarity, start));
        PoolGradientArrays fixture(find_case(name), similarity, start);
        fixture.problem.forward.temperature = 0.0f;
        check_reference(fixture);
      }
    }
  }
}

TEST("centroid pool gradient: a centroid without mass passes its gradient to the start") {
  PoolGradientArrays fixture(find_case("prime"), Similarity::euclidean, PoolStart::given);
  fixture.problem.forward.temperature = 0.0f;
  std::fill_n(fixture.initial + 2 * 17, 17, 30.0f);
  check_reference(fixture);
  for (int64_t i = 2 * 17; i < 3 * 17; ++i) {
    CHECK_EQUAL(fixture.problem.initial[i], fixture.output_gradient[i]);
  }
  // So far that its softmax is 0 in float32.
  fixture.problem.forward.temperature = 1.0f;
  CHECK_RUNS(fixture.problem, fixture.gradients);
  for (int64_t i = 2 * 17; i < 3 * 17; ++i) {
    CHECK_EQUAL(fixture.problem.initial[i], fixture.output_gradient[i]);
  }
}

TEST("centroid pool gradient: rows of zeros under the cosine have no direction") {
  PoolGradientArrays fixture(find_case("prime"), Similarity::cosine, PoolStart::given);
  std::fill_n(fixture.inputs, 3 * 17, 0.0f);
  std::fill_n(fixture.initial + 17, 17, 0.0f);
  check_reference(fixture);
}

TEST("centroid pool gradient: data far from the origin") {
  for (Similarity similarity : {Similarity::cosine, Similarity::euclidean}) {
    const Scope scope(pool_options_name(similarity, PoolStart::stride));
    PoolGradientArrays fixture(find_case("tile-129"), similarity, PoolStart::stride);
    for (int64_t i = 0; i < fixture.input_count(); ++i) fixture.inputs[i] += 20.0f;
    check_reference(fixture, 1e-4);
  }
}

TEST("centroid pool gradient: what is not wanted does not change the others") {
  for (float temperature : {0.0f, 0.5f}) {
    PoolGradientArrays fixture(find_case("ragged"), Similarity::cosine, PoolStart::given);
    fixture.problem.forward.temperature = temperature;
    check_wanted_alone(fixture, [&](const CentroidPoolGradientProblem& problem) {
      CHECK_RUNS(problem, fixture.gradients);
    });
  }
}

TEST("centroid pool gradient: threads, batches, faults, cancellation") {
  for (const char* name : {"ragged", "usual", "long-keys"}) {
    for (Similarity similarity : kSimilarities) {
      for (float temperature : {0.0f, 1.5f}) {
        const Scope scope(name + pool_options_name(similarity, PoolStart::given));
        PoolGradientArrays fixture(find_case(name), similarity, PoolStart::given);
        fixture.problem.forward.temperature = temperature;
        check_promises(fixture.problem, fixture.gradients, fixture.problem.forward.batch,
                       one_pool_gradient_sequence);
      }
    }
  }
}

// Which allocations are made does not depend on the instruction set.
TEST_ONCE("centroid pool gradient: every allocation may fail") {
  Case many = find_case("usual");
  many.clusters = 70;
  for (const Case& which : {find_case("prime"), many}) {
    for (Similarity similarity : kSimilarities) {
      for (PoolStart start : kPoolStarts) {
        for (float temperature : {0.0f, 1.5f}) {
          for (Precision precision : {Precision::float32, Precision::bfloat16}) {
            const Scope scope(which.name + pool_options_name(similarity, start) + " temperature " +
                              std::to_string(temperature) +
                              (precision == Precision::bfloat16 ? " bfloat16" : ""));
            PoolGradientArrays fixture(which, similarity, start);
            fixture.problem.forward.temperature = temperature;
            check_allocation_failures(fixture.problem, fixture.gradients, 20, {{}, precision});
          }
        }
      }
    }
  }
}

TEST("centroid pool gradient: NaN and Inf are named") {
  for (Similarity similarity : kSimilarities) {
    for (float temperature : {0.0f, 2.0f}) {
      const Scope scope(pool_options_name(similarity, PoolStart::given) + " temperature " +
                        std::to_string(temperature));
      PoolGradientArrays fixture(find_case("prime"), similarity, PoolStart::given);
      fixture.problem.forward.temperature = temperature;
      check_non_finite(fixture.problem, fixture.gradients, fixture.inputs, "inputs", 17 * 53 + 3,
                       17 * 60);
      check_non_finite(fixture.problem, fixture.gradients, fixture.initial, "initial", 17 * 9 + 3);
      check_non_finite(fixture.problem, fixture.gradients, fixture.output_gradient, "gradOutput",
                       17 * 9 + 3);
    }
  }
}

}  // namespace

}  // namespace cluster_attention::test
