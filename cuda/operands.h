#pragma once

// Rows of tensors as tensor cores take them: bfloat16 in rows of whole 16 bytes, float32 cut into a
// high and a low part (see primitives/mma.cuh). Tensors that are bfloat16 already and aligned are
// used where they are; others are copied once per call, as much memory as the tensors have.

#include "cuda/backend.h"
#include "cuda/primitives/stored_rows.cuh"
#include "cuda/session.h"

namespace cluster_attention::cuda {

struct Operand {
  const bfloat16* high = nullptr;
  const bfloat16* low = nullptr;  // null: the high part is the whole value
  int64_t batch_stride = 0;
  int64_t head_stride = 0;
  int64_t row_stride = 0;
  int32_t columns = 0;  // a multiple of 8; those past the tensor's own are 0
};

struct KeysAndValues {
  Operand key;
  Operand value;
};

/// A tensor to be made an operand.
struct OperandSource {
  StoredRows rows;  // (batch, heads, length, dim)
  int64_t length = 0;
  int64_t dim = 0;
  const int32_t* lengths = nullptr;  // (batch): the real rows
  /// (batch) of the rows that they meet, other_length where it is null: where there are none,
  /// nothing is read.
  const int32_t* other_lengths = nullptr;
  int64_t other_length = 1;
  /// The last row meets all others, each one before it one less; the first ones may meet none.
  bool causal = false;
  /// (batch, heads, length) or null: below 0, a row meets none.
  const int32_t* labels = nullptr;
};
constexpr int kMostOperands = 6;

/// What is to be copied for operands that cannot be used where they are (operands.cuh).
struct PackParams;

/// Finds `count` operands, at most kMostOperands, in place or in memory of `scope`, which `packing`
/// says how to fill. Of what is copied, only rows that meet others are read, and the rest becomes
/// 0; a NaN or Inf there is marked in the session's flags.
Status plan_operands(Session& session, DeviceWorkspace::Scope& scope, const OperandSource* sources,
                     int count, int64_t batch, int64_t heads, bool two_parts, Operand* operands,
                     PackParams* packing);
/// One launch, or none where nothing is to be copied.
Status pack(Session& session, const PackParams& packing);

/// Both together.
Status make_operands(Session& session, DeviceWorkspace::Scope& scope, const OperandSource* sources,
                     int count, int64_t batch, int64_t heads, bool two_parts, Operand* operands);

/// The same for the keys and values of a call.
Status plan_operands(Session& session, DeviceWorkspace::Scope& scope, const AttentionInputs& inputs,
                     const Call& call, KeysAndValues* operands, PackParams* packing);
Status make_operands(Session& session, DeviceWorkspace::Scope& scope, const AttentionInputs& inputs,
                     const Call& call, KeysAndValues* operands);

/// Whether values of this call are cut in two parts.
inline bool cut_in_two(const Call& call) { return call.precision == Precision::float32; }

}  // namespace cluster_attention::cuda
