#include "native/kernels/key_tile_gradient.h"

#include <algorithm>

#include "native/core/softmax_state.h"
#include "native/kernels/finite.h"
#include "native/kernels/prefetch.h"

namespace cluster_attention::kernels {

namespace {

/// Rows that meet a tile of keys at a time.
constexpr int64_t kRowBlock = 128;
/// Partial sums of dq stay below the inputs in size, and a short part is not worth a merge.
constexpr int64_t kMaximumParts = 8;
constexpr int64_t kKeysPerPart = 256;

bool rows_are_finite(const float* rows, int64_t row_stride, int64_t count, int64_t dim) {
  for (int64_t r = 0; r < count; ++r) {
    if (!all_finite(rows + r * row_stride, dim)) return false;
  }
  return true;
}

/// The rows side by side, where they do not lie so already.
const float* side_by_side(const float* rows, int64_t& row_stride, int64_t count, int64_t dim,
                          float* copies) {
  if (row_stride == dim) return rows;
  for (int64_t r = 0; r < count; ++r) std::copy_n(rows + r * row_stride, dim, copies + r * dim);
  row_stride = dim;
  return copies;
}

}  // namespace

int64_t KeyTileGradient::parts_of(int64_t keys) const {
  return std::clamp<int64_t>(keys / kKeysPerPart, 1, kMaximumParts);
}

Status KeyTileGradient::prepare(const AttentionInputs& inputs, const AttentionGradients& gradients,
                                int64_t rows, int64_t sequences, Context& context) {
  inputs_ = &inputs;
  gradients_ = gradients;
  wants_change_ = gradients.query.data != nullptr || gradients.key.data != nullptr;
  parts_ = parts_of(inputs.shape.key_length);
  padded_dim_ = round_up(inputs.shape.head_dim, simd().width);
  Workspace& workspace = context.workspace();
  scratch_ = workspace.allocate<Scratch>(context.workers());
  const int64_t sums = gradients.query.data != nullptr ? sequences * parts_ : 0;
  if (scratch_ == nullptr || !sums_.allocate(sums, rows, inputs.shape.head_dim, false, workspace)) {
    return Status::out_of_memory();
  }
  for (int worker = 0; worker < context.workers(); ++worker) {
    scratch_[worker] = Scratch();
    if (!allocate(scratch_[worker], workspace)) return Status::out_of_memory();
  }
  return Status::success();
}

bool KeyTileGradient::allocate(Scratch& scratch, Workspace& workspace) const {
  const int64_t lanes = simd().lanes;
  const int64_t dim = inputs_->shape.head_dim;
  const int64_t value_dim = inputs_->shape.value_dim;
  const int64_t tile = lanes * (2 * dim + 2 * value_dim + padded_dim_);
  const int64_t size = kTilesPerGroup * tile + 2 * kRowBlock * lanes +
                       kRowBlock * (dim + value_dim) + lanes * std::max(dim, value_dim);
  float* memory = workspace.allocate<float>(size);
  if (memory == nullptr) return false;
  const auto take = [&memory](int64_t count) {
    float* first = memory;
    memory += count;
    return first;
  };
  for (KeyTile& one : scratch.tiles) {
    one.key = take(dim * lanes);
    one.value = take(value_dim * lanes);
    one.key_copies = take(lanes * padded_dim_);
    one.key_sum = take(dim * lanes);
    one.value_sum = take(value_dim * lanes);
  }
  scratch.weights = take(kRowBlock * lanes);
  scratch.change = take(kRowBlock * lanes);
  scratch.query = take(kRowBlock * dim);
  scratch.gradient = take(kRowBlock * value_dim);
  scratch.rows = take(lanes * std::max(dim, value_dim));
  return true;
}

void KeyTileGradient::pass(const AttendingRows& rows, int64_t place, int64_t part, int worker,
                           Context& context) {
  // key: (S,D) and value: (S,E), in lanes; query: (R,D), gradient: (R,E)
  const int64_t parts = parts_of(rows.keys);
  if (part >= parts) return;
  const int64_t lanes = simd().lanes;
  float* query_sum = nullptr;
  if (gradients_.query.data != nullptr) {
    query_sum = sums_.at(place * parts_ + part).values;
    std::fill_n(query_sum, rows.rows * padded_dim_, 0.0f);
  }
  Scratch& scratch = scratch_[worker];
  const Range tiles = split(divide_up(rows.keys, lanes), parts, part);
  bool finite = true;
  for (int64_t t = tiles.begin; t < tiles.end; t += kTilesPerGroup) {
    if (context.cancelled()) return;
    const int64_t count = std::min(kTilesPerGroup, tiles.end - t);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t first = (t + i) * lanes;
      load(rows, first, std::min(lanes, rows.keys - first), scratch.tiles[i]);
    }
    // Causal: rows before this one see no key of the group.
    const int64_t start =
        rows.causal ? std::max<int64_t>(t * lanes - (rows.keys - rows.rows), 0) : 0;
    for (int64_t first = start / kRowBlock * kRowBlock; first < rows.rows; first += kRowBlock) {
      const RowBlock block =
          load_rows(rows, first, std::min(kRowBlock, rows.rows - first), scratch);
      for (int64_t i = 0; i < count; ++i) {
        meet(rows, block, scratch.tiles[i], scratch, query_sum);
      }
    }
    for (int64_t i = 0; i < count; ++i) finite &= finish(rows, scratch.tiles[i], scratch);
  }
  if (part == parts - 1) clear(rows, rows.keys, inputs_->shape.key_length);  // padding
  if (!finite) context.mark_non_finite();
}

