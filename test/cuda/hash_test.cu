#include "cuda/hash.h"
#include "native/kernels/hash.h"
#include "test/cuda/same_as_cpu.h"
#include "test/native/cases.h"
#include "test/native/clustering_arrays.h"

namespace cluster_attention::test {

namespace {

auto on_device(HashFixture& fixture) {
  return [&](HashProblem problem, Device& device) {
    problem.inputs = device.stored(problem.inputs, fixture.arrays);
    problem.planes = device.at(problem.planes, fixture.arrays);
    problem.hashes = device.at(problem.hashes, fixture.arrays);
    return problem;
  };
}

const cuda::Operation<HashProblem> kHash = Device::backend().operations.hash;

TEST_ONCE("CUDA hash: the CPU's bits, ties with the threshold included") {
  for (const Case& one : cases()) {
    for (Fill fill : {comparable_fill(), Fill::integer}) {
      const Scope scope(one.name);
      HashFixture fixture(one, fill);
      check_same_as_cpu(fixture.problem, fixture.arrays, kHash, on_device(fixture));
    }
  }
}

TEST_ONCE("CUDA hash: rows and bits around the tiles") {
  Case which = find_case("prime");
  which.batch = which.heads = 1;
  for (int64_t rows : {127, 128, 129}) {
    for (int64_t dim : {32, 33, 300}) {
      for (int64_t bits : {1, 16, 17, 33, 64}) {
        const Scope scope(std::to_string(rows) + "x" + std::to_string(dim) + "x" +
                          std::to_string(bits));
        which.query_length = rows;
        which.head_dim = dim;
        which.bits = bits;
        HashFixture fixture(which, comparable_fill());
        check_same_as_cpu(fixture.problem, fixture.arrays, kHash, on_device(fixture));
      }
    }
  }
}

/// The sums of tensor cores decide nothing here: rows that are next to 0 or past the range when
/// squared, rows of zeros, planes of zeros, and thresholds that the sums hit.
TEST_ONCE("CUDA hash: rows that are tiny, huge or zero, and sums at their threshold") {
  Case which = find_case("prime");
  which.batch = which.heads = 1;
  which.query_length = 70;
  for (int64_t dim : {17, 64}) {
    for (float scale : {1.0f, 1e-30f, 1e-42f, 1e30f}) {
      const Scope scope(std::to_string(dim) + " columns times " + std::to_string(scale));
      which.head_dim = dim;
      HashFixture fixture(which, comparable_fill());
      for (int64_t i = 0; i < 60 * dim; ++i) fixture.inputs[i] *= scale;
      std::fill_n(fixture.inputs + 60 * dim, 5 * dim, 0.0f);
      std::fill_n(fixture.planes + 3 * (dim + 1), dim + 1, 0.0f);
      for (int64_t bit = 4; bit < which.bits; bit += 3) {  // the chain of one of the rows
        const float* row = fixture.inputs + bit % 60 * dim;
        float sum = 0.0f;
        for (int64_t d = 0; d < dim; ++d) {
          sum = std::fma(row[d], fixture.planes[bit * (dim + 1) + d], sum);
        }
        fixture.planes[bit * (dim + 1) + dim] = sum;
      }
      check_same_as_cpu(fixture.problem, fixture.arrays, kHash, on_device(fixture));
    }
  }
}

TEST_ONCE("CUDA hash: projections that leave the range of float32 on the way") {
  Case which = find_case("prime");
  which.batch = which.heads = 1;
  which.query_length = 70;
  for (int64_t dim : {17, 64, 300}) {
    const Scope scope(std::to_string(dim) + " columns");
    which.head_dim = dim;
    HashFixture fixture(which, Fill::gaussian);
    for (int64_t i = 0; i < 70 * dim; ++i) fixture.inputs[i] *= 3e37f;
    for (int64_t i = 0; i < which.bits * (dim + 1); ++i) fixture.planes[i] *= 10.0f;
    check_same_as_cpu(fixture.problem, fixture.arrays, kHash, on_device(fixture));
  }
}

TEST_ONCE("CUDA hash: bfloat16 rounds rows and, as a precision, planes") {
  for (const DeviceSettings& settings : kBfloat16Settings) {
    for (const char* name : {"usual", "prime"}) {
      for (Fill fill : {comparable_fill(), Fill::integer}) {
        HashFixture fixture(find_case(name), fill);
        if (settings.precision == Precision::float32) {
          round_in_place({{fixture.inputs, fixture.problem.rows * fixture.problem.dim}});
        }
        const auto check = [&] {
          check_same_as_cpu(fixture.problem, fixture.arrays, kHash, on_device(fixture), settings);
        };
        check();
        on_small_devices(check);  // Turing has no tensor cores for it
      }
    }
  }
}

TEST_ONCE("CUDA hash: NaN and Inf in rows and planes are noticed, and cancellation is heard") {
  HashFixture fixture(find_case("prime"), Fill::gaussian);
  const auto map = on_device(fixture);
  check_notices_non_finite(fixture.problem, fixture.arrays, kHash, map, fixture.inputs,
                           17 * 40 + 16);
  check_notices_non_finite(fixture.problem, fixture.arrays, kHash, map, fixture.planes, 18 * 3 + 2);
  check_notices_non_finite(fixture.problem, fixture.arrays, kHash, map, fixture.planes,
                           18 * 62 + 17);
  const volatile int32_t abort = 1;
  CHECK_EQUAL(device_status(fixture.problem, fixture.arrays, kHash, map, &abort), "cancelled");
}

/// Sequences with lengths, and thresholds of their own.
struct SequencesFixture : AttentionArrays {
  cuda::HashSequences problem;
  float* planes;
  uint64_t* hashes;

