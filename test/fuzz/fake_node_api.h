#pragma once

// A Node-API of plain data, for fuzzing the binding without Node: objects whose properties a fuzzer
// chooses, getters that damage arrays, calls that fail on demand, and promises that are counted.
// One environment at a time; values live until the next reset().

#include <node_api.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace cluster_attention::fuzz {

/// Memory of a typed array, of exactly its size, so that the address sanitizer sees one step too
/// far.
struct Array {
  napi_typedarray_type type = napi_float32_array;
  size_t length = 0;
  std::unique_ptr<unsigned char[]> bytes;
  bool detached = false;

  Array(napi_typedarray_type type, size_t length);
  size_t byte_length() const;
};

/// A JavaScript value.
struct Value {
  napi_valuetype type = napi_undefined;
  double number = std::numeric_limits<double>::quiet_NaN();
  bool boolean = false;
  std::string text;
  Array* array = nullptr;
  std::map<std::string, Value*> properties;
};

/// What a getter does to an array before it gives its value.
enum class Effect { detach, shrink, grow, fill };

/// The object that the binding is called with. What it lacks is NaN, which every option refuses.
struct Plan {
  std::map<std::string, Value> properties;
  /// By the number of the read, counted from 0: an effect, and the property whose array it meets.
  std::map<int, std::pair<Effect, std::string>> effects;
};

/// How a call ended.
struct Outcome {
  bool threw = false;
  bool failed_to_throw = false;  // null without an exception
  std::string code;              // of the exception
  std::string message;
  std::string status;  // of the result: empty for a success
  double index = 0.0;
};

class FakeNode {
 public:
  static FakeNode& instance();

  /// Loads the addon into a fresh environment, or unloads it as the end of a worker does.
  void load(napi_value (*initialize)(napi_env, napi_value));
  void unload();
  bool loaded() const { return clean_up_ != nullptr; }

  /// Calls an export. An asynchronous one is waited for, or abandoned with its environment.
  Outcome call(const std::string& name, Plan& plan);
  Outcome call_async(const std::string& name, Plan& plan, bool abandon);

  /// The n-th Node-API call from now fails; 0: none does.
  void fail_call(int n) { until_failure_ = n; }

  Array* make_array(napi_typedarray_type type, size_t length);
  /// Forgets all values. None may be referenced.
  void reset();
  int64_t references() const { return references_; }

  // What the functions of Node-API at the end of fake_node_api.cc stand on.
  bool fails();
  Value* make(napi_valuetype type);
  napi_status read_property(const char* name, napi_value* result);
  void raise(Value* error);
  bool pending() const { return exception_ != nullptr; }

  Value* request = nullptr;
  void* instance_data = nullptr;
  std::map<std::string, napi_callback> exports;

  struct Report {  // the thread-safe function
    napi_threadsafe_function_call_js call = nullptr;
    void* context = nullptr;
    std::mutex lock;
    std::condition_variable arrived;
    std::deque<void*> data;
    int64_t holds = 0;
  } report;

  void set_clean_up(napi_cleanup_hook hook, void* data) {
    clean_up_ = hook;
    clean_up_data_ = data;
  }
  void count_reference(int64_t change) { references_ += change; }
  Value* settled = nullptr;
  int promises_open = 0;

 private:
  Outcome outcome_of(napi_value result);
  void apply(const std::pair<Effect, std::string>& effect);

  std::deque<Value> values_;
  std::deque<Array> arrays_;
  Plan* plan_ = nullptr;
  int reads_ = 0;
  int until_failure_ = 0;
  Value* exception_ = nullptr;
  int64_t references_ = 0;
  napi_cleanup_hook clean_up_ = nullptr;
  void* clean_up_data_ = nullptr;
};

}  // namespace cluster_attention::fuzz
