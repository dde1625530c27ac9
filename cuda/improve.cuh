#pragma once

// The last step of improved clustered attention:
//
//   output_i = V^c_j + sum_{t in T_j} (m̂_j p_it - A^c_jt) v_t
//            = base_j + m̂_j sum_t p_it v_t,  base_j = V^c_j - sum_t A^c_jt v_t.
//
// Method: queries are sorted by cluster; a block takes a tile of one cluster's members and the k
// keys of that cluster, whose rows it fetches into shared memory once for all its members where
// they fit there, 32 at a time and with an online softmax where they do not. A warp takes 16
// members at once. The tile of a block is found by a sum over the clusters' numbers of tiles:
// nothing is asked of the host.
// Layout: a lane reads 8 columns of a query in one piece and uses them as the operands of two
// products: it holds other columns of the sum over D than mma.cuh says, the same ones in queries
// and keys. The columns of the values are in such an order in shared memory that a lane gets 8
// neighbouring columns of the output.
// Bound by reading the queries and writing the output. Precision: of attention_tile.cuh.
// Limits: D, E <= kWidth.

#include "cuda/attention_tile.cuh"
#include "cuda/improve_params.cuh"
#include "cuda/improve_queries.cuh"
#include "cuda/member_tile.cuh"
#include "cuda/primitives/eight.cuh"

namespace cluster_attention::cuda {

template <int kWidth, bool kSplit>
class ImproveTile {
 public:
  static constexpr int kParts = kSplit ? 2 : 1;
  static constexpr int kBlocks = kWidth / 32;  // of columns
  static constexpr int kChunks = kWidth / 8;   // of a row, copied in one piece
  static constexpr int kCopies = kImproveKeys * kChunks / (2 * kWarp);  // of a thread, at most
  // Two rows of 64 bytes lie in different banks, as do eight rows of 16 bytes.
  static constexpr int kKeyStride = kWidth % 64 == 0 ? kWidth + 32 : kWidth;
  static constexpr int kValueStride = kWidth + 8;
  using Queries = ImproveQueries<kWidth, kSplit>;
  using Query = typename Queries::Query;

  struct Layout {
    int64_t keys;     // (kParts, kImproveKeys, kKeyStride)
    int64_t values;   // (kParts, kImproveKeys, kValueStride)
    int64_t base;     // (kWidth): zeros past value_dim
    int64_t queries;  // (Queries::kPieces, threads): 16 bytes
    int64_t scratch;  // of find_member_tile()
    int64_t bytes;
  };
  CA_HOST_DEVICE static Layout layout(int64_t warps) {
    SharedLayout parts;
    const int64_t keys = parts.add<bfloat16>(int64_t{kParts} * kImproveKeys * kKeyStride);
    const int64_t values = parts.add<bfloat16>(int64_t{kParts} * kImproveKeys * kValueStride);
    const int64_t base = parts.add<float>(kWidth);
    const int64_t scratch = parts.add<int32_t>(kWarp + 3);
    const int64_t queries = parts.add<uint4>(Queries::kPieces * warps * kWarp);
    return {keys, values, base, queries, scratch, parts.bytes()};
  }

  __device__ ImproveTile(const ImproveParams& params, int64_t sequence, const MemberTile& members)
      : params_(params),
        batch_(static_cast<uint32_t>(sequence) / static_cast<uint32_t>(params.heads)),
        head_(static_cast<uint32_t>(sequence) % static_cast<uint32_t>(params.heads)),
        keys_(dynamic_shared<bfloat16>(layout(block_warps()).keys)),
        values_(dynamic_shared<bfloat16>(layout(block_warps()).values)),
        base_(dynamic_shared<float>(layout(block_warps()).base)),
        queries_(params.query, params.query.offset(batch_, head_, 0), params.query_vectors,
                 params.head_dim, dynamic_shared<uint4>(layout(block_warps()).queries)),
        group_(lane_index() / 4),
        place_(lane_index() % 4) {
    const int64_t rows = members.end - members.first;
    rows_ = static_cast<int>(rows < params.tile_rows ? rows : params.tile_rows);
    const int64_t keys = real_length(params.key_lengths, batch_, params.key_length);
    count_ = static_cast<int>(keys < params.top_k ? keys : params.top_k);
    order_ = params.order + sequence * params.query_length + members.first;
    cluster_ = sequence * params.clusters + members.cluster;
    mass_ = params.pass.masses[cluster_];
    output_ = params.output.offset(batch_, head_, 0);
  }

