#include <algorithm>
#include <cmath>
#include <numeric>

#include "cuda/cast_layout.cuh"
#include "native/reference/cast_attention.h"
#include "test/cuda/cast_device.h"
#include "test/cuda/launches.h"
#include "test/cuda/tile_cases.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

namespace {

/// The output and the coverage that belong to the tokens chosen.
void check_results(const CastArrays& fixture, double bound) {
  const std::vector<int32_t> chosen = fixture.indices();
  CHECK_CLOSE(fixture.result(), reference::cast_attention(fixture.problem, chosen), bound);
  CHECK_SAME(read(fixture.problem.coverage, fixture.inputs.shape.batch),
             reference::cast_coverage(fixture.problem, chosen));
}

/// Each slot of Top-K holds a token of the score that the reference has there.
void check_top_k(const CastArrays& fixture) {
  const CastAttentionProblem& problem = fixture.problem;
  const std::vector<int32_t> actual = fixture.indices();
  const std::vector<int32_t> expected = reference::cast_indices(problem);
  const int64_t per_batch = problem.clusters * problem.cluster_size;
  for (int64_t b = 0; b < fixture.inputs.shape.batch; ++b) {
    const reference::Matrix scores = reference::cast_gate_scores(problem, b);
    for (int64_t i = 0; i < per_batch; ++i) {
      const int32_t mine = actual[b * per_batch + i];
      const int32_t theirs = expected[b * per_batch + i];
      if (mine == theirs) continue;
      const bool usable = mine >= 0 && theirs >= 0 && mine < scores.rows();
      const int64_t cluster = i / problem.cluster_size;
      CHECK(usable && std::abs(scores(mine, cluster) - scores(theirs, cluster)) < 1e-5);
    }
  }
}

/// Every real token has one slot, every slot one token.
void check_single(const CastArrays& fixture) {
  const CastAttentionProblem& problem = fixture.problem;
  const AttentionInputs& in = fixture.inputs;
  const std::vector<int32_t> indices = fixture.indices();
  const int64_t per_batch = problem.clusters * problem.cluster_size;
  for (int64_t b = 0; b < in.shape.batch; ++b) {
    const int64_t real = real_length(in.key_lengths, b, in.shape.key_length);
    std::vector<int32_t> found(indices.begin() + b * per_batch,
                               indices.begin() + (b + 1) * per_batch);
    found.erase(std::remove(found.begin(), found.end(), -1), found.end());
    std::sort(found.begin(), found.end());
    std::vector<int32_t> expected(real);
    std::iota(expected.begin(), expected.end(), 0);
    CHECK_SAME(found, expected);
  }
}

TEST_ONCE("CUDA CAST: matches the reference") {
  for (const Case& one : cases()) {
    for (Selection selection : kSelections) {
      for (Activation activation : kActivations) {
        for (bool has_scale : {true, false}) {
          const bool softmax = activation == Activation::softmax;
          if (!has_scale && softmax) continue;
          // One run of the long ones for each selection.
          const bool long_run = softmax == (selection == Selection::top_k) && has_scale;
          if (one.key_length > 1000 && !long_run) continue;
          const Scope scope(one.name + cast_options_name(selection, activation) +
                            (has_scale ? "" : " default scale"));
          CastArrays fixture(one, selection, activation);
          fixture.problem.has_scale = has_scale;
          bool non_finite = true;
          CHECK_EQUAL(describe(run_there(fixture, &non_finite)), "ok");
          CHECK(!non_finite);
          fixture.arrays.snapshot();
          if (selection == Selection::top_k) check_top_k(fixture);
          if (selection == Selection::single_assignment) check_single(fixture);
          check_results(fixture, kSplitBound);
        }
      }
    }
  }
}

TEST_ONCE("CUDA CAST: sizes around the tiles") {
  std::vector<Case> list = cast_tile_cases(300);
  for (const Case& one : cast_chunk_cases()) list.push_back(one);
  for (const Case& one : list) {
    for (Selection selection : kSelections) {
      for (Activation activation : kActivations) {
        const Scope scope(one.name + cast_options_name(selection, activation));
        CastArrays fixture(one, selection, activation);
        CHECK_EQUAL(describe(run_there(fixture)), "ok");
        fixture.arrays.snapshot();
        if (selection == Selection::top_k) check_top_k(fixture);
        if (selection == Selection::single_assignment) check_single(fixture);
        check_results(fixture, kSplitBound);
      }
    }
  }
}

/// Surrogates of zeros and a gate of one half give every token the same score; one token in seven
/// gets a better one for one cluster.
void make_ties(CastArrays& fixture) {
  const AttentionShape& shape = fixture.inputs.shape;
  const int64_t surrogates = shape.heads * fixture.problem.clusters * shape.head_dim;
  std::fill_n(fixture.surrogates, surrogates, 0.0f);
  std::fill_n(fixture.gate, shape.batch * shape.key_length, 0.0f);
  for (int64_t i = 0; i < surrogates; i += 5) fixture.surrogates[i] = 8.0f;
  const int64_t rows = shape.batch * shape.heads * shape.key_length;
  for (float* side : {fixture.query, fixture.key}) {
    for (int64_t i = 0; i < rows * shape.head_dim; ++i) {
      if (side[i] == side[i]) side[i] = i % 7 == 0 ? 1.0f : 0.0f;
    }
  }
}

/// The last cluster alone is near a token, the nearer the more of its elements are ones.
void make_one_near(CastArrays& fixture) {
  const int64_t clusters = fixture.problem.clusters;
  const int64_t dim = fixture.inputs.shape.head_dim;
  for (int64_t row = 0; row < fixture.inputs.shape.heads * clusters; ++row) {
    std::fill_n(fixture.surrogates + row * dim, dim, (row + 1) % clusters == 0 ? 0.0625f : 0.0f);
  }
}

TEST_ONCE("CUDA CAST: the tokens chosen equal the CPU's, ties included") {
  std::vector<Case> list = cast_tile_cases(300);
  for (const Case& one : cast_chunk_cases()) list.push_back(one);
  for (const char* name : {"prime", "ragged", "ragged-keys", "slots-over-tokens",
                           "slots-under-tokens", "cluster-size-over-tokens", "long-keys"}) {
    list.push_back(find_case(name));
  }
  for (const Case& one : list) {
    // The storages take turns, which keeps the model's time short.
    int64_t turn = &one - list.data();
    for (Selection selection : {Selection::top_k, Selection::single_assignment}) {
      for (bool near : {false, true}) {
        const Scope scope(one.name + cast_options_name(selection, Activation::laplace) +
                          (near ? " one near" : ""));
        // The function of one score alone: no sum over the clusters rounds.
        CastArrays fixture(one, selection, Activation::laplace);
        make_ties(fixture);
        if (near) make_one_near(fixture);
        CHECK_RUNS(fixture.problem, fixture.arrays);
        const std::vector<int32_t> expected = fixture.indices();
        fixture.arrays.poison();
        // Exact in bfloat16 too.
        const bool rounded = turn++ % 2 != 0;
        Device device(rounded ? cuda::Storage::bfloat16 : cuda::Storage::float32);
        const CastAttentionProblem there = on_device(fixture.problem, device, fixture.arrays);
        CHECK_EQUAL(describe(device.run(Device::backend().operations.cast_attention, there,
                                        rounded ? Precision::bfloat16 : Precision::float32)),
                    "ok");
        device.fetch(fixture.arrays);
        CHECK_SAME(fixture.indices(), expected);
      }
    }
  }
}

TEST_ONCE("CUDA CAST: more members than shared memory sorts") {
  Case one = find_case("long-keys");
  one.cluster_size = 2100;
  one.clusters = 1;
  one.head_dim = one.value_dim = 1;
  CastArrays fixture(one, Selection::top_k, Activation::laplace);
  make_ties(fixture);
  CHECK_RUNS(fixture.problem, fixture.arrays);
  const std::vector<int32_t> expected = fixture.indices();
  const std::vector<float> output = fixture.result();
  CHECK_EQUAL(describe(run_there(fixture)), "ok");
  CHECK_SAME(fixture.indices(), expected);
  CHECK_CLOSE(fixture.result(), std::vector<double>(output.begin(), output.end()), kSplitBound);
}

TEST_ONCE("CUDA CAST: as many groups of warps as there is work, shared memory and room for") {
  constexpr int64_t kPlenty = 227 * 1024;
  const int64_t clusters[] = {1, 64, 65, 128, 129, 256, 257, 100'000};
  const int groups[] = {1, 1, 2, 2, 3, 4, 4, 4};
  for (int i = 0; i < 8; ++i) {
    const Scope scope(std::to_string(clusters[i]) + " clusters");
    CHECK_EQUAL(cuda::affinity_groups<false>(clusters[i], kPlenty), groups[i]);
    CHECK_EQUAL(cuda::affinity_groups<true>(clusters[i], kPlenty), std::min(groups[i], 2));
    CHECK_EQUAL(cuda::affinity_groups<false>(clusters[i], 0), 1);
  }
  const auto three = cuda::affinity_layout<false>(3).bytes;
  CHECK_EQUAL(cuda::affinity_groups<false>(1000, three), 3);
  CHECK_EQUAL(cuda::affinity_groups<false>(1000, three - 1), 2);
  for (int64_t rows : {1, 64, 65, 1000}) {
    const int expected = rows > 64 ? 2 : 1;
    CHECK_EQUAL(cuda::small_member_groups<true>(rows, kPlenty), expected);
    CHECK_EQUAL(cuda::small_member_groups<true>(rows, 0), 1);
    constexpr auto kCopies = cuda::RowAccess::copies;
    CHECK_EQUAL((cuda::small_combination_groups<false, kCopies>(rows, kPlenty)), expected);
    CHECK_EQUAL((cuda::small_combination_groups<false, kCopies>(rows, 0)), 1);
  }
}

TEST_ONCE("CUDA CAST: scales of any size and sign") {
  for (float scale : {0.0f, -0.5f, 4.0f}) {
    for (Selection selection : kSelections) {
      for (Activation activation : kActivations) {
        const Scope scope("scale " + std::to_string(scale) +
                          cast_options_name(selection, activation));
        CastArrays fixture(find_case("prime"), selection, activation);
        fixture.problem.inputs.scale = scale;
        CHECK_EQUAL(describe(run_there(fixture)), "ok");
        check_results(fixture, kSplitBound);
      }
    }
  }
}

TEST_ONCE("CUDA CAST: given indices out of range or listed twice are named") {
  for (int32_t bad : {-2, 53, 1 << 30}) {
    CastArrays fixture(find_case("prime"), Selection::given);
    fixture.given[80] = bad;
    fixture.given[90] = bad;
    CHECK_EQUAL(describe(run_there(fixture)), "out_of_range indices[80]");
  }
  CastArrays fixture(find_case("prime"), Selection::given);
  std::iota(fixture.given + 77, fixture.given + 88, 0);  // a cluster of eleven slots
  fixture.given[83] = 2;
  fixture.given[86] = 2;
  CHECK_EQUAL(describe(run_there(fixture)), "duplicate indices[83]");
}

TEST_ONCE("CUDA CAST: the same bits in every order of the threads, alone and in a batch") {
  Case chunks = cast_tile_case({140, 16, 16, 70, 70});
  chunks.batch = 2;
  for (const Case& one : {find_case("ragged"), find_case("width-64-130"), chunks}) {
    for (Selection selection : kSelections) {
      for (Activation activation : kActivations) {
        const Scope scope(one.name + cast_options_name(selection, activation));
        CastArrays fixture(one, selection, activation);
        CHECK_EQUAL(describe(run_there(fixture)), "ok");
        const auto expected = fixture.arrays.snapshot();
        in_every_thread_order([&] {
          CHECK_EQUAL(describe(run_there(fixture)), "ok");
          check_same_bytes(fixture.arrays.snapshot(), expected, "the order of the threads");
        });
        fixture.arrays.poison();
        Device device;
        const CastAttentionProblem there = on_device(fixture.problem, device, fixture.arrays);
        for (int64_t b = 0; b < fixture.inputs.shape.batch; ++b) {
          CHECK_EQUAL(describe(device.run(Device::backend().operations.cast_attention,
                                          one_cast_batch(there, b))),
                      "ok");
        }
        device.fetch(fixture.arrays);
        check_same_bytes(fixture.arrays.snapshot(), expected, "running sequences one by one");
      }
    }
  }
}

TEST_ONCE("CUDA CAST: optional outputs do not change the others") {
  for (Selection selection : kSelections) {
    CastArrays fixture(find_case("ragged"), selection);
    CHECK_EQUAL(describe(run_there(fixture)), "ok");
    const std::vector<float> expected = fixture.result();
    fixture.problem.indices = nullptr;
    fixture.problem.coverage = nullptr;
    CHECK_EQUAL(describe(run_there(fixture)), "ok");
    CHECK_SAME(fixture.result(), expected);
  }
}

TEST_ONCE("CUDA CAST: bfloat16 operands and storage") {
  std::vector<Case> list = cast_chunk_cases();
  for (const char* name : {"prime", "width-64-130", "ragged", "tile-129"}) {
    list.push_back(find_case(name));
  }
  for (const Case& one : list) {
    for (Selection selection : kSelections) {
      const Scope scope(one.name + cast_options_name(selection, Activation::softmax));
      CastArrays fixture(one, selection);
      round_inputs(fixture);
      CHECK_EQUAL(describe(run_there(fixture, nullptr, Precision::bfloat16)), "ok");
      check_results(fixture, kRoundedBound);
      for (Precision precision : {Precision::float32, Precision::bfloat16}) {
        fixture.arrays.poison();
        Device device(cuda::Storage::bfloat16);
        const CastAttentionProblem there = on_device(fixture.problem, device, fixture.arrays);
        CHECK_EQUAL(
            describe(device.run(Device::backend().operations.cast_attention, there, precision)),
            "ok");
        device.fetch(fixture.arrays);
        check_results(fixture, kRoundedBound);
      }
    }
  }
}

TEST_ONCE("CUDA CAST: four launches, three with given indices") {
  for (Selection selection : kSelections) {
    for (Activation activation : kActivations) {
      const Scope scope(cast_options_name(selection, activation));
      CastArrays fixture(find_case("usual"), selection, activation);
      Device device;
      const CastAttentionProblem there = on_device(fixture.problem, device, fixture.arrays);
      CHECK_EQUAL(count_launches(device, Device::backend().operations.cast_attention, there),
                  selection == Selection::given ? 3 : 4);
    }
  }
}

}  // namespace

}  // namespace cluster_attention::test
