#pragma once

// A test is a function that records failures and goes on. TEST runs once per instruction set of
// the machine, TEST_ONCE (for what has no vector code) once.

#include <sstream>
#include <string>

namespace cluster_attention::test {

using TestBody = void (*)();

struct Registrar {
  Registrar(const char* name, TestBody body, bool every_instruction_set);
};

/// Records a failure of the running test.
void fail(const char* file, int line, const std::string& message);

/// Notes the relative error of a comparison and its bound, for the table of `--errors`.
void record_error(double error, double bound);

/// Names what the checks inside its lifetime are about, for the failure message.
class Scope {
 public:
  explicit Scope(const std::string& name);
  ~Scope();
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;
};

/// Prints the largest error of every operation, over all tests and instruction sets so far.
void print_errors();

/// Prints the name of every test.
void list_tests();

/// Has the tests that take long print how long.
void print_times();

/// Runs every test whose name contains one of the filters (all without filters) and prints what
/// failed; the number of failed tests, -1 when none has such a name.
int run_tests(int filter_count, const char* const* filters);

template <typename A, typename B>
void check_equal(const char* file, int line, const char* text, const A& actual, const B& expected) {
  if (actual == expected) return;
  std::ostringstream message;
  message << text << " is " << actual << ", expected " << expected;
  fail(file, line, message.str());
}

}  // namespace cluster_attention::test

#define CA_JOIN_(a, b) a##b
#define CA_JOIN(a, b) CA_JOIN_(a, b)
#define CA_TEST_(name, every)                                                           \
  static void CA_JOIN(test_body_, __LINE__)();                                          \
  static const ::cluster_attention::test::Registrar CA_JOIN(test_registrar_, __LINE__){ \
      name, CA_JOIN(test_body_, __LINE__), every};                                      \
  static void CA_JOIN(test_body_, __LINE__)()

#define TEST(name) CA_TEST_(name, true)
#define TEST_ONCE(name) CA_TEST_(name, false)

#define CHECK(condition)                                                               \
  do {                                                                                 \
    if (!(condition)) ::cluster_attention::test::fail(__FILE__, __LINE__, #condition); \
  } while (0)
#define CHECK_EQUAL(actual, expected) \
  ::cluster_attention::test::check_equal(__FILE__, __LINE__, #actual, actual, expected)
