// The module file: what the addon exports, and nothing else.

#include <node_api.h>

#include <cstdio>

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
bool add(napi_env env, napi_value exports, const char* name) {
  char async_name[64];
  std::snprintf(async_name, sizeof async_name, "%sAsync", name);
  return add(env, exports, name, run_sync<Problem>) &&
         add(env, exports, async_name, run_async<Problem>);
}

bool add_all(napi_env env, napi_value exports) {
  return add<AttentionProblem>(env, exports, "attention") &&
         add<ClusteredAttentionProblem>(env, exports, "clustered") &&
         add<CentroidAttentionProblem>(env, exports, "centroidAttention") &&
         add<CastAttentionProblem>(env, exports, "castAttention") &&
         add<CentroidPoolProblem>(env, exports, "centroidPool") &&
         add<CentroidEncodeProblem>(env, exports, "centroidEncode") &&
         add<LshPlanesProblem>(env, exports, "lshPlanes") &&
         add<HashProblem>(env, exports, "hash") &&
         add<HammingKMeansProblem>(env, exports, "hammingKMeans") &&
         add<KMeansProblem>(env, exports, "kMeans") &&
         add<AggregateProblem>(env, exports, "aggregate") &&
         add<BroadcastProblem>(env, exports, "broadcast") &&
         add<TopKProblem>(env, exports, "topK") &&
         add<SparseDotProblem>(env, exports, "sparseDot") &&
         add<SparseWeightedSumProblem>(env, exports, "sparseWeightedSum") &&
         add<MatmulProblem>(env, exports, "matmul") && add(env, exports, "info", info) &&
         add(env, exports, "getNumThreads", get_num_threads) &&
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
