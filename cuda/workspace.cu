#include "cuda/session.h"
#include "cuda/workspace.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

namespace {

constexpr int64_t kAlignment = 256;

}  // namespace

DeviceWorkspace::Scope::Scope(DeviceWorkspace& workspace)
    : workspace_(workspace), block_(workspace.block_), used_(workspace.used_) {
  ++workspace_.depth_;
}

DeviceWorkspace::Scope::~Scope() {
  workspace_.block_ = block_;
  workspace_.used_ = used_;
  if (--workspace_.depth_ == 0) workspace_.join_blocks();
}

Status DeviceWorkspace::allocate_bytes(int64_t bytes, void** memory) {
  const int64_t size = bytes > 0 ? bytes : 1;
  while (block_ < block_count_ && used_ + size > blocks_[block_].bytes) {
    ++block_;
    used_ = 0;
  }
  if (block_ >= block_count_) {
    CA_RETURN_IF_ERROR(add_block(size));
    block_ = block_count_ - 1;
    used_ = 0;
  }
  *memory = blocks_[block_].memory + used_;
  used_ += round_up(size, kAlignment);
  return Status::success();
}

Status DeviceWorkspace::add_block(int64_t bytes) {
  if (block_count_ == kMaximumBlocks) return Status::out_of_memory();
  const int64_t size = bytes > smallest_block_ ? bytes : smallest_block_;
  void* memory = nullptr;
  CA_RETURN_IF_ERROR(session_.allocate(size, &memory));
  blocks_[block_count_++] = {static_cast<char*>(memory), size};
  return Status::success();
}

void DeviceWorkspace::join_blocks() {
  if (block_count_ < 2) return;
  int64_t total = 0;
  for (int i = 0; i < block_count_; ++i) total += round_up(blocks_[i].bytes, kAlignment);
  free_all();
  // Without success the next operation tries again and reports what is wrong.
  (void)add_block(total);
}

void DeviceWorkspace::free_all() {
  for (int i = 0; i < block_count_; ++i) session_.release(blocks_[i].memory);
  block_count_ = 0;
  block_ = 0;
  used_ = 0;
}

}  // namespace cluster_attention::cuda
