#include "native/kernels/centroid_start.h"

#include <algorithm>

#include "native/kernels/starts.h"

namespace cluster_attention::kernels {

Status start_centroids(const CentroidStart& sequence, int64_t count, int64_t* chosen,
                       Context& context, float* centroids) {
  const int64_t dim = sequence.dim;
  if (count == 0) return Status::success();
  switch (sequence.start) {
    case PoolStart::given:
      std::copy(sequence.initial, sequence.initial + count * dim, centroids);
      return Status::success();
    case PoolStart::stride:
      stride_start(sequence.inputs, dim, sequence.length, dim, count, centroids);
      return Status::success();
    case PoolStart::plus_plus:
      CA_RETURN_IF_ERROR(plus_plus_start(sequence.inputs, dim, sequence.length, dim, count,
                                         sequence.seed, sequence.normalize_rows, context, chosen));
      break;
    case PoolStart::farthest:
      CA_RETURN_IF_ERROR(farthest_start(sequence.inputs, dim, sequence.length, dim, count,
                                        sequence.normalize_rows, context, chosen));
      break;
    case PoolStart::sample:
      sample_positions(sequence.seed, sequence.length, count, chosen);
      break;
  }
  for (int64_t j = 0; j < count; ++j) {
    const float* row = sequence.inputs + chosen[j] * dim;
    std::copy(row, row + dim, centroids + j * dim);
  }
  return Status::success();
}

void add_start_gradient(const CentroidStart& sequence, int64_t count, const int64_t* chosen,
                        const int32_t* index, const float* gradient, float* inputs) {
  if (sequence.start == PoolStart::given) return;
  const int64_t dim = sequence.dim;
  const bool mean = sequence.start == PoolStart::stride;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t begin = mean ? j * sequence.length / count : chosen[j];
    const int64_t end = mean ? (j + 1) * sequence.length / count : begin + 1;
    const float share = 1.0f / static_cast<float>(end - begin);
    for (int64_t i = begin; i < end; ++i) {
      float* row = inputs + (index != nullptr ? index[i] : i) * dim;
      for (int64_t d = 0; d < dim; ++d) row[d] += share * gradient[j * dim + d];
    }
  }
}

}  // namespace cluster_attention::kernels
