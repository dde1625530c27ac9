#include "native/kernels/pool_similarity.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "native/core/coarse_rounding.h"
#include "native/core/shape.h"
#include "native/core/tensor.h"
#include "native/kernels/finite.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

namespace {

constexpr int64_t kRowsPerTask = 256;

/// 1 / |row|; 0 for a row of zeros, and for one so short that the quotient is no float.
double inverse_norm(const float* row, int64_t dim) {
  double squared = 0.0;
  for (int64_t d = 0; d < dim; ++d) squared += static_cast<double>(row[d]) * row[d];
  const double norm = std::sqrt(squared);
  return norm < std::numeric_limits<float>::min() ? 0.0 : 1.0 / norm;
}

/// gradient (+)= what the gradient by row / |row| means for the row: nothing along it.
void unit_row_gradient(const float* row, double inverse_norm, const float* by_unit, int64_t dim,
                       bool accumulate, float* gradient) {
  double along = 0.0;
  for (int64_t d = 0; d < dim; ++d) along += row[d] * inverse_norm * by_unit[d];
  for (int64_t d = 0; d < dim; ++d) {
    const double across = (by_unit[d] - along * (row[d] * inverse_norm)) * inverse_norm;
    gradient[d] = static_cast<float>(accumulate ? gradient[d] + across : across);
  }
}

}  // namespace

Status PoolSimilarity::prepare(const CentroidPoolProblem& problem, const float* starts,
                               Context& context) {
  problem_ = &problem;
  dim_ = problem.dim + (problem.similarity == Similarity::euclidean ? 1 : 0);
  if (problem.similarity == Similarity::cosine) CA_RETURN_IF_ERROR(find_norms(context));
  return find_origins(starts, context);
}

Status PoolSimilarity::find_norms(Context& context) {
  const CentroidPoolProblem& problem = *problem_;
  inverse_norm_ = context.workspace().allocate<float>(problem.batch * problem.length);
  if (inverse_norm_ == nullptr) return Status::out_of_memory();
  const int64_t tasks = divide_up(problem.length, kRowsPerTask);
  return context.parallel(problem.batch * tasks, [&](int64_t task, int) {
    const int64_t batch = task / tasks;
    const int64_t length = real_length(problem.lengths, batch, problem.length);
    const int64_t begin = task % tasks * kRowsPerTask;
    const int64_t end = std::min(begin + kRowsPerTask, length);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = batch * problem.length + i;
      inverse_norm_[row] =
          static_cast<float>(inverse_norm(problem.inputs + row * problem.dim, problem.dim));
    }
  });
}

Status PoolSimilarity::find_origins(const float* starts, Context& context) {
  const CentroidPoolProblem& problem = *problem_;
  const int64_t dim = problem.dim;
  origin_ = context.workspace().allocate_zeroed<float>(problem.batch * dim);
  double* sums = context.workspace().allocate_zeroed<double>(problem.batch * 3 * dim);
  if (origin_ == nullptr || sums == nullptr) return Status::out_of_memory();
  return context.parallel(problem.batch, [&](int64_t batch, int) {
    const int64_t centroids =
        std::min(problem.centroids, int64_t{real_length(problem.lengths, batch, problem.length)});
    double* sum = sums + batch * 3 * dim;
    double* lowest = sum + dim;
    double* highest = lowest + dim;
    for (int64_t j = 0; j < centroids; ++j) {
      const float* row = starts + (batch * problem.centroids + j) * dim;
      const double factor = centroid_factor(row);
      for (int64_t d = 0; d < dim; ++d) {
        const double element = row[d] * factor;
        sum[d] += element;
        lowest[d] = j > 0 ? std::min(lowest[d], element) : element;
        highest[d] = j > 0 ? std::max(highest[d], element) : element;
      }
    }
    for (int64_t d = 0; d < dim && centroids > 0; ++d) {
      const double mean = sum[d] / static_cast<double>(centroids);
      const double spread = std::max(highest[d] - mean, mean - lowest[d]);
      origin_[batch * dim + d] = round_coarsely(mean, spread);
    }
    if (leaves_origin(batch)) std::fill_n(origin_ + batch * dim, dim, 0.0f);
  });
}

