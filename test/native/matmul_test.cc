#include "native/reference/matmul.h"

#include <algorithm>

#include "test/native/checks.h"
#include "test/native/compare.h"
#include "test/native/matmul_arrays.h"

namespace cluster_attention::test {

namespace {

using Sizes = MatmulSizes;

// One, primes, around the tiles of 8 rows, 16 to 48 columns, 64 rows and 256 of the depth.
const Sizes kSizes[] = {{1, 1, 1, 1},     {2, 3, 5, 7},      {1, 8, 48, 16},   {3, 9, 49, 17},
                        {1, 63, 47, 31},  {2, 65, 97, 255},  {1, 64, 96, 256}, {1, 7, 33, 257},
                        {1, 1, 300, 64},  {1, 300, 1, 1000}, {2, 0, 5, 3},     {0, 5, 5, 3},
                        {1, 13, 15, 769}, {1, 130, 144, 512}};

using Fixture = MatmulFixture;

MatmulProblem one_entry(MatmulProblem problem, int64_t entry) {
  problem.a = part(problem.a, entry, problem.rows * problem.depth);
  problem.b = part(problem.b, entry, problem.depth * problem.columns);
  problem.output = part(problem.output, entry, problem.rows * problem.columns);
  problem.batch = 1;
  return problem;
}

TEST("matmul: equals the reference in every combination of transposes") {
  for (const Sizes& sizes : kSizes) {
    for (int transposes = 0; transposes < 4; ++transposes) {
      const Scope scope(std::to_string(sizes.rows) + "x" + std::to_string(sizes.columns) + "x" +
                        std::to_string(sizes.depth) + " " + std::to_string(transposes));
      Fixture fixture(sizes, (transposes & 1) != 0, (transposes & 2) != 0);
      CHECK_RUNS(fixture.problem, fixture.arrays);
      fixture.arrays.snapshot();
      CHECK_CLOSE(read(fixture.problem.output, fixture.output_size()),
                  reference::matmul(fixture.problem), 1e-6);
    }
  }
}

TEST("matmul: accumulate adds to the output") {
  for (const Sizes& sizes : kSizes) {
    const Scope scope(std::to_string(sizes.rows) + "x" + std::to_string(sizes.columns) + "x" +
                      std::to_string(sizes.depth));
    Fixture fixture(sizes);
    std::vector<double> expected = reference::matmul(fixture.problem);
    const std::vector<float> before = random_floats(fixture.output_size(), 3);
    std::copy(before.begin(), before.end(), fixture.problem.output);
    fixture.problem.accumulate = true;
    Context context(2);
    CHECK_EQUAL(describe(run(fixture.problem, CallSettings{}, context)), "ok");
    fixture.arrays.snapshot();
    for (size_t i = 0; i < expected.size(); ++i) expected[i] += before[i];
    CHECK_CLOSE(read(fixture.problem.output, fixture.output_size()), expected, 1e-6);
  }
}

TEST("matmul: accumulate rounds once, whatever the number of columns and of blocks of the depth") {
  for (int64_t depth : {64, 256, 257, 600}) {
    for (int64_t columns : {1, 8, 15, 16, 17, 48, 64}) {
      const Scope scope(std::to_string(depth) + "x" + std::to_string(columns));
      Fixture fixture({1, 2, columns, depth});
      std::fill_n(fixture.a, 2 * depth, 0.0f);
      std::fill_n(fixture.b, depth * columns, 3.0f);
      for (int64_t row : {0, 1}) fixture.a[row * depth] = fixture.a[(row + 1) * depth - 1] = 1.0f;
      // 1e8 + 6 is rounded up to the next float, 1e8 + 3 down.
      std::fill_n(fixture.problem.output, 2 * columns, 1e8f);
      fixture.problem.accumulate = true;
      Context context(1);
      CHECK_EQUAL(describe(run(fixture.problem, CallSettings{}, context)), "ok");
      CHECK_SAME(read(fixture.problem.output, 2 * columns),
                 std::vector<float>(static_cast<size_t>(2 * columns), 1e8f + 8.0f));
    }
  }
}

TEST("matmul: threads, batches, faults, cancellation") {
  for (const Sizes& sizes : {Sizes{3, 65, 97, 255}, Sizes{2, 129, 50, 600}}) {
    Fixture fixture(sizes, true, true);
    check_promises(fixture.problem, fixture.arrays, fixture.problem.batch, one_entry);
  }
}

TEST("matmul: NaN and Inf are named") {
  Fixture fixture({2, 65, 33, 40});
  check_non_finite(fixture.problem, fixture.arrays, fixture.a, "a", 41, 2000);
  check_non_finite(fixture.problem, fixture.arrays, fixture.b, "b", 1300, 1320);
}

TEST("matmul: a product past float32 is an overflow") {
  Fixture fixture({1, 9, 17, 3});
  std::fill_n(fixture.a, 27, 1e30f);
  std::fill_n(fixture.b, 51, 1e30f);
  CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays)), "overflow");
}

TEST("matmul: bfloat16 rounds both factors") {
  Fixture fixture({2, 33, 49, 70});
  check_bfloat16(fixture.problem, fixture.arrays,
                 {{fixture.a, 2 * 33 * 70}, {fixture.b, 2 * 70 * 49}});
}

}  // namespace

}  // namespace cluster_attention::test
