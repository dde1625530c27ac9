#pragma once

// Marks functions that CUDA kernels call too; it says nothing to other compilers.

#if defined(__CUDACC__)
#define CA_HOST_DEVICE __host__ __device__
#else
#define CA_HOST_DEVICE
#endif