/// Whether the first step takes the centroids far away from an origin near given starts, to where
/// the inputs are: their digits would be lost in those of the origin.
bool PoolSimilarity::leaves_origin(int64_t batch) const {
  const CentroidPoolProblem& problem = *problem_;
  if (problem.start != PoolStart::given || problem.iterations == 0) return false;
  if (problem.similarity == Similarity::cosine) return false;  // all are unit rows
  constexpr float kFar = 16.0f;
  const auto magnitude = [](float largest, float x) { return std::max(largest, std::fabs(x)); };
  const float* origin = origin_ + batch * problem.dim;
  const float far = std::accumulate(origin, origin + problem.dim, 0.0f, magnitude) / kFar;
  const float* inputs = problem.inputs + batch * problem.length * problem.dim;
  const int64_t count = real_length(problem.lengths, batch, problem.length) * problem.dim;
  return std::none_of(inputs, inputs + count, [far](float x) { return std::fabs(x) >= far; });
}

double PoolSimilarity::centroid_factor(const float* centroid) const {
  return problem_->similarity == Similarity::cosine ? inverse_norm(centroid, problem_->dim) : 1.0;
}

void PoolSimilarity::prepare_centroid(int64_t batch, const float* centroid, float* operand) const {
  const int64_t dim = problem_->dim;
  const float* origin = origin_ + batch * dim;
  const double factor = centroid_factor(centroid);
  double squared = 0.0;
  for (int64_t d = 0; d < dim; ++d) {
    operand[d] = static_cast<float>(centroid[d] * factor - origin[d]);
    squared += static_cast<double>(operand[d]) * operand[d];
  }
  if (problem_->similarity == Similarity::euclidean) {
    operand[dim] = static_cast<float>(-0.5 * squared);
  }
}

void PoolSimilarity::pack(int64_t batch, int64_t first, int64_t columns, float* packed) const {
  const int64_t lanes = simd().lanes;
  const int64_t dim = problem_->dim;
  const int64_t row = batch * problem_->length + first;
  simd().pack(problem_->inputs + row * dim, dim, nullptr, columns, dim, packed);
  switch (problem_->similarity) {
    case Similarity::cosine:
      for (int64_t d = 0; d < dim; ++d) {
        for (int64_t i = 0; i < columns; ++i) packed[d * lanes + i] *= inverse_norm_[row + i];
      }
      return;
    case Similarity::dot:
      return;
    case Similarity::euclidean:
      for (int64_t d = 0; d < dim; ++d) {
        const float origin = origin_[batch * dim + d];
        for (int64_t i = 0; i < columns; ++i) packed[d * lanes + i] -= origin;
      }
      std::fill(packed + dim * lanes, packed + (dim + 1) * lanes, 1.0f);
      return;
  }
}

void PoolSimilarity::prepare_input(int64_t batch, int64_t input, const float* x,
                                   float* operand) const {
  const int64_t dim = problem_->dim;
  switch (problem_->similarity) {
    case Similarity::cosine: {
      const float factor = inverse_norm_[batch * problem_->length + input];
      for (int64_t d = 0; d < dim; ++d) operand[d] = x[d] * factor;
      return;
    }
    case Similarity::dot:
      std::copy_n(x, dim, operand);
      return;
    case Similarity::euclidean:
      for (int64_t d = 0; d < dim; ++d) operand[d] = x[d] - origin_[batch * dim + d];
      operand[dim] = 1.0f;
      return;
  }
}

void PoolSimilarity::centroid_gradient(const float* centroid, const float* operand,
                                       const float* by_operand, float* gradient) const {
  const int64_t dim = problem_->dim;
  switch (problem_->similarity) {
    case Similarity::cosine:
      unit_row_gradient(centroid, centroid_factor(centroid), by_operand, dim, false, gradient);
      return;
    case Similarity::dot:
      std::copy_n(by_operand, dim, gradient);
      return;
    case Similarity::euclidean:  // the last element of the operand is -|u - c|^2 / 2
      for (int64_t d = 0; d < dim; ++d) gradient[d] = by_operand[d] - by_operand[dim] * operand[d];
      return;
  }
}

void PoolSimilarity::add_input_gradient(int64_t batch, int64_t input, const float* x,
                                        const float* by_operand, float* gradient) const {
  const int64_t dim = problem_->dim;
  if (problem_->similarity == Similarity::cosine) {
    unit_row_gradient(x, inverse_norm_[batch * problem_->length + input], by_operand, dim, true,
                      gradient);
    return;
  }
  for (int64_t d = 0; d < dim; ++d) gradient[d] += by_operand[d];
}

}  // namespace cluster_attention::kernels
