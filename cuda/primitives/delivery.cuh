#pragma once

// What the blocks of a cluster write into each other's shared memory, in rounds: stores that nobody
// waits for where they start (st.async), and that a barrier of the receiver counts by their bytes.
// A round costs the way there once, where reading costs it twice and the barrier of the cluster
// besides. Elsewhere than on sm_90, and for a block on its own, plain stores and __syncthreads().
//
// A block may be sent to once it has arrived at a sync_cluster() after open(), and again once the
// senders know, by what they got from it, that it has waited for the round before.

#include "cuda/primitives/cluster.cuh"
#if defined(CA_CUDA_MODEL) || __CUDA_ARCH__ >= 900
#include "cuda/primitives/mbarrier.cuh"
#endif

namespace cluster_attention::cuda {

class Delivery {
 public:
  /// `barrier` is in shared memory, `blocks` are in the cluster.
  __device__ Delivery(uint64_t* barrier, int blocks) : barrier_(barrier), blocks_(blocks) {}

  /// By one thread of each block.
  __device__ void open() const {
#if defined(CA_CUDA_MODEL) || __CUDA_ARCH__ >= 900
    initialize_barrier(barrier_, 1);
    publish_barriers();
#endif
  }

  /// By one thread, when all of the block have waited for the last round: the barrier's memory may
  /// then be used for something else.
  __device__ void close() const {
#if defined(CA_CUDA_MODEL) || __CUDA_ARCH__ >= 900
    invalidate_barrier(barrier_);
#endif
  }

  /// By one thread of each block in each round: what it will get, itself included.
  __device__ void expect(int bytes) const {
#if defined(CA_CUDA_MODEL) || __CUDA_ARCH__ >= 900
    if (blocks_ > 1) arrive_expecting(barrier_, bytes);
#endif
  }

  /// Writes to the place in block `rank` that `own` is in this one: four or eight bytes.
  template <typename T>
  __device__ void send(T* own, int rank, T value) const {
#if defined(CA_CUDA_MODEL) || __CUDA_ARCH__ >= 900
    if (blocks_ > 1) {
      store_in_block(own, rank, value, barrier_);
      return;
    }
#endif
    *own = value;
  }

  /// All threads of the block; rounds count from 0.
  __device__ void wait(int64_t round) const {
#if defined(CA_CUDA_MODEL) || __CUDA_ARCH__ >= 900
    if (blocks_ > 1) {
      wait_for(barrier_, static_cast<uint32_t>(round % 2));
      return;
    }
#endif
    __syncthreads();
  }

 private:
  uint64_t* barrier_;
  int blocks_;
};

}  // namespace cluster_attention::cuda
