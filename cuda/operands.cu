#include <algorithm>

#include "cuda/launch.h"
#include "cuda/operands.cuh"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

namespace {

/// Used in place: true; else set up to be packed.
Status prepare(DeviceWorkspace::Scope& scope, const OperandSource& source, int64_t batch,
               int64_t heads, bool two_parts, Operand* operand, PackParams::Tensor* tensor,
               bool* in_place) {
  const StoredRows& rows = source.rows;
  const int64_t chunks = divide_up(source.dim, 8);
  *operand = Operand();
  operand->columns = static_cast<int32_t>(chunks * 8);
  *in_place = rows.is_bfloat16 && source.dim % 8 == 0 && rows.aligned(16);
  if (*in_place) {
    operand->high = static_cast<const bfloat16*>(rows.data);
    operand->batch_stride = rows.batch_stride;
    operand->head_stride = rows.head_stride;
    operand->row_stride = rows.row_stride;
    return Status::success();
  }
  *tensor = PackParams::Tensor();
  tensor->rows = rows;
  tensor->vectors = rows.aligned(16);
  tensor->length = source.length;
  tensor->lengths = source.lengths;
  tensor->other_lengths = source.other_lengths;
  tensor->other_length = source.other_length;
  tensor->causal = source.causal;
  tensor->labels = source.labels;
  tensor->dim = static_cast<int32_t>(source.dim);
  tensor->chunks = static_cast<int32_t>(chunks);
  if (chunks > 0) {
    tensor->tile_rows = static_cast<int32_t>(std::max<int64_t>(kTileChunks / chunks, 1));
    tensor->tiles = divide_up(source.length, tensor->tile_rows);
  }
  const int64_t row = operand->columns;
  operand->row_stride = row;
  operand->head_stride = source.length * row;
  operand->batch_stride = heads * operand->head_stride;
  const int64_t count = checked_size(batch, heads, source.length, row);
  CA_RETURN_IF_ERROR(scope.allocate(&tensor->high, count));
  if (two_parts && !rows.is_bfloat16) CA_RETURN_IF_ERROR(scope.allocate(&tensor->low, count));
  operand->high = tensor->high;
  operand->low = tensor->low;
  return Status::success();
}

}  // namespace

Status plan_operands(Session& session, DeviceWorkspace::Scope& scope, const OperandSource* sources,
                     int count, int64_t batch, int64_t heads, bool two_parts, Operand* operands,
                     PackParams* packing) {
  PackParams& params = *packing;
  params = PackParams();
  params.heads = heads;
  params.sequences = batch * heads;
  params.flags = session.flags();
  for (int i = 0; i < count; ++i) {
    PackParams::Tensor& tensor = params.tensors[params.count];
    bool in_place = false;
    CA_RETURN_IF_ERROR(
        prepare(scope, sources[i], batch, heads, two_parts, &operands[i], &tensor, &in_place));
    if (in_place || tensor.tiles == 0) continue;
    ++params.count;
    params.tiles = std::max(params.tiles, params.sequences * tensor.tiles);
  }
  return Status::success();
}

Status pack(Session& session, const PackParams& packing) {
  // grid: (tiles of all sequences, tensor)
  if (packing.count == 0) return Status::success();
  return launch(session, {packing.tiles, packing.count}, kPackThreads, 0, pack_operands<>, packing);
}

Status make_operands(Session& session, DeviceWorkspace::Scope& scope, const OperandSource* sources,
                     int count, int64_t batch, int64_t heads, bool two_parts, Operand* operands) {
  PackParams packing;
  CA_RETURN_IF_ERROR(
      plan_operands(session, scope, sources, count, batch, heads, two_parts, operands, &packing));
  return pack(session, packing);
}

Status plan_operands(Session& session, DeviceWorkspace::Scope& scope, const AttentionInputs& inputs,
                     const Call& call, KeysAndValues* operands, PackParams* packing) {
  const AttentionShape& shape = inputs.shape;
  const bool is_bfloat16 = call.storage == Storage::bfloat16;
  OperandSource sources[2];
  sources[0].rows = stored_rows(inputs.key, is_bfloat16);
  sources[0].dim = shape.head_dim;
  sources[1].rows = stored_rows(inputs.value, is_bfloat16);
  sources[1].dim = shape.value_dim;
  for (OperandSource& source : sources) {
    // Without queries nothing is read.
    source.length = shape.query_length > 0 ? shape.key_length : 0;
    source.lengths = inputs.key_lengths;
    source.other_lengths = inputs.query_lengths;
  }
  Operand made[2];
  CA_RETURN_IF_ERROR(plan_operands(session, scope, sources, 2, shape.batch, shape.heads,
                                   cut_in_two(call), made, packing));
  operands->key = made[0];
  operands->value = made[1];
  return Status::success();
}

Status make_operands(Session& session, DeviceWorkspace::Scope& scope, const AttentionInputs& inputs,
                     const Call& call, KeysAndValues* operands) {
  PackParams packing;
  CA_RETURN_IF_ERROR(plan_operands(session, scope, inputs, call, operands, &packing));
  return pack(session, packing);
}

}  // namespace cluster_attention::cuda
