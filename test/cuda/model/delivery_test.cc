// Stores in another block's shared memory, and kernels that wait for them too little or too long.

#include <cuda_runtime.h>

#include "test/native/harness.h"

namespace cuda_model {

namespace {

enum class Mistake { none, no_wait, expects_more, arrives_twice, sends_early, one_barrier };

constexpr int kBlocks = 3;
constexpr int kRounds = 4;

/// Every block sends its rank and the round to all, round by round; how many words were wrong.
std::string wrong_rounds(Mistake mistake, int* wrong) {
  const auto body = [&] {
    auto* barriers = reinterpret_cast<uint64_t*>(shared_memory());
    auto* mail = reinterpret_cast<int*>(shared_memory() + 16);
    const int rank = cluster_rank();
    // A block that has all words of a round sends those of the next; they may arrive before others
    // of this one do, which a barrier must not count together.
    const int turns = mistake == Mistake::one_barrier ? 1 : 2;
    if (threadIdx.x == 0) {
      for (int i = 0; i < turns; ++i) initialize_barrier(barriers + i, 1);
    }
    sync_cluster();
    for (int round = 0; round < kRounds; ++round) {
      uint64_t* barrier = barriers + round % turns;
      // A block may be a round ahead of the others: with one place, it would not wait for readers.
      int* words = mail + (mistake == Mistake::sends_early ? 0 : round % 2 * kBlocks);
      __syncthreads();
      if (threadIdx.x == 0) {
        arrive_expecting(barrier, 4 * kBlocks + (mistake == Mistake::expects_more ? 4 : 0));
        if (mistake == Mistake::arrives_twice) arrive(barrier);
        for (int to = 0; to < kBlocks; ++to) {
          store_in_block(words + rank, to, 10 * round + rank, barrier);
        }
      }
      if (mistake != Mistake::no_wait) wait_for(barrier, static_cast<uint32_t>(round / turns % 2));
      for (int from = 0; from < kBlocks; ++from) {
        if (words[from] != 10 * round + from) ++*wrong;
      }
    }
    sync_cluster();
  };
  run_grid({{2 * kBlocks, 1, 1}, {64, 1, 1}, 64, body, kBlocks});
  std::string text;
  for (const std::string& fault : take_faults()) text += fault;
  return text;
}

/// The same in several orders.
std::string wrong_in_all(Mistake mistake, int* wrong) {
  *wrong = 0;
  std::string text;
  for (uint64_t seed = 0; seed < 12; ++seed) {
    set_thread_order(seed);
    text += wrong_rounds(mistake, wrong);
  }
  set_thread_order(0);
  return text;
}

TEST_ONCE("CUDA model: blocks send each other words, and see them when they have waited") {
  int wrong = 0;
  CHECK_EQUAL(wrong_in_all(Mistake::none, &wrong), "");
  CHECK_EQUAL(wrong, 0);
}

TEST_ONCE("CUDA model: words of other blocks that are not waited for, or overwritten, show") {
  int wrong = 0;
  wrong_in_all(Mistake::no_wait, &wrong);
  CHECK(wrong > 0);
  wrong_in_all(Mistake::sends_early, &wrong);
  CHECK(wrong > 0);
  wrong_in_all(Mistake::one_barrier, &wrong);
  CHECK(wrong > 0);
}

TEST_ONCE("CUDA model: blocks that wait for more than they are sent are reported") {
  int wrong = 0;
  const std::string more = wrong_in_all(Mistake::expects_more, &wrong);
  CHECK(more.find("64 for another warp or block") != std::string::npos);
  const std::string twice = wrong_in_all(Mistake::arrives_twice, &wrong);
  CHECK(twice.find("more threads arrive") != std::string::npos);
  CHECK_EQUAL(wrong_in_all(Mistake::none, &wrong), "");
}

}  // namespace

}  // namespace cuda_model
