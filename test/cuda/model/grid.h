#pragma once

// Runs the threads of a grid: clusters of blocks one after the other, the threads of a cluster as
// fibers that change over only where they wait for each other. A warp's exchange waits for its 32
// lanes, __syncthreads() for the block, sync_cluster() for the cluster. What cannot end on a GPU,
// or has no defined result there, is noted as a fault of the kernel and ends the launch:
//   - lanes of one warp that meet in different exchanges, or with a mask that is not full,
//   - a barrier that some threads never reach,
//   - blocks of a cluster that wait for what none of them sends.
// The order of blocks, warps and lanes follows a seed: kernels that lack a barrier give other
// results under another seed. Fresh memory holds NaN, and under seed 2 the largest numbers.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "test/cuda/model/hopper.h"

namespace cuda_model {

constexpr int kLanes = 32;

struct Index3 {
  unsigned x = 0, y = 0, z = 0;
};

struct Launch {
  Index3 grid;
  Index3 block;
  size_t shared_bytes = 0;
  std::function<void()> body;  // one thread of the kernel
  unsigned cluster = 1;        // blocks that run together, side by side in x
  bool together = false;       // all of them do
};

/// Runs all of it; false, with the fault noted, when the kernel is wrong.
bool run_grid(const Launch& launch);

/// Faults since the last call, oldest first.
std::vector<std::string> take_faults();
void note_fault(const std::string& text);

/// 0: ascending, the order in which kernels that lack a barrier most often seem right.
void set_thread_order(uint64_t seed);
/// What fresh memory is filled with: a NaN, whichever float it is read as; or, for who drops NaN
/// unnoticed, numbers near the largest.
unsigned char fresh_byte();

// ---- what device code calls, see device.h ----

/// One of two things that a kernel must not notice, by the seed.
bool toss();

unsigned char* shared_memory();
size_t shared_memory_bytes();
/// Of another block of the cluster.
unsigned char* shared_memory_of(int rank);
int cluster_rank();
void sync_cluster();
/// Of all blocks, where they run together.
void sync_grid();
void sync_block();
/// Sum over the block of `value`, in all threads.
int sync_block_sum(int value);

/// Every lane gives `bytes` (at most 64) and sees those of all: entry(lane) is valid until the
/// lane's next exchange but one. `kind` must be the same for all lanes.
class Exchange {
 public:
  Exchange(int kind, unsigned mask, const void* data, size_t bytes);
  const void* entry(int lane) const { return entries_ + lane * kEntryBytes; }
  static constexpr size_t kEntryBytes = 64;

 private:
  const unsigned char* entries_;
};
/// What the lanes of a warp do as one, such as a product: the last of them to come calls `function`
/// with what each has given, which may lie on its stack.
using WarpFunction = void (*)(void* const (&lanes)[kLanes]);
void as_warp(int kind, void* of_lane, WarpFunction function);
int lane_of_running_thread();

/// The running thread goes on once `condition` holds.
void wait_until(const std::function<bool()>& condition);
Products& products_of_running_thread();
/// On their way to a block of the cluster: stores that arrive when nothing else can happen.
std::vector<Parcel>& parcels_of(int rank);
/// Lets some of them arrive; false where there are none.
bool deliver_parcels(int rank);
NamedBarrier& named_barrier(int name);

void copy_async(void* shared, const void* global, int bytes, bool valid);
void commit_copies();
void wait_copies(int groups_left);

}  // namespace cuda_model
