#include "native/reference/hash.h"

#include <cmath>

#include "native/core/random.h"
#include "native/kernels/hash.h"
#include "test/native/cases.h"
#include "test/native/checks.h"
#include "test/native/clustering_arrays.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

namespace {

using Fixture = HashFixture;

HashProblem one_row(HashProblem problem, int64_t row) {
  problem.rows = 1;
  problem.inputs += row * problem.dim;
  problem.hashes += row;
  return problem;
}

TEST("hash: equals the reference on integers, ties with the threshold included") {
  for (const Case& one : cases()) {
    const Scope scope(one.name);
    Fixture fixture(one, Fill::integer);
    CHECK_RUNS(fixture.problem, fixture.arrays);
    fixture.arrays.snapshot();
    CHECK_SAME(fixture.result(), reference::hash(fixture.problem));
  }
}

TEST("hash: equals the reference wherever a projection is clear of its threshold") {
  for (const Case& one : cases()) {
    const Scope scope(one.name);
    Fixture fixture(one, Fill::gaussian);
    CHECK_RUNS(fixture.problem, fixture.arrays);
    const std::vector<uint64_t> actual = fixture.result();
    const std::vector<uint64_t> expected = reference::hash(fixture.problem);
    const int64_t dim = fixture.problem.dim;
    for (int64_t row = 0; row < fixture.problem.rows; ++row) {
      for (uint64_t wrong = actual[row] ^ expected[row]; wrong != 0; wrong &= wrong - 1) {
        int64_t bit = 0;
        while ((wrong >> bit & 1) == 0) ++bit;
        const float* plane = fixture.planes + bit * (dim + 1);
        double projection = 0.0;
        for (int64_t d = 0; d < dim; ++d) {
          projection += double{plane[d]} * fixture.inputs[row * dim + d];
        }
        CHECK(std::abs(projection - plane[dim]) < 1e-5);
      }
    }
  }
}

TEST("hash: threads, batches, faults, cancellation") {
  for (const char* name : {"prime", "usual", "long-queries"}) {
    Fixture fixture(find_case(name), Fill::gaussian);
    check_promises(fixture.problem, fixture.arrays, fixture.problem.rows, one_row);
  }
}

TEST("hash: NaN and Inf are named") {
  Fixture fixture(find_case("prime"), Fill::gaussian);
  check_non_finite(fixture.problem, fixture.arrays, fixture.inputs, "inputs", 17 * 40 + 16,
                   17 * 41);
  check_non_finite(fixture.problem, fixture.arrays, fixture.planes, "planes", 18 * 3 + 2);
  check_non_finite(fixture.problem, fixture.arrays, fixture.planes, "planes", 18 * 3 + 17);
}

TEST("hash: bfloat16 rounds rows and planes") {
  Fixture fixture(find_case("prime"), Fill::gaussian);
  const HashProblem& problem = fixture.problem;
  check_bfloat16(problem, fixture.arrays,
                 {{fixture.inputs, problem.rows * problem.dim},
                  {fixture.planes, problem.bits * (problem.dim + 1)}});
}

TEST_ONCE("hash: planes are the documented draws, thresholds 0 without bias") {
  const int64_t bits = 63, dim = 270;  // more than one task draws
  std::vector<float> with_bias(bits * (dim + 1)), without(bits * (dim + 1));
  Context context(2);
  CHECK(lsh_planes(bits, dim, 5, true, context, with_bias.data()).ok());
  CHECK(lsh_planes(bits, dim, 5, false, context, without.data()).ok());
  for (int64_t i = 0; i < bits * (dim + 1); ++i) {
    const float draw = static_cast<float>(random_normal(5, RandomStream::hash_planes, i));
    CHECK_EQUAL(with_bias[i], draw);
    CHECK_EQUAL(without[i], i % (dim + 1) == dim ? 0.0f : draw);
  }
}

}  // namespace

}  // namespace cluster_attention::test
