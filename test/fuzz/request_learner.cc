#include "test/fuzz/request_learner.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

namespace cluster_attention::fuzz {

namespace {

constexpr size_t kMostElements = 1 << 13;
// Sizes: mostly small ones, which are quick, else up to more than two vectors of any kind.
constexpr int64_t kUsualChoices = 40;
constexpr int64_t kSmallChoices = 6;
constexpr double kMostWork = 1 << 24;
constexpr int kMostFaults = 200;
constexpr size_t kMostKnown = 20'000;

/// A byte from here on asks for one of all usual sizes, or for the largest value that is allowed.
constexpr uint8_t kUsual = 200;
constexpr uint8_t kLargest = 250;

constexpr float kSpecial[] = {0.0f,
                              -0.0f,
                              1.0f,
                              -1.0f,
                              1e30f,
                              -1e30f,
                              FLT_MAX,
                              -FLT_MAX,
                              FLT_MIN,
                              1e-45f,
                              -1e-40f,
                              std::numeric_limits<float>::infinity(),
                              -std::numeric_limits<float>::infinity(),
                              std::numeric_limits<float>::quiet_NaN(),
                              0.5f,
                              88.0f};
constexpr int32_t kSpecialIntegers[] = {-1, 0, 1, 2, 3, 7, 40, 1 << 16, INT32_MAX, INT32_MIN};

uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

/// Element `i` of an array whose kind of content is `style`, drawn from `bits`.
float make_float(uint8_t style, size_t i, uint64_t bits) {
  const float uniform = static_cast<float>(bits >> 40) * 0x1p-23f - 1.0f;
  switch (style % 8) {
    case 0: {
      const uint32_t raw = static_cast<uint32_t>(bits);
      float value;
      std::memcpy(&value, &raw, sizeof value);
      return value;
    }
    case 1:
      return static_cast<float>(bits % 5) - 2.0f;
    case 2:
      return kSpecial[bits % std::size(kSpecial)];
    case 3:
      return 1e30f * uniform;
    case 4:
      return static_cast<float>(style / 8) * 0.25f;
    case 5:
      return i % (1 + style / 8) == 0 ? 1.0f : 0.0f;
    case 6:
      return 1e-39f * uniform;
    default:
      return uniform;
  }
}

/// The same of integers: mostly small ones, which may be indices.
int32_t make_integer(uint8_t style, size_t i, uint64_t bits) {
  switch (style % 8) {
    case 0:
      return static_cast<int32_t>(bits);
    case 1:
      return kSpecialIntegers[bits % std::size(kSpecialIntegers)];
    case 2:
      return static_cast<int32_t>(i);
    case 3:
      return static_cast<int32_t>(i % (1 + style / 8));
    case 4:
      return 0;
    default:
      return static_cast<int32_t>(bits % (1 + style / 8));
  }
}

template <typename T, typename Make>
void fill_with(Array& array, const Make& make) {
  T* values = reinterpret_cast<T*>(array.bytes.get());
  for (size_t i = 0; i < array.length; ++i) values[i] = make(i);
}

bool starts_with(const std::string& text, const char* start) { return text.rfind(start, 0) == 0; }

bool is_count_of_steps(const std::string& name) {
  return name.find("terations") != std::string::npos || name == "steps";
}

}  // namespace

RequestLearner::RequestLearner(std::string operation) : operation_(std::move(operation)) {
  Outcome outcome;
  learn(Bytes(nullptr, 0), 0, outcome);  // to know the names
  knows_numbers_ = true;
  FakeNode::instance().reset();
}

size_t RequestLearner::place_of(const std::string& name, size_t place) const {
  const auto found = std::find(names_.begin(), names_.end(), name);
  return place + kBytesOfAProperty * static_cast<size_t>(found - names_.begin());
}

void RequestLearner::fill(const std::string& name, Array& array, const Bytes& bytes,
                          size_t place) const {
  const size_t own = place_of(name, place);
  if (const auto most = most_.find(name); most != most_.end()) {
    const auto draw = [&](size_t i) { return mix(i + bytes.at(own) + 1) % (most->second + 1u); };
    fill_with<int32_t>(array, [&](size_t i) { return static_cast<int32_t>(draw(i)); });
    return;
  }
  const uint8_t style = bytes.at(own + 1);
  const size_t content = place + kBytesOfAProperty * names_.size();
  const size_t count = bytes.size() > content ? bytes.size() - content : 0;
  const auto bits = [&](size_t i) {
    // Raw content comes from the input itself, so that a fuzzer can shape it.
    uint64_t word = 0;
    for (size_t j = 0; count > 0 && style % 8 == 0 && j < 8; ++j) {
      word = word << 8 | bytes.at(content + (own + 4 * i + j) % count);
    }
    return word != 0 ? word : mix((own + 1) * 0x9E3779B97F4A7C15ull + style * 77 + i);
  };
  switch (array.type) {
    case napi_int32_array:
      return fill_with<int32_t>(array, [&](size_t i) { return make_integer(style, i, bits(i)); });
    case napi_float64_array:
      return fill_with<double>(array,
                               [&](size_t i) { return double{make_float(style, i, bits(i))}; });
    case napi_biguint64_array:
      return fill_with<uint64_t>(array,
                                 [&](size_t i) { return style % 2 ? bits(i) : bits(i) % 9; });
    default:
      return fill_with<float>(array, [&](size_t i) { return make_float(style, i, bits(i)); });
  }
}

bool RequestLearner::mend_number(Value& value, const std::string& name, const std::string& expected,
                                 uint8_t choice) {
  long long low = 0;
  long long high = 0;
  if (starts_with(expected, "a boolean")) {
    value.type = napi_boolean;
    value.boolean = choice % 2 == 1;
    return true;
  }
  if (starts_with(expected, "a finite number")) {
    value.number = faults_[name] < 3 ? double{kSpecial[choice % std::size(kSpecial)]} : 0.25;
    return true;
  }
  if (std::sscanf(expected.c_str(), "an integer from %lld to %lld", &low, &high) != 2) return false;
  const bool is_bounded = is_count_of_steps(name) || name == "device";  // -1: there is none
  int64_t most = choice < kUsual ? kSmallChoices : kUsualChoices;
  if (is_bounded) most = name == "device" ? 1 : 4;
  int64_t chosen = low + choice % std::min<int64_t>(most, high - low + 1);
  if (choice >= kLargest && !is_bounded) chosen = high;
  if (faults_[name] > 2) chosen = low;
  value.number = static_cast<double>(chosen);
  return true;
}

void RequestLearner::place_arrays(Plan& plan, const Arrays& arrays, const Bytes& bytes,
                                  size_t place) const {
  for (const auto& [name, expected] : arrays) {
    Value& value = plan.properties[name];
    if (value.array != nullptr || value.type == napi_undefined) continue;
    value = Value();
    // Most options may be absent: an array is, if the bytes say so.
    if (!expected.is_required && bytes.at(place_of(name, place)) % 2 == 1) continue;
    value.type = napi_object;
    value.array = FakeNode::instance().make_array(expected.type, expected.elements);
    if (name != "abort") fill(name, *value.array, bytes, place);
  }
}

bool RequestLearner::mend_array(Plan& plan, const std::string& name, const std::string& expected,
                                const Bytes& bytes, size_t place) {
  char kind[32] = "";
  long long elements = 0;
  if (std::sscanf(expected.c_str(), "a %31s of %lld elements", kind, &elements) != 2) return false;
  if (elements > static_cast<long long>(kMostElements)) return false;
  static const std::map<std::string, napi_typedarray_type> kinds = {
      {"Float32Array", napi_float32_array},
      {"Float64Array", napi_float64_array},
      {"Int32Array", napi_int32_array},
      {"BigUint64Array", napi_biguint64_array}};
  std::string numbers;
  for (const auto& [property, told] : numbers_) {
    const Value& value = plan.properties[property];
    numbers +=
        value.type == napi_boolean ? std::to_string(value.boolean) : std::to_string(value.number);
    numbers += ' ';
  }
  if (arrays_.size() > kMostKnown) arrays_.clear();
  Arrays& arrays = arrays_[numbers];
  Value& value = plan.properties[name];
  const bool was_absent = value.type == napi_undefined;
  if (was_absent) value.type = napi_number;  // not absent any more: to be placed
  arrays[name] = {kinds.at(kind), static_cast<size_t>(elements), was_absent};
  place_arrays(plan, arrays, bytes, place);
  return true;
}

bool RequestLearner::is_large(const Plan& plan) const {
  double work = 1.0;
  for (const auto& [name, expected] : numbers_) {
    const Value& value = plan.properties.at(name);
    if (name == "seed" || value.type != napi_number || value.array != nullptr) continue;
    if (starts_with(expected, "an integer")) work *= std::max(1.0, value.number);
  }
  return !(work < kMostWork);
}

bool RequestLearner::mend(Plan& plan, const std::string& message, const Bytes& bytes,
                          size_t place) {
  const size_t middle = message.find(" must be ");
  if (middle == std::string::npos) return false;
  const std::string name = message.substr(0, middle);
  const std::string expected = message.substr(middle + std::strlen(" must be "));
  if (std::find(names_.begin(), names_.end(), name) == names_.end()) names_.push_back(name);
  ++faults_[name];
  Value& value = plan.properties[name];
  if (starts_with(expected, "filled with lengths")) {
    // What the most may be is not told: ever smaller ones, at last zeros.
    most_[name] = faults_[name] > 6 ? 0 : 40 >> faults_[name];
    fill(name, *value.array, bytes, place);
    return true;
  }
  if (mend_number(value, name, expected, bytes.at(place_of(name, place)))) {
    if (!knows_numbers_) numbers_[name] = expected;
    return true;
  }
  return mend_array(plan, name, expected, bytes, place);
}

void RequestLearner::raise_abort(Plan& plan) {
  Value& abort = plan.properties["abort"];
  abort = Value();
  abort.type = napi_object;
  abort.array = FakeNode::instance().make_array(napi_int32_array, 1);
  abort.array->bytes[0] = 1;
}

Plan RequestLearner::learn(const Bytes& bytes, size_t place, Outcome& outcome) {
  FakeNode& node = FakeNode::instance();
  Plan plan;
  faults_.clear();
  most_.clear();
  // The one number that may be anything, NaN too: no fault would be found in it.
  Value& tolerance = plan.properties["tolerance"];
  tolerance.type = napi_number;
  tolerance.number = bytes.at(place) * 0.01;
  for (const auto& [name, expected] : numbers_) {
    Value& value = plan.properties[name];
    value.type = napi_number;
    mend_number(value, name, expected, bytes.at(place_of(name, place)));
  }
  for (int faults = 0; faults < kMostFaults; ++faults) {
    if (watch != nullptr) watch(plan);
    if (knows_numbers_ && is_large(plan)) raise_abort(plan);
    outcome = node.call(operation_, plan);
    if (!outcome.threw) return plan;
    if (!mend(plan, outcome.message, bytes, place)) return plan;
  }
  std::fprintf(stderr, "%s cannot be learnt: %s\n", operation_.c_str(), outcome.message.c_str());
  std::abort();
}

void RequestLearner::refill(Plan& plan, const Bytes& bytes, size_t place) const {
  for (auto& [name, value] : plan.properties) {
    if (value.array != nullptr && name != "abort") fill(name, *value.array, bytes, place);
  }
}

}  // namespace cluster_attention::fuzz