  SequencesFixture(const Case& which, Fill fill, uint64_t seed) : AttentionArrays(which, fill) {
    const AttentionShape& shape = inputs.shape;
    problem.inputs = inputs.query;
    problem.batch = shape.batch;
    problem.heads = shape.heads;
    problem.length = shape.query_length;
    problem.dim = shape.head_dim;
    problem.lengths = inputs.query_lengths;
    planes = arrays.floats(which.bits * (shape.head_dim + 1), 2, fill);
    problem.planes = planes;
    problem.bits = which.bits;
    problem.threshold = Threshold::data;
    problem.seed = seed;
    hashes = arrays.output<uint64_t>(shape.batch * shape.heads * shape.query_length);
    problem.hashes = hashes;
  }
};

void check_sequences(SequencesFixture& fixture, bool tensor_cores = true,
                     const cuda::Call& call = {}) {
  const cuda::HashSequences& problem = fixture.problem;
  Arrays& arrays = fixture.arrays;
  arrays.poison();
  Context context(2);
  CHECK_EQUAL(
      describe(kernels::hash_sequences(problem.inputs, problem.batch, problem.heads, problem.length,
                                       problem.dim, problem.lengths, problem.planes, problem.bits,
                                       problem.threshold, problem.seed, context, problem.hashes)),
      "ok");
  const auto expected = arrays.snapshot();
  in_every_thread_order([&] {
    arrays.poison();
    Device device(call.storage);
    cuda::HashSequences there = problem;
    there.inputs = device.stored(problem.inputs, arrays);
    there.lengths = device.at(problem.lengths, arrays);
    there.planes = device.at(problem.planes, arrays);
    there.hashes = device.at(problem.hashes, arrays);
    there.tensor_cores = tensor_cores;
    CHECK_EQUAL(describe(cuda::hash_sequences(*device.session(), there, call)), "ok");
    bool non_finite = true;
    CHECK_EQUAL(describe(device.backend().finish(device.session(), &non_finite)), "ok");
    CHECK(!non_finite);
    device.fetch(arrays);
    check_same_bytes(arrays.snapshot(), expected, "the device");
  });
}

TEST_ONCE("CUDA hash: thresholds from the data of rows rounded to bfloat16, and stored so") {
  for (cuda::Storage storage : {cuda::Storage::float32, cuda::Storage::bfloat16}) {
    cuda::Call call;
    call.storage = storage;
    call.precision = Precision::bfloat16;
    SequencesFixture fixture(find_case("ragged"), comparable_fill(), 7);
    const cuda::HashSequences& problem = fixture.problem;
    const int64_t rows = problem.batch * problem.heads * problem.length;
    round_in_place(
        {{fixture.query, rows * problem.dim}, {fixture.planes, problem.bits * (problem.dim + 1)}});
    check_sequences(fixture, false, call);
  }
}

TEST_ONCE("CUDA hash: thresholds from the data, padding left alone") {
  for (const char* name : {"one", "no-queries", "prime", "ragged", "tile-129", "usual"}) {
    for (uint64_t seed : {0, 7}) {
      for (Fill fill : {comparable_fill(), Fill::integer}) {
        const Scope scope(name);
        SequencesFixture fixture(find_case(name), fill, seed);
        check_sequences(fixture);
        fixture.problem.threshold = Threshold::normal;
        for (bool tensor_cores : {false, true}) check_sequences(fixture, tensor_cores);
      }
    }
  }
}

}  // namespace

}  // namespace cluster_attention::test
