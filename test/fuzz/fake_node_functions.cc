// The functions of Node-API that the binding calls, over FakeNode.

#include <cstring>

#include "test/fuzz/fake_node_api.h"

namespace {

using cluster_attention::fuzz::Array;
using cluster_attention::fuzz::FakeNode;
using cluster_attention::fuzz::Value;

FakeNode& node() { return FakeNode::instance(); }
napi_value handle(Value* value) { return reinterpret_cast<napi_value>(value); }
Value* value_of(napi_value value) { return reinterpret_cast<Value*>(value); }

/// Gives a new value unless it is the turn of this call to fail.
napi_status give(napi_value* result, napi_valuetype type, double number = 0.0,
                 const char* text = "") {
  if (node().fails()) return napi_generic_failure;
  Value* value = node().make(type);
  value->number = number;
  value->text = text;
  *result = handle(value);
  return napi_ok;
}

napi_status make_error(napi_value message, napi_value* result) {
  return give(result, napi_object, 0.0, value_of(message)->text.c_str());
}

}  // namespace

#define CA_FAIL_ON_DEMAND \
  if (node().fails()) return napi_generic_failure

extern "C" {

// ---- reading ------------------------------------------------------------------------------------

napi_status napi_get_cb_info(napi_env, napi_callback_info, size_t* count, napi_value* arguments,
                             napi_value*, void**) {
  CA_FAIL_ON_DEMAND;
  *count = 1;
  arguments[0] = handle(node().request);
  return napi_ok;
}

napi_status napi_typeof(napi_env, napi_value value, napi_valuetype* result) {
  CA_FAIL_ON_DEMAND;
  *result = value_of(value)->type;
  return napi_ok;
}

napi_status napi_get_named_property(napi_env, napi_value, const char* name, napi_value* result) {
  CA_FAIL_ON_DEMAND;
  return node().read_property(name, result);
}

napi_status napi_get_value_bool(napi_env, napi_value value, bool* result) {
  CA_FAIL_ON_DEMAND;
  if (value_of(value)->type != napi_boolean) return napi_boolean_expected;
  *result = value_of(value)->boolean;
  return napi_ok;
}

napi_status napi_get_value_double(napi_env, napi_value value, double* result) {
  CA_FAIL_ON_DEMAND;
  if (value_of(value)->type != napi_number) return napi_number_expected;
  *result = value_of(value)->number;
  return napi_ok;
}

napi_status napi_is_typedarray(napi_env, napi_value value, bool* result) {
  CA_FAIL_ON_DEMAND;
  *result = value_of(value)->array != nullptr;
  return napi_ok;
}

napi_status napi_get_typedarray_info(napi_env, napi_value value, napi_typedarray_type* type,
                                     size_t* length, void** data, napi_value*, size_t*) {
  CA_FAIL_ON_DEMAND;
  const Array& array = *value_of(value)->array;
  *type = array.type;
  *length = array.length;
  *data = array.detached ? nullptr : array.bytes.get();
  return napi_ok;
}

// ---- making -------------------------------------------------------------------------------------

napi_status napi_get_undefined(napi_env, napi_value* result) {
  return give(result, napi_undefined);
}
napi_status napi_create_object(napi_env, napi_value* result) { return give(result, napi_object); }
napi_status napi_create_array(napi_env, napi_value* result) { return give(result, napi_object); }
napi_status napi_create_double(napi_env, double number, napi_value* result) {
  return give(result, napi_number, number);
}
napi_status napi_create_int32(napi_env, int32_t number, napi_value* result) {
  return give(result, napi_number, number);
}
napi_status napi_create_int64(napi_env, int64_t number, napi_value* result) {
  return give(result, napi_number, static_cast<double>(number));
}
napi_status napi_create_string_utf8(napi_env, const char* text, size_t, napi_value* result) {
  return give(result, napi_string, 0.0, text);
}
napi_status napi_create_function(napi_env, const char* name, size_t, napi_callback callback, void*,
                                 napi_value* result) {
  CA_FAIL_ON_DEMAND;
  node().exports[name] = callback;
  return give(result, napi_function);
}
napi_status napi_set_named_property(napi_env, napi_value, const char*, napi_value) {
  CA_FAIL_ON_DEMAND;
  return napi_ok;
}
napi_status napi_define_properties(napi_env, napi_value object, size_t count,
                                   const napi_property_descriptor* properties) {
  CA_FAIL_ON_DEMAND;
  for (size_t i = 0; i < count; ++i) {
    value_of(object)->properties[properties[i].utf8name] = value_of(properties[i].value);
  }
  return napi_ok;
}

// ---- errors -------------------------------------------------------------------------------------

napi_status napi_create_type_error(napi_env, napi_value, napi_value message, napi_value* result) {
  return make_error(message, result);
}
napi_status napi_create_range_error(napi_env, napi_value, napi_value message, napi_value* result) {
  return make_error(message, result);
}
napi_status napi_throw(napi_env, napi_value error) {
  CA_FAIL_ON_DEMAND;
  node().raise(value_of(error));
  return napi_ok;
}
napi_status napi_throw_error(napi_env, const char* code, const char* message) {
  Value* error = node().make(napi_object);
  error->text = message;
  error->properties["code"] = node().make(napi_string);
  error->properties["code"]->text = code;
  node().raise(error);
  return napi_ok;
}
napi_status napi_is_exception_pending(napi_env, bool* result) {
  *result = node().pending();
  return napi_ok;
}
napi_status napi_get_last_error_info(napi_env, const napi_extended_error_info** result) {
  static const napi_extended_error_info info = {"on demand", nullptr, 0, napi_generic_failure};
  *result = &info;
  return napi_ok;
}

// ---- the environment ----------------------------------------------------------------------------

napi_status napi_set_instance_data(napi_env, void* data, napi_finalize, void*) {
  CA_FAIL_ON_DEMAND;
  node().instance_data = data;
  return napi_ok;
}
napi_status napi_get_instance_data(napi_env, void** data) {
  CA_FAIL_ON_DEMAND;
  *data = node().instance_data;
  return napi_ok;
}
napi_status napi_add_env_cleanup_hook(napi_env, napi_cleanup_hook hook, void* data) {
  CA_FAIL_ON_DEMAND;
  node().set_clean_up(hook, data);
  return napi_ok;
}
napi_status napi_adjust_external_memory(napi_env, int64_t, int64_t* result) {
  *result = 0;
  return napi_ok;
}
napi_status napi_create_reference(napi_env, napi_value value, uint32_t, napi_ref* result) {
  CA_FAIL_ON_DEMAND;
  node().count_reference(1);
  *result = reinterpret_cast<napi_ref>(value);
  return napi_ok;
}
napi_status napi_delete_reference(napi_env, napi_ref) {
  node().count_reference(-1);
  return napi_ok;
}
napi_status napi_create_promise(napi_env, napi_deferred* deferred, napi_value* promise) {
  const napi_status status = give(promise, napi_object);
  if (status != napi_ok) return status;
  *deferred = reinterpret_cast<napi_deferred>(*promise);
  ++node().promises_open;
  return napi_ok;
}
napi_status napi_resolve_deferred(napi_env, napi_deferred, napi_value resolution) {
  node().settled = value_of(resolution);
  --node().promises_open;
  return napi_ok;
}

napi_status napi_create_threadsafe_function(napi_env, napi_value, napi_value, napi_value, size_t,
                                            size_t, void*, napi_finalize, void* context,
                                            napi_threadsafe_function_call_js call,
                                            napi_threadsafe_function* result) {
  CA_FAIL_ON_DEMAND;
  node().report.call = call;
  node().report.context = context;
  node().report.holds = 1;
  *result = reinterpret_cast<napi_threadsafe_function>(&node().report);
  return napi_ok;
}
napi_status napi_call_threadsafe_function(napi_threadsafe_function, void* data,
                                          napi_threadsafe_function_call_mode) {
  const std::lock_guard<std::mutex> lock(node().report.lock);
  node().report.data.push_back(data);
  node().report.arrived.notify_one();
  return napi_ok;
}
napi_status napi_ref_threadsafe_function(napi_env, napi_threadsafe_function) {
  ++node().report.holds;
  return napi_ok;
}
napi_status napi_unref_threadsafe_function(napi_env, napi_threadsafe_function) {
  --node().report.holds;
  return napi_ok;
}

}  // extern "C"
