#include "test/native/cases.h"

#include <cstdio>
#include <cstdlib>

namespace cluster_attention::test {

const std::vector<Case>& cases() {
  static const std::vector<Case> table = {
#include "cases.inc"
  };
  return table;
}

const Case& find_case(const std::string& name) {
  for (const Case& one : cases()) {
    if (one.name == name) return one;
  }
  std::fprintf(stderr, "test/cases.json has no case \"%s\"\n", name.c_str());
  std::exit(1);
}

}  // namespace cluster_attention::test