  __device__ static int block_warps() { return static_cast<int>(blockDim.x) / kWarp; }

  __device__ void run() {
    const int rows = block_warps() * kTileRows;  // at once
    const int own = warp_index() * kTileRows;
    const bool one_chunk = count_ <= kImproveKeys;
    if (one_chunk) find_keys(0);
    find_rows(own, row_of_);
    find_rows(own + rows, next_row_);
    copy_base();
    if (own < rows_) queries_.ask(row_of_, 0);
    if (count_ == 0) {
      wait_copies<0>();
      __syncthreads();
    }
    for (int first = 0; first < rows_; first += rows) {
      start_rows(first + own, first, rows);
      for (int chunk = 0; chunk < count_; chunk += kImproveKeys) {
        if (!one_chunk) {
          __syncthreads();  // the chunk before is used up
          find_keys(chunk);
        }
        if (!one_chunk || first == 0) {
          copy_keys();
          wait_copies<0>();
          __syncthreads();
        }
        if (first_row_ < rows_) attend(count_ - chunk);
      }
      if (first_row_ < rows_) write_rows();
    }
    if (bad_ || minimum_ == -HUGE_VALF) mark_non_finite(params_.flags);
  }

 private:
  /// The rows of 32 keys that this thread copies, the same columns of each; -1 past the last key.
  __device__ void find_keys(int chunk) {
    const int32_t* top = params_.pass.top_keys + cluster_ * params_.top_k;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int row = row_of_copy(i);
      found_[i] = row < kImproveKeys && chunk + row < count_ ? top[chunk + row] : -1;
    }
  }
  __device__ static int row_of_copy(int i) {
    return static_cast<int>(threadIdx.x) / kChunks + i * (static_cast<int>(blockDim.x) / kChunks);
  }

  __device__ void copy_keys() {
    const Operand& key = params_.operands.key;
    const Operand& value = params_.operands.value;
    const int column = static_cast<int>(threadIdx.x) % kChunks * 8;
    const int64_t key_begin = batch_ * key.batch_stride + head_ * key.head_stride + column;
    const int64_t value_begin = batch_ * value.batch_stride + head_ * value.head_stride + column;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int row = row_of_copy(i);
      if (row >= kImproveKeys) break;
      const bool has_key = found_[i] >= 0 && column < key.columns;
      const bool has_value = found_[i] >= 0 && column < value.columns;
      const int64_t key_at = has_key ? key_begin + found_[i] * key.row_stride : 0;
      const int64_t value_at = has_value ? value_begin + found_[i] * value.row_stride : 0;
      copy_async_16(keys_ + row * kKeyStride + column, key.high + key_at, has_key);
      copy_value(value.high + value_at, has_value, row, column, 0);
      if constexpr (kSplit) {
        copy_async_16(keys_ + (kImproveKeys + row) * kKeyStride + column,
                      key.low != nullptr ? key.low + key_at : key.high,
                      has_key && key.low != nullptr);
        copy_value(value.low != nullptr ? value.low + value_at : value.high,
                   has_value && value.low != nullptr, row, column, 1);
      }
    }
    commit_copies();
  }

  /// Pair p of eight columns goes to the columns of product p, see write_rows().
  __device__ void copy_value(const bfloat16* from, bool valid, int row, int column, int part) {
    const uint4 pairs = valid ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
    uint32_t* to = reinterpret_cast<uint32_t*>(
        values_ + (part * kImproveKeys + row) * kValueStride + column / 32 * 32);
    const int product = column % 32 / 8;
    to[product] = pairs.x;
    to[4 + product] = pairs.y;
    to[8 + product] = pairs.z;
    to[12 + product] = pairs.w;
  }

  /// What every row begins with, where it is seen after the next barrier.
  __device__ void copy_base() {
    const float* base = params_.pass.bases + cluster_ * params_.value_dim;
    if (params_.value_dim % 4 == 0) {
      const int column = 4 * static_cast<int>(threadIdx.x);
      const bool real = column < params_.value_dim;
      if (column < kWidth) copy_async_16(base_ + column, real ? base + column : base, real);
      commit_copies();
      return;
    }
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < kWidth; i += static_cast<int>(blockDim.x)) {
      base_[i] = i < params_.value_dim ? base[i] : 0.0f;
    }
  }

  /// The places of a warp's rows of the tile; past its last row that one again.
  __device__ void find_rows(int first_row, int32_t (&rows)[2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + half * 8 + group_;
      rows[half] = order_[row < rows_ ? row : rows_ - 1];
    }
  }

  /// The warp's next rows of the tile: what comes after them is asked for.
  __device__ void start_rows(int first_row, int first, int rows) {
    first_row_ = first_row;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (first > 0) {
        row_of_[half] = next_row_[half];
        next_row_[half] = row_after_[half];
      }
      maximum_[half] = -HUGE_VALF;
      sum_[half] = 0.0f;
    }
    if constexpr (Queries::kAhead) {
      if (first > 0) wait_copies<0>();
      slot_ = first / rows % 2;
      if (first_row + rows < rows_) queries_.ask(next_row_, 1 - slot_);
    } else if (first > 0 && first_row < rows_) {
      queries_.ask(row_of_, 0);
    }
    if (first_row + 2 * rows < rows_) find_rows(first_row + 2 * rows, row_after_);
