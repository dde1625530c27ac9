#pragma once

// Turns a problem type into its two JavaScript functions: `run_sync<Problem>` computes on the
// calling thread, `run_async<Problem>` on another and returns a promise. Both decode the same
// request and give the same outcome (errors.h). add_operation<Problem> exports them.

#include <node_api.h>

#include <cstdio>
#include <new>
#include <type_traits>

#include "native/binding/decode.h"
#include "native/binding/environment.h"
#include "native/binding/errors.h"
#include "native/binding/request.h"
#include "native/core/context.h"
#include "native/core/thread_pool.h"
#include "native/dispatch.h"
#include "native/dispatch_device.h"

namespace cluster_attention {
namespace binding {

/// What every request holds beside the problem.
struct CallFrame {
  CallSettings settings;
  int32_t* abort = nullptr;  // (1), optional; JavaScript writes it, kernels poll it
  bool on_device = false;    // else on the CPU, and what follows says nothing
  DeviceCall device;
  MemoryInUse memories;  // of the DeviceTensors among its arrays
};

/// The number of a device, -1 for the CPU.
constexpr int64_t kMaximumDevice = (int64_t{1} << 30);

inline void decode_device(Request& request, CallFrame& frame) {
  const int64_t device = request.integer("device", -1, kMaximumDevice);
  if (device < 0 || !request.ok()) return;
  Environment* environment = request.environment();
  if (environment == nullptr) return;
  EnvironmentDevices& devices = environment->devices();
  frame.on_device = true;
  frame.device.sessions = &devices.sessions;
  frame.device.device = static_cast<int32_t>(device);
  frame.device.storage = request.choice("storage", cuda::Storage::bfloat16);
  request.accept_memory(devices.memories, frame.device.device, frame.device.storage,
                        frame.memories);
}

template <typename Problem>
bool decode_call(Request& request, Problem& problem, CallFrame& frame) {
  frame.settings.non_finite = request.choice("nonFinite", NonFinite::propagate);
  frame.settings.precision = request.choice("precision", Precision::bfloat16);
  request.array("abort", frame.abort, 1, Presence::optional);
  decode_device(request, frame);
  decode(request, problem);
  if (!request.resolve()) return false;
  frame.device.abort = frame.abort;
  for (int i = 0; i < frame.memories.count(); ++i) {
    frame.device.resident[frame.device.residents++] = frame.memories[i].data;
  }
  return true;
}

template <typename Problem>
Status compute(const Problem& problem, const CallFrame& frame) {
  if (frame.on_device) return run_on_device(problem, frame.settings, frame.device);
  if constexpr (std::is_base_of_v<DeviceOnly, Problem>) {
    return {StatusCode::unsupported, "device", -1};
  } else {
    Context context(ThreadPool::instance().threads(), frame.abort);
    return run(problem, frame.settings, context);
  }
}

template <typename Problem>
class AsyncCall final : public PendingCall {
 public:
  bool decode(Request& request) {
    if (!decode_call(request, problem_, frame_)) return false;
    abort_ = frame_.abort;
    return true;
  }
  Status compute() override { return binding::compute(problem_, frame_); }
  RunsOn threads() const { return frame_.on_device ? RunsOn::device_threads : RunsOn::pool; }

 private:
  Problem problem_;
  CallFrame frame_;
};

template <typename Problem>
napi_value run_sync(napi_env env, napi_callback_info info) {
  Request request(env, info);
  Problem problem;
  CallFrame frame;
  if (!decode_call(request, problem, frame)) return nullptr;
  return make_outcome(env, compute(problem, frame));
}

template <typename Problem>
napi_value run_async(napi_env env, napi_callback_info info) {
  Environment* environment = Environment::of(env);
  auto* call = new (std::nothrow) AsyncCall<Problem>();
  if (environment == nullptr || call == nullptr) {
    delete call;
    napi_throw_error(env, "ERR_OUT_OF_MEMORY", "no memory for an asynchronous call");
    return nullptr;
  }
  Request request(env, info);
  if (!call->decode(request)) {
    delete call;
    return nullptr;
  }
  return environment->start(call, request.object(), call->threads());
}

inline bool add_function(napi_env env, napi_value exports, const char* name,
                         napi_callback callback) {
  napi_value function = nullptr;
  return napi_create_function(env, name, NAPI_AUTO_LENGTH, callback, nullptr, &function) ==
             napi_ok &&
         napi_set_named_property(env, exports, name, function) == napi_ok;
}

/// Exports an operation as `name` and `nameAsync`.
template <typename Problem>
bool add_operation(napi_env env, napi_value exports, const char* name) {
  char async_name[64];
  std::snprintf(async_name, sizeof async_name, "%sAsync", name);
  return add_function(env, exports, name, run_sync<Problem>) &&
         add_function(env, exports, async_name, run_async<Problem>);
}

}  // namespace binding
}  // namespace cluster_attention
