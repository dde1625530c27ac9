#pragma once

// The only place with instruction-set knowledge. One source (tile_kernels.inl) is compiled once
// per instruction set; the best one that the processor offers is chosen at load.
//
// The building block is a tile: up to `lanes` rows of a tensor lie in SIMD lanes ("columns" of the
// tile, packed so that element d of all of them is contiguous), the rows of another tensor are read
// as they are, one broadcast element at a time. Scores come out transposed, score[row][lane]; so
// maximum, sum and selection run down the lanes without a horizontal step, and keys and values
// need no packing at all. Every sum runs in index order, so a result does not depend on the tile
// it was computed in (but see AttendTile::few).

#include <cstdint>

#include "native/core/order.h"

namespace cluster_attention {

/// Largest number of lanes of any instruction set: sizes of scratch on the stack.
constexpr int64_t kMaximumLanes = 48;
/// Rows that attend() scores at a time.
constexpr int64_t kKeyBlock = 128;
/// Columns of keys and values that are made bfloat16 at a time.
constexpr int64_t kBfloat16Columns = 64;
/// Elements of a block of keys and values that pack_bfloat16() writes.
constexpr int64_t bfloat16_size(int64_t head_dim, int64_t value_dim) {
  const int64_t chunks = (head_dim + kBfloat16Columns - 1) / kBfloat16Columns +
                         (value_dim + kBfloat16Columns - 1) / kBfloat16Columns;
  return chunks * kBfloat16Columns * kKeyBlock;
}
/// Independent chains of multiply_adds(): enough to hide the latency of two units.
constexpr int kMultiplyAddChains = 12;
/// Elements a tile of `lanes` columns and `rows` rows takes (rows are `lanes` apart).
constexpr int64_t tile_size(int64_t rows, int64_t lanes) { return rows * lanes; }

/// The k best scores of every lane, kept while scores pass by. A lane's buffer holds `capacity`
/// candidates and is thinned when full.
struct TileSelector {
  int64_t k = 0;
  int64_t limit = 0;                // >= k: what thinning leaves at most
  int64_t capacity = 0;             // > limit, or more than the keys that come
  float sign = 1.0f;                // -1 selects the smallest scores (a negative scale)
  int64_t first_key = 0;            // index of the first key that the next attend() sees
  float* threshold = nullptr;       // (lanes): a score <= it cannot be among the best; NaN: any can
  int32_t* counts = nullptr;        // (lanes)
  Candidate* candidates = nullptr;  // (lanes, capacity)
};

/// Online softmax of one tile of queries over a range of keys. The state is in base 2:
/// maximum = max(logit * scale_log2), see core/softmax_state.h.
struct AttendTile {
  const float* packed_query = nullptr;  // (head_dim, lanes)
  int64_t columns = 0;                  // lanes in use
  const float* key = nullptr;           // (keys, head_dim), rows key_stride apart
  int64_t key_stride = 0;
  const float* value = nullptr;  // (keys, value_dim), rows value_stride apart
  int64_t value_stride = 0;
  int64_t keys = 0;
  int64_t head_dim = 0;
  int64_t value_dim = 0;
  float scale_log2 = 0.0f;           // scale * log2(e)
  const int32_t* visible = nullptr;  // (lanes): a lane sees its first visible[lane] keys; null: all
  const float* key_weight = nullptr;  // (keys), optional: multiplies exp(logit) of each key, > 0
  TileSelector* selector = nullptr;   // optional: sees the dot products, before the scale
  bool few = false;  // at most few_columns(): elements lie in lanes, not columns (other rounding)
  bool bfloat16 = false;  // queries, keys and values are bfloat16: weights may be rounded to it too
  const uint16_t* packed = nullptr;  // optional: all keys, one block, as pack_bfloat16() left them

