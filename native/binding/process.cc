#include "native/binding/process.h"

#include <cstdint>

#include "native/binding/errors.h"
#include "native/binding/request.h"
#include "native/core/context.h"
#include "native/core/thread_pool.h"
#include "native/simd/peak.h"
#include "native/simd/simd.h"

namespace cluster_attention {
namespace binding {
napi_value info(napi_env env, napi_callback_info) {
  napi_value result = nullptr;
  if (napi_create_object(env, &result) == napi_ok &&
      set_text(env, result, "version", CA_PACKAGE_VERSION) &&
      set_text(env, result, "found", available_instruction_sets()) &&
      set_text(env, result, "used", instruction_set())) {
    return result;
  }
  throw_napi_error(env);
  return nullptr;
}

napi_value get_num_threads(napi_env env, napi_callback_info) {
  napi_value result = nullptr;
  if (napi_create_int32(env, ThreadPool::instance().threads(), &result) == napi_ok) return result;
  throw_napi_error(env);
  return nullptr;
}

napi_value set_num_threads(napi_env env, napi_callback_info info) {
  Request request(env, info);
  const int64_t threads = request.integer("threads", 1, kMaximumThreads);
  if (request.ok()) ThreadPool::instance().set_threads(static_cast<int>(threads));
  return nullptr;
}

napi_value measure_peak(napi_env env, napi_callback_info) {
  Context context(ThreadPool::instance().threads());
  napi_value result = nullptr;
  if (napi_create_double(env, measure_peak_gflops(context), &result) == napi_ok) return result;
  throw_napi_error(env);
  return nullptr;
}

}  // namespace binding
}  // namespace cluster_attention
