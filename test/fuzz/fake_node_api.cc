#include "test/fuzz/fake_node_api.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace cluster_attention::fuzz {

namespace {

size_t element_bytes(napi_typedarray_type type) {
  switch (type) {
    case napi_float32_array:
    case napi_int32_array:
    case napi_uint32_array:
      return 4;
    case napi_int16_array:
    case napi_uint16_array:
      return 2;
    case napi_int8_array:
    case napi_uint8_array:
    case napi_uint8_clamped_array:
      return 1;
    default:
      return 8;
  }
}

/// Ends the run: what the binding did to Node-API breaks its rules.
[[noreturn]] void broken(const char* what) {
  std::fprintf(stderr, "the binding breaks a rule: %s\n", what);
  std::abort();
}

}  // namespace

Array::Array(napi_typedarray_type type, size_t length) : type(type), length(length) {
  bytes.reset(new unsigned char[byte_length()]());
}

size_t Array::byte_length() const { return length * element_bytes(type); }

FakeNode& FakeNode::instance() {
  static FakeNode node;
  return node;
}

void FakeNode::load(napi_value (*initialize)(napi_env, napi_value)) {
  exports.clear();
  exception_ = nullptr;
  initialize(reinterpret_cast<napi_env>(this), reinterpret_cast<napi_value>(this));
}

void FakeNode::unload() {
  if (clean_up_ != nullptr) clean_up_(clean_up_data_);
  clean_up_ = nullptr;
  // What was reported meanwhile is handed over without an environment, as Node does.
  for (void* data : report.data) report.call(nullptr, nullptr, report.context, data);
  report.data.clear();
  report.holds = 0;
  promises_open = 0;
}

Array* FakeNode::make_array(napi_typedarray_type type, size_t length) {
  arrays_.emplace_back(type, length);
  return &arrays_.back();
}

void FakeNode::reset() {
  if (references_ != 0) broken("a reference was not deleted");
  values_.clear();
  arrays_.clear();
  exception_ = nullptr;
  settled = nullptr;
  until_failure_ = 0;
}

bool FakeNode::fails() { return until_failure_ > 0 && --until_failure_ == 0; }

Value* FakeNode::make(napi_valuetype type) {
  values_.emplace_back();
  values_.back().type = type;
  return &values_.back();
}

void FakeNode::raise(Value* error) {
  if (exception_ != nullptr) broken("it threw twice");
  exception_ = error;
}

void FakeNode::apply(const std::pair<Effect, std::string>& effect) {
  const auto found = plan_->properties.find(effect.second);
  if (found == plan_->properties.end() || found->second.array == nullptr) return;
  Array& array = *found->second.array;
  const size_t length = array.length;
  switch (effect.first) {
    case Effect::detach:
      array.detached = true;
      break;
    case Effect::shrink:
    case Effect::grow:
      array.length = effect.first == Effect::grow ? 2 * length + 1 : length / 2;
      array.bytes.reset(new unsigned char[array.byte_length()]());
      return;
    case Effect::fill:
      std::fill_n(array.bytes.get(), array.byte_length(), static_cast<unsigned char>(0x7f));
      return;
  }
  array.length = 0;
  array.bytes.reset(new unsigned char[0]);
}

napi_status FakeNode::read_property(const char* name, napi_value* result) {
  if (exception_ != nullptr) return napi_pending_exception;
  const auto effect = plan_->effects.find(reads_++);
  if (effect != plan_->effects.end()) apply(effect->second);
  const auto [property, is_new] = plan_->properties.try_emplace(name);
  if (is_new) property->second.type = napi_number;
  *result = reinterpret_cast<napi_value>(&property->second);
  return napi_ok;
}

Outcome FakeNode::outcome_of(napi_value result) {
  Outcome outcome;
  if (exception_ != nullptr) {
    outcome.threw = true;
    const auto code = exception_->properties.find("code");
    outcome.code = code != exception_->properties.end() ? code->second->text : "";
    outcome.message = exception_->text;
    exception_ = nullptr;
    return outcome;
  }
  const Value* value = reinterpret_cast<const Value*>(result);
  if (value == nullptr) {
    outcome.failed_to_throw = true;
  } else if (value->type == napi_object) {
    for (const char* name : {"status", "argument", "index"}) {
      if (value->properties.count(name) == 0) broken("an outcome is incomplete");
    }
    outcome.status = value->properties.at("status")->text;
    outcome.index = value->properties.at("index")->number;
  } else if (value->type != napi_undefined) {
    broken("an outcome is neither undefined nor an object");
  }
  return outcome;
}

Outcome FakeNode::call(const std::string& name, Plan& plan) {
  plan_ = &plan;
  reads_ = 0;
  request = make(napi_object);
  const napi_value result = exports.at(name)(reinterpret_cast<napi_env>(this), nullptr);
  return outcome_of(result);
}

Outcome FakeNode::call_async(const std::string& name, Plan& plan, bool abandon) {
  plan_ = &plan;
  reads_ = 0;
  request = make(napi_object);
  settled = nullptr;
  const napi_value promise = exports.at(name + "Async")(reinterpret_cast<napi_env>(this), nullptr);
  if (promise == nullptr || abandon || promises_open == 0) {
    const napi_value result =
        promises_open == 0 && promise != nullptr ? reinterpret_cast<napi_value>(settled) : nullptr;
    return outcome_of(result);
  }
  if (report.holds < 1) broken("nothing keeps the process alive during a call");
  void* data = nullptr;
  {
    std::unique_lock<std::mutex> lock(report.lock);
    report.arrived.wait(lock, [this] { return !report.data.empty(); });
    data = report.data.front();
    report.data.pop_front();
  }
  report.call(reinterpret_cast<napi_env>(this), nullptr, report.context, data);
  return outcome_of(reinterpret_cast<napi_value>(settled));
}

}  // namespace cluster_attention::fuzz
