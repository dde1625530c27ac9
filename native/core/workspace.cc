#include "native/core/workspace.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

namespace cluster_attention {

namespace {

constexpr size_t kAlignment = 64;

std::atomic<int64_t> allocations_until_failure{0};
std::atomic<int64_t> bytes_in_use{0};

bool must_fail() {
  if (allocations_until_failure.load(std::memory_order_relaxed) == 0) return false;
  return allocations_until_failure.fetch_sub(1, std::memory_order_relaxed) == 1;
}

}  // namespace

/// Header in front of each block, as long as the alignment.
struct Workspace::Block {
  Block* next;
  size_t bytes;
};

Workspace::~Workspace() {
  while (blocks_ != nullptr) {
    Block* next = blocks_->next;
    bytes_in_use.fetch_sub(static_cast<int64_t>(blocks_->bytes), std::memory_order_relaxed);
    ::operator delete (blocks_, std::align_val_t{kAlignment}, std::nothrow);
    blocks_ = next;
  }
}

void* Workspace::allocate_bytes(size_t bytes) {
  static_assert(sizeof(Block) <= kAlignment, "the header must fit in front of the block");
  if (must_fail()) return nullptr;
  const size_t total = kAlignment + (bytes + kAlignment - 1) / kAlignment * kAlignment;
  void* memory = ::operator new (total, std::align_val_t{kAlignment}, std::nothrow);
  if (memory == nullptr) return nullptr;
  blocks_ = new (memory) Block{blocks_, total};
  bytes_in_use.fetch_add(static_cast<int64_t>(total), std::memory_order_relaxed);
  return static_cast<char*>(memory) + kAlignment;
}

void Workspace::zero(void* memory, size_t bytes) { std::memset(memory, 0, bytes); }

void fail_workspace_allocation(int64_t n) {
  allocations_until_failure.store(n, std::memory_order_relaxed);
}

int64_t workspace_bytes_in_use() { return bytes_in_use.load(std::memory_order_relaxed); }

}  // namespace cluster_attention
