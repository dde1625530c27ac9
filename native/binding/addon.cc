// The module file: what the addon exports, and nothing else.

#include <node_api.h>

#include "native/binding/device.h"
#include "native/binding/environment.h"
#include "native/binding/errors.h"
#include "native/binding/operation.h"
#include "native/binding/process.h"

namespace cluster_attention {
namespace binding {
namespace {

bool add_all(napi_env env, napi_value exports) {
  return add_operation<AttentionProblem>(env, exports, "attention") &&
         add_operation<ClusteredAttentionProblem>(env, exports, "clustered") &&
         add_operation<CentroidAttentionProblem>(env, exports, "centroidAttention") &&
         add_operation<CastAttentionProblem>(env, exports, "castAttention") &&
         add_operation<CentroidPoolProblem>(env, exports, "centroidPool") &&
         add_operation<CentroidEncodeProblem>(env, exports, "centroidEncode") &&
         add_operation<LshPlanesProblem>(env, exports, "lshPlanes") &&
         add_operation<HashProblem>(env, exports, "hash") &&
         add_operation<HammingKMeansProblem>(env, exports, "hammingKMeans") &&
         add_operation<KMeansProblem>(env, exports, "kMeans") &&
         add_operation<AggregateProblem>(env, exports, "aggregate") &&
         add_operation<BroadcastProblem>(env, exports, "broadcast") &&
         add_operation<TopKProblem>(env, exports, "topK") &&
         add_operation<SparseDotProblem>(env, exports, "sparseDot") &&
         add_operation<SparseWeightedSumProblem>(env, exports, "sparseWeightedSum") &&
         add_operation<MatmulProblem>(env, exports, "matmul") &&
         add_operation<AttentionGradientProblem>(env, exports, "attentionGradient") &&
         add_operation<ClusteredAttentionGradientProblem>(env, exports, "clusteredGradient") &&
         add_operation<CentroidAttentionGradientProblem>(env, exports,
                                                         "centroidAttentionGradient") &&
         add_operation<CastAttentionGradientProblem>(env, exports, "castAttentionGradient") &&
         add_operation<CentroidPoolGradientProblem>(env, exports, "centroidPoolGradient") &&
         add_operation<CentroidEncodeGradientProblem>(env, exports, "centroidEncodeGradient") &&
         add_operation<AggregateGradientProblem>(env, exports, "aggregateGradient") &&
         add_operation<BroadcastGradientProblem>(env, exports, "broadcastGradient") &&
         add_operation<SparseDotGradientProblem>(env, exports, "sparseDotGradient") &&
         add_operation<SparseWeightedSumGradientProblem>(env, exports,
                                                         "sparseWeightedSumGradient") &&
         add_operation<UploadProblem>(env, exports, "upload") &&
         add_operation<DownloadProblem>(env, exports, "download") &&
         add_operation<ProbeProblem>(env, exports, "probe") &&
         add_function(env, exports, "allocate", allocate_memory) &&
         add_function(env, exports, "release", release_memory) &&
         add_function(env, exports, "cudaInfo", cuda_info) &&
         add_function(env, exports, "info", info) &&
         add_function(env, exports, "getNumThreads", get_num_threads) &&
         add_function(env, exports, "setNumThreads", set_num_threads) &&
         add_function(env, exports, "measurePeak", measure_peak) && add_test_hooks(env, exports);
}

}  // namespace
}  // namespace binding
}  // namespace cluster_attention

NAPI_MODULE_INIT() {
  using namespace cluster_attention::binding;
  if (Environment::attach(env) && !add_all(env, exports)) throw_napi_error(env);
  return exports;
}