#pragma unroll
    for (int n = 0; n < 4 * kBlocks; ++n) {
      for (int i = 0; i < 4; ++i) sums_[n][i] = 0.0f;
    }
  }

  /// The keys in shared memory, `keys` or all of them.
  __device__ void attend(int keys) {
    FragmentD scores[kImproveKeys / 8];
    multiply_keys(scores);
    mask(keys, scores);
    float factor[2];
    enter_softmax(scores, maximum_, sum_, factor);
    multiply_values(scores, factor);
  }

  __device__ void multiply_keys(FragmentD (&scores)[kImproveKeys / 8]) {
#pragma unroll
    for (int n = 0; n < kImproveKeys / 8; ++n) {
      for (int i = 0; i < 4; ++i) scores[n][i] = 0.0f;
    }
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      Query query;
      queries_.read(row_of_, slot_, block, query);
#pragma unroll
      for (int i = 0; i < 8; ++i) bad_ = bad_ || pair_is_bad(query.high[i / 4][i % 4]);
#pragma unroll
      for (int n = 0; n < kImproveKeys / 8; ++n) {
        const uint4* key = reinterpret_cast<const uint4*>(keys_ + (n * 8 + group_) * kKeyStride +
                                                          block * 32 + place_ * 8);
        multiply(scores[n], query, key[0], key[kSplit ? kImproveKeys * kKeyStride / 8 : 0]);
      }
    }
  }

  /// The 32 columns of a block, 16 in each product.
  __device__ static void multiply(FragmentD& score, const Query& query, const uint4& high,
                                  const uint4& low) {
    const uint32_t high_pairs[4] = {high.x, high.y, high.z, high.w};
    const uint32_t low_pairs[4] = {low.x, low.y, low.z, low.w};
#pragma unroll
    for (int step = 0; step < 4; step += 2) {
      const FragmentA a = {query.high[0][step], query.high[1][step], query.high[0][step + 1],
                           query.high[1][step + 1]};
      const FragmentB b = {high_pairs[step], high_pairs[step + 1]};
      if constexpr (kSplit) {
        const FragmentA low_a = {query.low[0][step], query.low[1][step], query.low[0][step + 1],
                                 query.low[1][step + 1]};
        const FragmentB low_b = {low_pairs[step], low_pairs[step + 1]};
        mma_split_16x8x16(score, a, low_a, b, low_b);
      } else {
        mma_bf16_16x8x16(score, a, b);
      }
    }
  }

  /// Scales the scores; those past the last key become -Inf.
  __device__ void mask(int keys, FragmentD (&scores)[kImproveKeys / 8]) {
    const float scale = params_.scale * kLog2E;
#pragma unroll
    for (int n = 0; n < kImproveKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool visible = n * 8 + place_ * 2 + i % 2 < keys;
        const float score = scores[n][i] * scale;
        if (visible) minimum_ = fminf(minimum_, score);
        scores[n][i] = visible ? score : -HUGE_VALF;
      }
    }
  }

  /// sums = factor sums + weights V.
  __device__ void multiply_values(const FragmentD (&weights)[kImproveKeys / 8],
                                  const float (&factor)[2]) {
    constexpr int kSteps = kImproveKeys / 16;
    const int lane = lane_index();
    const bfloat16* values = values_ + lane % 16 * kValueStride + lane / 16 * 8;
    if constexpr (kSplit) {
      FragmentA high[1][kSteps];
      FragmentA low[1][kSteps];
      split_tiles(weights, high[0], low[0], split_weights);
      multiply_in_chains<kWidth / 16>(
          high, low, kWidth,
          [&](int k, int n, int part, uint32_t(&value)[4]) {
            load_tiles_transposed(value,
                                  values + (part * kImproveKeys + k * 16) * kValueStride + n * 16);
          },
          [&](int, int n, const Chain& chain) { chain.end_in(sums_[n], factor); });
    } else {
      rescale(sums_, factor);
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        FragmentA weight;
        pack_tiles(weights, k, weight);
#pragma unroll
        for (int n = 0; n < kWidth / 16; ++n) {
          uint32_t value[4];
          load_tiles_transposed(value, values + k * 16 * kValueStride + n * 16);
#pragma unroll
          for (int side = 0; side < 2; ++side) {
            const FragmentB pair = {value[side * 2], value[side * 2 + 1]};
            mma_bf16_16x8x16(sums_[2 * n + side], weight, pair);
          }
        }
      }
    }
  }

  /// A lane holds in product n of a block of 32 columns its pair n of 8 columns.
  __device__ void write_rows() {
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const SoftmaxState state{maximum_[half], warp_sum(sum_[half], 4)};
      // With keys, only logits of -Inf have no sum.
      factor[half] = count_ > 0 && state.sum == 0.0f ? nanf("") : state.normalizer() * mass_;
    }
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const int column = block * 32 + place_ * 8;
      const int columns = params_.value_dim - column;
      float base[8];
      load_eight_floats(base_ + column, base);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (first_row_ + half * 8 + group_ >= rows_) continue;
        float values[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          values[i] = fmaf(sums_[block * 4 + i / 2][half * 2 + i % 2], factor[half], base[i]);
          bad_ = bad_ || !(fabsf(values[i]) < HUGE_VALF);
        }
        store_eight(params_.output, output_ + row_of_[half] * params_.output.row_stride + column,
                    params_.output_vectors, columns, values);
      }
    }
  }

  const ImproveParams& params_;
  int64_t batch_;
  int64_t head_;
  bfloat16* keys_;
  bfloat16* values_;
  float* base_;
  Queries queries_;
  int slot_ = 0;  // of the queries that are worked on
  int group_;     // row of the lane in 8 rows
  int place_;     // of the lane among the four of a row
  int rows_;      // of the block
  int count_;     // of keys
  const int32_t* order_;
  int64_t cluster_;
  int64_t output_;  // offset of the sequence
  float mass_;
  int first_row_ = 0;
  int32_t row_of_[2];
  int32_t next_row_[2];
  int32_t row_after_[2];
  int32_t found_[kCopies];
  bool bad_ = false;
  float minimum_ = HUGE_VALF;
  float maximum_[2];
  float sum_[2];
  FragmentD sums_[4 * kBlocks];
};

template <int kWidth, bool kSplit>
__global__ void __launch_bounds__(kImproveWarps* kWarp, kWidth <= 64 ? 4 : 1)
    improve(const ImproveParams params) {
  // members' query (rows, D), key, value of T_j (k, D), (k, E) -> output rows (rows, E)
  using Tile = ImproveTile<kWidth, kSplit>;
  const uint32_t tiles = static_cast<uint32_t>(params.tiles);  // fits as the grid does
  const int64_t sequence = blockIdx.x / tiles;
  const MemberTile members = find_member_tile(
      params.offsets + sequence * (params.clusters + 1), params.clusters, blockIdx.x % tiles,
      params.tile_rows, dynamic_shared<int32_t>(Tile::layout(Tile::block_warps()).scratch));
  if (members.cluster < 0) return;
  Tile(params, sequence, members).run();
}

}  // namespace cluster_attention::cuda
