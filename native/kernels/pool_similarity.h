#pragma once

// The operands whose dot products are the similarities of centroid pooling, up to a constant of the
// input, which a softmax or an argmax over the centroids does not see:
//
//     cosine      (u / |u| - c) . (x / |x|)
//     dot         (u - c) . x
//     euclidean   (u - c) . (x - c) - |u - c|^2 / 2, the last term as one more dimension in which
//                 every input is 1
//
// c is a common origin near the starting centroids (0 where given ones are far from all inputs). It
// changes no result but the rounding: without it, what tells centroids of data far from 0 apart is
// lost in the digits that they share.

#include <cstdint>

#include "native/core/context.h"
#include "native/core/problem.h"

namespace cluster_attention::kernels {

class PoolSimilarity {
 public:
  /// Reads the starting centroids (batch,M,d), and the inputs once if their norms are needed.
  /// `problem` must outlive this object.
  Status prepare(const CentroidPoolProblem& problem, const float* starts, Context& context);

  /// Dimension of the operands.
  int64_t dim() const { return dim_; }
  /// Operand of a centroid u (d) of one sequence.
  void prepare_centroid(int64_t batch, const float* centroid, float* operand) const;  // (dim())
  /// Operands of inputs [first, first + columns), in lanes.
  void pack(int64_t batch, int64_t first, int64_t columns, float* packed) const;  // (dim(),lanes)

  /// Operand of one input x (d), as pack() makes it: (dim()).
  void prepare_input(int64_t batch, int64_t input, const float* x, float* operand) const;
  /// gradient (d): what the gradient by the operand (dim()) of a centroid means for u.
  void centroid_gradient(const float* centroid, const float* operand, const float* by_operand,
                         float* gradient) const;
  /// Adds to gradient (d) what the gradient by the operand (dim()) of an input means for x.
  void add_input_gradient(int64_t batch, int64_t input, const float* x, const float* by_operand,
                          float* gradient) const;

 private:
  /// 1 / |u| for the cosine, 1 otherwise.
  double centroid_factor(const float* centroid) const;
  Status find_norms(Context& context);
  Status find_origins(const float* starts, Context& context);
  bool leaves_origin(int64_t batch) const;

  const CentroidPoolProblem* problem_ = nullptr;
  int64_t dim_ = 0;
  float* inverse_norm_ = nullptr;  // (batch,N), cosine: 1 / |x_i|, 0 for a row of zeros
  float* origin_ = nullptr;        // (batch,d), c
};

}  // namespace cluster_attention::kernels
