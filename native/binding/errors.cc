#include "native/binding/errors.h"

#include <cstdio>

namespace cluster_attention {
namespace binding {
namespace {

const char* status_name(StatusCode code) {
  switch (code) {
    case StatusCode::ok:
      return "ok";
    case StatusCode::out_of_memory:
      return "out_of_memory";
    case StatusCode::cancelled:
      return "cancelled";
    case StatusCode::non_finite:
      return "non_finite";
    case StatusCode::overflow:
      return "overflow";
    case StatusCode::out_of_range:
      return "out_of_range";
    case StatusCode::duplicate:
      return "duplicate";
    case StatusCode::shape_mismatch:
      return "shape_mismatch";
    case StatusCode::unsupported:
      return "unsupported";
    case StatusCode::cuda_unavailable:
      return "cuda_unavailable";
    case StatusCode::device_lost:
      return "device_lost";
  }
  return "unsupported";
}

}  // namespace

// Not an assignment: that would ask the prototypes, and Object.prototype may be polluted.
bool set_value(napi_env env, napi_value object, const char* name, napi_value value) {
  const napi_property_descriptor property = {
      name, nullptr, nullptr, nullptr, nullptr, value, napi_default_jsproperty, nullptr};
  return napi_define_properties(env, object, 1, &property) == napi_ok;
}

bool set_number(napi_env env, napi_value object, const char* name, int64_t number) {
  napi_value value = nullptr;
  return napi_create_int64(env, number, &value) == napi_ok && set_value(env, object, name, value);
}

bool set_text(napi_env env, napi_value object, const char* name, const char* text) {
  napi_value value = nullptr;
  return napi_create_string_utf8(env, text, NAPI_AUTO_LENGTH, &value) == napi_ok &&
         set_value(env, object, name, value);
}

napi_value make_outcome(napi_env env, const Status& status) {
  napi_value outcome = nullptr;
  if (status.ok()) {
    if (napi_get_undefined(env, &outcome) == napi_ok) return outcome;
  } else if (napi_create_object(env, &outcome) == napi_ok &&
             set_text(env, outcome, "status", status_name(status.code)) &&
             set_text(env, outcome, "argument", status.argument ? status.argument : "") &&
             set_number(env, outcome, "index", status.index)) {
    return outcome;
  }
  throw_napi_error(env);
  return nullptr;
}

namespace {

using CreateError = napi_status (*)(napi_env, napi_value code, napi_value message,
                                    napi_value* error);

/// As napi_throw_error, but the code is defined, not assigned (see set_value).
void throw_error(napi_env env, CreateError create, const char* code, const char* argument,
                 const char* expected) {
  char message[192];
  std::snprintf(message, sizeof message, "%s must be %s in the request", argument, expected);
  napi_value text = nullptr;
  napi_value error = nullptr;
  const bool thrown = napi_create_string_utf8(env, message, NAPI_AUTO_LENGTH, &text) == napi_ok &&
                      create(env, nullptr, text, &error) == napi_ok &&
                      set_text(env, error, "code", code) && napi_throw(env, error) == napi_ok;
  if (!thrown) throw_napi_error(env);
}

}  // namespace

void throw_type_error(napi_env env, const char* argument, const char* expected) {
  throw_error(env, napi_create_type_error, "ERR_INVALID_ARG_TYPE", argument, expected);
}

void throw_range_error(napi_env env, const char* argument, const char* expected) {
  throw_error(env, napi_create_range_error, "ERR_OUT_OF_RANGE", argument, expected);
}

void throw_napi_error(napi_env env) {
  // The message belongs to the call that failed last: fetch it before any other call.
  const napi_extended_error_info* info = nullptr;
  const bool known = napi_get_last_error_info(env, &info) == napi_ok && info->error_message;
  const char* message = known ? info->error_message : "a Node-API call failed";
  bool pending = false;
  if (napi_is_exception_pending(env, &pending) == napi_ok && !pending)
    napi_throw_error(env, "ERR_BINDING", message);
}

}  // namespace binding
}  // namespace cluster_attention
