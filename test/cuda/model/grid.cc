#include "test/cuda/model/grid.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <numeric>
#include <utility>

#include "test/cuda/model/device.h"
#include "test/cuda/model/fiber.h"

namespace cuda_model {

namespace {

constexpr int kLanes = 32;
constexpr unsigned char kPoison = 0xff;  // NaN, whichever float it is read as
constexpr size_t kFence = 256;

enum class State { ready, at_exchange, at_barrier, at_cluster_barrier, at_condition };
constexpr size_t kStates = 5;
constexpr int kNamedBarriers = 16;

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
  alignas(16) unsigned char entries[2][kLanes * Exchange::kEntryBytes];
};

std::mutex device_mutex;  // sessions of several threads share the model
std::mutex fault_mutex;
std::vector<std::string> faults;
uint64_t order_seed = 0;
bool grid_together = false;  // of the grid that runs

uint64_t mix(uint64_t state) {  // splitmix64
  state += 0x9E3779B97F4A7C15ull;
  state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9ull;
  state = (state ^ (state >> 27)) * 0x94D049BB133111EBull;
  return state ^ (state >> 31);
}

/// 0 .. count-1, shuffled unless the seed is 0.
std::vector<int64_t> shuffled(int64_t count, uint64_t seed) {
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  if (seed == 0) return order;
  for (size_t i = order.size(); i > 1; --i) {
    seed = mix(seed);
    std::swap(order[i - 1], order[seed % i]);
  }
  return order;
}

void make_copies(const std::vector<Copy>& copies) {
  for (const Copy& copy : copies) {
    if (copy.valid) {
      std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
    } else {
      std::memset(copy.to, 0, static_cast<size_t>(copy.bytes));
    }
  }
}

/// A block of the cluster that runs; there is one cluster at a time.
class Block {
 public:
  void prepare(const Launch& launch);
  bool start(uint3 index, uint64_t seed);
  /// Runs until every thread has ended or waits for the cluster.
  bool run();
  bool ended() const { return ended_; }
  void leave_cluster_barrier();
  bool check_fence() const;

  /// Notes the fault; the running thread does not go on.
  void fail(const std::string& text) {
    note_fault(text);
    failed_ = true;
    current->fiber.pause();
  }
  void wait(State state) {
    Thread* self = current;
    self->state = state;
    self->fiber.pause();
  }

  Thread* current = nullptr;
  std::vector<Warp> warps;
  unsigned char* shared = nullptr;
  const std::function<void()>* body = nullptr;
  NamedBarrier named[kNamedBarriers];
  int barrier_sum = 0;     // of the barrier that threads arrive at
  int barrier_result = 0;  // of the one that they left

  void release(int warp) {
    warps[static_cast<size_t>(warp)].waiting = 0;
    ++warps[static_cast<size_t>(warp)].exchanges;
    for (size_t i = 0; i < kLanes; ++i) {
      threads_[static_cast<size_t>(warp) * kLanes + i]->state = State::ready;
    }
  }

 private:
  bool run_warp(size_t warp);
  bool can_go_on() const;
  bool leave_barrier();

