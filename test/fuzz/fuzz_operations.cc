// A libFuzzer target for one operation of the addon, over a fake Node-API:
//   fuzz_operations --operation=NAME [--hostile] [--print] [options of libFuzzer] [folders or
//   files]
// NAME is an export of native/binding/addon.cc. Without --hostile every input is a request that the
// decoder accepts: sizes, choices, and arrays of any content, run in both forms and compared. With
// it, such a request is damaged: wrong values, getters that detach and resize, calls of Node-API
// that fail, an environment that ends during the call. --print shows the requests.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "native/core/thread_pool.h"
#include "native/core/workspace.h"
#include "native/simd/simd.h"
#include "test/fuzz/fake_node_api.h"
#include "test/fuzz/request_learner.h"

extern "C" napi_value napi_register_module_v1(napi_env env, napi_value exports);

namespace cluster_attention::fuzz {

namespace {

constexpr size_t kControls = 16;  // bytes in front of those that choose the request

struct Target {
  std::string operation;
  bool hostile = false;
  std::unique_ptr<RequestLearner> learner;
};
Target target;

#define CA_REQUIRE(condition)                                                      \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                \
    }                                                                              \
  } while (0)

bool is_one_of(const std::string& text, std::initializer_list<const char*> list) {
  for (const char* each : list) {
    if (text == each) return true;
  }
  return false;
}

/// Nothing but a documented outcome.
void check_outcome(const Outcome& outcome, bool node_failed) {
  if (node_failed) return;  // then it is enough that nothing breaks
  CA_REQUIRE(!outcome.failed_to_throw);
  if (outcome.threw) {
    CA_REQUIRE(is_one_of(outcome.code, {"ERR_INVALID_ARG_TYPE", "ERR_OUT_OF_RANGE"}));
  } else {
    CA_REQUIRE(is_one_of(
        outcome.status, {"", "out_of_memory", "cancelled", "non_finite", "overflow", "out_of_range",
                         "duplicate", "shape_mismatch", "unsupported", "cuda_unavailable"}));
    const bool at_an_element = is_one_of(outcome.status, {"non_finite", "out_of_range"});
    CA_REQUIRE(outcome.index >= (at_an_element ? 0.0 : -1.0));
  }
}

std::string contents(const Plan& plan) {
  std::string all;
  for (const auto& [name, value] : plan.properties) {
    if (value.array == nullptr) continue;
    all.append(reinterpret_cast<const char*>(value.array->bytes.get()), value.array->byte_length());
  }
  return all;
}

void print(const Plan& plan) {
  std::fprintf(stderr, "%s [%s]", target.operation.c_str(), instruction_set());
  for (const auto& [name, value] : plan.properties) {
    if (value.array != nullptr) {
      std::fprintf(stderr, " %s=(%zu)", name.c_str(), value.array->length);
    } else if (value.type == napi_boolean) {
      std::fprintf(stderr, " %s=%d", name.c_str(), value.boolean);
    } else if (value.type == napi_number) {
      std::fprintf(stderr, " %s=%.17g", name.c_str(), value.number);
    }
  }
  std::fprintf(stderr, "\n");
}

/// The other form of an accepted request gives the same bits.
void compare_forms(Plan& plan, const Outcome& expected, const Bytes& bytes) {
  const std::string first = contents(plan);
  target.learner->refill(plan, bytes, kControls);
  const Outcome outcome = FakeNode::instance().call_async(target.operation, plan, false);
  check_outcome(outcome, false);
  CA_REQUIRE(outcome.status == expected.status && outcome.index == expected.index);
  if (outcome.status.empty()) CA_REQUIRE(contents(plan) == first);
}

// ---- damage -------------------------------------------------------------------------------------

constexpr double kNumbers[] = {-1.0,         -0.0, 0.5,   2147483647.0,      2147483648.0,
                               4294967297.0, 1e16, 1e300, 9007199254740991.0};
constexpr napi_typedarray_type kTypes[] = {napi_float32_array, napi_float64_array,
                                           napi_int32_array,   napi_biguint64_array,
                                           napi_uint8_array,   napi_bigint64_array};

void damage_array(Value& value, uint8_t how) {
  Array* const old = value.array;
  FakeNode& node = FakeNode::instance();
  const size_t length = old != nullptr ? old->length : how;
  const napi_typedarray_type type = old != nullptr ? old->type : kTypes[how % std::size(kTypes)];
  value.type = napi_object;
  switch (how % 4) {
    case 0:
      value.array = node.make_array(type, length + 1);
      return;
    case 1:
      value.array = node.make_array(type, length > 0 ? length - 1 : 0);
      return;
    case 2:
      value.array = node.make_array(kTypes[how / 4 % std::size(kTypes)], length);
      return;
    default:
      value.array = node.make_array(type, 0);
      value.array->detached = true;
  }
}

