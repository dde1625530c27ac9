#pragma once

// Gradients of CAST (cast_arrays.h).

#include "native/core/gradient_problem.h"
#include "test/native/cast_arrays.h"
#include "test/native/wanted.h"

namespace cluster_attention::test {

/// A CAST attention that has been run, and everything its backward needs.
struct CastGradientArrays : CastArrays {
  CastGradientArrays(const Case& which, Selection selection, Activation activation,
                     bool has_scale = true);

  Arrays gradients;
  CastAttentionGradientProblem problem;
  float* output_gradient;

  void run_forward();
  int64_t rows() const { return inputs.shape.batch * inputs.shape.heads * inputs.shape.key_length; }
  int64_t surrogate_count() const {
    return inputs.shape.heads * problem.forward.clusters * inputs.shape.head_dim;
  }
  std::vector<float> query_gradient() const;
  std::vector<float> key_gradient() const;
  std::vector<float> value_gradient() const;
  std::vector<float> surrogates_gradient() const;
  std::vector<float> gate_gradient() const;
  std::vector<std::vector<float>> results() const {
    return {query_gradient(), key_gradient(), value_gradient(), surrogates_gradient(),
            gate_gradient()};
  }

 private:
  OutputRows output_view(const InputRows& like, int64_t dim);
  std::vector<float> read_rows(const OutputRows& view, int64_t dim) const;
};

/// The part of a problem that is batch entry b.
CastAttentionGradientProblem one_cast_gradient_batch(CastAttentionGradientProblem problem,
                                                     int64_t b);

}  // namespace cluster_attention::test
