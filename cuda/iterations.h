#pragma once

// Iterations of k-means as launches, which end with the last one that changes anything.

#include "cuda/session.h"

namespace cluster_attention::cuda {

/// Calls iterate(0), .., iterate(most). Kernels leave sequences that have settled as they are;
/// every so many iterations the host looks whether all have, since launches without work would cost
/// more. The few iterations of a model's call end before the first look.
template <typename Iterate>
Status iterate_until_settled(Session& session, int64_t sequences, int64_t most, Iterate iterate) {
  constexpr int64_t kIterationsPerLook = 32;
  if (most >= kIterationsPerLook) CA_RETURN_IF_ERROR(session.forget_settled());
  for (int64_t i = 0; i <= most; ++i) {
    if (i > 0 && i % kIterationsPerLook == 0) {
      bool settled = false;
      CA_RETURN_IF_ERROR(session.has_settled(sequences, &settled));
      if (settled) break;
    }
    CA_RETURN_IF_ERROR(iterate(i));
  }
  return Status::success();
}

}  // namespace cluster_attention::cuda
