// Offsets past 2^31 elements: sequences that lie that far apart give the same bits as sequences
// side by side. The memory between them is reserved and never touched.

#if defined(__unix__) || defined(__APPLE__)

#include <sys/mman.h>

#include "test/native/attention_arrays.h"
#include "test/native/checks.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

namespace {

constexpr int64_t kFarApart = (int64_t{1} << 31) + 4096;  // elements between the two sequences
constexpr int64_t kSlot = 1 << 16;                        // elements set aside for one tensor
constexpr int64_t kSlots = 4;
constexpr int64_t kL = 53, kS = 61, kD = 17, kE = 13, kC = 5;

class FarMemory {
 public:
  FarMemory() {
    void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    data_ = memory == MAP_FAILED ? nullptr : static_cast<float*>(memory);
    CHECK(data_ != nullptr);
  }
  ~FarMemory() {
    if (data_ != nullptr) munmap(data_, kBytes);
  }
  bool reserved() const { return data_ != nullptr; }
  /// Two sequences of `columns` wide rows, far apart.
  OutputRows view(int64_t slot, int64_t columns) const {
    return {data_ + slot * kSlot, kFarApart, 0, columns};
  }

 private:
  static constexpr size_t kBytes = sizeof(float) * (kFarApart + kSlots * kSlot);
  float* data_;
};

InputRows copy_far(const FarMemory& far, int64_t slot, const std::vector<float>& dense,
                   int64_t rows, int64_t columns) {
  const OutputRows view = far.view(slot, columns);
  for (int64_t b = 0; b < 2; ++b) {
    std::copy_n(dense.data() + b * rows * columns, rows * columns, view.sequence(b, 0));
  }
  return {view.data, view.batch_stride, view.head_stride, view.row_stride};
}

/// The same inputs side by side and far apart.
struct Fixture {
  FarMemory far;
  Arrays arrays;
  AttentionInputs near_inputs, far_inputs;
  OutputRows near_output, far_output;

  Fixture() {
    const std::vector<float> query = random_floats(2 * kL * kD, 1);
    const std::vector<float> key = random_floats(2 * kS * kD, 2);
    const std::vector<float> value = random_floats(2 * kS * kE, 3);
    near_inputs.shape = {2, 1, kL, kS, kD, kE};
    near_inputs.query = dense_rows<const float>(arrays.input(query), kL, kD);
    near_inputs.key = dense_rows<const float>(arrays.input(key), kS, kD);
    near_inputs.value = dense_rows<const float>(arrays.input(value), kS, kE);
    near_inputs.scale = 0.25f;
    near_output = dense_rows(arrays.output<float>(2 * kS * kE), kS, kE);
    far_inputs = near_inputs;
    if (!far.reserved()) return;
    far_inputs.query = copy_far(far, 0, query, kL, kD);
    far_inputs.key = copy_far(far, 1, key, kS, kD);
    far_inputs.value = copy_far(far, 2, value, kS, kE);
    far_output = far.view(3, kE);
  }