void KeyTileGradient::load(const AttendingRows& rows, int64_t first, int64_t columns,
                           KeyTile& tile) const {
  const AttentionShape& shape = inputs_->shape;
  const InputRows& key = inputs_->key;
  const InputRows& value = inputs_->value;
  tile.first = first;
  tile.columns = columns;
  tile.key_rows = key.row(rows.batch, rows.head, first);
  if (key.row_stride != padded_dim_) {
    // Copies: products read whole vectors of these rows, and rows that lie apart share cache sets.
    for (int64_t i = 0; i < columns; ++i) {
      float* row = tile.key_copies + i * padded_dim_;
      std::copy_n(key.row(rows.batch, rows.head, first + i), shape.head_dim, row);
      std::fill(row + shape.head_dim, row + padded_dim_, 0.0f);
    }
    tile.key_rows = tile.key_copies;
  }
  simd().pack(tile.key_rows, padded_dim_, nullptr, columns, shape.head_dim, tile.key);
  simd().pack(value.row(rows.batch, rows.head, first), value.row_stride, nullptr, columns,
              shape.value_dim, tile.value);
  std::fill_n(tile.key_sum, shape.head_dim * simd().lanes, 0.0f);
  std::fill_n(tile.value_sum, shape.value_dim * simd().lanes, 0.0f);
  // finish() writes there.
  for (int64_t i = 0; gradients_.key.data != nullptr && i < columns; ++i) {
    prefetch_row(gradients_.key.row(rows.batch, rows.head, first + i), shape.head_dim);
  }
  for (int64_t i = 0; gradients_.value.data != nullptr && i < columns; ++i) {
    prefetch_row(gradients_.value.row(rows.batch, rows.head, first + i), shape.value_dim);
  }
  tile.finite =
      !rows.causal || rows_are_finite(tile.key_rows, padded_dim_, columns, shape.head_dim);
}

KeyTileGradient::RowBlock KeyTileGradient::load_rows(const AttendingRows& rows, int64_t first,
                                                     int64_t count, const Scratch& scratch) const {
  RowBlock block;
  block.first = first;
  block.rows = count;
  block.query_stride = rows.query_stride;
  block.query = side_by_side(rows.query + first * rows.query_stride, block.query_stride, count,
                             inputs_->shape.head_dim, scratch.query);
  block.gradient_stride = rows.gradient_stride;
  block.gradient = side_by_side(rows.gradient + first * rows.gradient_stride, block.gradient_stride,
                                count, inputs_->shape.value_dim, scratch.gradient);
  return block;
}

