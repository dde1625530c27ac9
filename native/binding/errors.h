#pragma once

// The outcome of a call, told to JavaScript. A kernel's Status travels as a plain object
// { status, argument, index } (undefined for success), from which lib/errors.ts makes the error;
// exceptions are thrown here only for requests that lib/ never builds.

#include <node_api.h>

#include "native/core/status.h"

namespace cluster_attention {
namespace binding {

/// undefined for success, otherwise the description of the failure; nullptr with a pending
/// exception when the object cannot be made.
napi_value make_outcome(napi_env env, const Status& status);

/// object[name] = value; false when a Node-API call failed.
bool set_value(napi_env env, napi_value object, const char* name, napi_value value);
bool set_number(napi_env env, napi_value object, const char* name, int64_t number);
bool set_text(napi_env env, napi_value object, const char* name, const char* text);

void throw_type_error(napi_env env, const char* argument, const char* expected);
void throw_range_error(napi_env env, const char* argument, const char* expected);
/// For a failed Node-API call; keeps an exception that is pending already.
void throw_napi_error(napi_env env);

}  // namespace binding
}  // namespace cluster_attention
