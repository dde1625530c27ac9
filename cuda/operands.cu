#include "cuda/launch.h"
#include "cuda/operands.cuh"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

namespace {

/// Used in place, or set up to be packed.
Status prepare(DeviceWorkspace::Scope& scope, const StoredRows& rows, int64_t dim,
               const AttentionShape& shape, bool two_parts, Operand* operand,
               PackParams::Tensor* tensor) {
  *tensor = PackParams::Tensor();
  tensor->rows = rows;
  tensor->dim = static_cast<int32_t>(dim);
  tensor->chunks = static_cast<int32_t>(divide_up(dim, 8));
  operand->columns = tensor->chunks * 8;
  if (rows.is_bfloat16 && dim % 8 == 0 && rows.aligned(16)) {
    operand->high = static_cast<const bfloat16*>(rows.data);
    operand->batch_stride = rows.batch_stride;
    operand->head_stride = rows.head_stride;
    operand->row_stride = rows.row_stride;
    return Status::success();
  }
  tensor->vectors = rows.aligned(16);
  const int64_t row = operand->columns;
  operand->row_stride = row;
  operand->head_stride = shape.key_length * row;
  operand->batch_stride = shape.heads * operand->head_stride;
  const int64_t count = checked_size(shape.batch, shape.heads, shape.key_length, row);
  CA_RETURN_IF_ERROR(scope.allocate(&tensor->high, count));
  if (two_parts && !rows.is_bfloat16) CA_RETURN_IF_ERROR(scope.allocate(&tensor->low, count));
  operand->high = tensor->high;
  operand->low = tensor->low;
  return Status::success();
}

}  // namespace

Status prepare_operands(Session& session, DeviceWorkspace::Scope& scope,
                        const AttentionInputs& inputs, const Call& call, KeysAndValues* operands) {
  // grid: (chunks of 8 columns / 256, tensor)
  const AttentionShape& shape = inputs.shape;
  const bool is_bfloat16 = call.storage == Storage::bfloat16;
  PackParams params = {};
  CA_RETURN_IF_ERROR(prepare(scope, stored_rows(inputs.key, is_bfloat16), shape.head_dim, shape,
                             cut_in_two(call), &operands->key, &params.tensors[0]));
  CA_RETURN_IF_ERROR(prepare(scope, stored_rows(inputs.value, is_bfloat16), shape.value_dim, shape,
                             cut_in_two(call), &operands->value, &params.tensors[1]));
  params.heads = shape.heads;
  params.length = shape.key_length;
  params.sequences = shape.batch * shape.heads;
  params.lengths = inputs.key_lengths;
  params.query_lengths = inputs.query_lengths;
  params.flags = session.flags();
  int64_t chunks = 0;
  for (const PackParams::Tensor& tensor : params.tensors) {
    if (tensor.high != nullptr && tensor.chunks > chunks) chunks = tensor.chunks;
  }
  if (chunks == 0 || shape.query_length == 0) return Status::success();
  const int64_t items = params.sequences * params.length * chunks;
  return launch(session, {divide_up(items, kPackThreads), 2}, kPackThreads, 0, pack_operands,
                params);
}

}  // namespace cluster_attention::cuda