  std::vector<std::unique_ptr<Thread>> threads_;  // at least count_
  size_t count_ = 0;
  std::vector<int64_t> warp_order_, lane_order_;
  uint3 index_{};
  std::vector<unsigned char> memory_;
  size_t shared_bytes_ = 0;
  bool failed_ = false;
  bool ended_ = false;
};

std::vector<std::unique_ptr<Block>> blocks;  // of a cluster
Block* block = nullptr;                      // that runs

void thread_main(void*) {
  (*block->body)();
  Thread& self = *block->current;
  for (const std::vector<Copy>& group : self.groups) make_copies(group);
  make_copies(self.open_group);
}

void Block::prepare(const Launch& launch) {
  count_ = static_cast<size_t>(launch.block.x) * launch.block.y * launch.block.z;
  while (threads_.size() < count_) threads_.push_back(std::make_unique<Thread>());
  warps.resize((count_ + kLanes - 1) / kLanes);
  for (size_t i = 0; i < count_; ++i) {
    Thread& thread = *threads_[i];
    thread.index = {static_cast<unsigned>(i % launch.block.x),
                    static_cast<unsigned>(i / launch.block.x % launch.block.y),
                    static_cast<unsigned>(i / launch.block.x / launch.block.y)};
    thread.warp = static_cast<int>(i / kLanes);
    thread.lane = static_cast<int>(i % kLanes);
  }
  shared_bytes_ = launch.shared_bytes;
  memory_.resize(shared_bytes_ + kFence + 128);
  shared = memory_.data() + (128 - reinterpret_cast<uintptr_t>(memory_.data()) % 128) % 128;
  body = &launch.body;
  failed_ = false;
}

/// Runs the lanes of a warp until all of them wait for the block, or have ended, or cannot go on.
bool Block::run_warp(size_t warp) {
  for (bool progress = true; progress;) {
    progress = false;
    for (const int64_t lane : lane_order_) {
      const size_t i = warp * kLanes + static_cast<size_t>(lane);
      if (i >= count_) continue;
      Thread& thread = *threads_[i];
      if (thread.fiber.done()) continue;
      if (thread.state == State::at_condition && thread.condition()) thread.state = State::ready;
      if (thread.state != State::ready) continue;
      current = &thread;
      threadIdx = thread.index;
      thread.fiber.resume();
      if (failed_) return false;
      progress = true;
    }
  }
  return true;
}

/// Whether a thread's condition holds by now.
bool Block::can_go_on() const {
  for (size_t i = 0; i < count_; ++i) {
    const Thread& thread = *threads_[i];
    if (!thread.fiber.done() && thread.state == State::at_condition && thread.condition()) {
      return true;
    }
  }
  return false;
}

/// After all warps have stopped: true when the block's barrier was reached by every thread.
bool Block::leave_barrier() {
  size_t states[kStates] = {};
  size_t ended = 0;
  for (size_t i = 0; i < count_; ++i) {
    if (threads_[i]->fiber.done()) {
      ++ended;
    } else {
      ++states[static_cast<size_t>(threads_[i]->state)];
    }
  }
  ended_ = ended == count_;
  if (ended_ || states[static_cast<size_t>(State::at_cluster_barrier)] == count_) return false;
  const size_t at_barrier = states[static_cast<size_t>(State::at_barrier)];
  if (at_barrier < count_) {
    note_fault("block (" + std::to_string(index_.x) + "," + std::to_string(index_.y) + "," +
               std::to_string(index_.z) + ") cannot go on: of its " + std::to_string(count_) +
               " threads " + std::to_string(at_barrier) + " wait in __syncthreads(), " +
               std::to_string(states[static_cast<size_t>(State::at_exchange)]) +
               " in an exchange of their warp, " +
               std::to_string(states[static_cast<size_t>(State::at_condition)]) +
               " for another warp, " + std::to_string(ended) + " have ended");
    failed_ = true;
    return false;
  }
  barrier_result = barrier_sum;
  barrier_sum = 0;
  for (size_t i = 0; i < count_; ++i) threads_[i]->state = State::ready;
  return true;
}

void Block::leave_cluster_barrier() {
  for (size_t i = 0; i < count_; ++i) threads_[i]->state = State::ready;
}

bool Block::start(uint3 index, uint64_t seed) {
  std::memset(shared, kPoison, shared_bytes_ + kFence);
  for (Warp& warp : warps) warp.waiting = 0;
  barrier_sum = 0;
  for (NamedBarrier& barrier : named) barrier = NamedBarrier();
  index_ = index;
  ended_ = false;
  for (size_t i = 0; i < count_; ++i) {
    Thread& thread = *threads_[i];
    thread.state = State::ready;
    thread.groups.clear();
    thread.open_group.clear();
    thread.products = Products();
    if (!thread.fiber.start(thread_main, nullptr)) {
      note_fault("no memory for the stacks of a block");
      return false;
    }
  }
  warp_order_ = shuffled(static_cast<int64_t>(warps.size()), seed);
  lane_order_ = shuffled(kLanes, seed);
  return true;
}

bool Block::run() {
  block = this;
  blockIdx = index_;
  do {
    for (const int64_t warp : warp_order_) {
      if (!run_warp(static_cast<size_t>(warp))) return false;
    }
  } while (can_go_on() || leave_barrier());
  // Shared memory is gone with its block.
  if (ended_) std::memset(shared, kPoison, shared_bytes_);
  return !failed_;
}

bool Block::check_fence() const {
  for (size_t i = 0; i < kFence; ++i) {
    if (shared[shared_bytes_ + i] == kPoison) continue;
    note_fault("a kernel wrote past its " + std::to_string(shared_bytes_) +
               " bytes of shared memory");
    return false;
  }
  return true;
}

/// The blocks that are started, from barrier to barrier of their cluster.
bool run_cluster(size_t count, uint64_t seed) {
  for (;;) {
    size_t ended = 0;
    seed = seed == 0 ? 0 : mix(seed);
    for (const int64_t i : shuffled(static_cast<int64_t>(count), seed)) {
      Block& one = *blocks[static_cast<size_t>(i)];
      if (!one.run()) return false;
      ended += one.ended() ? 1 : 0;
    }
    if (ended == count) break;
    if (ended > 0) {
      note_fault("of the " + std::to_string(count) + " blocks of a cluster " +
                 std::to_string(ended) + " have ended while others wait for them");
      return false;
    }
    for (size_t i = 0; i < count; ++i) blocks[i]->leave_cluster_barrier();
  }
  for (size_t i = 0; i < count; ++i) {
    if (!blocks[i]->check_fence()) return false;
  }
  return true;
}

}  // namespace

