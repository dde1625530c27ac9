#include "native/core/workspace.h"

#include "test/native/harness.h"

namespace cluster_attention::test {

namespace {

TEST_ONCE("workspace: blocks are aligned, distinct and counted, and freed together") {
  CHECK_EQUAL(workspace_bytes_in_use(), 0);
  {
    Workspace workspace;
    for (int64_t count : {0, 1, 15, 16, 17, 100000}) {
      float* memory = workspace.allocate<float>(count);
      CHECK(memory != nullptr);
      CHECK_EQUAL(reinterpret_cast<uintptr_t>(memory) % 64, uintptr_t{0});
      for (int64_t i = 0; i < count; ++i) memory[i] = 1.0f;
    }
    CHECK(workspace_bytes_in_use() >= 100149 * 4);
    const int32_t* zeros = workspace.allocate_zeroed<int32_t>(1000);
    for (int i = 0; i < 1000; ++i) CHECK_EQUAL(zeros[i], 0);
  }
  CHECK_EQUAL(workspace_bytes_in_use(), 0);
}

TEST_ONCE("workspace: what cannot be had is nullptr") {
  Workspace workspace;
  CHECK(workspace.allocate<double>(-1) == nullptr);
  CHECK(workspace.allocate<double>(std::numeric_limits<int64_t>::max()) == nullptr);
  CHECK(workspace.allocate<char>(int64_t{1} << 61) == nullptr);
  CHECK(workspace.allocate_zeroed<char>(int64_t{1} << 61) == nullptr);
  CHECK(workspace.allocate<char>(1) != nullptr);
}

TEST_ONCE(
    "workspace: a long block serves the next workspace, a much shorter one does not take it") {
  constexpr int64_t kLong = int64_t{3} << 20;
  const char* first = nullptr;
  {
    Workspace workspace;
    first = workspace.allocate<char>(kLong);
  }
  Workspace workspace;
  CHECK(workspace.allocate<char>(kLong / 3) != first);
  CHECK(workspace.allocate<char>(kLong - 100) == first);
  CHECK(workspace.allocate<char>(kLong) != first);
}

TEST_ONCE("workspace: the n-th allocation fails, once") {
  Workspace workspace;
  fail_workspace_allocation(2);
  CHECK(workspace.allocate<char>(1) != nullptr);
  CHECK(workspace.allocate<char>(1) == nullptr);
  CHECK(workspace.allocate<char>(1) != nullptr);
  fail_workspace_allocation(1);
  fail_workspace_allocation(0);
  CHECK(workspace.allocate<char>(1) != nullptr);
}

}  // namespace

}  // namespace cluster_attention::test