  float* maximum = nullptr;  // (lanes), in and out; -Inf before the first key
  float* sum = nullptr;      // (lanes), in and out
  float* minimum = nullptr;  // (lanes), in and out: smallest dot product seen, -Inf tells of an Inf
  float* output = nullptr;   // (value_dim, lanes), in and out: sum of weights times values
  float* scores = nullptr;   // scratch (kKeyBlock, lanes)
};

struct Simd {
  const char* name;          // "avx512", "avx2", "baseline", ...
  bool multiplies_bfloat16;  // attend() makes use of AttendTile::bfloat16
  int64_t lanes;             // columns of a tile
  int64_t width;             // columns are computed in multiples of this

  /// As many columns as are faster one by one than in lanes most of which are empty.
  int64_t few_columns() const { return width / 4; }

  /// packed[d * lanes + i] = rows[index ? index[i] : i][d] for i < columns, 0 for the other lanes
  /// of the last vector in use.
  void (*pack)(const float* rows, int64_t row_stride, const int32_t* index, int64_t columns,
               int64_t dim, float* packed);

  /// rows[index ? index[i] : i][d] = packed[d * lanes + i] * factor[i] (factor null: 1) for
  /// i < columns. Returns false if a value written is not finite.
  bool (*unpack)(const float* packed, int64_t columns, int64_t dim, const float* factor,
                 float* rows, int64_t row_stride, const int32_t* index);

  /// product[r * product_stride + c] (+)= sum_k a[r * a_row + k * a_depth] * b[k * b_stride + c]
  /// for c < round_up(columns, width): b and product must have room for that many.
  void (*multiply)(const float* a, int64_t a_row, int64_t a_depth, int64_t rows, int64_t depth,
                   const float* b, int64_t b_stride, int64_t columns, float* product,
                   int64_t product_stride, bool accumulate);

  /// multiply() of operands rounded to bfloat16, to nearest, for targets that have instructions for
  /// it, null elsewhere; a_row or a_depth is 1.
  void (*multiply_bfloat16)(const float* a, int64_t a_row, int64_t a_depth, int64_t rows,
                            int64_t depth, const float* b, int64_t b_stride, int64_t columns,
                            float* product, int64_t product_stride, bool accumulate);

  /// For the same targets: keys and values of a tile with at most
  /// kKeyBlock keys, for AttendTile::packed of every tile that meets the same ones.
  void (*pack_bfloat16)(const AttendTile& tile, uint16_t* packed);

  /// Advances the online softmax of a tile over tile.keys keys.
  void (*attend)(const AttendTile& tile);

  /// Thins candidates to the best ones, at least k (of at least k) and at most `limit` of them, in
  /// no order; returns a score that all of them reach.
  float (*thin_candidates)(Candidate* candidates, int32_t* count, int64_t k, int64_t limit);

  /// Softmax down the lanes, in place: score[r][i] -> exp(scale*score[r][i]) / sum over r. Gives
  /// maximum (base 2, scaled) and sum per lane. minimum as in AttendTile, overwritten.
  void (*softmax_rows)(float* score, int64_t rows, int64_t columns, float scale_log2,
                       float* maximum, float* sum, float* minimum);

  /// Softmax of every row, along its lanes, in place: score[r][i] -> factor *
  /// exp(scale*score[r][i]) / sum over i < columns; 0 from there to the end of the vector. False if
  /// a score is not finite.
  bool (*softmax_lanes)(float* score, int64_t rows, int64_t row_stride, int64_t columns,
                        float scale_log2, float factor);

  /// Backward of a softmax, in place. share: its values p; change: the gradients by them, from each
  /// of which offset[r] (null: 0) is taken first, leaving x. Then total[i] = sum_r p x,
  ///     change[r][i] = weight[i] p (x - total[i]), the gradients by the logits (times weight),
  ///     share[r][i] = weight[i] p                                        (weight null: 1)
  /// where total is not taken away unless `centred`: a softmax along the rows, not down the lanes,
  /// has its own total in offset.
  void (*softmax_gradient)(float* share, float* change, int64_t rows, int64_t columns,
                           const float* offset, const float* weight, bool centred, float* total);

