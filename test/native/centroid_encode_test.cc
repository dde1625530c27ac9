#include "native/reference/centroid_encode.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "test/native/cases.h"
#include "test/native/checks.h"
#include "test/native/compare.h"
#include "test/native/encode_arrays.h"

namespace cluster_attention::test {

namespace {

using Fixture = EncodeArrays;

void check_reference(Fixture& fixture, double bound = kRelativeL2) {
  CHECK_RUNS(fixture.problem, fixture.arrays);
  fixture.arrays.snapshot();
  CHECK_CLOSE(fixture.result(), reference::centroid_encode(fixture.problem), bound);
}

TEST("centroid encode: matches the reference from every start") {
  for (const Case& one : cases()) {
    for (PoolStart start :
         {PoolStart::stride, PoolStart::sample, PoolStart::farthest, PoolStart::given}) {
      const Scope scope(one.name + " start " + std::to_string(static_cast<int>(start)));
      Fixture fixture(one, start);
      check_reference(fixture);
    }
  }
}

TEST("centroid encode: matches the reference under all options") {
  for (const auto& [name, start] :
       {std::pair("prime", PoolStart::given), std::pair("width-1", PoolStart::stride),
        std::pair("tile-48", PoolStart::farthest), std::pair("usual", PoolStart::sample),
        std::pair("more-clusters-than-queries", PoolStart::given)}) {
    for (Normalize normalize : {Normalize::centroids, Normalize::inputs}) {
      for (Collect aggregate : {Collect::sum, Collect::mean}) {
        for (int bits = 0; bits < 4; ++bits) {
          const Scope scope(std::string(name) + (normalize == Normalize::inputs ? " inputs" : "") +
                            (aggregate == Collect::mean ? " mean" : "") +
                            (bits & 1 ? " weights" : "") + (bits & 2 ? " neighbors" : ""));
          Fixture fixture(find_case(name), start);
          fixture.problem.normalize = normalize;
          fixture.problem.aggregate = aggregate;
          if (bits & 1) fixture.add_weights();
          if (bits & 2) fixture.add_neighbors(6);
          // Three steps of the plain sum let the centroids, and with them rounding, grow.
          fixture.problem.steps = aggregate == Collect::sum ? 1 : 3;
          check_reference(fixture, 1e-5);
        }
      }
    }
  }
}

TEST("centroid encode: few centroids of wide inputs, many of narrow ones") {
  // The two ways of computing (keys projected, or projections absorbed) are chosen by these sizes.
  for (int64_t dim : {2, 7, 130, 200}) {
    for (int64_t centroids : {1, 2, 40}) {
      for (int64_t heads : {1, 3}) {
        Case which = find_case("tile-47");
        which.value_dim = dim;
        which.clusters = centroids;
        which.heads = heads;
        const Scope scope("dim " + std::to_string(dim) + " centroids " + std::to_string(centroids) +
                          " heads " + std::to_string(heads));
        Fixture fixture(which, PoolStart::stride);
        fixture.problem.aggregate = Collect::mean;
        check_reference(fixture, 1e-5);
      }
    }
  }
}

TEST("centroid encode: an input of weight 0 is never read") {
  for (PoolStart start :
       {PoolStart::stride, PoolStart::sample, PoolStart::farthest, PoolStart::given}) {
    Fixture fixture(find_case("prime"), start);
    fixture.add_weights();
    CHECK_RUNS(fixture.problem, fixture.arrays);
    const std::vector<float> expected = fixture.result();
    fixture.inputs[2 * fixture.problem.dim + 1] = std::numeric_limits<float>::quiet_NaN();
    CHECK_RUNS(fixture.problem, fixture.arrays);
    CHECK_SAME(fixture.result(), expected);
  }
}

TEST("centroid encode: a start has no more centroids than inputs with weight") {
  for (PoolStart start : {PoolStart::stride, PoolStart::sample, PoolStart::farthest}) {
    Fixture fixture(find_case("prime"), start);
    fixture.add_weights();
    std::fill_n(fixture.weights, 50, 0.0f);  // 3 of 53 inputs are left for 7 centroids
    std::fill_n(fixture.weights + 50, 3, 1.5f);
    check_reference(fixture, 1e-5);
    for (int64_t i = 3 * fixture.problem.dim; i < 7 * fixture.problem.dim; ++i) {
      CHECK_EQUAL(fixture.problem.output[i], 0.0f);
    }
  }
}

TEST("centroid encode: no steps, or a step size of 0, return the start") {
  Fixture fixture(find_case("prime"), PoolStart::given);
  const CentroidEncodeProblem& p = fixture.problem;
  const std::vector<float> start = read(p.initial, p.batch * p.centroids * p.dim);
  fixture.problem.steps = 0;
  CHECK_RUNS(fixture.problem, fixture.arrays);
  CHECK_SAME(fixture.result(), start);
  fixture.problem.steps = 3;
  fixture.problem.step_size = 0.0f;
  CHECK_RUNS(fixture.problem, fixture.arrays);
  CHECK_SAME(fixture.result(), start);
}

TEST("centroid encode: threads, batches, faults, cancellation") {
  for (const char* name : {"ragged", "usual", "long-keys"}) {
    for (PoolStart start : {PoolStart::stride, PoolStart::farthest, PoolStart::given}) {
      const Scope scope(name);
      Fixture fixture(find_case(name), start);
      fixture.add_weights();
      check_promises(fixture.problem, fixture.arrays, fixture.problem.batch, one_encode_sequence);
      fixture.add_neighbors(6);
      check_promises(fixture.problem, fixture.arrays, fixture.problem.batch, one_encode_sequence);
    }
  }
}

TEST("centroid encode: NaN and Inf are named") {
  Fixture fixture(find_case("prime"), PoolStart::given);
  const int64_t row = fixture.problem.dim;
  check_non_finite(fixture.problem, fixture.arrays, fixture.inputs, "inputs", 60 * row + 3,
                   61 * row);
  check_non_finite(fixture.problem, fixture.arrays, fixture.initial, "initial", 9 * row + 3);
  const char* const names[] = {"queryWeight", "keyWeight", "valueWeight", "outputWeight"};
  for (int i = 0; i < 4; ++i) {
    check_non_finite(fixture.problem, fixture.arrays, fixture.matrices[i], names[i], 70, 80);
  }
  fixture.add_weights();
  check_non_finite(fixture.problem, fixture.arrays, fixture.weights, "weights", 56);
}

TEST("centroid encode: neighbors outside their range are named") {
  Fixture fixture(find_case("prime"), PoolStart::given);
  fixture.add_neighbors(6);
  fixture.neighbors[50] = 53;
  CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays)), "out_of_range neighbors[50]");
}

}  // namespace

}  // namespace cluster_attention::test
