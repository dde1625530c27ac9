#include <cmath>
#include <limits>

#include "native/reference/matmul.h"
#include "test/cuda/same_as_cpu.h"
#include "test/native/matmul_arrays.h"

namespace cluster_attention::test {

namespace {

/// Of float32 products made of two bfloat16 per factor.
constexpr double kSplitBound = 1e-5;

auto on_device(MatmulFixture& fixture) {
  return [&](MatmulProblem problem, Device& device) {
    problem.a = device.stored(problem.a, fixture.arrays);
    problem.b = device.stored(problem.b, fixture.arrays);
    problem.output = device.stored(problem.output, fixture.arrays);
    return problem;
  };
}

const cuda::Operation<MatmulProblem> kMatmul = Device::backend().operations.matmul;

// One, primes, and around the tiles of 128 rows, 64 columns, 32 and 256 of the depth.
const MatmulSizes kSizes[] = {{1, 1, 1, 1},     {2, 3, 5, 7},     {3, 9, 49, 17}, {1, 127, 63, 31},
                              {1, 128, 64, 32}, {2, 129, 65, 33}, {1, 5, 7, 255}, {1, 300, 1, 1000},
                              {1, 1, 300, 513}, {2, 0, 5, 3},     {0, 5, 5, 3},   {1, 3, 4, 0}};

std::vector<float> result(const MatmulFixture& fixture) {
  return read(fixture.problem.output, fixture.output_size());
}

TEST_ONCE("CUDA matmul: matches the reference in every combination of transposes") {
  for (const MatmulSizes& sizes : kSizes) {
    for (int transposes = 0; transposes < 4; ++transposes) {
      const Scope scope(std::to_string(sizes.rows) + "x" + std::to_string(sizes.columns) + "x" +
                        std::to_string(sizes.depth) + " " + std::to_string(transposes));
      MatmulFixture fixture(sizes, (transposes & 1) != 0, (transposes & 2) != 0);
      in_every_thread_order([&] {
        CHECK_EQUAL(device_status(fixture.problem, fixture.arrays, kMatmul, on_device(fixture)),
                    "ok");
        CHECK_CLOSE(result(fixture), reference::matmul(fixture.problem), kSplitBound);
      });
    }
  }
}

TEST_ONCE("CUDA matmul: bfloat16 is exact on rounded operands, stored so or not") {
  for (const DeviceSettings& settings : kBfloat16Settings) {
    MatmulFixture fixture({2, 129, 65, 300}, false, true);
    round_in_place({{fixture.a, 2 * 129 * 300}, {fixture.b, 2 * 300 * 65}});
    fixture.arrays.poison();
    Device device(settings.storage);
    CHECK_EQUAL(describe(device.run(kMatmul, on_device(fixture)(fixture.problem, device),
                                    settings.precision)),
                "ok");
    device.fetch(fixture.arrays);
    const double bound = settings.storage == cuda::Storage::float32 ? kRelativeL2 : 0x1p-8;
    CHECK_CLOSE(result(fixture), reference::matmul(fixture.problem), bound);
  }
}

TEST_ONCE("CUDA matmul: accumulates with one rounding") {
  MatmulFixture fixture({1, 33, 17, 64});
  std::fill(fixture.problem.output, fixture.problem.output + fixture.output_size(), 0.0f);
  const std::vector<double> product = reference::matmul(fixture.problem);
  fixture.problem.accumulate = true;
  std::vector<double> expected;
  for (int64_t i = 0; i < fixture.output_size(); ++i) {
    fixture.problem.output[i] = static_cast<float>(i % 7);
    expected.push_back(product[static_cast<size_t>(i)] + static_cast<double>(i % 7));
  }
  Device device;
  CHECK_EQUAL(describe(device.run(kMatmul, on_device(fixture)(fixture.problem, device))), "ok");
  device.fetch(fixture.arrays);
  CHECK_CLOSE(result(fixture), expected, kSplitBound);
}

TEST_ONCE("CUDA matmul: NaN and Inf are noticed, and cancellation is heard") {
  MatmulFixture fixture({2, 9, 13, 17});
  check_notices_non_finite(fixture.problem, fixture.arrays, kMatmul, on_device(fixture), fixture.a,
                           9 * 17 + 3);
  check_notices_non_finite(fixture.problem, fixture.arrays, kMatmul, on_device(fixture), fixture.b,
                           40);
  const volatile int32_t abort = 1;
  CHECK_EQUAL(device_status(fixture.problem, fixture.arrays, kMatmul, on_device(fixture), &abort),
              "cancelled");
}

/// Also where the row before, or the column, ends inside a tile of the depth.
TEST_ONCE("CUDA matmul: NaN shows in its own row, or column, alone") {
  constexpr int64_t kRows = 5;
  constexpr int64_t kColumns = 7;
  constexpr int64_t kDepth = 33;
  for (bool in_a : {true, false}) {
    const Scope scope(in_a ? "a" : "b");
    MatmulFixture fixture({1, kRows, kColumns, kDepth}, false, true);  // rows of both are whole
    (in_a ? fixture.a : fixture.b)[2 * kDepth] = std::numeric_limits<float>::quiet_NaN();
    CHECK_EQUAL(device_status(fixture.problem, fixture.arrays, kMatmul, on_device(fixture)), "ok");
    const std::vector<float> product = result(fixture);
    for (int64_t i = 0; i < kRows * kColumns; ++i) {
      const int64_t line = in_a ? i / kColumns : i % kColumns;
      CHECK_EQUAL(std::isnan(product[static_cast<size_t>(i)]), line == 2);
    }
  }
}

}  // namespace

}  // namespace cluster_attention::test