  /// Backward of softmax_lanes() with the factor 1, in place: total[r] = sum_i p x,
  ///     change[r][i]: x -> factor p (x - total[r])        share[r][i]: p -> factor p
  void (*softmax_lanes_gradient)(float* share, float* change, int64_t rows, int64_t row_stride,
                                 int64_t columns, float factor, float* total);

  /// Backward of a softmax along rows whose log-sum-exps are known, in place:
  ///     score[r][i]  -> p = 2^(score[r][i] * scale_log2 - maximum[r]), at most 1
  ///     change[r][i] -> p (change[r][i] - offset[r])                 (change null: only p)
  /// Lanes from visible[r] on (null: none) are hidden: both become 0 there, whatever they held.
  void (*attend_gradient)(float* score, float* change, int64_t rows, int64_t columns,
                          float scale_log2, const float* maximum, const float* offset,
                          const int32_t* visible);

  /// Running argmax down the lanes over value = score[r][i] * scale + (bias ? bias[r] : 0): best
  /// and best_row are updated where a row is strictly better; rows count from first_row.
  void (*argmax_rows)(const float* score, int64_t rows, int64_t columns, float scale,
                      const float* bias, int64_t first_row, float* best, int32_t* best_row);

  /// hashes[r] = bits where product[r][b] > threshold[b], b < bits; rows are 64 apart.
  /// False where some product, or one past the bits, may be NaN or Inf.
  bool (*sign_bits)(const float* product, int64_t rows, const float* threshold, int64_t bits,
                    uint64_t* hashes);

  /// labels[i] = nearest centroid in Hamming distance, lowest index of the nearest.
  void (*assign_hamming)(const uint64_t* hashes, int64_t count, const uint64_t* centroids,
                         int64_t clusters, int32_t* labels);

  /// counts[labels[i]][b] += bit b of hashes[i], in bytes: the caller sees to it that none
  /// overflows.
  void (*count_bits)(const uint64_t* hashes, const int32_t* labels, int64_t count,
                     uint8_t* counts);  // (clusters,64)

  /// values[i] = 2^values[i], in place.
  void (*exp2)(float* values, int64_t count);

  /// values[i] = 2^(values[i] * scale_log2 - maximum), in place, with the same rounding as in
  /// attend() and softmax_rows().
  void (*weigh)(float* values, int64_t count, float scale_log2, float maximum);

  /// Sum of a[i] * b[i] in index order within each of `width` lanes, lanes added in order.
  float (*dot)(const float* a, const float* b, int64_t count);

  /// sums[d] = sum over i, in order and in double, of rows[index[i]][d].
  void (*sum_rows)(const float* rows, int64_t row_stride, const int32_t* index, int64_t count,
                   int64_t dim, double* sums);

  /// sums[labels[i] - first][d] += rows[i][d], in order and in double, for the labels in [first,
  /// first + clusters).
  void (*sum_labelled_rows)(const float* rows, int64_t row_stride, const int32_t* labels,
                            int64_t count, int32_t first, int32_t clusters, int64_t dim,
                            double* sums);

  /// `repeats` multiply-adds of `width` lanes in each of kMultiplyAddChains chains, in registers
  /// alone: the limit that the kernels are measured by. The result only keeps the work alive.
  float (*multiply_adds)(float start, int64_t repeats);
};

/// The instruction set in use.
const Simd& simd();
/// Its name, and the names of all that this processor and build offer, best first, comma separated.
const char* instruction_set();
const char* available_instruction_sets();
/// Chooses one by name; false (and no change) when this machine does not offer it. The environment
/// variable CLUSTER_ATTENTION_INSTRUCTION_SET does the same at load.
bool set_instruction_set(const char* name);
/// Makes any table the one in use: tests run models of instruction sets that the machine lacks.
void set_simd(const Simd& table);

/// Prunes a lane's candidates to the k best (in no order), returns the new threshold. Shared by all
/// instruction sets: defined outside the files that are compiled for one of them.
float prune_candidates(Candidate* candidates, int32_t* count, int64_t k);

}  // namespace cluster_attention