/// What a block of rows and a tile of keys add to each other's gradients.
void KeyTileGradient::meet(const AttendingRows& rows, const RowBlock& block, const KeyTile& tile,
                           const Scratch& scratch, float* query_sum) const {
  const Simd& cpu = simd();
  const AttentionShape& shape = inputs_->shape;
  const int64_t lanes = cpu.lanes;
  const auto multiply =
      rows.bfloat16 && cpu.multiplies_bfloat16 ? cpu.multiply_bfloat16 : cpu.multiply;
  float* change = wants_change_ ? scratch.change : nullptr;
  int32_t visible[kRowBlock];
  bool hidden = false;
  if (rows.causal) {
    const int64_t seen = block.first + 1 + rows.keys - rows.rows - tile.first;  // by the first row
    if (seen + block.rows - 1 <= 0) return;
    hidden = seen < tile.columns;
    for (int64_t r = 0; hidden && r < block.rows; ++r) {
      visible[r] = static_cast<int32_t>(std::clamp<int64_t>(seen + r, 0, tile.columns));
    }
  }
  multiply(block.query, block.query_stride, 1, block.rows, shape.head_dim, tile.key, lanes,
           tile.columns, scratch.weights, lanes, false);
  if (change != nullptr) {
    multiply(block.gradient, block.gradient_stride, 1, block.rows, shape.value_dim, tile.value,
             lanes, tile.columns, change, lanes, false);
  }
  cpu.attend_gradient(scratch.weights, change, block.rows, tile.columns, inputs_->scale * kLog2E,
                      rows.maximum + block.first, rows.offset + block.first,
                      hidden ? visible : nullptr);
  if (rows.selected.offsets != nullptr) skip_selected(rows, block, tile, scratch);
  if (query_sum != nullptr) query_sum += block.first * padded_dim_;
  if (hidden &&
      !(tile.finite &&
        rows_are_finite(block.query, block.query_stride, block.rows, shape.head_dim) &&
        rows_are_finite(block.gradient, block.gradient_stride, block.rows, shape.value_dim))) {
    return sum_visible(block, tile, visible, scratch, query_sum);
  }
  if (gradients_.value.data != nullptr) {
    multiply(block.gradient, 1, block.gradient_stride, shape.value_dim, block.rows, scratch.weights,
             lanes, tile.columns, tile.value_sum, lanes, true);
  }
  if (gradients_.key.data != nullptr) {
    multiply(block.query, 1, block.query_stride, shape.head_dim, block.rows, change, lanes,
             tile.columns, tile.key_sum, lanes, true);
  }
  if (query_sum != nullptr) {
    multiply(change, lanes, 1, block.rows, tile.columns, tile.key_rows, padded_dim_, shape.head_dim,
             query_sum, padded_dim_, true);
  }
}

/// The sums of meet() over visible pairs alone, one by one: a hidden row or key may be NaN.
void KeyTileGradient::sum_visible(const RowBlock& block, const KeyTile& tile,
                                  const int32_t* visible, const Scratch& scratch,
                                  float* query_sum) const {
  const AttentionShape& shape = inputs_->shape;
  const int64_t lanes = simd().lanes;
  for (int64_t r = 0; r < block.rows; ++r) {
    const float* query = block.query + r * block.query_stride;
    const float* gradient = block.gradient + r * block.gradient_stride;
    for (int64_t i = 0; i < visible[r]; ++i) {
      const float weight = scratch.weights[r * lanes + i];
      for (int64_t e = 0; e < shape.value_dim; ++e) {
        tile.value_sum[e * lanes + i] += weight * gradient[e];
      }
      if (!wants_change_) continue;
      const float change = scratch.change[r * lanes + i];
      const float* key = tile.key_rows + i * padded_dim_;
      for (int64_t d = 0; d < shape.head_dim; ++d) {
        tile.key_sum[d * lanes + i] += change * query[d];
        if (query_sum != nullptr) query_sum[r * padded_dim_ + d] += change * key[d];
      }
    }
  }
}

/// At a key that a row selects: the row's own dz, and no share of dv.
void KeyTileGradient::skip_selected(const AttendingRows& rows, const RowBlock& block,
                                    const KeyTile& tile, const Scratch& scratch) const {
  const SelectedKeys& selected = rows.selected;
  for (int64_t i = 0; i < tile.columns; ++i) {
    const int64_t key = tile.first + i;
    for (int64_t at = selected.offsets[key]; at < selected.offsets[key + 1]; ++at) {
      const int64_t row = selected.slots[at] / selected.k;
      if (row < block.first || row >= block.first + block.rows) continue;
      float& weight = scratch.weights[(row - block.first) * simd().lanes + i];
      if (wants_change_) {
        scratch.change[(row - block.first) * simd().lanes + i] =
            weight * (selected.change[row] - rows.offset[row]);
      }
      weight = 0.0f;
    }
  }
}

/// Writes the gradients of a tile's keys and values; false if one is not finite.
bool KeyTileGradient::finish(const AttendingRows& rows, const KeyTile& tile,
                             const Scratch& scratch) const {
  const AttentionShape& shape = inputs_->shape;
  bool finite = finish_rows(rows, gradients_.key, tile, tile.key_sum, inputs_->scale,
                            shape.head_dim, scratch.rows);
  finite &= finish_rows(rows, gradients_.value, tile, tile.value_sum, 1.0f, shape.value_dim,
                        scratch.rows);
  if (rows.selected.offsets == nullptr) return finite;
  const int64_t slots = rows.rows * rows.selected.k;
  return add_selected(rows, tile.first, tile.first + tile.columns, rows.selected.first_slot,
                      slots) &&
         finite;
}

