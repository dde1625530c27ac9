#pragma once

// §2.1 locality-sensitive hashing: bit b of row x is 1 iff x·plane_b > threshold_b.

#include "native/core/problem.h"
#include "native/reference/matrix.h"

namespace cluster_attention::reference {

/// Hashes of the rows of `inputs` (rows,D) under `planes` (bits,D+1).
std::vector<uint64_t> hash(const Matrix& inputs, const Matrix& planes);
std::vector<uint64_t> hash(const HashProblem& problem);

/// The planes with each threshold replaced by the projection of rank floor(u_b n) of the n rows,
/// u_b uniform from `seed` (threshold: 'data').
Matrix with_data_thresholds(const Matrix& inputs, const Matrix& planes, uint64_t seed);

}  // namespace cluster_attention::reference
