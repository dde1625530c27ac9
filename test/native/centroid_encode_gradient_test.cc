#include <algorithm>
#include <cmath>
#include <utility>

#include "native/core/absorption.h"
#include "native/reference/centroid_encode.h"
#include "test/native/cases.h"
#include "test/native/checks.h"
#include "test/native/compare.h"
#include "test/native/encode_gradient_arrays.h"
#include "test/native/finite_differences.h"

namespace cluster_attention::test {

namespace {

constexpr PoolStart kStarts[] = {PoolStart::stride, PoolStart::sample, PoolStart::farthest,
                                 PoolStart::given};

void check_reference(EncodeGradientArrays& fixture, double bound = 1e-5) {
  CHECK_RUNS(fixture.problem, fixture.gradients);
  fixture.gradients.snapshot();
  check_gradients(fixture, bound);
}

/// Calls body for both normalisations and aggregations, with and without weights and neighbors.
template <typename Body>
void for_all_options(const Case& which, PoolStart start, Body body) {
  for (Normalize normalize : {Normalize::centroids, Normalize::inputs}) {
    for (Collect aggregate : {Collect::sum, Collect::mean}) {
      for (int bits = 0; bits < 4; ++bits) {
        const Scope scope(which.name + " start " + std::to_string(static_cast<int>(start)) +
                          (normalize == Normalize::inputs ? " inputs" : "") +
                          (aggregate == Collect::mean ? " mean" : "") +
                          (bits & 1 ? " weights" : "") + (bits & 2 ? " neighbors" : ""));
        EncodeGradientArrays fixture(which, start);
        fixture.problem.forward.normalize = normalize;
        fixture.problem.forward.aggregate = aggregate;
        if (bits & 1) fixture.add_weights();
        if (bits & 2) fixture.add_neighbors(which.key_length < 6 ? which.key_length : 6);
        body(fixture);
      }
    }
  }
}

Case small_case(int64_t dim) {
  Case which = find_case("prime");
  which.batch = 2;
  which.heads = 2;
  which.key_length = 7;
  which.head_dim = 2;
  which.value_dim = dim;
  which.clusters = 3;
  return which;
}

TEST_ONCE("centroid encode gradient: the reference is the derivative of the reference") {
  int64_t steps = 0;
  for (PoolStart start : kStarts) {
    for_all_options(small_case(3), start, [&](EncodeGradientArrays& fixture) {
      CentroidEncodeProblem& forward = fixture.problem.forward;
      forward.steps = 1 + steps++ % 3;
      const std::pair<float*, int64_t> inputs[] = {
          {fixture.inputs, fixture.input_count()},
          {fixture.initial, forward.initial != nullptr ? fixture.centroid_count() : 0},
          {fixture.matrices[0], fixture.weight_count()},
          {fixture.matrices[1], fixture.weight_count()},
          {fixture.matrices[2], fixture.weight_count()},
          {fixture.matrices[3], fixture.weight_count()}};
      for (const auto& [data, count] : inputs) round_to_grid(data, count);
      const std::vector<float> weights = read(fixture.output_gradient, fixture.centroid_count());
      const auto loss = [&] { return weighted_sum(reference::centroid_encode(forward), weights); };
      auto expected = reference::centroid_encode_gradient(fixture.problem);
      if (forward.initial == nullptr) expected.initial.clear();
      const std::vector<double>* gradients[] = {&expected.inputs,       &expected.initial,
                                                &expected.query_weight, &expected.key_weight,
                                                &expected.value_weight, &expected.output_weight};
      for (size_t i = 0; i < std::size(inputs); ++i) {
        const Scope scope("input " + std::to_string(i));
        CHECK_CLOSE(finite_differences(inputs[i].first, inputs[i].second, loss), *gradients[i],
                    1e-7);
      }
    });
  }
}

TEST("centroid encode gradient: matches the reference from every start") {
  for (const Case& one : cases()) {
    for (PoolStart start : kStarts) {
      const Scope scope(one.name + " start " + std::to_string(static_cast<int>(start)));
      EncodeGradientArrays fixture(one, start);
      // Two steps of the plain sum let the centroids, and with them rounding, grow.
      fixture.problem.forward.aggregate = Collect::mean;
      check_reference(fixture);
    }
  }
}

TEST("centroid encode gradient: matches the reference under all options") {
  for (const auto& [name, start] :
       {std::pair("prime", PoolStart::given), std::pair("width-1", PoolStart::stride),
        std::pair("tile-48", PoolStart::farthest), std::pair("usual", PoolStart::sample),
        std::pair("more-clusters-than-queries", PoolStart::given)}) {
    for_all_options(find_case(name), start, [](EncodeGradientArrays& fixture) {
      fixture.problem.forward.steps = fixture.problem.forward.aggregate == Collect::sum ? 1 : 3;
      check_reference(fixture, 2e-5);
    });
  }
}

TEST("centroid encode gradient: few centroids of wide inputs, many of narrow ones") {
  // The two ways of computing (keys projected, or projections absorbed) are chosen by these sizes.
  for (int64_t dim : {2, 7, 130}) {
    for (int64_t centroids : {1, 2, 40}) {
      for (int64_t heads : {1, 3}) {
        Case which = find_case("tile-47");
        which.value_dim = dim;
        which.clusters = centroids;
        which.heads = heads;
        const Scope scope("dim " + std::to_string(dim) + " centroids " + std::to_string(centroids) +
                          " heads " + std::to_string(heads));
        EncodeGradientArrays fixture(which, PoolStart::stride);
        fixture.problem.forward.aggregate = Collect::mean;
        check_reference(fixture);
      }
    }
  }
}

TEST("centroid encode gradient: an input of weight 0 is never read and has none") {
  for (PoolStart start : kStarts) {
    check_weight_zero(start, [](EncodeGradientArrays& fixture) {
      CHECK_RUNS(fixture.problem, fixture.gradients);
    });
  }
}

TEST("centroid encode gradient: rows of zeros have none") {
  EncodeGradientArrays fixture(find_case("prime"), PoolStart::stride);
  fixture.remove_most_inputs();
  fixture.problem.forward.aggregate = Collect::mean;
  check_reference(fixture);
}

TEST("centroid encode gradient: without steps the start's alone is left") {
  for (PoolStart start : kStarts) {
    EncodeGradientArrays fixture(find_case("prime"), start);
    fixture.problem.forward.steps = 0;
    check_reference(fixture, kRelativeL2);
  }
}

TEST("centroid encode gradient: what is not wanted does not change the others") {
  for (int64_t centroids : {2, 40}) {  // absorbed, projected
    Case which = find_case("tile-47");
    which.value_dim = 130;
    which.clusters = centroids;
    EncodeGradientArrays fixture(which, PoolStart::given);
    check_wanted_alone(fixture, [&](const CentroidEncodeGradientProblem& problem) {
      CHECK_RUNS(problem, fixture.gradients);
    });
  }
}

TEST("centroid encode gradient: threads, batches, faults, cancellation") {
  for (const char* name : {"ragged", "usual", "long-keys"}) {
    for (PoolStart start : {PoolStart::stride, PoolStart::farthest, PoolStart::given}) {
      const Scope scope(name);
      EncodeGradientArrays fixture(find_case(name), start);
      fixture.add_weights();
      for (bool neighbors : {false, true}) {
        if (neighbors) fixture.add_neighbors(6);
        check_threads(fixture.problem, fixture.gradients);
        // Gradients of the weights are sums over the batch.
        CentroidEncodeGradientProblem per_sequence = fixture.problem;
        per_sequence.query_weight = per_sequence.key_weight = nullptr;
        per_sequence.value_weight = per_sequence.output_weight = nullptr;
        check_alone(per_sequence, fixture.gradients, fixture.problem.forward.batch,
                    one_encode_gradient_sequence);
        check_cancelled(fixture.problem);
        check_allocation_failures(fixture.problem, fixture.gradients);
      }
    }
  }
}

// Which allocations are made does not depend on the instruction set.
TEST_ONCE("centroid encode gradient: every allocation may fail") {
  for (int64_t centroids : {2, 40}) {  // absorbed, projected
    Case which = find_case("tile-47");
    which.value_dim = 70;
    which.clusters = centroids;
    for (PoolStart start : kStarts) {
      for_all_options(which, start, [&](EncodeGradientArrays& fixture) {
        const CentroidEncodeProblem& forward = fixture.problem.forward;
        CHECK(forward.neighbors != nullptr || absorbing_is_cheaper(forward) == (centroids == 2));
        for (Precision precision : {Precision::float32, Precision::bfloat16}) {
          const Scope scope(precision == Precision::bfloat16 ? "bfloat16" : "float32");
          check_allocation_failures(fixture.problem, fixture.gradients, 40, {{}, precision});
        }
      });
    }
  }
}

TEST("centroid encode gradient: NaN and Inf are named") {
  EncodeGradientArrays fixture(find_case("prime"), PoolStart::given);
  const int64_t row = fixture.problem.forward.dim;
  check_non_finite(fixture.problem, fixture.gradients, fixture.inputs, "inputs", 60 * row + 3,
                   61 * row);
  check_non_finite(fixture.problem, fixture.gradients, fixture.initial, "initial", 9 * row + 3);
  const char* const names[] = {"queryWeight", "keyWeight", "valueWeight", "outputWeight"};
  for (int i = 0; i < 4; ++i) {
    check_non_finite(fixture.problem, fixture.gradients, fixture.matrices[i], names[i], 70, 80);
  }
  check_non_finite(fixture.problem, fixture.gradients, fixture.output_gradient, "gradOutput",
                   9 * row + 3);
  fixture.add_neighbors(6);
  fixture.neighbors[50] = 53;
  CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.gradients)),
              "out_of_range neighbors[50]");
}

}  // namespace

}  // namespace cluster_attention::test
