#include "test/cuda/model/block.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

namespace cuda_model {

namespace {

constexpr size_t kFence = 256;

void thread_main(void*) {
  observe(&block->launched);
  observe(block->place_of_end(1));  // of who used its shared memory before
  (*block->body)();
  Thread& self = *block->current;
  for (const std::vector<Copy>& group : self.groups) make_copies(group);
  make_copies(self.open_group);
  self.state = State::ended;
  publish(block->place_of_end(0));
}

}  // namespace

uint64_t mix(uint64_t state) {
  state += 0x9E3779B97F4A7C15ull;
  state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9ull;
  state = (state ^ (state >> 27)) * 0x94D049BB133111EBull;
  return state ^ (state >> 31);
}

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

void Block::prepare(const Launch& launch, bool watched) {
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
  for (size_t i = 0; i < count_; ++i) threads_[i]->fiber.watch(watched);
  shared_bytes_ = launch.shared_bytes;
  read_by_others_ = launch.cluster > 1;
  allow(memory_.data(), memory_.size());
  memory_.resize(shared_bytes_ + kFence + 128);
  shared = memory_.data() + (128 - reinterpret_cast<uintptr_t>(memory_.data()) % 128) % 128;
  body = &launch.body;
  failed_ = false;
}

void Block::forget_threads() {
  for (const auto& thread : threads_) thread->fiber.watch(false);
}

void Block::set_current(Thread& thread) {
  current = &thread;
  threadIdx = thread.index;
}

/// Runs the lanes of a warp until all of them wait for the block, or have ended, or cannot go on.
bool Block::run_warp(size_t warp) {
  Thread* const first = warps[warp].first;
  for (bool progress = true; progress;) {
    progress = false;
    Thread* thread = first;
    do {
      if (thread->state == State::at_condition && thread->condition()) thread->state = State::ready;
      if (thread->state == State::ready) {
        set_current(*thread);
        thread->fiber.resume();
        if (failed_) return false;
        progress = moved_ = true;
      }
      thread = thread->next;
    } while (thread != first);
  }
  return true;
}

size_t Block::count_of(State state) const {
  return static_cast<size_t>(std::count_if(threads_.begin(),
                                           threads_.begin() + static_cast<std::ptrdiff_t>(count_),
                                           [&](const auto& one) { return one->state == state; }));
}

bool Block::at_cluster_barrier() const { return count_of(State::at_cluster_barrier) == count_; }

/// Whether a thread could go on.
bool Block::can_go_on() const {
  for (size_t i = 0; i < count_; ++i) {
    const Thread& thread = *threads_[i];
    if (thread.state == State::ready) return true;
    if (thread.state == State::at_condition && thread.condition()) return true;
  }
  return false;
}

/// After all warps have stopped: true when the block's barrier was reached by every thread.
bool Block::leave_barrier() {
  if (count_of(State::at_barrier) < count_) return false;
  barrier_result = barrier_sum;
  barrier_sum = 0;
  ++barriers;
  for (size_t i = 0; i < count_; ++i) threads_[i]->state = State::ready;
  return true;
}

void Block::note_stuck() const {
  const auto in = [this](State state) { return std::to_string(count_of(state)); };
  note_fault("block (" + std::to_string(index_.x) + "," + std::to_string(index_.y) + "," +
             std::to_string(index_.z) + ") cannot go on: of its " + std::to_string(count_) +
             " threads " + in(State::at_barrier) + " wait in __syncthreads(), " +
             in(State::at_exchange) + " in an exchange of their warp, " + in(State::at_condition) +
             " for another warp or block, " + in(State::at_cluster_barrier) + " for the cluster, " +
             in(State::ended) + " have ended");
}

void Block::leave_cluster_barrier() {
  for (size_t i = 0; i < count_; ++i) threads_[i]->state = State::ready;
}

bool Block::start(uint3 index, uint64_t seed) {
  poison_ = fresh_byte();
  allow(shared, shared_bytes_ + kFence);
  poison(shared_bytes_ + kFence);
  forbid(shared + shared_bytes_, kFence);
  for (Warp& warp : warps) warp.waiting = 0;
  barrier_sum = 0;
  for (NamedBarrier& barrier : named) barrier = NamedBarrier();
  index_ = index;
  ++starts_;
  parcels.clear();
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
  const uint64_t own = seed == 0 ? 0 : mix(seed + index.x);
  warp_order_ = shuffled(static_cast<int64_t>(warps.size()), own);
  slow_warp_ = own % 4 == 1 ? warp_order_.front() : -1;
  form_warps(shuffled(kLanes, seed));
  publish(&launched);
  return true;
}

void Block::poison(size_t bytes) {
  const Unwatched here;
  std::memset(shared, poison_, bytes);
}

void Block::form_warps(const std::vector<int64_t>& lane_order) {
  for (size_t warp = 0; warp < warps.size(); ++warp) {
    Thread* last = nullptr;
    for (const int64_t lane : lane_order) {
      const size_t i = warp * kLanes + static_cast<size_t>(lane);
      if (i >= count_) continue;
      Thread* const thread = threads_[i].get();
      (last == nullptr ? warps[warp].first : last->next) = thread;
      last = thread;
    }
    last->next = warps[warp].first;
  }
}

/// A slow warp most often does, so that others get a round ahead of it.
bool Block::stays_behind(int64_t warp) const {
  bool stays = toss();
  for (int i = 0; i < 6 && warp == slow_warp_; ++i) stays = toss() || stays;
  return stays;
}

bool Block::run(bool in_turns) {
  block = this;
  blockIdx = index_;
  moved_ = false;
  do {
    for (const int64_t warp : warp_order_) {
      if (in_turns && stays_behind(warp)) continue;
      if (!run_warp(static_cast<size_t>(warp))) return false;
    }
  } while (can_go_on() ? !in_turns : leave_barrier());
  if (read_by_others_ && moved_ && ended()) poison(shared_bytes_);  // it is gone with its block
  return true;
}

void Block::fail(const std::string& text) {
  note_fault(text);
  failed_ = true;
  current->fiber.pause();
}

/// Another lane goes on if one can, without a way back to run_warp() first.
void Block::wait(State state) {
  Thread* const self = current;
  self->state = state;
  for (Thread* other = self->next; other != self; other = other->next) {
    if (other->state != State::ready) continue;
    set_current(*other);
    self->fiber.hand_over(other->fiber);
    return;
  }
  self->fiber.pause();
}

void Block::release(int warp) {
  warps[static_cast<size_t>(warp)].waiting = 0;
  ++warps[static_cast<size_t>(warp)].exchanges;
  for (size_t i = 0; i < kLanes; ++i) {
    threads_[static_cast<size_t>(warp) * kLanes + i]->state = State::ready;
  }
}

bool Block::check_fence() const {
  allow(shared + shared_bytes_, kFence);
  for (size_t i = 0; i < kFence; ++i) {
    if (shared[shared_bytes_ + i] == poison_) continue;
    note_fault("a kernel wrote past its " + std::to_string(shared_bytes_) +
               " bytes of shared memory");
    return false;
  }
  return true;
}

}  // namespace cuda_model
