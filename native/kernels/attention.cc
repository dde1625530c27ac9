#include "native/kernels/attention.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <utility>

#include "native/core/shape.h"
#include "native/core/softmax_state.h"

namespace cluster_attention::kernels {

int64_t AttendScratch::scratch_size(const Simd& simd, int64_t head_dim) {
  return (head_dim + kKeyBlock) * simd.lanes;
}

int64_t AttendScratch::state_size(const Simd& simd, int64_t value_dim) {
  return (value_dim + 3) * simd.lanes;
}

AttendScratch AttendScratch::carve(float* scratch, float* state, const Simd& simd,
                                   int64_t head_dim) {
  const int64_t lanes = simd.lanes;
  return {scratch,       scratch + head_dim * lanes, state,
          state + lanes, state + 2 * lanes,          state + 3 * lanes};
}

void AttendScratch::reset(const Simd& simd, int64_t value_dim) const {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::fill_n(maximum, simd.lanes, -kInfinity);
  std::fill_n(sum, simd.lanes, 0.0f);
  std::fill_n(minimum, simd.lanes, kInfinity);
  std::fill_n(output, value_dim * simd.lanes, 0.0f);
}

void AttendScratch::join(const AttendScratch& other, const Simd& simd, int64_t columns,
                         int64_t value_dim) const {
  SoftmaxState::Factors factors[kMaximumLanes];
  for (int64_t i = 0; i < columns; ++i) {
    SoftmaxState state{maximum[i], sum[i]};
    factors[i] = state.merge({other.maximum[i], other.sum[i]});
    maximum[i] = state.maximum;
    sum[i] = state.sum;
    minimum[i] = std::min(minimum[i], other.minimum[i]);
  }
  for (int64_t e = 0; e < value_dim; ++e) {
    float* mine = output + e * simd.lanes;
    const float* others = other.output + e * simd.lanes;
    for (int64_t i = 0; i < columns; ++i) {
      mine[i] = mine[i] * factors[i].mine + others[i] * factors[i].other;
    }
  }
}

AttendTile AttendScratch::tile(int64_t columns, float scale) const {
  AttendTile tile;
  tile.packed_query = packed_query;
  tile.columns = columns;
  tile.scale_log2 = (scale < 0.0f ? -scale : scale) * kLog2E;
  tile.maximum = maximum;
  tile.sum = sum;
  tile.minimum = minimum;
  tile.output = output;
  tile.scores = scores;
  return tile;
}

void AttendScratch::pack_queries(const Simd& simd, const float* rows, int64_t row_stride,
                                 const int32_t* index, int64_t columns, int64_t dim,
                                 float scale) const {
  simd.pack(rows, row_stride, index, columns, dim, packed_query);
  if (scale >= 0.0f) return;
  for (int64_t d = 0; d < dim; ++d) {
    float* lanes = packed_query + d * simd.lanes;
    for (int64_t i = 0; i < columns; ++i) lanes[i] = -lanes[i];
  }
}

namespace {

/// Tiles of queries that meet a block of keys one after the other, while it is in the cache.
constexpr int64_t kTilesPerGroup = 4;
/// Keys whose sums are made by themselves and then joined, in order. So long sums keep their
/// digits, and few queries of many keys are work for several threads.
constexpr int64_t kPartKeys = 64 * kKeyBlock;
/// Floats that the states of parts may take which several threads make.
constexpr int64_t kMostPartStates = int64_t{1} << 24;

/// One tile of queries of one sequence, with its state.
struct QueryTile {
  int64_t batch;
  int64_t head;
  int64_t first;    // query
  int64_t columns;  // queries, padding included
  int64_t real;     // real queries
  int64_t end;      // keys that some query of the tile sees
  AttendScratch scratch;
  AttendScratch part;  // the same with the state of a part of the keys
};

/// Up to kKeyBlock keys of one sequence with their values.
struct KeyBlock {
  const float* key;
  int64_t key_stride;
  const float* value;
  int64_t value_stride;
  int64_t first;
  int64_t keys;
  const uint16_t* packed;  // all of them as bfloat16, or null
};

class AttentionKernel {
 public:
  AttentionKernel(const AttentionProblem& problem, Context& context)
      : problem_(problem), shape_(problem.inputs.shape), context_(context), simd_(simd()) {}

