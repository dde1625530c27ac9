#pragma once

// A problem of CAST, made from a case of the table: tokens are its keys.

#include "native/core/problem.h"
#include "test/native/attention_arrays.h"

namespace cluster_attention::test {

/// Single assignment gets room for every token; given indices hold empty slots and padded tokens.
struct CastArrays : AttentionArrays {
  CastArrays(const Case& which, Selection selection, Activation activation = Activation::softmax);

  CastAttentionProblem problem;
  float* surrogates;
  float* gate;
  int32_t* given = nullptr;

  int64_t slots() const { return inputs.shape.batch * problem.clusters * problem.cluster_size; }
  std::vector<float> result() const { return read_output(output, inputs.shape); }
  std::vector<int32_t> indices() const { return read(problem.indices, slots()); }

 private:
  std::vector<int32_t> given_indices() const;
};

/// The part of a problem that is batch entry b.
CastAttentionProblem one_cast_batch(CastAttentionProblem problem, int64_t b);

constexpr Selection kSelections[] = {Selection::top_k, Selection::single_assignment,
                                     Selection::given};
constexpr Activation kActivations[] = {Activation::softmax, Activation::laplace};

std::string cast_options_name(Selection selection, Activation activation);

}  // namespace cluster_attention::test