void damage_value(Value& value, uint8_t how) {
  const napi_valuetype types[] = {napi_undefined, napi_null,   napi_boolean, napi_number,
                                  napi_string,    napi_symbol, napi_object,  napi_bigint};
  value.array = nullptr;
  value.type = types[how % std::size(types)];
  value.number = kNumbers[how / 8 % std::size(kNumbers)];
}

void damage(Plan& plan, const Bytes& bytes) {
  const std::vector<std::string>& names = target.learner->names();
  const int count = 1 + bytes.at(2) % 3;
  for (int i = 0; i < count; ++i) {
    const std::string& name = names[bytes.at(3 + 3 * i) % names.size()];
    const uint8_t how = bytes.at(5 + 3 * i);
    switch (bytes.at(4 + 3 * i) % 4) {
      case 0:
        damage_value(plan.properties[name], how);
        break;
      case 1:
        damage_array(plan.properties[name], how);
        break;
      case 2:
        plan.effects[how / 4] = {static_cast<Effect>(how % 4), name};
        break;
      default:
        plan.properties[name].number = kNumbers[how % std::size(kNumbers)];
    }
  }
}

void run_hostile(Plan& plan, const Bytes& bytes) {
  FakeNode& node = FakeNode::instance();
  damage(plan, bytes);
  if (target.learner->is_large(plan)) RequestLearner::raise_abort(plan);
  const uint8_t form = bytes.at(12);
  const int failing = bytes.at(13) % 2 == 1 ? 1 + bytes.at(14) : 0;
  node.fail_call(failing);
  if (form % 2 == 0) {
    check_outcome(node.call(target.operation, plan), failing > 0);
  } else {
    const bool abandon = form % 4 == 3;
    const Outcome outcome = node.call_async(target.operation, plan, abandon);
    if (!abandon) check_outcome(outcome, failing > 0);
    if (abandon || failing > 0) {
      node.unload();
      node.fail_call(0);
      node.load(napi_register_module_v1);
    }
  }
  node.fail_call(0);
}

/// The instruction set and the number of threads that the controls ask for.
void choose_surroundings(const Bytes& bytes) {
  static const std::vector<std::string> sets = [] {
    std::vector<std::string> names;
    std::string list = available_instruction_sets();
    for (size_t begin = 0; begin < list.size();) {
      const size_t end = std::min(list.find(',', begin), list.size());
      names.push_back(list.substr(begin, end - begin));
      begin = end + 1;
    }
    return names;
  }();
  static size_t current = sets.size();
  const size_t wanted = bytes.at(0) % sets.size();
  if (wanted != current) CA_REQUIRE(set_instruction_set(sets[wanted].c_str()));
  current = wanted;
}

}  // namespace

void start(int count, char** arguments) {
  const auto value_of = [](const char* argument, const char* option) -> const char* {
    const size_t length = std::strlen(option);
    return std::strncmp(argument, option, length) == 0 ? argument + length : nullptr;
  };
  bool must_print = false;
  for (int i = 1; i < count; ++i) {
    if (const char* name = value_of(arguments[i], "--operation=")) target.operation = name;
    if (std::strcmp(arguments[i], "--hostile") == 0) target.hostile = true;
    if (std::strcmp(arguments[i], "--print") == 0) must_print = true;
  }
  ThreadPool::instance().set_threads(2);
  FakeNode& node = FakeNode::instance();
  node.load(napi_register_module_v1);
  if (node.exports.count(target.operation + "Async") == 0) {
    std::fprintf(stderr, "--operation=NAME must name an operation of the addon\n");
    std::exit(2);
  }
  target.learner = std::make_unique<RequestLearner>(target.operation);
  if (must_print) target.learner->watch = print;
}

void run_input(const Bytes& bytes) {
  FakeNode& node = FakeNode::instance();
  choose_surroundings(bytes);
  Outcome outcome;
  Plan plan = target.learner->learn(bytes, kControls, outcome);
  check_outcome(outcome, false);
  if (target.hostile) {
    run_hostile(plan, bytes);
  } else if (!outcome.threw && bytes.at(1) % 8 == 0) {  // waking a thread takes its time
    compare_forms(plan, outcome, bytes);
  }
  CA_REQUIRE(workspace_bytes_in_use() == 0);
  node.reset();
}

}  // namespace cluster_attention::fuzz

extern "C" int LLVMFuzzerInitialize(int* count, char*** arguments) {
  cluster_attention::fuzz::start(*count, *arguments);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  cluster_attention::fuzz::run_input(cluster_attention::fuzz::Bytes(data, size));
  return 0;
}