  Status run() {
    const int64_t sequences = shape_.batch * shape_.heads;
    tiles_ = divide_up(shape_.query_length, simd_.lanes);
    parts_ = std::max<int64_t>(1, divide_up(shape_.key_length, kPartKeys));
    scratch_size_ = AttendScratch::scratch_size(simd_, shape_.head_dim);
    state_size_ = AttendScratch::state_size(simd_, shape_.value_dim);
    // Neither way changes a result: where tiles are few, threads share their parts out; where they
    // are many, some of them meet the keys together.
    const bool shares_parts = parts_ > 1 && sequences * tiles_ < 4 * context_.workers() &&
                              sequences * tiles_ * parts_ * state_size_ <= kMostPartStates;
    const int64_t group =
        shares_parts
            ? 1
            : std::clamp<int64_t>(sequences * tiles_ / (8 * context_.workers()), 1, kTilesPerGroup);
    tile_size_ = scratch_size_ + state_size_ * (parts_ > 1 ? 2 : 1);
    copies_size_ = kKeyBlock * (shape_.head_dim + shape_.value_dim);
    const bool packs = simd_.multiplies_bfloat16 && context_.bfloat16_operands() &&
                       shape_.query_length > simd_.few_columns();
    packed_size_ = packs ? bfloat16_size(shape_.head_dim, shape_.value_dim) / 2 : 0;
    worker_size_ = group * tile_size_ + copies_size_ + packed_size_;
    scratch_ = context_.workspace().allocate<float>(worker_size_ * context_.workers());
    if (scratch_ == nullptr) return Status::out_of_memory();
    const double operations = 2.0 * static_cast<double>(sequences * shape_.query_length) *
                              static_cast<double>(shape_.key_length) *
                              static_cast<double>(shape_.head_dim + shape_.value_dim);
    if (shares_parts) return run_parts(sequences * tiles_, operations);
    const int64_t groups = divide_up(tiles_, group);
    return context_.parallel(
        sequences * groups,
        [&](int64_t task, int worker) {
          const int64_t first = task % groups * group;
          attend(task / groups, {first, std::min(first + group, tiles_)}, worker);
        },
        operations);
  }

 private:
  /// A task for each part of the keys of each tile.
  Status run_parts(int64_t tiles, double operations) {
    states_ = context_.workspace().allocate<float>(tiles * parts_ * state_size_);
    ended_parts_ = context_.workspace().allocate_zeroed<std::atomic<int64_t>>(tiles);
    if (states_ == nullptr || ended_parts_ == nullptr) return Status::out_of_memory();
    return context_.parallel(
        tiles * parts_,
        [&](int64_t task, int worker) {
          const int64_t index = task / parts_;
          const QueryTile tile = tile_of(index / tiles_, index % tiles_ * simd_.lanes);
          attend_part(tile, index, task % parts_, worker);
          // Whoever ends a tile's last part joins all of them, in order: nobody waits.
          if (ended_parts_[index].fetch_add(1, std::memory_order_acq_rel) + 1 == parts_) {
            join_parts(tile, index);
          }
        },
        operations);
  }

  /// Keys `part` of a tile's, whose state is kept.
  void attend_part(QueryTile tile, int64_t index, int64_t part, int worker) {
    const Range keys = {part * kPartKeys, std::min((part + 1) * kPartKeys, tile.end)};
    if (keys.size() <= 0 && part > 0) return;
    float* memory = scratch_ + worker * worker_size_;
    tile.scratch = state_of_part(index, part, memory);
    open(tile);
    attend_keys(&tile, 1, index / tiles_, keys, memory + tile_size_);
  }

  AttendScratch state_of_part(int64_t index, int64_t part, float* scratch) const {
    return AttendScratch::carve(scratch, states_ + (index * parts_ + part) * state_size_, simd_,
                                shape_.head_dim);
  }

  void join_parts(QueryTile tile, int64_t index) {
    tile.scratch = state_of_part(index, 0, nullptr);
    for (int64_t part = 1; part * kPartKeys < tile.end; ++part) {
      tile.scratch.join(state_of_part(index, part, nullptr), simd_, tile.real, shape_.value_dim);
    }
    finish(tile);
  }

