#pragma once

// The steps of pooling (centroid_pool.h), one at a time: its backward runs them again.

#include <algorithm>
#include <cstdint>

#include "native/core/context.h"
#include "native/core/problem.h"
#include "native/core/shape.h"
#include "native/core/tensor.h"
#include "native/kernels/assignment.h"
#include "native/kernels/centroid_start.h"
#include "native/kernels/pool_similarity.h"

namespace cluster_attention::kernels {

class CentroidPooling {
 public:
  /// `problem` and `context` must outlive this object. problem.output holds the centroids.
  CentroidPooling(const CentroidPoolProblem& problem, Context& context)
      : problem_(problem), context_(context) {}

  /// u⁰ into problem.output, and everything that the steps share.
  Status prepare();
  /// One step of the centroids. labels (batch,N), optional: the most similar centroid of every
  /// input before the step; those of padding are not written.
  Status step(int32_t* labels);
  /// Where the inputs belong now, without another step; labels as above.
  Status assign(int32_t* labels);
  /// Mass of a real centroid in the last step() or assign().
  float mass(int64_t batch, int64_t j) const {
    return sums_.total_mass(batch * parts_, parts(batch), j);
  }

  int64_t inputs(int64_t batch) const {
    return real_length(problem_.lengths, batch, problem_.length);
  }
  /// Those that are real.
  int64_t centroids(int64_t batch) const;
  const PoolSimilarity& similarity() const { return similarity_; }
  /// Adds the gradient by u⁰ (batch,M,d) to that by the inputs (batch,N,d).
  void add_start_gradient(const float* gradient, float* inputs) const;
  /// Calls body(batch, j, worker) for every real centroid.
  template <typename Body>
  Status for_centroids(Body body) const;

 private:
  /// What a pass over the inputs is for.
  enum class Pass { update, assign };

  int64_t parts(int64_t batch) const;
  float* centroid(int64_t batch, int64_t j) const {
    return problem_.output + (batch * problem_.centroids + j) * problem_.dim;
  }
  float* operand(int64_t batch, int64_t j) const {
    return operands_ + (batch * problem_.centroids + j) * similarity_.dim();
  }

  CentroidStart start_of(int64_t batch) const;
  Status start();
  Status allocate();
  Status pass(Pass purpose, int32_t* labels);
  void pass_part(Pass purpose, int64_t batch, int64_t part, int32_t* labels, int worker);
  /// Sums of at most kInputsPerBlock inputs of a hard assignment.
  AssignmentSums block(int worker) const;
  int64_t block_columns() const;
  void clear(int64_t centroids, const AssignmentSums& sums) const;
  void add_hard(Pass purpose, int64_t columns, const float* rows, const AssignmentTile& tile,
                const AssignmentSums& sums) const;
  void add_block(int64_t centroids, const AssignmentSums& block, const AssignmentSums& sums) const;
  void update(int64_t batch, int64_t j, float* mean);
  /// Writes what the inputs are compared with.
  void prepare_centroid(int64_t batch, int64_t j);

  static constexpr int64_t kCentroidsPerTask = 64;
  static constexpr int64_t kInputsPerBlock = 512;

  const CentroidPoolProblem& problem_;
  Context& context_;
  PoolSimilarity similarity_;
  int64_t parts_ = 1;                // of the longest sequence
  int64_t* chosen_ = nullptr;        // (batch,M), which inputs the start has taken
  float* operands_ = nullptr;        // (batch,M,similarity dim)
  float* rows_ = nullptr;            // (workers,d)
  AssignmentTile* tiles_ = nullptr;  // (workers)
  float* blocks_ = nullptr;          // (workers,M,d and 1, rounded up), of a hard assignment
  AssignmentSumsArray sums_;         // (batch,parts)
};

template <typename Body>
Status CentroidPooling::for_centroids(Body body) const {
  const int64_t tasks = divide_up(problem_.centroids, kCentroidsPerTask);
  return context_.parallel(problem_.batch * tasks, [&](int64_t task, int worker) {
    const int64_t batch = task / tasks;
    const int64_t begin = task % tasks * kCentroidsPerTask;
    const int64_t end = std::min(begin + kCentroidsPerTask, centroids(batch));
    for (int64_t j = begin; j < end; ++j) body(batch, j, worker);
  });
}

}  // namespace cluster_attention::kernels