bool KeyTileGradient::finish_rows(const AttendingRows& rows, const OutputRows& target,
                                  const KeyTile& tile, const float* sum, float factor, int64_t dim,
                                  float* scratch) const {
  if (target.data == nullptr) return true;
  float factors[kMaximumLanes];
  std::fill_n(factors, kMaximumLanes, factor);
  float* first = target.row(rows.batch, rows.head, tile.first);
  if (rows.selected.first_slot == 0) {
    return simd().unpack(sum, tile.columns, dim, factors, first, target.row_stride, nullptr);
  }
  // Earlier slots are in the gradients already.
  simd().unpack(sum, tile.columns, dim, factors, scratch, dim, nullptr);
  bool finite = true;
  for (int64_t i = 0; i < tile.columns; ++i) {
    float* row = first + i * target.row_stride;
    for (int64_t d = 0; d < dim; ++d) row[d] += scratch[i * dim + d];
    finite &= all_finite(row, dim);
  }
  return finite;
}

namespace {

/// target += the rows of the slots, in order, times `factor`; false if the sum is not finite.
bool add_slots(const int64_t* slots, int64_t count, int64_t first_slot, const float* rows,
               int64_t row_stride, float factor, int64_t dim, float* target) {
  for (int64_t i = 0; i < count; ++i) {
    const float* row = rows + (slots[i] - first_slot) * row_stride;
    for (int64_t d = 0; d < dim; ++d) target[d] += factor * row[d];
  }
  return all_finite(target, dim);
}

}  // namespace

bool KeyTileGradient::add_selected(const AttendingRows& rows, int64_t first, int64_t last,
                                   int64_t begin, int64_t end) const {
  const AttentionShape& shape = inputs_->shape;
  const SelectedKeys& selected = rows.selected;
  bool finite = true;
  for (int64_t key = first; key < last; ++key) {
    const int64_t* slots = std::lower_bound(selected.slots + selected.offsets[key],
                                            selected.slots + selected.offsets[key + 1], begin);
    const int64_t* stop = std::lower_bound(slots, selected.slots + selected.offsets[key + 1], end);
    if (slots == stop) continue;
    // The slots of all keys follow each other: the rows of the next ones are asked for early.
    const int64_t* limit = selected.slots + selected.offsets[last];
    const int64_t* ahead = std::min(slots + kPrefetchRows, limit);
    for (; ahead < std::min(stop + kPrefetchRows, limit); ++ahead) {
      if (*ahead < begin || *ahead >= end) continue;
      prefetch_row(selected.key_rows + (*ahead - begin) * selected.key_stride, shape.head_dim);
      prefetch_row(selected.value_rows + (*ahead - begin) * selected.value_stride, shape.value_dim);
    }
    if (gradients_.key.data != nullptr) {
      finite &=
          add_slots(slots, stop - slots, begin, selected.key_rows, selected.key_stride,
                    inputs_->scale, shape.head_dim, gradients_.key.row(rows.batch, rows.head, key));
    }
    if (gradients_.value.data != nullptr) {
      finite &= add_slots(slots, stop - slots, begin, selected.value_rows, selected.value_stride,
                          1.0f, shape.value_dim, gradients_.value.row(rows.batch, rows.head, key));
    }
  }
  return finite;
}

void KeyTileGradient::clear(const AttendingRows& rows, int64_t first, int64_t last) const {
  const AttentionShape& shape = inputs_->shape;
  for (int64_t s = first; s < last; ++s) {
    if (gradients_.key.data != nullptr) {
      std::fill_n(gradients_.key.row(rows.batch, rows.head, s), shape.head_dim, 0.0f);
    }
    if (gradients_.value.data != nullptr) {
      std::fill_n(gradients_.value.row(rows.batch, rows.head, s), shape.value_dim, 0.0f);
    }
  }
}

void KeyTileGradient::total(const AttendingRows& rows, int64_t place, int64_t row,
                            float* target) const {
  sums_.total_values(place * parts_, parts_of(rows.keys), row, target);
  for (int64_t d = 0; d < inputs_->shape.head_dim; ++d) target[d] *= inputs_->scale;
}

}  // namespace cluster_attention::kernels