  /// The tiles of `range` of one sequence against all its keys.
  void attend(int64_t sequence, Range range, int worker) {
    // query tiles: (columns, D), key: (S, D), value: (S, E) -> output: (columns, E)
    float* memory = scratch_ + worker * worker_size_;
    QueryTile tiles[kTilesPerGroup];
    int64_t end = 0;
    for (int64_t t = 0; t < range.size(); ++t) {
      tiles[t] = tile_of(sequence, (range.begin + t) * simd_.lanes);
      float* scratch = memory + t * tile_size_;
      float* state = scratch + scratch_size_;
      tiles[t].scratch = AttendScratch::carve(scratch, state, simd_, shape_.head_dim);
      tiles[t].scratch.scores = tiles[0].scratch.scores;  // one for all: it stays in the cache
      if (parts_ > 1) {
        tiles[t].part = AttendScratch::carve(scratch, state + state_size_, simd_, shape_.head_dim);
        tiles[t].part.scores = tiles[0].scratch.scores;
      }
      open(tiles[t]);
      end = std::max(end, tiles[t].end);
    }
    float* copies = memory + range.size() * tile_size_;
    for (int64_t first = 0; first < end && !context_.cancelled(); first += kPartKeys) {
      const Range keys = {first, std::min(first + kPartKeys, end)};
      if (first == 0) {
        attend_keys(tiles, range.size(), sequence, keys, copies);
        continue;
      }
      for (int64_t t = 0; t < range.size(); ++t) {
        tiles[t].part.reset(simd_, shape_.value_dim);
        std::swap(tiles[t].scratch, tiles[t].part);
      }
      attend_keys(tiles, range.size(), sequence, keys, copies);
      for (int64_t t = 0; t < range.size(); ++t) {
        std::swap(tiles[t].scratch, tiles[t].part);
        if (first >= tiles[t].end) continue;
        tiles[t].scratch.join(tiles[t].part, simd_, tiles[t].real, shape_.value_dim);
      }
    }
    for (int64_t t = 0; t < range.size(); ++t) finish(tiles[t]);
  }

  /// The same against some keys, of which tile by tile sees those before its end.
  void attend_keys(const QueryTile* tiles, int64_t count, int64_t sequence, Range keys,
                   float* copies) {
    for (int64_t first = keys.begin; first < keys.end && !context_.cancelled();
         first += kKeyBlock) {
      const KeyBlock block = load(sequence, first, std::min(kKeyBlock, keys.end - first), copies);
      for (int64_t t = 0; t < count; ++t) advance(tiles[t], block);
    }
  }

  /// Whether a sequence has so few queries, see AttendTile: its real ones, so that padding does not
  /// change a bit.
  bool is_few(int64_t batch) const {
    return real_length(problem_.inputs.query_lengths, batch, shape_.query_length) <=
           simd_.few_columns();
  }

  QueryTile tile_of(int64_t sequence, int64_t first) const {
    const AttentionInputs& inputs = problem_.inputs;
    QueryTile tile{};
    tile.batch = sequence / shape_.heads;
    tile.head = sequence % shape_.heads;
    tile.first = first;
    const int64_t queries = real_length(inputs.query_lengths, tile.batch, shape_.query_length);
    const int64_t keys = real_length(inputs.key_lengths, tile.batch, shape_.key_length);
    tile.columns = std::min(simd_.lanes, shape_.query_length - first);
    tile.real = std::clamp<int64_t>(queries - first, 0, tile.columns);
    const int64_t last_visible = first + tile.real + keys - queries;  // causal: of the last query
    tile.end = problem_.causal ? std::clamp<int64_t>(last_visible, 0, keys) : keys;
    if (tile.real == 0) tile.end = 0;
    return tile;
  }

  /// Packs the queries and starts the state.
  void open(const QueryTile& tile) const {
    const AttentionInputs& inputs = problem_.inputs;
    tile.scratch.reset(simd_, shape_.value_dim);
    tile.scratch.pack_queries(simd_, inputs.query.row(tile.batch, tile.head, tile.first),
                              inputs.query.row_stride, nullptr, tile.real, shape_.head_dim,
                              inputs.scale);
  }

  /// Keys and values of the block: where they are, or side by side in `copies` when the rows lie
  /// apart (BLHD), since rows a power of two apart share few sets of the cache.
  KeyBlock load(int64_t sequence, int64_t first, int64_t keys, float* copies) const {
    const InputRows& key = problem_.inputs.key;
    const InputRows& value = problem_.inputs.value;
    const int64_t batch = sequence / shape_.heads;
    const int64_t head = sequence % shape_.heads;
    KeyBlock block{key.row(batch, head, first),
                   key.row_stride,
                   value.row(batch, head, first),
                   value.row_stride,
                   first,
                   keys,
                   nullptr};
    if (block.key_stride != shape_.head_dim) {
      for (int64_t i = 0; i < keys; ++i) {
        std::copy_n(block.key + i * block.key_stride, shape_.head_dim,
                    copies + i * shape_.head_dim);
      }
      block.key = copies;
      block.key_stride = shape_.head_dim;
    }
    if (block.value_stride != shape_.value_dim) {
      float* values = copies + kKeyBlock * shape_.head_dim;
      for (int64_t i = 0; i < keys; ++i) {
        std::copy_n(block.value + i * block.value_stride, shape_.value_dim,
                    values + i * shape_.value_dim);
      }
      block.value = values;
      block.value_stride = shape_.value_dim;
    }
    if (packed_size_ > 0 && !is_few(batch)) block.packed = pack(block, copies + copies_size_);
    return block;
  }

