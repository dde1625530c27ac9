// What a test build of the addon exports beside its operations (CA_BUILD_TEST_HOOKS): ways to let
// things fail that never fail on a healthy machine.
//
//   failAllocation(n)    the n-th allocation of a workspace from now fails; 0: none
//   failNew(n)           the same for operator new(nothrow): calls and their queue
//   failThreads(flag)    no thread of the pool can be started
//   bytesInUse()         bytes that live workspaces hold
//   readOutside()        reads past an array: a bug, for the address sanitizer to find

#include <node_api.h>

#include <atomic>
#include <cstdint>
#include <new>

#include "native/binding/operation.h"
#include "native/core/thread_pool.h"
#include "native/core/workspace.h"

namespace {

std::atomic<int64_t> news_until_failure{0};

}  // namespace

extern "C" {

void* __real__ZnwmRKSt9nothrow_t(size_t bytes, const std::nothrow_t& tag);

void* __wrap__ZnwmRKSt9nothrow_t(size_t bytes, const std::nothrow_t& tag) {
  if (news_until_failure.load() > 0 && news_until_failure.fetch_sub(1) == 1) return nullptr;
  return __real__ZnwmRKSt9nothrow_t(bytes, tag);
}

}  // extern "C"

namespace cluster_attention {
namespace binding {

namespace {

/// The first argument as an integer.
int64_t argument(napi_env env, napi_callback_info info) {
  size_t count = 1;
  napi_value value = nullptr;
  int64_t number = 0;
  napi_get_cb_info(env, info, &count, &value, nullptr, nullptr);
  napi_get_value_int64(env, value, &number);
  return number;
}

napi_value fail_allocation(napi_env env, napi_callback_info info) {
  fail_workspace_allocation(argument(env, info));
  return nullptr;
}

napi_value fail_new(napi_env env, napi_callback_info info) {
  news_until_failure = argument(env, info);
  return nullptr;
}

napi_value fail_threads(napi_env env, napi_callback_info info) {
  fail_thread_starts(argument(env, info) != 0);
  return nullptr;
}

napi_value bytes_in_use(napi_env env, napi_callback_info) {
  napi_value result = nullptr;
  napi_create_int64(env, workspace_bytes_in_use(), &result);
  return result;
}

napi_value read_outside(napi_env env, napi_callback_info) {
  constexpr size_t kLength = 4;
  int32_t* array = new int32_t[kLength]();
  const volatile int32_t* element = array;
  napi_value result = nullptr;
  napi_create_int32(env, element[kLength], &result);
  delete[] array;
  return result;
}

}  // namespace

bool add_test_hooks(napi_env env, napi_value exports) {
  return add_function(env, exports, "failAllocation", fail_allocation) &&
         add_function(env, exports, "failNew", fail_new) &&
         add_function(env, exports, "failThreads", fail_threads) &&
         add_function(env, exports, "bytesInUse", bytes_in_use) &&
         add_function(env, exports, "readOutside", read_outside);
}

}  // namespace binding
}  // namespace cluster_attention
