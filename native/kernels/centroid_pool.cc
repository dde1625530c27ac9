#include "native/kernels/centroid_pool.h"

#include <algorithm>

#include "native/kernels/centroid_pooling.h"
#include "native/kernels/finite.h"

namespace cluster_attention::kernels {

Status centroid_pool(const CentroidPoolProblem& problem, Context& context) {
  CentroidPooling pooling(problem, context);
  CA_RETURN_IF_ERROR(pooling.prepare());
  for (int64_t iteration = 0; iteration < problem.iterations; ++iteration) {
    CA_RETURN_IF_ERROR(pooling.step(nullptr));
  }
  if (!all_finite(problem.output, problem.batch * problem.centroids * problem.dim)) {
    context.mark_non_finite();
  }
  if (problem.labels == nullptr && problem.masses == nullptr) return Status::success();

  if (problem.labels != nullptr) {
    std::fill_n(problem.labels, problem.batch * problem.length, -1);
  }
  if (problem.masses != nullptr) {
    std::fill_n(problem.masses, problem.batch * problem.centroids, 0.0f);
  }
  CA_RETURN_IF_ERROR(pooling.assign(problem.labels));
  if (problem.masses == nullptr) return Status::success();
  return pooling.for_centroids([&](int64_t batch, int64_t j, int) {
    const float mass = pooling.mass(batch, j);
    problem.masses[batch * problem.centroids + j] = mass;
    if (!all_finite(&mass, 1)) context.mark_non_finite();
  });
}

}  // namespace cluster_attention::kernels
