#pragma once

// A block of the model: its threads as fibers, in warps, with its shared memory.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "test/cuda/model/device.h"
#include "test/cuda/model/fiber.h"
#include "test/cuda/model/grid.h"

namespace cuda_model {

constexpr int kNamedBarriers = 16;

enum class State { ready, at_exchange, at_barrier, at_cluster_barrier, at_condition, ended };

struct Copy {
  void* to;
  const void* from;
  int bytes;
  bool valid;
};

struct Thread {
  Fiber fiber;
  uint3 index{};
  State state = State::ready;
  int warp = 0;
  int lane = 0;
  Thread* next = nullptr;  // of its warp, in the order of the lanes; behind the last is the first
  // Copies are made when the thread waits for them, or at its end: who does not wait reads what
  // stood there before.
  std::deque<std::vector<Copy>> groups;
  std::vector<Copy> open_group;
  Products products;
  std::function<bool()> condition;
};

struct Warp {
  int waiting = 0;
  int kind = 0;
  unsigned exchanges = 0;
  char places[2] = {};      // that order what lanes do, in exchanges even and odd
  Thread* first = nullptr;  // in the order of the lanes
  void* given[kLanes];
  alignas(16) unsigned char entries[2][kLanes * Exchange::kEntryBytes];
};

/// splitmix64
uint64_t mix(uint64_t state);
/// 0 .. count-1, shuffled unless the seed is 0.
std::vector<int64_t> shuffled(int64_t count, uint64_t seed);
void make_copies(const std::vector<Copy>& copies);

/// A block of the cluster that runs; there is one cluster at a time.
class Block {
 public:
  /// `watched`: a sanitizer that looks for races may tell the threads from each other.
  void prepare(const Launch& launch, bool watched);
  /// It tells them no longer.
  void forget_threads();
  bool start(uint3 index, uint64_t seed);
  /// Runs until every thread has ended or waits for other blocks; with `in_turns`, some of the
  /// warps for a while. False after a fault.
  bool run(bool in_turns);
  /// Whether a thread went on in the last run().
  bool moved() const { return moved_; }
  bool ended() const { return count_of(State::ended) == count_; }
  bool at_cluster_barrier() const;
  void leave_cluster_barrier();
  void note_stuck() const;
  bool check_fence() const;

  /// Notes the fault; the running thread does not go on.
  void fail(const std::string& text);
  void wait(State state);
  void release(int warp);

  Thread* current = nullptr;
  std::vector<Warp> warps;
  unsigned char* shared = nullptr;
  const std::function<void()>* body = nullptr;
  NamedBarrier named[kNamedBarriers];
  std::vector<Parcel> parcels;
  size_t shared_bytes() const { return shared_bytes_; }
  int barrier_sum = 0;     // of the barrier that threads arrive at
  int barrier_result = 0;  // of the one that they left
  unsigned barriers = 0;   // that they left

  // Places that order what threads do, for ThreadSanitizer.
  char launched = 0;
  /// For the ends of threads of this start(), or that of so many before.
  const char* place_of_end(unsigned before) const { return ends_ + (starts_ - before) % 2; }
  char at_barriers[2] = {};  // even and odd ones

 private:
  void set_current(Thread& thread);
  void poison(size_t bytes);
  void form_warps(const std::vector<int64_t>& lane_order);
  bool run_warp(size_t warp);
  bool stays_behind(int64_t warp) const;
  bool can_go_on() const;
  bool leave_barrier();
  size_t count_of(State state) const;

  std::vector<std::unique_ptr<Thread>> threads_;  // at least count_
  size_t count_ = 0;
  std::vector<int64_t> warp_order_;
  int64_t slow_warp_ = -1;  // in one of four blocks
  uint3 index_{};
  std::vector<unsigned char> memory_;
  size_t shared_bytes_ = 0;
  bool read_by_others_ = false;  // its shared memory, by the blocks of its cluster
  unsigned char poison_ = 0;     // what shared memory starts as, and what is behind it
  bool failed_ = false;
  unsigned starts_ = 0;
  char ends_[2] = {};
  bool moved_ = false;
};

inline std::vector<std::unique_ptr<Block>> blocks;  // of a cluster
inline Block* block = nullptr;                      // that runs

}  // namespace cuda_model
