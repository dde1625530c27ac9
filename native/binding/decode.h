#pragma once

// Request -> problem, one function per operation. Field names are those of the public options;
// sizes of `shape` stand beside them. Checks repeat what lib/ has checked (request.h says why).

#include <cstdint>

#include "native/binding/request.h"
#include "native/core/context.h"
#include "native/core/gradient_problem.h"
#include "native/core/problem.h"
#include "native/dispatch.h"
#include "native/dispatch_device.h"

namespace cluster_attention {
namespace binding {

/// lshPlanes: random planes for hash(); the one operation that is not a problem of its own below.
struct LshPlanesProblem {
  int64_t bits = 0;
  int64_t dim = 0;
  uint64_t seed = 0;
  bool bias = true;
  float* output = nullptr;  // (bits,dim+1)
};
Status run(const LshPlanesProblem& problem, const CallSettings& settings, Context& context);

void decode(Request& request, AttentionProblem& problem);
void decode(Request& request, ClusteredAttentionProblem& problem);
void decode(Request& request, CentroidAttentionProblem& problem);
void decode(Request& request, CastAttentionProblem& problem);
void decode(Request& request, CentroidPoolProblem& problem);
void decode(Request& request, CentroidEncodeProblem& problem);
void decode(Request& request, LshPlanesProblem& problem);
void decode(Request& request, HashProblem& problem);
void decode(Request& request, HammingKMeansProblem& problem);
void decode(Request& request, KMeansProblem& problem);
void decode(Request& request, AggregateProblem& problem);
void decode(Request& request, BroadcastProblem& problem);
void decode(Request& request, TopKProblem& problem);
void decode(Request& request, SparseDotProblem& problem);
void decode(Request& request, SparseWeightedSumProblem& problem);
void decode(Request& request, MatmulProblem& problem);

// Of devices: `memory` is the number of the device memory, `array` the plain side.
void decode(Request& request, UploadProblem& problem);
void decode(Request& request, DownloadProblem& problem);
void decode(Request& request, ProbeProblem& problem);

// A gradient's request holds what it reads of the forward's inputs and results, `gradOutput`, and
// `<option>Gradient` for every gradient that is wanted.
void decode(Request& request, AttentionGradientProblem& problem);
void decode(Request& request, ClusteredAttentionGradientProblem& problem);
void decode(Request& request, CentroidAttentionGradientProblem& problem);
void decode(Request& request, CastAttentionGradientProblem& problem);
void decode(Request& request, CentroidPoolGradientProblem& problem);
void decode(Request& request, CentroidEncodeGradientProblem& problem);
void decode(Request& request, AggregateGradientProblem& problem);
void decode(Request& request, BroadcastGradientProblem& problem);
void decode(Request& request, SparseDotGradientProblem& problem);
void decode(Request& request, SparseWeightedSumGradientProblem& problem);

}  // namespace binding
}  // namespace cluster_attention
