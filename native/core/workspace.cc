#include "native/core/workspace.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cluster_attention {

namespace {

constexpr size_t kAlignment = 64;
/// Blocks at least this long are kept for the next call: fresh pages cost more than many a kernel.
constexpr size_t kKeptBlock = size_t{1} << 14;
/// What the process keeps at most while no call needs it.
constexpr size_t kKeptBytes = size_t{128} << 20;
/// Pieces up to a quarter of a slab are cut from it. Not under the address sanitizer, which sees
/// only what lies beyond a block.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kSlab = 0;
#else
constexpr size_t kSlab = kKeptBlock;
#endif
/// Blocks at least this long are aligned to huge pages and ask for them.
constexpr size_t kHugePage = size_t{1} << 21;

std::atomic<int64_t> allocations_until_failure{0};
std::atomic<int64_t> bytes_in_use{0};

bool must_fail() {
  if (allocations_until_failure.load(std::memory_order_relaxed) == 0) return false;
  return allocations_until_failure.fetch_sub(1, std::memory_order_relaxed) == 1;
}

std::align_val_t alignment_of(size_t bytes) {
  return std::align_val_t{bytes >= kHugePage ? kHugePage : kAlignment};
}

}  // namespace

/// Header in front of each block, as long as the alignment.
struct Workspace::Block {
  Block* next;
  size_t bytes;

  static Block* create(size_t bytes) {
    void* memory = ::operator new(bytes, alignment_of(bytes), std::nothrow);
    if (memory == nullptr) return nullptr;
#if defined(__linux__)
    if (bytes >= kHugePage) madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
    return new (memory) Block{nullptr, bytes};
  }

  static void destroy(Block* block) {
    ::operator delete(block, alignment_of(block->bytes), std::nothrow);
  }
};

/// Long blocks between two calls, shared by all threads.
class Workspace::Shelf {
 public:
  static Shelf& instance() {
    // Never destroyed: pool threads may outlive main().
    alignas(Shelf) static char memory[sizeof(Shelf)];
    static Shelf* shelf = new (memory) Shelf;
    return *shelf;
  }

  /// A kept block of at least `bytes`, but not twice as many; nullptr when there is none.
  Block* take(size_t bytes) {
    const std::lock_guard<std::mutex> guard(lock_);
    for (Block** link = &blocks_; *link != nullptr; link = &(*link)->next) {
      Block* block = *link;
      if (block->bytes < bytes || block->bytes / 2 > bytes) continue;
      *link = block->next;
      bytes_ -= block->bytes;
      return block;
    }
    return nullptr;
  }

  /// Keeps the block if there is room; otherwise the caller destroys it.
  bool keep(Block* block) {
    const std::lock_guard<std::mutex> guard(lock_);
    if (bytes_ + block->bytes > kKeptBytes) return false;
    block->next = blocks_;
    blocks_ = block;
    bytes_ += block->bytes;
    return true;
  }

  /// Gives all of it back; false when there was nothing.
  bool clear() {
    const std::lock_guard<std::mutex> guard(lock_);
    const bool had_blocks = blocks_ != nullptr;
    while (blocks_ != nullptr) {
      Block* block = blocks_;
      blocks_ = block->next;
      Block::destroy(block);
    }
    bytes_ = 0;
    return had_blocks;
  }

 private:
  std::mutex lock_;
  Block* blocks_ = nullptr;  // the one used last in front: its pages are warm
  size_t bytes_ = 0;
};

Workspace::~Workspace() {
  while (blocks_ != nullptr) {
    Block* block = blocks_;
    blocks_ = block->next;
    bytes_in_use.fetch_sub(static_cast<int64_t>(block->bytes), std::memory_order_relaxed);
    if (block->bytes < kKeptBlock || !Shelf::instance().keep(block)) Block::destroy(block);
  }
}

Workspace::Block* Workspace::obtain(size_t bytes) {
  const size_t total = kAlignment + bytes;
  Block* block = total >= kKeptBlock ? Shelf::instance().take(total) : nullptr;
  if (block == nullptr) block = Block::create(total);
  if (block == nullptr && Shelf::instance().clear()) block = Block::create(total);
  if (block == nullptr) return nullptr;
  block->next = blocks_;
  blocks_ = block;
  bytes_in_use.fetch_add(static_cast<int64_t>(block->bytes), std::memory_order_relaxed);
  return block;
}

void* Workspace::allocate_bytes(size_t bytes) {
  static_assert(sizeof(Block) <= kAlignment, "the header must fit in front of the block");
  if (must_fail()) return nullptr;
  const size_t needed =
      bytes == 0 ? kAlignment : (bytes + kAlignment - 1) / kAlignment * kAlignment;
  const bool is_short = needed <= kSlab / 4;
  if (is_short && needed <= slab_bytes_) {
    char* piece = slab_;
    slab_ += needed;
    slab_bytes_ -= needed;
    return piece;
  }
  Block* block = obtain(is_short ? kSlab : needed);
  if (block == nullptr) return nullptr;
  char* memory = reinterpret_cast<char*>(block) + kAlignment;
  if (is_short) {
    slab_ = memory + needed;
    slab_bytes_ = block->bytes - kAlignment - needed;
  }
  return memory;
}

void Workspace::zero(void* memory, size_t bytes) { std::memset(memory, 0, bytes); }

void fail_workspace_allocation(int64_t n) {
  allocations_until_failure.store(n, std::memory_order_relaxed);
}

int64_t workspace_bytes_in_use() { return bytes_in_use.load(std::memory_order_relaxed); }

}  // namespace cluster_attention