  /// Runs `problem`, whose inputs and output are set here, both ways.
  template <typename Problem>
  void check(Problem problem, int64_t rows) {
    if (!far.reserved()) return;
    problem.inputs = near_inputs;
    problem.output = near_output;
    CHECK_RUNS(problem, arrays);
    const std::vector<float> expected = read_view(near_output, 2, 1, rows, kE);
    problem.inputs = far_inputs;
    problem.output = far_output;
    CHECK_RUNS(problem, arrays);
    CHECK_SAME(read_view(far_output, 2, 1, rows, kE), expected);
  }
};

TEST("large offsets: attention") { Fixture().check(AttentionProblem{}, kL); }

TEST("large offsets: clustered attention") {
  Fixture fixture;
  ClusteredAttentionProblem problem;
  problem.clusters = kC;
  problem.top_k = 7;
  problem.planes = fixture.arrays.floats(63 * (kD + 1), 4);
  for (Grouping grouping : {Grouping::hamming, Grouping::euclidean}) {
    problem.grouping = grouping;
    fixture.check(problem, kL);
  }
}

TEST("large offsets: centroid attention") {
  Fixture fixture;
  CentroidAttentionProblem problem;
  for (Normalize normalize : {Normalize::centroids, Normalize::inputs}) {
    problem.normalize = normalize;
    fixture.check(problem, kL);
  }
}

TEST("large offsets: CAST") {
  Fixture fixture;
  fixture.near_inputs.query = fixture.near_inputs.key;
  fixture.far_inputs.query = fixture.far_inputs.key;
  fixture.near_inputs.shape.query_length = fixture.far_inputs.shape.query_length = kS;
  CastAttentionProblem problem;
  problem.clusters = kC;
  problem.cluster_size = 9;
  problem.surrogates = fixture.arrays.floats(kC * kD, 5);
  problem.gate = fixture.arrays.floats(2 * kS, 6);
  fixture.check(problem, kS);
}

TEST("large offsets: k-means and aggregate") {
  Fixture fixture;
  if (!fixture.far.reserved()) return;
  AggregateProblem aggregate;
  KMeansProblem kmeans;
  aggregate.batch = kmeans.batch = 2;
  aggregate.length = kmeans.length = kS;
  aggregate.dim = kmeans.dim = kD;
  aggregate.clusters = kmeans.clusters = kC;
  aggregate.labels = fixture.arrays.input(random_indices(2 * kS, -1, kC, 7));
  aggregate.output = fixture.arrays.output<float>(2 * kC * kD);
  kmeans.max_iterations = 3;
  kmeans.centroids = fixture.arrays.output<float>(2 * kC * kD);
  kmeans.labels = fixture.arrays.output<int32_t>(2 * kS);
  kmeans.counts = fixture.arrays.output<int32_t>(2 * kC);
  std::vector<std::vector<unsigned char>> results;
  for (const AttentionInputs* inputs : {&fixture.near_inputs, &fixture.far_inputs}) {
    aggregate.inputs = kmeans.inputs = inputs->key;
    CHECK_RUNS(aggregate, fixture.arrays);
    results.push_back(fixture.arrays.snapshot());
    CHECK_RUNS(kmeans, fixture.arrays);
    results.push_back(fixture.arrays.snapshot());
  }
  check_same_bytes(results[2], results[0], "distance");
  check_same_bytes(results[3], results[1], "distance");
}

TEST("large offsets: sparse products") {
  Fixture fixture;
  if (!fixture.far.reserved()) return;
  SparseDotProblem dot;
  SparseWeightedSumProblem sum;
  dot.shape = sum.shape = fixture.near_inputs.shape;
  dot.sparse.k = sum.sparse.k = 4;
  dot.sparse.indices = sum.sparse.indices =
      fixture.arrays.input(random_indices(2 * kL * 4, -1, kS, 8));
  sum.weights = fixture.arrays.floats(2 * kL * 4, 9);
  dot.output = fixture.arrays.output<float>(2 * kL * 4);
  std::vector<std::vector<float>> dots, sums;
  for (bool is_far : {false, true}) {
    const AttentionInputs& inputs = is_far ? fixture.far_inputs : fixture.near_inputs;
    dot.query = inputs.query;
    dot.key = inputs.key;
    CHECK_RUNS(dot, fixture.arrays);
    dots.push_back(read(dot.output, 2 * kL * 4));
    sum.value = inputs.value;
    sum.output = is_far ? fixture.far_output : fixture.near_output;
    CHECK_RUNS(sum, fixture.arrays);
    sums.push_back(read_view(sum.output, 2, 1, kL, kE));
  }
  CHECK_SAME(dots[1], dots[0]);
  CHECK_SAME(sums[1], sums[0]);
}

}  // namespace

}  // namespace cluster_attention::test

#endif
