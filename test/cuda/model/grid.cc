#include "test/cuda/model/grid.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>

#include "test/cuda/model/block.h"
#include "test/cuda/model/device.h"

namespace cuda_model {

namespace {

std::mutex device_mutex;  // sessions of several threads share the model
std::mutex fault_mutex;
std::vector<std::string> faults;
uint64_t order_seed = 0;
uint64_t tosses = 0;         // state of toss(); 0: all tails
bool grid_together = false;  // of the grid that runs
unsigned cluster_barriers = 0;
char at_cluster_barriers[2];  // even and odd ones, for ThreadSanitizer

size_t first_block = 0;  // of the cluster that runs

Block& block_of(size_t rank) { return *blocks[first_block + rank]; }

/// Where no block can go on: true when all wait for their cluster.
bool meet(size_t count) {
  size_t ended = 0;
  for (size_t i = 0; i < count; ++i) {
    ended += block_of(i).ended() ? 1 : 0;
    if (block_of(i).ended() || block_of(i).at_cluster_barrier()) continue;
    block_of(i).note_stuck();
    return false;
  }
  if (ended == 0) return true;
  note_fault("of the " + std::to_string(count) + " blocks of a cluster " + std::to_string(ended) +
             " have ended while others wait for them");
  return false;
}

bool all_ended(size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (!block_of(i).ended()) return false;
  }
  return true;
}

/// Some of what blocks store in others arrives; false where nothing is on its way.
bool let_arrive(size_t count) {
  bool arrived = false;
  for (size_t i = 0; i < count; ++i) {
    if (block_of(i).ended() && !block_of(i).parcels.empty()) {
      note_fault("a block has ended that another one stores in");
      block_of(i).parcels.clear();
    }
    arrived = deliver_parcels(static_cast<int>(i)) || arrived;
  }
  return arrived;
}

/// The blocks that are started, from barrier to barrier of their cluster.
bool run_cluster(size_t count, uint64_t seed) {
  bool in_turns = seed != 0 && count > 1;
  while (!all_ended(count)) {
    bool moved = false;
    seed = seed == 0 ? 0 : mix(seed);
    for (const int64_t i : shuffled(static_cast<int64_t>(count), seed)) {
      Block& one = block_of(static_cast<size_t>(i));
      if (!one.run(in_turns)) return false;
      moved = moved || one.moved();
    }
    const bool all_tried = !in_turns;
    in_turns = seed != 0 && count > 1 && moved;  // else those that stayed behind
    if (moved || !all_tried) continue;
    if (let_arrive(count)) continue;
    if (!meet(count)) return false;
    ++cluster_barriers;
    for (size_t i = 0; i < count; ++i) block_of(i).leave_cluster_barrier();
  }
  (void)let_arrive(count);
  for (size_t i = 0; i < count; ++i) {
    if (!block_of(i).check_fence()) return false;
  }
  return true;
}

/// That the running thread's lane meets for something of a kind.
Warp& warp_of_running_thread(int kind) {
  Warp& warp = block->warps[static_cast<size_t>(block->current->warp)];
  if (warp.waiting == 0) warp.kind = kind;
  if (warp.kind != kind) block->fail("the lanes of a warp meet in different exchanges");
  return warp;
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
  // Clusters take turns at places of their own, so that nothing but the kernel orders what the
  // blocks of different ones do.
  const size_t threads = cluster * launch.block.x * launch.block.y * launch.block.z;
  const size_t places = std::max(kMostApart / threads, size_t{1});
  const bool watched = threads <= kMostWatched;
  if (watched && Fiber::count_watched() + threads * places > kMostWatched) {
    for (const auto& one : blocks) one->forget_threads();
  }
  while (blocks.size() < cluster * places) blocks.push_back(std::make_unique<Block>());
  for (size_t i = 0; i < cluster * places; ++i) blocks[i]->prepare(launch, watched);
  const int64_t plane = static_cast<int64_t>(launch.grid.x) * launch.grid.y;
  static uint64_t launches = 0;
  const uint64_t seed = order_seed == 0 ? 0 : mix(order_seed + ++launches) | 1;
  tosses = seed;
  const int64_t clusters = plane * launch.grid.z / static_cast<int64_t>(cluster);
  size_t turn = 0;
  for (const int64_t c : shuffled(clusters, seed)) {
    first_block = turn++ % places * cluster;
    const uint64_t own = seed == 0 ? 0 : mix(seed + static_cast<uint64_t>(c)) | 1;
    for (size_t rank = 0; rank < cluster; ++rank) {
      const int64_t i = c * static_cast<int64_t>(cluster) + static_cast<int64_t>(rank);
      const uint3 index{static_cast<unsigned>(i % launch.grid.x),
                        static_cast<unsigned>(i % plane / launch.grid.x),
                        static_cast<unsigned>(i / plane)};
      if (!block_of(rank).start(index, own)) return false;
    }
    if (!run_cluster(cluster, own)) return false;
  }
  for (size_t i = 0; i < cluster * places; ++i) {
    for (unsigned before : {0u, 1u}) observe(blocks[i]->place_of_end(before));
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

unsigned char fresh_byte() { return order_seed == 2 ? 0x7f : 0xff; }

bool toss() {
  if (tosses == 0) return false;
  tosses = mix(tosses);
  return tosses % 2 != 0;
}

std::vector<Parcel>& parcels_of(int rank) { return block_of(static_cast<size_t>(rank)).parcels; }

unsigned char* shared_memory() { return block->shared; }
size_t shared_memory_bytes() { return block->shared_bytes(); }

unsigned char* shared_memory_of(int rank) { return block_of(static_cast<size_t>(rank)).shared; }

int cluster_rank() {
  for (size_t i = first_block; i < blocks.size(); ++i) {
    if (blocks[i].get() == block) return static_cast<int>(i - first_block);
  }
  return -1;
}

void sync_cluster() {
  const char* const place = at_cluster_barriers + cluster_barriers % 2;
  publish(place);
  block->wait(State::at_cluster_barrier);
  observe(place);
}

void sync_grid() {
  if (!grid_together) block->fail("a barrier of a grid whose blocks do not all run together");
  sync_cluster();
}

void sync_block() { sync_block_sum(0); }

int sync_block_sum(int value) {
  block->barrier_sum += value;
  const char* const place = block->at_barriers + block->barriers % 2;
  publish(place);
  block->wait(State::at_barrier);
  observe(place);
  return block->barrier_result;
}

Exchange::Exchange(int kind, unsigned mask, const void* data, size_t bytes) {
  if (mask != 0xffffffffu) block->fail("an exchange of a warp with a mask that is not full");
  Warp& warp = warp_of_running_thread(kind);
  // Two sets of entries: a lane may reach its next exchange before others have read this one.
  unsigned char* entries = warp.entries[warp.exchanges % 2];
  entries_ = entries;
  const int lane = block->current->lane;
  if (bytes > 0) {
    const Unwatched here;
    std::memcpy(entries + static_cast<size_t>(lane) * kEntryBytes, data, bytes);
  }
  const char* const place = warp.places + warp.exchanges % 2;
  if (kind == kSyncWarp) publish(place);
  if (++warp.waiting == kLanes) {
    block->release(block->current->warp);
  } else {
    block->wait(State::at_exchange);
  }
  if (kind == kSyncWarp) observe(place);  // nothing else orders memory
}

void as_warp(int kind, void* of_lane, WarpFunction function) {
  Warp& warp = warp_of_running_thread(kind);
  warp.given[block->current->lane] = of_lane;
  const char* const place = warp.places + warp.exchanges % 2;
  const bool reads_memory = kind == kTiles || kind == kProducts;
  if (++warp.waiting == kLanes) {
    function(warp.given);
    if (reads_memory) publish(place);
    block->release(block->current->warp);
  } else {
    block->wait(State::at_exchange);
    if (reads_memory) observe(place);  // what was read for all is read
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
  // It may be made any time from now on.
  note_write(shared, static_cast<size_t>(bytes));
  if (valid) note_read(global, static_cast<size_t>(bytes));
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
