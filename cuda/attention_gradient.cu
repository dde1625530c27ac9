#include "cuda/attention_gradient.cuh"
#include "cuda/attention_gradient.h"
#include "cuda/attention_gradient_hopper.cuh"
#include "cuda/gradient_pass.h"
#include "cuda/launch.h"
#include "cuda/widths.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

namespace {

Status query_terms(Session& session, const AttentionGradientProblem& problem, const Call& call,
                   float* maximum, float* offset) {
  // grid: (queries / 8)
  const AttentionShape& shape = problem.forward.inputs.shape;
  const bool is_bfloat16 = call.storage == Storage::bfloat16;
  QueryTermsParams params = {};
  params.gradient = stored_rows(problem.output_gradient, is_bfloat16);
  params.output = stored_rows(problem.forward.output, is_bfloat16);
  params.logsumexp = problem.forward.logsumexp;
  params.query_lengths = problem.forward.inputs.query_lengths;
  params.maximum = maximum;
  params.offset = offset;
  params.heads = shape.heads;
  params.query_length = shape.query_length;
  params.queries = shape.batch * shape.heads * shape.query_length;
  params.value_dim = static_cast<int32_t>(shape.value_dim);
  params.round_gradient = call.precision == Precision::bfloat16;
  return launch(session, divide_up(params.queries, kTermWarps), kTermWarps * kWarp, 0,
                query_terms_kernel<>, params);
}

/// By the sizes of a sequence and the device alone, so that its results do not depend on others.
bool suits_hopper(const Session& session, const GradientPass& pass) {
  return session.has_warpgroup_products() && !pass.split && pass.head_dim <= 128 &&
         pass.value_dim <= 128;
}

template <int kWidth>
Status pass_on_hopper(Session& session, const GradientPass& pass) {
  // grid: (sequences * (tiles of keys + tiles of rows)), tiles of 64 consumers rows
  using Sizes = GradientRingSizes<kWidth>;
  GradientPassParams params = {};
  params.pass = pass;
  params.flags = session.flags();
  const bool wants_keys = pass.key.data != nullptr || pass.value.data != nullptr;
  const int64_t sequences = pass.batch * pass.heads;
  // Rows do not depend on who shares their block: fewer consumers give the same bits.
  for (int64_t consumers = 1;; ++consumers) {
    const int64_t rows = Sizes::kRows * consumers;
    params.key_tiles = wants_keys ? divide_up(pass.keys, rows) : 0;
    params.row_tiles = pass.query.data != nullptr ? divide_up(pass.rows, rows) : 0;
    params.key_blocks = sequences * params.key_tiles;
    const int64_t blocks = params.key_blocks + sequences * params.row_tiles;
    if (blocks <= session.multiprocessors() || consumers == Sizes::kMostConsumers) {
      return launch(session, blocks, kWarpgroup * (consumers + 1), Sizes::bytes(consumers),
                    gradients_on_hopper<kWidth>, params);
    }
  }
}

}  // namespace

void gradient_sources(const AttentionInputs& inputs, const InputRows& output_gradient,
                      const Call& call, OperandSource (&sources)[kGradientSources]) {
  const AttentionShape& shape = inputs.shape;
  const bool is_bfloat16 = call.storage == Storage::bfloat16;
  const auto rows = [&](const InputRows& view, int64_t dim) {
    OperandSource source;
    source.rows = stored_rows(view, is_bfloat16);
    source.dim = dim;
    return source;
  };
  sources[0] = rows(inputs.query, shape.head_dim);
  sources[1] = rows(output_gradient, shape.value_dim);
  sources[2] = rows(inputs.key, shape.head_dim);
  sources[3] = rows(inputs.value, shape.value_dim);
  const bool empty = shape.query_length == 0 || shape.key_length == 0;
  for (int i = 0; i < kGradientSources; ++i) {
    const bool of_keys = i >= 2;
    sources[i].length = empty ? 0 : of_keys ? shape.key_length : shape.query_length;
    sources[i].lengths = of_keys ? inputs.key_lengths : inputs.query_lengths;
    sources[i].other_lengths = of_keys ? inputs.query_lengths : inputs.key_lengths;
    sources[i].other_length = of_keys ? shape.query_length : shape.key_length;
  }
}

Status attention_gradient(Session& session, const AttentionGradientProblem& problem,
                          const Call& call) {
  const AttentionInputs& inputs = problem.forward.inputs;
  const AttentionShape& shape = inputs.shape;
  const AttentionGradients& wanted = problem.gradients;
  const bool is_bfloat16 = call.storage == Storage::bfloat16;
  if (shape.head_dim > kMaximumWidth) return {StatusCode::unsupported, "headDim", -1};
  if (shape.value_dim > kMaximumWidth) return {StatusCode::unsupported, "valueDim", -1};
  if (shape.batch * shape.heads == 0 ||
      (wanted.query.data == nullptr && wanted.key.data == nullptr &&
       wanted.value.data == nullptr)) {
    return Status::success();
  }
  DeviceWorkspace::Scope scope(session.workspace());
  float* maximum = nullptr;
  float* offset = nullptr;
  const int64_t queries = checked_size(shape.batch, shape.heads, shape.query_length);
  CA_RETURN_IF_ERROR(scope.allocate(&maximum, queries));
  CA_RETURN_IF_ERROR(scope.allocate(&offset, queries));
  OperandSource sources[kGradientSources];
  gradient_sources(inputs, problem.output_gradient, call, sources);
  sources[0].causal = sources[1].causal = problem.forward.causal;
  Operand operands[kGradientSources];
  CA_RETURN_IF_ERROR(make_operands(session, scope, sources, kGradientSources, shape.batch,
                                   shape.heads, cut_in_two(call), operands));
  CA_RETURN_IF_ERROR(query_terms(session, problem, call, maximum, offset));
  GradientPass pass;
  pass.batch = shape.batch;
  pass.heads = shape.heads;
  pass.rows = shape.query_length;
  pass.keys = shape.key_length;
  pass.head_dim = shape.head_dim;
  pass.value_dim = shape.value_dim;
  pass.row_operands = {operands[0], operands[1]};
  pass.key_operands = {operands[2], operands[3]};
  pass.row_lengths = inputs.query_lengths;
  pass.key_lengths = inputs.key_lengths;
  pass.maximum = maximum;
  pass.offset = offset;
  pass.scale = inputs.scale;
  pass.causal = problem.forward.causal;
  pass.split = cut_in_two(call);
  pass.query = stored_output(wanted.query, is_bfloat16);
  pass.key = stored_output(wanted.key, is_bfloat16);
  pass.value = stored_output(wanted.value, is_bfloat16);
  if (!suits_hopper(session, pass)) return gradient_pass(session, pass);
  const bool narrow = shape.head_dim <= 64 && shape.value_dim <= 64;
  return narrow ? pass_on_hopper<64>(session, pass) : pass_on_hopper<128>(session, pass);
}

}  // namespace cluster_attention::cuda
