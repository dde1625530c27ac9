// The best of a list by one block, against sorting all of it: lists of several parts, equal scores.

#include <algorithm>
#include <limits>

#include "cuda/block_selection.cuh"
#include "cuda/launch.h"
#include "cuda/primitives/shared_memory.cuh"
#include "test/cuda/device.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

namespace {

using namespace cluster_attention::cuda;

struct ChooseParams {
  const float* scores;  // (length)
  int64_t length;
  int32_t size;
  bool quickly;
  int32_t* indices;  // (size), in any order
};

struct ChooseLayout {
  int64_t scratch;
  int64_t candidates;
  int64_t bytes;
};

CA_HOST_DEVICE inline ChooseLayout choose_layout(int64_t size) {
  SharedLayout parts;
  ChooseLayout layout;
  layout.scratch = parts.add<BlockSelection::Scratch>(1);
  layout.candidates = parts.add<unsigned long long>(size);
  layout.bytes = parts.bytes();
  return layout;
}

__global__ void __launch_bounds__(kBlockSelectionThreads) choose(const ChooseParams params) {
  // scores: (length) -> indices: (size)
  const ChooseLayout layout = choose_layout(params.size);
  auto* candidates = dynamic_shared<unsigned long long>(layout.candidates);
  BlockSelection selection(*dynamic_shared<BlockSelection::Scratch>(layout.scratch));
  if (!params.quickly ||
      !selection.run_quickly(params.scores, params.length, params.size, candidates)) {
    selection.run(params.scores, params.length, params.size, candidates);
  }
  for (int i = static_cast<int>(threadIdx.x); i < params.size; i += kBlockSelectionThreads) {
    params.indices[i] = candidate_index(candidates[i]);
  }
}

std::vector<int32_t> best_of(const float* scores, int64_t length, int32_t size) {
  std::vector<Candidate> all;
  for (int64_t i = 0; i < length; ++i) {
    all.push_back(make_candidate(scores[i], static_cast<int32_t>(i)));
  }
  std::sort(all.rbegin(), all.rend());
  std::vector<int32_t> best;
  for (int32_t i = 0; i < size; ++i) best.push_back(candidate_index(all[static_cast<size_t>(i)]));
  std::sort(best.begin(), best.end());
  return best;
}

/// Scores of which many are equal, or none; later ones better, or not.
void fill(float* scores, int64_t length, int kind) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < length; ++i) {
    if (kind == 1) scores[i] = 0.25f;
    if (kind == 2) scores[i] = static_cast<float>(i * 7 % 5) - 2.0f;
    if (kind == 3) scores[i] = static_cast<float>(i);
    if (kind == 4) scores[i] = i % 3 == 0 ? -kInfinity : -0.0f;
  }
  if (kind == 4) scores[length / 2] = std::numeric_limits<float>::quiet_NaN();
}

TEST_ONCE("CUDA block selection: the best of a list, of equal ones the first") {
  const int64_t sizes[][2] = {{1, 1},       {7, 7},       {1025, 3},     {16384, 256},
                              {16385, 256}, {40000, 100}, {33000, 2048}, {2048, 2048}};
  for (const auto& size : sizes) {
    for (int kind = 0; kind < 10; ++kind) {
      const bool quickly = kind >= 5;
      if (quickly && size[1] > BlockSelection::kMostQuickly) continue;
      const Scope scope(std::to_string(size[0]) + " of kind " + std::to_string(kind));
      Arrays arrays;
      float* scores = arrays.floats(size[0], 3);
      fill(scores, size[0], kind % 5);
      const auto count = static_cast<int32_t>(size[1]);
      int32_t* indices = arrays.output<int32_t>(count);
      Device device;
      const ChooseParams params{device.at(scores, arrays), size[0], count, quickly,
                                device.at(indices, arrays)};
      CHECK_EQUAL(describe(launch(*device.session(), 1, kBlockSelectionThreads,
                                  choose_layout(count).bytes, choose, params)),
                  "ok");
      device.fetch(arrays);
      std::vector<int32_t> actual = read(indices, count);
      std::sort(actual.begin(), actual.end());
      CHECK_SAME(actual, best_of(scores, size[0], count));
    }
  }
}

}  // namespace

}  // namespace cluster_attention::test
