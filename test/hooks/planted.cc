// One bug for each tool of scripts/sanitizers.cjs, to prove that it is awake. `planted NAME`.

#include <climits>
#include <cstdio>
#include <cstring>
#include <thread>

namespace {

volatile int sink;
int shared = 0;

void overrun(int* memory, int length) { sink = memory[length]; }

void race() {
  std::thread other([] {
    for (int i = 0; i < 1000; ++i) ++shared;
  });
  for (int i = 0; i < 1000; ++i) ++shared;
  other.join();
}

}  // namespace

int main(int argc, char** argv) {
  const char* bug = argc > 1 ? argv[1] : "";
  int* memory = new int[8]();
  if (std::strcmp(bug, "heap") == 0) overrun(memory, 8 + (argc > 9));
  if (std::strcmp(bug, "free") == 0) {
    delete[] memory;
    overrun(memory, argc);
    return 0;
  }
  if (std::strcmp(bug, "overflow") == 0) sink = INT_MAX - 1 + argc;
  if (std::strcmp(bug, "uninitialised") == 0) {
    const int* unset = new int[4];
    if (unset[argc] > 0) std::puts("positive");
    delete[] unset;
  }
  if (std::strcmp(bug, "race") == 0) race();
  delete[] memory;
  return 0;
}
