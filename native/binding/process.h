#pragma once

// Functions about the process rather than about a problem.

#include <node_api.h>

namespace cluster_attention {
namespace binding {

/// info() -> { version, found, used }: the addon's version and the instruction sets.
napi_value info(napi_env env, napi_callback_info info);
napi_value get_num_threads(napi_env env, napi_callback_info info);
/// setNumThreads({ threads })
napi_value set_num_threads(napi_env env, napi_callback_info info);
/// measurePeak() -> GFLOP/s of multiply-adds in registers, over the threads set; takes a moment.
napi_value measure_peak(napi_env env, napi_callback_info info);

#if defined(CA_BUILD_TEST_HOOKS)
bool add_test_hooks(napi_env env, napi_value exports);  // test/hooks/test_hooks.cc
#else
inline bool add_test_hooks(napi_env, napi_value) { return true; }
#endif

}  // namespace binding
}  // namespace cluster_attention
