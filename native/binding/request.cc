#include "native/binding/request.h"

#include <cmath>
#include <cstdio>

#include "native/binding/environment.h"
#include "native/binding/errors.h"

namespace cluster_attention {
namespace binding {
namespace {

const char* array_name(napi_typedarray_type type) {
  switch (type) {
    case napi_float32_array:
      return "Float32Array";
    case napi_float64_array:
      return "Float64Array";
    case napi_int32_array:
      return "Int32Array";
    default:
      return "BigUint64Array";
  }
}

/// The type of device memory that stands for an array.
DeviceType memory_type(const char* name, napi_typedarray_type type, cuda::Storage storage) {
  switch (type) {
    case napi_float64_array:
      return DeviceType::float64;
    case napi_int32_array:
      return DeviceType::int32;
    case napi_biguint64_array:
      return DeviceType::uint64;
    default:
      return storage == cuda::Storage::bfloat16 && follows_storage(name) ? DeviceType::bfloat16
                                                                         : DeviceType::float32;
  }
}

/// What an empty array points to: a null pointer means "absent" to the kernels.
alignas(64) char empty_array[64];

}  // namespace

Request::Request(napi_env env, napi_callback_info info) : env_(env) {
  size_t count = 1;
  napi_valuetype type = napi_undefined;
  if (!check(napi_get_cb_info(env, info, &count, &object_, nullptr, nullptr))) return;
  if (!check(napi_typeof(env, object_, &type))) return;
  if (type != napi_object) fail_type("request", "an object");
}

Environment* Request::environment() {
  Environment* environment = ok_ ? Environment::of(env_) : nullptr;
  if (environment == nullptr) check(napi_generic_failure);
  return environment;
}

napi_value Request::property(const char* name) {
  napi_value value = nullptr;
  if (ok_) check(napi_get_named_property(env_, object_, name, &value));
  return value;
}

bool Request::flag(const char* name) {
  const napi_value value = property(name);
  bool result = false;
  if (ok_ && napi_get_value_bool(env_, value, &result) != napi_ok) fail_type(name, "a boolean");
  return ok_ && result;
}

double Request::number(const char* name) {
  const napi_value value = property(name);
  double result = 0.0;
  if (ok_ && napi_get_value_double(env_, value, &result) != napi_ok) fail_type(name, "a number");
  return ok_ ? result : 0.0;
}

int64_t Request::integer(const char* name, int64_t minimum, int64_t maximum) {
  const double value = number(name);
  if (!ok_) return 0;
  // The comparison is false for NaN; both bounds are exact doubles.
  const bool inside =
      value >= static_cast<double>(minimum) && value <= static_cast<double>(maximum);
  if (inside && value == std::floor(value)) return static_cast<int64_t>(value);
  char expected[96];
  std::snprintf(expected, sizeof expected, "an integer from %lld to %lld",
                static_cast<long long>(minimum), static_cast<long long>(maximum));
  fail_range(name, expected);
  return 0;
}

float Request::real(const char* name) {
  const float value = static_cast<float>(number(name));
  if (ok_ && !std::isfinite(value)) fail_range(name, "a finite number in the range of float32");
  return ok_ ? value : 0.0f;
}

void Request::lengths(const char* name, const int32_t*& destination, int64_t count,
                      int64_t maximum) {
  note(name, napi_int32_array, count, maximum, Presence::optional, &destination,
       [](void* target, void* data) {
         *static_cast<const int32_t**>(target) = static_cast<const int32_t*>(data);
       });
}

void Request::note(const char* name, napi_typedarray_type type, int64_t elements, int64_t maximum,
                   Presence presence, void* destination, void (*store)(void*, void*)) {
  const napi_value value = property(name);
  if (!ok_) return;
  napi_valuetype kind = napi_undefined;
  if (!check(napi_typeof(env_, value, &kind))) return;
  if (kind == napi_undefined && presence == Presence::optional) return;
  if (elements < 0) return fail_range(name, "an array of less than 2^53 elements");
  if (fields_count_ == kMaximumFields) return fail_range(name, "one of fewer arrays");
  double number = 0.0;
  if (kind == napi_number && memories_ != nullptr) {
    if (!check(napi_get_value_double(env_, value, &number))) return;
    if (!(number >= 1.0 && number <= static_cast<double>(kMaximumSafeInteger))) {
      return fail_range(name, "the number of device memory");
    }
  }
  fields_[fields_count_++] = {
      name, value, type, elements, maximum, static_cast<int64_t>(number), destination, store};
}

void Request::accept_memory(const DeviceMemories& memories, int32_t device, cuda::Storage storage,
                            MemoryInUse& used) {
  memories_ = &memories;
  device_ = device;
  storage_ = storage;
  used_ = &used;
}

const DeviceMemory* Request::memory(const char* name) {
  const int64_t number = integer(name, 1, kMaximumSafeInteger);
  DeviceMemory* memory = memories_ != nullptr ? memories_->find(number) : nullptr;
  if (memory != nullptr && memory->device == device_ && used_->add(memory)) return memory;
  fail_range(name, "the number of device memory");
  return nullptr;
}

void Request::any_array(const char* name, napi_typedarray_type type, void*& destination,
                        int64_t elements) {
  note(name, type, elements, -1, Presence::required, &destination,
       [](void* target, void* data) { *static_cast<void**>(target) = data; });
}

bool Request::resolve() {
  for (int i = 0; ok_ && i < fields_count_; ++i) resolve(fields_[i]);
  return ok_;
}

void Request::resolve_memory(const Field& field) {
  DeviceMemory* memory = memories_->find(field.memory);
  const bool fits = memory != nullptr && field.maximum < 0 && memory->device == device_ &&
                    memory->elements == field.elements &&
                    memory->type == memory_type(field.name, field.type, storage_) &&
                    used_->add(memory);
  if (!fits) return fail_range(field.name, "device memory of the right size, type and device");
  field.store(field.destination, memory->data);
}

void Request::resolve(const Field& field) {
  if (field.memory != 0) return resolve_memory(field);
  bool is_typed_array = false;
  if (!check(napi_is_typedarray(env_, field.value, &is_typed_array))) return;
  if (!is_typed_array) return fail_array(field, &Request::fail_type);

  napi_typedarray_type type = napi_int8_array;
  size_t length = 0;
  void* data = nullptr;
  if (!check(napi_get_typedarray_info(env_, field.value, &type, &length, &data, nullptr, nullptr)))
    return;
  if (type != field.type) return fail_array(field, &Request::fail_type);
  const bool detached = length > 0 && data == nullptr;
  if (static_cast<int64_t>(length) != field.elements || detached) {
    return fail_array(field, &Request::fail_range);
  }
  if (length == 0) data = empty_array;

  if (field.maximum >= 0) {
    const int32_t* values = static_cast<const int32_t*>(data);
    for (size_t i = 0; i < length; ++i) {
      if (values[i] < 0 || values[i] > field.maximum)
        return fail_range(field.name, "filled with lengths inside the shape");
    }
  }
  field.store(field.destination, data);
}

void Request::fail_array(const Field& field, void (Request::*fail)(const char*, const char*)) {
  char expected[96];
  std::snprintf(expected, sizeof expected, "a %s of %lld elements", array_name(field.type),
                static_cast<long long>(field.elements));
  (this->*fail)(field.name, expected);
}

void Request::fail_type(const char* name, const char* expected) {
  if (ok_) throw_type_error(env_, name, expected);
  ok_ = false;
}

void Request::fail_range(const char* name, const char* expected) {
  if (ok_) throw_range_error(env_, name, expected);
  ok_ = false;
}

bool Request::check(napi_status status) {
  if (status == napi_ok) return true;
  if (ok_) throw_napi_error(env_);
  ok_ = false;
  return false;
}

}  // namespace binding
}  // namespace cluster_attention
