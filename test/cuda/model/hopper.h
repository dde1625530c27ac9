#pragma once

// What sm_90a adds: barriers in shared memory, named barriers, and products of a warpgroup.
//
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
void arrive(uint64_t* barrier);
void wait_for(uint64_t* barrier, uint32_t parity);
/// bar.sync of `threads` threads.
void sync_named(int name, int threads);

/// D (64, columns) (+)= A B, see cuda/primitives/wgmma.cuh: A by four registers of the lane, or by
/// a descriptor where `a` is null; B (16, columns) where `transposed`, else (columns, 16).
struct Product {
  float* d;
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

/// Of a block.
struct NamedBarrier {
  int waiting = 0;
  unsigned generation = 0;
};

}  // namespace cuda_model
