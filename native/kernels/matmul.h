#pragma once

// output = A B (+ output), A (rows,depth) and B (depth,columns) or their transposes, batched.
//
// Method: B is packed once into panels of simd().lanes columns (transposing it on the way where it
// must be); tasks are blocks of 64 rows times one panel (project_rows.h). fp32; sums run over
// blocks of 256 of the depth, which are added in order, so that long sums do not lose digits.
// Limits: packing costs depth x columns, which pays from a few dozen rows on.

#include "native/core/context.h"
#include "native/core/problem.h"
#include "native/core/status.h"

namespace cluster_attention::kernels {

Status matmul(const MatmulProblem& problem, Context& context);

}  // namespace cluster_attention::kernels