  const uint16_t* pack(const KeyBlock& block, float* memory) const {
    AttendTile tile;
    set_keys(tile, block);
    auto* packed = reinterpret_cast<uint16_t*>(memory);
    simd_.pack_bfloat16(tile, packed);
    return packed;
  }

  void set_keys(AttendTile& tile, const KeyBlock& block) const {
    tile.key = block.key;
    tile.key_stride = block.key_stride;
    tile.value = block.value;
    tile.value_stride = block.value_stride;
    tile.keys = block.keys;
    tile.head_dim = shape_.head_dim;
    tile.value_dim = shape_.value_dim;
  }

  void advance(const QueryTile& tile, const KeyBlock& block) const {
    if (block.first >= tile.end) return;
    AttendTile step = tile.scratch.tile(tile.real, problem_.inputs.scale);
    set_keys(step, block);
    step.keys = std::min(block.keys, tile.end - block.first);
    step.few = is_few(tile.batch);
    step.bfloat16 = context_.bfloat16_operands();
    // What is hidden from all of the tile must not meet a weight, be it 0: it may be NaN.
    if (step.keys == block.keys) step.packed = block.packed;
    int32_t visible[kMaximumLanes];
    if (problem_.causal) {
      for (int64_t i = 0; i < simd_.lanes; ++i) {
        // The last real query sees the keys up to tile.end, each one before it one key less.
        const int64_t limit = tile.end - (tile.real - 1 - std::min(i, tile.real - 1));
        visible[i] = static_cast<int32_t>(std::clamp<int64_t>(limit - block.first, 0, step.keys));
      }
      step.visible = visible;
    }
    simd_.attend(step);
  }

  void finish(const QueryTile& tile) {
    clear_padding(tile);
    if (tile.real == 0) return;
    const AttendScratch& scratch = tile.scratch;
    float normalizer[kMaximumLanes];
    bool finite = true;
    for (int64_t i = 0; i < tile.real; ++i) {
      const SoftmaxState state{scratch.maximum[i], scratch.sum[i]};
      normalizer[i] = state.normalizer();
      finite = finite && scratch.minimum[i] != -std::numeric_limits<float>::infinity();
      if (problem_.logsumexp == nullptr) continue;
      const int64_t row =
          (tile.batch * shape_.heads + tile.head) * shape_.query_length + tile.first;
      problem_.logsumexp[row + i] = state.logsumexp();
    }
    const OutputRows& output = problem_.output;
    finite &=
        simd_.unpack(scratch.output, tile.real, shape_.value_dim, normalizer,
                     output.row(tile.batch, tile.head, tile.first), output.row_stride, nullptr);
    if (!finite) context_.mark_non_finite();
  }

  /// Padded queries: output 0, log-sum-exp -Inf.
  void clear_padding(const QueryTile& tile) {
    for (int64_t i = tile.real; i < tile.columns; ++i) {
      float* row = problem_.output.row(tile.batch, tile.head, tile.first + i);
      std::fill_n(row, shape_.value_dim, 0.0f);
      if (problem_.logsumexp == nullptr) continue;
      const int64_t sequence = tile.batch * shape_.heads + tile.head;
      problem_.logsumexp[sequence * shape_.query_length + tile.first + i] =
          -std::numeric_limits<float>::infinity();
    }
  }

  const AttentionProblem& problem_;
  const AttentionShape& shape_;
  Context& context_;
  const Simd& simd_;
  int64_t tiles_ = 0;  // of the queries of a sequence
  int64_t parts_ = 0;  // of its keys
  int64_t scratch_size_ = 0;
  int64_t state_size_ = 0;
  int64_t tile_size_ = 0;
  int64_t copies_size_ = 0;
  int64_t packed_size_ = 0;  // of a block as bfloat16
  int64_t worker_size_ = 0;
  float* scratch_ = nullptr;  // (workers, worker_size)
  // Of tiles whose parts are shared out:
  float* states_ = nullptr;                      // (B,H,tiles,parts,state_size)
  std::atomic<int64_t>* ended_parts_ = nullptr;  // (B,H,tiles)
};

}  // namespace

Status attention(const AttentionProblem& problem, Context& context) {
  return AttentionKernel(problem, context).run();
}

}  // namespace cluster_attention::kernels
