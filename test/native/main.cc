// native_tests [option ...] [substring ...]: runs the tests whose names contain one of the
// substrings.
//   --list               prints the names of the tests and runs none
//   --errors             also prints the largest relative error of every operation, by its bound
//   --guard=begin|end    all arrays begin, or end, at a page that nothing may touch
//   --sizes=LAST         instead of the cases of the table: one for every size from 1 to LAST
//   --random=SEED,COUNT  instead of the cases of the table: random shapes and data
//   --long=SEED,COUNT    the same with lengths up to 1500 and rows of 8 to 260 columns
//     (such cases get bounds four times as wide, see compare.h)
//   --threads=N          of the pool; 8 when not given
//   --times              also prints how long each test took, those of half a second or more
//   --set=I              only on the I-th instruction set (from 0 on, modulo their number)
//   --without=PART       no test whose name contains this
//   --stop               ends at the first test that fails
//   --part=I,N           only every N-th test, from the I-th on (counted from 0)

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "native/core/thread_pool.h"
#include "native/simd/simd.h"
#include "test/native/cases.h"
#include "test/native/compare.h"
#include "test/native/guarded_memory.h"
#include "test/native/harness.h"

namespace cluster_attention::test {

namespace {

struct Test {
  const char* name;
  TestBody body;
  bool every_instruction_set;
};

constexpr int kPrintedFailures = 5;  // per test; the rest are only counted

// Function-local, so that it exists before the first registrar of any file.
std::vector<Test>& registry() {
  static std::vector<Test> tests;
  return tests;
}

const char* running = nullptr;
bool times = false;
bool stops = false;  // at the first test that fails
int64_t only_set = -1;
const char* left_out = nullptr;
int failures = 0;
std::vector<std::string> scopes;

/// Largest error by operation (the name of a test up to its colon) and bound.
std::map<std::pair<std::string, double>, double> largest_errors;

std::vector<std::string> instruction_sets() {
  std::istringstream list(available_instruction_sets());
  std::vector<std::string> names;
  for (std::string name; std::getline(list, name, ',');) {
    names.push_back(name.substr(name.find_first_not_of(' ')));
  }
  if (only_set >= 0) return {names[static_cast<size_t>(only_set) % names.size()]};
  return names;
}

bool selected(const char* name, int filter_count, const char* const* filters) {
  if (left_out != nullptr && std::strstr(name, left_out) != nullptr) return false;
  for (int i = 0; i < filter_count; ++i) {
    if (std::strstr(name, filters[i]) != nullptr) return true;
  }
  return filter_count == 0;
}

}  // namespace

Registrar::Registrar(const char* name, TestBody body, bool every_instruction_set) {
  registry().push_back({name, body, every_instruction_set});
}

Scope::Scope(const std::string& name) { scopes.push_back(name); }
Scope::~Scope() { scopes.pop_back(); }

void fail(const char* file, int line, const std::string& message) {
  if (failures++ >= kPrintedFailures) return;
  std::printf("FAILED %s [%s]\n  %s:%d: ", running, instruction_set(), file, line);
  for (const std::string& scope : scopes) std::printf("%s: ", scope.c_str());
  std::printf("%s\n", message.c_str());
}

void record_error(double error, double bound) {
  const std::string operation = std::string(running).substr(0, std::strcspn(running, ":"));
  double& largest = largest_errors[{operation, bound}];
  largest = std::max(largest, error);
}

void print_times() { times = true; }

void list_tests() {
  for (const Test& test : registry()) std::printf("%s\n", test.name);
}

void print_errors() {
  for (const auto& [key, error] : largest_errors) {
    std::printf("%-28s bound %.0e  largest %.1e\n", key.first.c_str(), key.second, error);
  }
}

/// Of --part: which tests this process runs, by their place in the registry.
struct Part {
  size_t index = 0;
  size_t count = 1;
};

int run_tests(const Part& part, int filter_count, const char* const* filters) {
  int passed = 0;
  int failed = 0;
  bool first = true;
  for (const std::string& set : instruction_sets()) {
    if (!set_instruction_set(set.c_str())) {
      std::printf("FAILED to choose the instruction set %s\n", set.c_str());
      ++failed;
      continue;
    }
    for (size_t i = part.index; i < registry().size(); i += part.count) {
      const Test& test = registry()[i];
      if (!first && !test.every_instruction_set) continue;
      if (!selected(test.name, filter_count, filters)) continue;
      running = test.name;
      failures = 0;
      const auto begin = std::chrono::steady_clock::now();
      test.body();
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
      if (times && seconds.count() >= 0.5) {
        std::printf("%6.1f s  %s [%s]\n", seconds.count(), test.name, set.c_str());
      }
      if (failures > kPrintedFailures) {
        std::printf("  ... and %d more\n", failures - kPrintedFailures);
      }
      ++(failures == 0 ? passed : failed);
      if (stops && failed > 0) return failed;
    }
    first = false;
  }
  if (passed + failed == 0) {
    std::printf("no test has such a name\n");
    return -1;
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed;
}

}  // namespace cluster_attention::test

// Allocations of absurd sizes fail as they do without a sanitizer, instead of ending the run.
// Visible: the sanitizer's library looks for it.
#if defined(__SANITIZE_ADDRESS__)
#define CA_SANITIZER_OPTIONS __asan_default_options
#elif defined(__SANITIZE_THREAD__)
#define CA_SANITIZER_OPTIONS __tsan_default_options
#endif
#if defined(CA_SANITIZER_OPTIONS)
extern "C" __attribute__((visibility("default"))) const char* CA_SANITIZER_OPTIONS() {
  return "allocator_may_return_null=1";
}
#endif

namespace {

/// Takes one option; false when it is none.
bool take_option(const char* option, bool& errors, cluster_attention::test::Part& part) {
  using namespace cluster_attention::test;
  long long first = 0;
  long long second = 0;
  if (std::strcmp(option, "--list") == 0) {
    list_tests();
    std::exit(0);
  } else if (std::strcmp(option, "--errors") == 0) {
    errors = true;
  } else if (std::strcmp(option, "--times") == 0) {
    print_times();
  } else if (std::strcmp(option, "--stop") == 0) {
    stops = true;
  } else if (std::sscanf(option, "--set=%lld", &first) == 1 && first >= 0) {
    only_set = first;
  } else if (std::strncmp(option, "--without=", 10) == 0) {
    left_out = option + 10;
  } else if (std::strcmp(option, "--guard=begin") == 0) {
    set_guard(Guard::begin);
  } else if (std::strcmp(option, "--guard=end") == 0) {
    set_guard(Guard::end);
  } else if (std::sscanf(option, "--sizes=%lld", &first) == 1) {
    walk_sizes(first);
  } else if (std::sscanf(option, "--random=%lld,%lld", &first, &second) == 2) {
    walk_random_cases(static_cast<uint64_t>(first), second);
  } else if (std::sscanf(option, "--long=%lld,%lld", &first, &second) == 2) {
    walk_long_cases(static_cast<uint64_t>(first), second);
  } else if (std::sscanf(option, "--threads=%lld", &first) == 1) {
    cluster_attention::ThreadPool::instance().set_threads(static_cast<int>(first));
  } else if (std::sscanf(option, "--part=%lld,%lld", &first, &second) == 2 && first >= 0 &&
             second > first) {
    part = {static_cast<size_t>(first), static_cast<size_t>(second)};
  } else {
    return false;
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 1 << 12);  // a crash must not swallow what failed before
  // More threads than most machines that run this have cores: orders of execution vary more.
  cluster_attention::ThreadPool::instance().set_threads(8);
  bool errors = false;
  cluster_attention::test::Part part;
  int first = 1;
  while (first < argc && take_option(argv[first], errors, part)) ++first;
  if (cluster_attention::test::made_cases()) cluster_attention::test::bound_factor() = 4.0;
  if (cluster_attention::test::guard() != cluster_attention::test::Guard::none) {
    cluster_attention::test::report_touched_guards();
  }
  const int failed = cluster_attention::test::run_tests(part, argc - first, argv + first);
  if (errors) cluster_attention::test::print_errors();
  return failed < 0 ? 2 : failed == 0 ? 0 : 1;  // 2: nothing ran
}
