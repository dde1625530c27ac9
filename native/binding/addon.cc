// The module file: what the addon exports, and nothing else.

#include <node_api.h>

#include "native/binding/environment.h"
#include "native/binding/errors.h"
#include "native/binding/operation.h"
#include "native/binding/process.h"

namespace cluster_attention {
namespace binding {
namespace {

bool add(napi_env env, napi_value exports, const char* name, napi_callback callback) {
  napi_value function = nullptr;
  return napi_create_function(env, name, NAPI_AUTO_LENGTH, callback, nullptr, &function) ==
             napi_ok &&
         napi_set_named_property(env, exports, name, function) == napi_ok;
}

/// `name` and its `nameAsync`.
template <typename Problem>
bool add(napi_env env, napi_value exports, const char* name, const char* async_name) {
  return add(env, exports, name, run_sync<Problem>) &&
         add(env, exports, async_name, run_async<Problem>);
}

bool add_all(napi_env env, napi_value exports) {
  return add<AttentionProblem>(env, exports, "attention", "attentionAsync") &&
         add<ClusteredAttentionProblem>(env, exports, "clustered", "clusteredAsync") &&
         add<CentroidAttentionProblem>(env, exports, "centroidAttention",
                                       "centroidAttentionAsync") &&
         add<CastAttentionProblem>(env, exports, "castAttention", "castAttentionAsync") &&
         add<CentroidPoolProblem>(env, exports, "centroidPool", "centroidPoolAsync") &&
         add<CentroidEncodeProblem>(env, exports, "centroidEncode", "centroidEncodeAsync") &&
         add<LshPlanesProblem>(env, exports, "lshPlanes", "lshPlanesAsync") &&
         add<HashProblem>(env, exports, "hash", "hashAsync") &&
         add<HammingKMeansProblem>(env, exports, "hammingKMeans", "hammingKMeansAsync") &&
         add<KMeansProblem>(env, exports, "kMeans", "kMeansAsync") &&
         add<AggregateProblem>(env, exports, "aggregate", "aggregateAsync") &&
         add<BroadcastProblem>(env, exports, "broadcast", "broadcastAsync") &&
         add<TopKProblem>(env, exports, "topK", "topKAsync") &&
         add<SparseDotProblem>(env, exports, "sparseDot", "sparseDotAsync") &&
         add<SparseWeightedSumProblem>(env, exports, "sparseWeightedSum",
                                       "sparseWeightedSumAsync") &&
         add(env, exports, "info", info) && add(env, exports, "getNumThreads", get_num_threads) &&
         add(env, exports, "setNumThreads", set_num_threads) &&
         add(env, exports, "measurePeak", measure_peak);
}

}  // namespace
}  // namespace binding
}  // namespace cluster_attention

NAPI_MODULE_INIT() {
  using namespace cluster_attention::binding;
  if (Environment::attach(env) && !add_all(env, exports)) throw_napi_error(env);
  return exports;
}
