#pragma once

// Backward of a softmax over keys, for rows that attend to all of them: the queries of exact
// attention, or the mean queries of clustered attention. The kernel is in gradient_pass.cuh.

#include "cuda/gradient_operands.h"
#include "cuda/workspace.h"

namespace cluster_attention::cuda {

struct GradientPass {
  int64_t batch = 0;
  int64_t heads = 0;
  int64_t rows = 0;  // of a sequence
  int64_t keys = 0;
  int64_t head_dim = 0;
  int64_t value_dim = 0;
  OperandPair row_operands;              // queries and the gradients of their outputs
  OperandPair key_operands;              // keys and values
  const int32_t* row_lengths = nullptr;  // (B), or null
  /// (B), or null: of what the rows stand for. Where there is none, no row is real.
  const int32_t* member_lengths = nullptr;
  const int32_t* key_lengths = nullptr;  // the same
  const float* maximum = nullptr;        // (B,H,R): log-sum-exp in base 2, +Inf without keys
  const float* offset = nullptr;         // (B,H,R): delta
  float scale = 1.0f;
  bool causal = false;
  bool split = true;  // operands are in two parts
  // Written whole, padding gets 0; one without data is not wanted.
  StoredOutput query;  // (B,H,R,D)
  StoredOutput key;    // (B,H,S,D)
  StoredOutput value;  // (B,H,S,E)
  /// In the place of `query`, where few rows meet many keys: sums before tau, one for each part of
  /// so many keys that holds a real one. Null: one part.
  float* partial = nullptr;  // (B,H,parts,R,D)
  int64_t stretch = 0;
  int64_t parts = 1;
};

/// One launch.
Status gradient_pass(Session& session, const GradientPass& pass);

}  // namespace cluster_attention::cuda
