#include "native/binding/device.h"

#include <cstdio>

#include "native/binding/decode.h"
#include "native/binding/environment.h"
#include "native/binding/errors.h"
#include "native/binding/request.h"
#include "native/dispatch_backend.h"

namespace cluster_attention {
namespace binding {
namespace {

/// The typed array that stands for a type in plain memory.
napi_typedarray_type array_type(DeviceType type) {
  switch (type) {
    case DeviceType::int32:
      return napi_int32_array;
    case DeviceType::uint64:
      return napi_biguint64_array;
    case DeviceType::float64:
      return napi_float64_array;
    default:
      return napi_float32_array;
  }
}

void decode_transfer(Request& request, Transfer& transfer) {
  const DeviceMemory* memory = request.memory("memory");
  if (memory == nullptr) return;
  transfer.type = memory->type;
  transfer.elements = memory->elements;
  transfer.device = memory->data;
  request.any_array("array", array_type(memory->type), transfer.host, memory->elements);
}

/// Tells the garbage collector about memory that it cannot see.
void account(napi_env env, int64_t bytes) {
  int64_t total = 0;
  napi_adjust_external_memory(env, bytes, &total);
}

napi_value describe_device(napi_env env, int32_t device) {
  cuda::DeviceInfo about;
  backend_library().backend->describe_device(device, &about);
  const Status status = device_status(device);
  const char* reason = status.argument != nullptr ? status.argument : "unusable";
  napi_value result = nullptr;
  const bool done = napi_create_object(env, &result) == napi_ok &&
                    set_text(env, result, "name", about.name) &&
                    set_number(env, result, "major", about.compute_major) &&
                    set_number(env, result, "minor", about.compute_minor) &&
                    set_number(env, result, "multiprocessors", about.multiprocessors) &&
                    set_number(env, result, "memory", about.memory_bytes) &&
                    set_text(env, result, "reason", status.ok() ? "" : reason);
  return done ? result : nullptr;
}

}  // namespace

void decode(Request& request, UploadProblem& problem) { decode_transfer(request, problem); }
void decode(Request& request, DownloadProblem& problem) { decode_transfer(request, problem); }
void decode(Request&, ProbeProblem&) {}

napi_value allocate_memory(napi_env env, napi_callback_info info) {
  Request request(env, info);
  const int64_t device = request.size("device");
  const DeviceType type = request.choice("type", DeviceType::float64);
  const int64_t elements = request.integer("elements", 0, kMaximumSafeInteger);
  Environment* environment = request.environment();
  if (environment == nullptr) return nullptr;
  EnvironmentDevices& devices = environment->devices();
  int64_t number = 0;
  const Status status =
      devices.memories.add(devices.sessions, static_cast<int32_t>(device), type, elements, &number);
  if (!status.ok()) return make_outcome(env, status);
  account(env, elements * device_type_bytes(type));
  napi_value result = nullptr;
  if (napi_create_int64(env, number, &result) == napi_ok) return result;
  throw_napi_error(env);
  return nullptr;
}

napi_value release_memory(napi_env env, napi_callback_info info) {
  Request request(env, info);
  const int64_t number = request.integer("memory", 1, kMaximumSafeInteger);
  Environment* environment = request.environment();
  if (environment != nullptr) account(env, -environment->devices().memories.remove(number));
  return nullptr;
}

napi_value cuda_info(napi_env env, napi_callback_info) {
  const BackendLibrary& library = backend_library();
  const cuda::BackendInfo& about = library.info;
  napi_value result = nullptr;
  napi_value devices = nullptr;
  bool done = napi_create_object(env, &result) == napi_ok &&
              napi_create_array(env, &devices) == napi_ok &&
              set_text(env, result, "reason", library.reason) &&
              set_text(env, result, "targets", about.targets != nullptr ? about.targets : "") &&
              set_number(env, result, "runtime", about.runtime_version) &&
              set_number(env, result, "driver", about.driver_version) &&
              set_value(env, result, "devices", devices);
  const int32_t count = library.usable() ? about.device_count : 0;
  for (int32_t device = 0; done && device < count; ++device) {
    char place[16];
    std::snprintf(place, sizeof place, "%d", static_cast<int>(device));
    const napi_value entry = describe_device(env, device);
    done = entry != nullptr && set_value(env, devices, place, entry);
  }
  if (done) return result;
  throw_napi_error(env);
  return nullptr;
}

}  // namespace binding
}  // namespace cluster_attention
