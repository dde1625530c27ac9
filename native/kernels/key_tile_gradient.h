#pragma once

// Backward of a softmax over keys, for rows that attend to them: the queries of exact attention, or
// the mean queries of clustered attention. With g_r the gradient by the output of row r,
//
//     p_rs = 2^(tau log2(e) q_r·k_s - maximum_r)          maximum: the log-sum-exp, in base 2
//     dz_rs = p_rs (g_r·v_s - offset_r)                   offset_r = sum_s p_rs g_r·v_s
//     dq_r = tau sum_s dz_rs k_s    dk_s = tau sum_r dz_rs q_r    dv_s = sum_r p_rs g_r
//
// as in FlashAttention-2 (Dao, 2023, algorithm 2): five products per tile, nothing of size R x S.
//
// Method: a tile of keys in lanes, packed once with its values, meets the rows in blocks; scores
// and their gradients are (rows, lanes). Each key's gradients belong to its tile. The keys of a
// sequence are cut into parts by their number alone; a part keeps a partial sum of every row's dq,
// and the parts are added in order. So results depend neither on threads nor on the batch.
// Precision: fp32, sums over rows in blocks of kRowBlock, over keys in tiles, then parts.
//
// A row may have keys that it attends to by itself (the top keys of improved clustered attention,
// clustered_attention_gradient.h): there p_rs adds nothing to dv_s, dz_rs = p_rs (change_r -
// offset_r), and dk_s and dv_s gain a row of their own, in the order of the rows.

#include <cstdint>

#include "native/core/context.h"
#include "native/core/gradient_problem.h"
#include "native/core/shape.h"
#include "native/kernels/assignment.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

/// The keys that rows of one sequence select.
struct SelectedKeys {
  const int64_t* offsets = nullptr;  // (S+1); null: no row selects any
  const int64_t* slots = nullptr;    // row * k + place, by key, ascending for each
  int64_t k = 0;
  const float* change = nullptr;  // (R)
  /// What each slot adds to dk (before tau) and dv. Rows of slots before `first_slot` have been
  /// added before.
  int64_t first_slot = 0;
  const float* key_rows = nullptr;  // (slots - first_slot, key_stride)
  int64_t key_stride = 0;
  const float* value_rows = nullptr;  // (slots - first_slot, value_stride)
  int64_t value_stride = 0;
};

/// Rows of one sequence, and the keys that they attend to.
struct AttendingRows {
  int64_t batch = 0;
  int64_t head = 0;
  int64_t rows = 0;
  const float* query = nullptr;  // (R,D)
  int64_t query_stride = 0;
  const float* gradient = nullptr;  // (R,E)
  int64_t gradient_stride = 0;
  const float* maximum = nullptr;  // (R), +Inf for a row without keys
  const float* offset = nullptr;   // (R)
  bool causal = false;             // row r sees the keys s <= r + keys - rows
  bool bfloat16 = false;           // rows, keys and values are: weights may be rounded to it too
  int64_t keys = 0;                // the real ones
  SelectedKeys selected;
};

class KeyTileGradient {
 public:
  /// Takes all the memory that pass() needs, for `sequences` sequences of at most `rows` rows at a
  /// time. `gradients` says what is wanted; its query is written by the caller (total()).
  Status prepare(const AttentionInputs& inputs, const AttentionGradients& gradients, int64_t rows,
                 int64_t sequences, Context& context);

  /// The most parts that the keys of a sequence are cut into: parts past its own do nothing.
  int64_t parts() const { return parts_; }
  /// Writes dk and dv of one part, zeros for padding, and its partial sums of dq; `place` is that
  /// of the sequence among those at work. Any order, any thread.
  void pass(const AttendingRows& rows, int64_t place, int64_t part, int worker, Context& context);
  /// dq of one row, once all parts have passed, tau included.
  void total(const AttendingRows& rows, int64_t place, int64_t row, float* target) const;

  /// Zeros for dk and dv of keys [first, last).
  void clear(const AttendingRows& rows, int64_t first, int64_t last) const;
  /// Adds the rows of the slots in [begin, end) to dk and dv of keys [first, last). False if a sum
  /// is not finite.
  bool add_selected(const AttendingRows& rows, int64_t first, int64_t last, int64_t begin,
                    int64_t end) const;

 private:
  static constexpr int64_t kTilesPerGroup = 2;

  struct KeyTile {
    int64_t first = 0;
    int64_t columns = 0;
    float* key = nullptr;             // (D,lanes)
    float* value = nullptr;           // (E,lanes)
    float* key_copies = nullptr;      // (lanes, padded D)
    const float* key_rows = nullptr;  // (columns, padded D): the copies, or the keys themselves
    float* key_sum = nullptr;         // (D,lanes): sum of dz q
    float* value_sum = nullptr;       // (E,lanes): dv
    bool finite = true;               // no key is NaN or Inf; known where some are hidden
  };
  struct RowBlock {
    int64_t first = 0;
    int64_t rows = 0;
    const float* query = nullptr;
    int64_t query_stride = 0;
    const float* gradient = nullptr;
    int64_t gradient_stride = 0;
  };
  /// Scratch of one worker.
  struct Scratch {
    KeyTile tiles[kTilesPerGroup];
    float* weights = nullptr;   // (kRowBlock,lanes)
    float* change = nullptr;    // (kRowBlock,lanes)
    float* query = nullptr;     // (kRowBlock,D), copies of rows that lie apart
    float* gradient = nullptr;  // (kRowBlock,E)
    float* rows = nullptr;      // (lanes,max(D,E))
  };

  int64_t parts_of(int64_t keys) const;
  Scratch* scratch(int worker) const { return scratch_ + worker; }
  bool allocate(Scratch& scratch, Workspace& workspace) const;
  void load(const AttendingRows& rows, int64_t first, int64_t columns, KeyTile& tile) const;
  RowBlock load_rows(const AttendingRows& rows, int64_t first, int64_t count,
                     const Scratch& scratch) const;
  void meet(const AttendingRows& rows, const RowBlock& block, const KeyTile& tile,
            const Scratch& scratch, float* query_sum) const;
  void skip_selected(const AttendingRows& rows, const RowBlock& block, const KeyTile& tile,
                     const Scratch& scratch) const;
  void sum_visible(const RowBlock& block, const KeyTile& tile, const int32_t* visible,
                   const Scratch& scratch, float* query_sum) const;
  bool finish(const AttendingRows& rows, const KeyTile& tile, const Scratch& scratch) const;
  bool finish_rows(const AttendingRows& rows, const OutputRows& target, const KeyTile& tile,
                   const float* sum, float factor, int64_t dim, float* scratch) const;

  const AttentionInputs* inputs_ = nullptr;
  AttentionGradients gradients_;
  bool wants_change_ = false;  // a gradient that goes through the logits
  int64_t parts_ = 1;
  int64_t padded_dim_ = 0;
  AssignmentSumsArray sums_;    // (sequences*parts): sum_s dz k
  Scratch* scratch_ = nullptr;  // (workers)
};

}  // namespace cluster_attention::kernels
