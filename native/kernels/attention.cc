#include "native/kernels/attention.h"

#include <algorithm>
#include <limits>

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

/// One tile of queries of one sequence against all its keys.
struct QueryTile {
  int64_t batch;
  int64_t head;
  int64_t first;    // query
  int64_t columns;  // real queries in the tile
};

class AttentionKernel {
 public:
  AttentionKernel(const AttentionProblem& problem, Context& context)
      : problem_(problem), context_(context), simd_(simd()) {}

  Status run() {
    const AttentionShape& shape = problem_.inputs.shape;
    const int64_t tiles = divide_up(shape.query_length, simd_.lanes);
    const int64_t tasks = shape.batch * shape.heads * tiles;
    scratch_size_ = AttendScratch::scratch_size(simd_, shape.head_dim) +
                    AttendScratch::state_size(simd_, shape.value_dim);
    scratch_ = context_.workspace().allocate<float>(scratch_size_ * context_.workers());
    if (scratch_ == nullptr) return Status::out_of_memory();
    const double operations = 2.0 * shape.batch * shape.heads * shape.query_length *
                              shape.key_length * (shape.head_dim + shape.value_dim);
    return context_.parallel(
        tasks,
        [&](int64_t task, int worker) {
          const int64_t sequence = task / tiles;
          const int64_t first = task % tiles * simd_.lanes;
          const int64_t columns = std::min(simd_.lanes, shape.query_length - first);
          attend({sequence / shape.heads, sequence % shape.heads, first, columns}, worker);
        },
        operations);
  }

 private:
  void attend(QueryTile tile, int worker) {
    // query tile: (columns, D), key: (S, D), value: (S, E) -> output: (columns, E)
    const AttentionInputs& inputs = problem_.inputs;
    const AttentionShape& shape = inputs.shape;
    const int64_t queries = real_length(inputs.query_lengths, tile.batch, shape.query_length);
    const int64_t keys = real_length(inputs.key_lengths, tile.batch, shape.key_length);
    const int64_t real = std::clamp<int64_t>(queries - tile.first, 0, tile.columns);
    clear_padding(tile, real);
    if (real == 0) return;

    float* memory = scratch_ + worker * scratch_size_;
    const AttendScratch scratch = AttendScratch::carve(
        memory, memory + AttendScratch::scratch_size(simd_, shape.head_dim), simd_, shape.head_dim);
    scratch.reset(simd_, shape.value_dim);
    scratch.pack_queries(simd_, inputs.query.row(tile.batch, tile.head, tile.first),
                         inputs.query.row_stride, nullptr, real, shape.head_dim, inputs.scale);
    AttendTile block = scratch.tile(real, inputs.scale);
    block.key_stride = inputs.key.row_stride;
    block.value_stride = inputs.value.row_stride;
    block.head_dim = shape.head_dim;
    block.value_dim = shape.value_dim;
    const int64_t last_visible = tile.first + real + keys - queries;  // causal: of the last query
    const int64_t end = problem_.causal ? std::clamp<int64_t>(last_visible, 0, keys) : keys;
    int32_t visible[kMaximumLanes];
    for (int64_t first = 0; first < end && !context_.cancelled(); first += kKeysPerPoll) {
      block.key = inputs.key.row(tile.batch, tile.head, first);
      block.value = inputs.value.row(tile.batch, tile.head, first);
      block.keys = std::min(kKeysPerPoll, end - first);
      if (problem_.causal) {
        for (int64_t i = 0; i < simd_.lanes; ++i) {
          const int64_t limit = tile.first + std::min(i, real - 1) + 1 + keys - queries;
          visible[i] = static_cast<int32_t>(std::clamp<int64_t>(limit - first, 0, block.keys));
        }
        block.visible = visible;
      }
      simd_.attend(block);
    }
    finish(tile, real, scratch);
  }

  void finish(const QueryTile& tile, int64_t real, const AttendScratch& scratch) {
    float normalizer[kMaximumLanes];
    bool finite = true;
    for (int64_t i = 0; i < real; ++i) {
      const SoftmaxState state{scratch.maximum[i], scratch.sum[i]};
      normalizer[i] = state.normalizer();
      finite = finite && scratch.minimum[i] != -std::numeric_limits<float>::infinity();
      if (problem_.logsumexp == nullptr) continue;
      const AttentionShape& shape = problem_.inputs.shape;
      const int64_t row = (tile.batch * shape.heads + tile.head) * shape.query_length + tile.first;
      problem_.logsumexp[row + i] = state.logsumexp();
    }
    const OutputRows& output = problem_.output;
    finite &=
        simd_.unpack(scratch.output, real, problem_.inputs.shape.value_dim, normalizer,
                     output.row(tile.batch, tile.head, tile.first), output.row_stride, nullptr);
    if (!finite) context_.mark_non_finite();
  }

  /// Padded queries: output 0, log-sum-exp -Inf.
  void clear_padding(const QueryTile& tile, int64_t real) {
    const AttentionShape& shape = problem_.inputs.shape;
    for (int64_t i = real; i < tile.columns; ++i) {
      float* row = problem_.output.row(tile.batch, tile.head, tile.first + i);
      std::fill_n(row, shape.value_dim, 0.0f);
      if (problem_.logsumexp == nullptr) continue;
      const int64_t sequence = tile.batch * shape.heads + tile.head;
      problem_.logsumexp[sequence * shape.query_length + tile.first + i] =
          -std::numeric_limits<float>::infinity();
    }
  }

  // A tile of 48 queries meets this many keys of 64 dimensions in about 2 ms.
  static constexpr int64_t kKeysPerPoll = 16 * 1024;

  const AttentionProblem& problem_;
  Context& context_;
  const Simd& simd_;
  int64_t scratch_size_ = 0;
  float* scratch_ = nullptr;
};

}  // namespace

Status attention(const AttentionProblem& problem, Context& context) {
  return AttentionKernel(problem, context).run();
}

}  // namespace cluster_attention::kernels