bool run_grid(const Launch& launch) {
  const std::lock_guard<std::mutex> lock(device_mutex);
  gridDim = {launch.grid.x, launch.grid.y, launch.grid.z};
  blockDim = {launch.block.x, launch.block.y, launch.block.z};
  const size_t cluster = launch.together ? launch.grid.x : launch.cluster;
  if (cluster == 0 || launch.grid.x % cluster != 0) {
    note_fault("a grid that is not made of whole clusters");
    return false;
  }
  grid_together = launch.together;
  while (blocks.size() < cluster) blocks.push_back(std::make_unique<Block>());
  for (size_t i = 0; i < cluster; ++i) blocks[i]->prepare(launch);
  const int64_t plane = static_cast<int64_t>(launch.grid.x) * launch.grid.y;
  static uint64_t launches = 0;
  const uint64_t seed = order_seed == 0 ? 0 : mix(order_seed + ++launches) | 1;
  const int64_t clusters = plane * launch.grid.z / static_cast<int64_t>(cluster);
  for (const int64_t c : shuffled(clusters, seed)) {
    const uint64_t own = seed == 0 ? 0 : mix(seed + static_cast<uint64_t>(c)) | 1;
    for (size_t rank = 0; rank < cluster; ++rank) {
      const int64_t i = c * static_cast<int64_t>(cluster) + static_cast<int64_t>(rank);
      const uint3 index{static_cast<unsigned>(i % launch.grid.x),
                        static_cast<unsigned>(i % plane / launch.grid.x),
                        static_cast<unsigned>(i / plane)};
      if (!blocks[rank]->start(index, own)) return false;
    }
    if (!run_cluster(cluster, own)) return false;
  }
  return true;
}

std::vector<std::string> take_faults() {
  const std::lock_guard<std::mutex> lock(fault_mutex);
  return std::exchange(faults, {});
}

void note_fault(const std::string& text) {
  const std::lock_guard<std::mutex> lock(fault_mutex);
  faults.push_back(text);
}

void set_thread_order(uint64_t seed) { order_seed = seed; }

unsigned char* shared_memory() { return block->shared; }

unsigned char* shared_memory_of(int rank) { return blocks[static_cast<size_t>(rank)]->shared; }

int cluster_rank() {
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (blocks[i].get() == block) return static_cast<int>(i);
  }
  return -1;
}

void sync_cluster() { block->wait(State::at_cluster_barrier); }

void sync_grid() {
  if (!grid_together) block->fail("a barrier of a grid whose blocks do not all run together");
  block->wait(State::at_cluster_barrier);
}

void sync_block() { sync_block_sum(0); }

int sync_block_sum(int value) {
  block->barrier_sum += value;
  block->wait(State::at_barrier);
  return block->barrier_result;
}

Exchange::Exchange(int kind, unsigned mask, const void* data, size_t bytes) {
  Thread& self = *block->current;
  Warp& warp = block->warps[static_cast<size_t>(self.warp)];
  if (mask != 0xffffffffu) block->fail("an exchange of a warp with a mask that is not full");
  if (warp.waiting == 0) warp.kind = kind;
  if (warp.kind != kind) block->fail("the lanes of a warp meet in different exchanges");
  // Two sets of entries: a lane may reach its next exchange before others have read this one.
  unsigned char* entries = warp.entries[warp.exchanges % 2];
  entries_ = entries;
  if (bytes > 0) {
    std::memcpy(entries + static_cast<size_t>(self.lane) * kEntryBytes, data, bytes);
  }
  if (++warp.waiting == kLanes) {
    block->release(self.warp);
  } else {
    block->wait(State::at_exchange);
  }
}

void wait_until(const std::function<bool()>& condition) {
  if (condition()) return;
  block->current->condition = condition;
  block->wait(State::at_condition);
}

Products& products_of_running_thread() { return block->current->products; }

NamedBarrier& named_barrier(int name) { return block->named[name]; }

int lane_of_running_thread() { return block->current->lane; }

void copy_async(void* shared, const void* global, int bytes, bool valid) {
  const auto places =
      reinterpret_cast<uintptr_t>(shared) | (valid ? reinterpret_cast<uintptr_t>(global) : 0);
  if (places % static_cast<uintptr_t>(bytes) != 0) block->fail("a misaligned asynchronous copy");
  block->current->open_group.push_back({shared, global, bytes, valid});
}

void commit_copies() {
  Thread& self = *block->current;
  self.groups.push_back(std::exchange(self.open_group, {}));
}

void wait_copies(int groups_left) {
  Thread& self = *block->current;
  while (self.groups.size() > static_cast<size_t>(groups_left)) {
    make_copies(self.groups.front());
    self.groups.pop_front();
  }
}

}  // namespace cuda_model
