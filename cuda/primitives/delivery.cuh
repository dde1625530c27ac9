#pragma once

// What the blocks of a cluster write into each other's shared memory, in rounds: stores that nobody
// waits for where they start (st.async), and that a barrier of the receiver counts by their bytes.
// A round costs the way there once, where reading costs it twice and the barrier of the cluster
// besides. Elsewhere than on sm_90, and for a block on its own, plain stores and __syncthreads().
//
// A block may be sent to once it has arrived at a sync_cluster() after open(). Rounds take turns at
// two barriers: what is sent for a round may arrive while its receiver still waits for the one
// before. It may be sent once every receiver has waited for the round two before; the places that
// it is written to must then be free.

#include "cuda/primitives/cluster.cuh"
#if defined(CA_CUDA_MODEL) || __CUDA_ARCH__ >= 900
#include "cuda/primitives/mbarrier.cuh"
#endif

namespace cluster_attention::cuda {

class Delivery {
 public:
  static constexpr int kBarriers = 2;

  /// `barriers`, kBarriers of them, are in shared memory, `blocks` are in the cluster.
  __device__ Delivery(uint64_t* barriers, int blocks) : barriers_(barriers), blocks_(blocks) {}

  /// By one thread of each block.
  __device__ void open() const {
#if defined(CA_CUDA_MODEL) || __CUDA_ARCH__ >= 900
    for (int i = 0; i < kBarriers; ++i) initialize_barrier(barriers_ + i, 1);
    publish_barriers();
#endif
  }

  /// By one thread, when all of the block have waited for the last round: the memory of the
  /// barriers may then be used for something else.
  __device__ void close() const {
#if defined(CA_CUDA_MODEL) || __CUDA_ARCH__ >= 900
    for (int i = 0; i < kBarriers; ++i) invalidate_barrier(barriers_ + i);
#endif
  }

  /// By one thread of each block in each round, which count from 0: what the block will get, from
  /// itself too.
  __device__ void expect(int64_t round, int bytes) const {
#if defined(CA_CUDA_MODEL) || __CUDA_ARCH__ >= 900
    if (blocks_ > 1) arrive_expecting(barrier_of(round), bytes);
#endif
  }

  /// Writes to the place in block `rank` that `own` is in this one: 4, 8 or 16 bytes.
  template <typename T>
  __device__ void send(int64_t round, T* own, int rank, T value) const {
#if defined(CA_CUDA_MODEL) || __CUDA_ARCH__ >= 900
    if (blocks_ > 1) {
      store_in_block(own, rank, value, barrier_of(round));
      return;
    }
#endif
    *own = value;
  }

  /// All threads of the block.
  __device__ void wait(int64_t round) const {
#if defined(CA_CUDA_MODEL) || __CUDA_ARCH__ >= 900
    if (blocks_ > 1) {
      // Lanes that wait are not to keep those of their warp that have yet to send.
      __syncwarp();
      wait_for_blocks(barrier_of(round), static_cast<uint32_t>(round / kBarriers % 2));
      return;
    }
#endif
    __syncthreads();
  }

 private:
  __device__ uint64_t* barrier_of(int64_t round) const { return barriers_ + round % kBarriers; }

  uint64_t* barriers_;
  int blocks_;
};

}  // namespace cluster_attention::cuda
