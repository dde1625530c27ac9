#pragma once

#include <cstdint>

#include "native/core/context.h"
#include "native/core/problem.h"

namespace cluster_attention::kernels {

/// One sequence whose starting centroids are wanted.
struct CentroidStart {
  PoolStart start = PoolStart::stride;
  uint64_t seed = 0;
  bool normalize_rows = false;     // distances between unit-normalised rows (cosine similarity)
  const float* inputs = nullptr;   // (length,dim)
  const float* initial = nullptr;  // (count,dim) for PoolStart::given
  int64_t length = 0;
  int64_t dim = 0;
};

/// Writes u⁰ of spec §6, (count,dim); count <= length unless the start is given. `chosen` (count)
/// is scratch. Called outside Context::parallel().
Status start_centroids(const CentroidStart& sequence, int64_t count, int64_t* chosen,
                       Context& context, float* centroids);

/// Adds the gradient by u⁰ (count,dim) to that by the inputs that start_centroids() has made it of:
/// a mean's shares, or the row that was taken. Row i of the sequence is row index[i] (null: i) of
/// `inputs`. Of the sequence, start, length and dim are read.
void add_start_gradient(const CentroidStart& sequence, int64_t count, const int64_t* chosen,
                        const int32_t* index, const float* gradient, float* inputs);

}  // namespace cluster_attention::kernels
