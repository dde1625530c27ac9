#pragma once

// What sm_90a adds: barriers in shared memory, stores in another block's, named barriers, and
// products of a warpgroup.
//
// A store in another block is made at once or when the barrier that counts it lets its block
// through, as the seed of the order has it: who reads too early, or has not read yet what is
// overwritten, gets other results.
// A product is done when its thread waits for it, by its operands as they are then: who overwrites
// them too early, or looks at the sums too early, gets other results than those of a product that
// was done at once. Shared memory is addressed as on a GPU, swizzle and strides of the descriptors
// included. Not modelled: the fences between ordinary writes and the tensor cores.

#include <cstdint>
#include <deque>
#include <vector>

namespace cuda_model {

uint32_t shared_address(const void* shared);

void initialize_barrier(uint64_t* barrier, int arrivals);
void invalidate_barrier(uint64_t* barrier);
void arrive(uint64_t* barrier);
/// arrive(), and the phase is not over before stores of `bytes` more have arrived.
void arrive_expecting(uint64_t* barrier, int bytes);
void store_in_block(void* own, int rank, const void* value, int bytes, uint64_t* barrier);
template <typename T>
void store_in_block(T* own, int rank, T value, uint64_t* barrier) {
  store_in_block(own, rank, &value, static_cast<int>(sizeof value), barrier);
}
void wait_for(uint64_t* barrier, uint32_t parity);
/// bar.sync of `threads` threads.
void sync_named(int name, int threads);

/// D (64, columns) (+)= A B, see cuda/primitives/wgmma.cuh: A by four registers of the lane, or by
/// a descriptor where `a` is null; B (16, columns) where `transposed`, else (columns, 16). Of
/// bytes, twice as many, where sums are integers.
struct Product {
  float* d;
  int32_t* sums;  // in the place of d
  int columns;
  const uint32_t* a;
  uint64_t a_tile;
  uint64_t b_tile;
  bool transposed;
  bool add;
};
void start_product(const Product& product);
void commit_products();
void wait_products(int groups_left);

/// What a thread has started.
struct Products {
  std::vector<Product> open;
  std::deque<std::vector<Product>> groups;
};

/// A store in another block, and the barrier there that counts it when it arrives.
struct Parcel {
  void* to;
  unsigned char value[16];
  int bytes;
  uint64_t* barrier;
};

/// Of a block.
struct NamedBarrier {
  int waiting = 0;
  unsigned generation = 0;
  char places[2] = {};  // that order what threads do, in generations even and odd
};

}  // namespace cuda_model
