#include "native/kernels/cast_affinity.h"

#include <algorithm>
#include <cmath>

#include "native/core/shape.h"
#include "native/kernels/cast_activation.h"
#include "native/kernels/prefetch.h"

namespace cluster_attention::kernels {

namespace {

/// Lanes-wide tiles of clusters: their surrogates are packed once, so that the tokens, of which
/// there are many more, need no packing.
int64_t surrogate_tiles(const CastState& state) {
  return divide_up(state.problem.clusters, state.simd.lanes);
}

/// The scratch of a worker.
struct AffinityScratch {
  AffinityScratch(const CastState& state, int worker)
      : sums(state.scratch(worker)),
        score(sums + state.simd.lanes * affinity_row_stride(state)),
        key_score(score + state.simd.lanes * state.problem.clusters),
        rows(key_score + state.simd.lanes * state.problem.clusters) {}

  float* sums;       // (lanes, affinity_row_stride())
  float* score;      // (C, lanes)
  float* key_score;  // (C, lanes)
  float* rows;       // (lanes, D), of listed tokens
};

/// f over the clusters of the affinities of a tile of tokens, summed over the heads. score: (C,
/// lanes). False if a sum was not finite.
bool score_tokens(const CastState& state, const InputRows& rows, const CastSequence& sequence,
                  const TokenTile& tile, const AffinityScratch& scratch, float* score) {
  const CastAttentionProblem& problem = state.problem;
  const int64_t heads = problem.inputs.shape.heads;
  const int64_t head_dim = problem.inputs.shape.head_dim;
  const int64_t lanes = state.simd.lanes;
  const int64_t stride = affinity_row_stride(state);
  const int64_t tiles = surrogate_tiles(state);
  for (int64_t h = 0; h < heads && !state.context.cancelled(); ++h) {
    for (int64_t i = 0; h + 1 < heads && i < tile.count; ++i) {
      prefetch_row(rows.row(sequence.batch, h + 1, tile.token(i)), head_dim);
    }
    const float* tokens = rows.row(sequence.batch, h, tile.first);
    int64_t token_stride = rows.row_stride;
    if (tile.tokens != nullptr) {
      for (int64_t i = 0; i < tile.count; ++i) {
        std::copy_n(rows.row(sequence.batch, h, tile.tokens[i]), head_dim,
                    scratch.rows + i * head_dim);
      }
      tokens = scratch.rows;
      token_stride = head_dim;
    }
    for (int64_t packed = 0; packed < tiles; ++packed) {
      state.simd.multiply(tokens, token_stride, 1, tile.count, head_dim,
                          state.packed_surrogates + (h * tiles + packed) * head_dim * lanes, lanes,
                          std::min(lanes, problem.clusters - packed * lanes),
                          scratch.sums + packed * lanes, stride, h > 0);
    }
  }
  state.simd.pack(scratch.sums, stride, nullptr, tile.count, problem.clusters, score);
  return activate_rows(state.simd, problem.activation, score, problem.clusters, tile.count, 1.0f);
}

}  // namespace

int64_t affinity_row_stride(const CastState& state) {
  return round_up(state.problem.clusters, state.simd.width);
}

int64_t affinity_scratch(const CastState& state) {
  return state.simd.lanes * (affinity_row_stride(state) + 2 * state.problem.clusters +
                             state.problem.inputs.shape.head_dim);
}

Status pack_surrogates(const CastState& state) {
  // tasks: (head, tile of clusters); surrogates: (H,C,D) -> packed_surrogates: (H, tiles, D, lanes)
  const AttentionShape& shape = state.problem.inputs.shape;
  const int64_t lanes = state.simd.lanes;
  const int64_t clusters = state.problem.clusters;
  const int64_t tiles = surrogate_tiles(state);
  return state.context.parallel(
      shape.heads * tiles,
      [&](int64_t task, int) {
        const int64_t first = task % tiles * lanes;
        state.simd.pack(
            state.problem.surrogates + (task / tiles * clusters + first) * shape.head_dim,
            shape.head_dim, nullptr, std::min(lanes, clusters - first), shape.head_dim,
            state.packed_surrogates + task * shape.head_dim * lanes);
      },
      static_cast<double>(shape.heads * clusters * shape.head_dim));
}

void fill_gates(const CastState& state, const CastSequence& sequence, int64_t first,
                int64_t count) {
  const float* gate = state.problem.gate + sequence.batch * state.problem.inputs.shape.key_length;
  bool finite = true;
  for (int64_t n = first; n < first + count; ++n) {
    const double phi = gate[n];
    const double tail = std::exp(-std::fabs(phi));
    const double larger = 1.0 / (1.0 + tail);  // sigma(|phi|)
    const double smaller = tail / (1.0 + tail);
    const double softplus = std::log1p(tail) + 1.0;  // softplus1(-|phi|)
    sequence.query_gate[n] = static_cast<float>(phi < 0.0 ? smaller : larger);
    sequence.key_gate[n] = static_cast<float>(phi < 0.0 ? larger : smaller);
    sequence.query_factor[n] = static_cast<float>(softplus + (phi < 0.0 ? 0.0 : phi));
    sequence.key_factor[n] = static_cast<float>(softplus + (phi < 0.0 ? -phi : 0.0));
    finite = finite && std::isfinite(phi);
  }
  if (!finite) state.context.mark_non_finite();
}

void form_affinities(const CastState& state, const CastSequence& sequence, const TokenTile& tile,
                     int worker, float* affinity, int64_t stride) {
  // query, key: (count, D) of every head -> affinity: (C, count)
  const AttentionInputs& inputs = state.problem.inputs;
  const int64_t lanes = state.simd.lanes;
  const AffinityScratch scratch(state, worker);
  const bool query_finite =
      score_tokens(state, inputs.query, sequence, tile, scratch, scratch.score);
  const bool key_finite =
      score_tokens(state, inputs.key, sequence, tile, scratch, scratch.key_score);
  if (!query_finite || !key_finite) state.context.mark_non_finite();

  float query_gate[kMaximumLanes];
  float key_gate[kMaximumLanes];
  for (int64_t i = 0; i < tile.count; ++i) {
    query_gate[i] = sequence.query_gate[tile.token(i)];
    key_gate[i] = sequence.key_gate[tile.token(i)];
  }
  for (int64_t c = 0; c < state.problem.clusters; ++c) {
    const float* query_part = scratch.score + c * lanes;
    const float* key_part = scratch.key_score + c * lanes;
    float* target = affinity + c * stride;
    for (int64_t i = 0; i < tile.count; ++i) {
      target[i] = query_gate[i] * query_part[i] + key_gate[i] * key_part[i];
    }
  }
}

float* form_affinity_rows(const CastState& state, const CastSequence& sequence,
                          const TokenTile& tile, int worker) {
  const AffinityScratch scratch(state, worker);
  form_affinities(state, sequence, tile, worker, scratch.score, state.simd.lanes);
  state.simd.unpack(scratch.score, tile.count, state.problem.clusters, nullptr, scratch.sums,
                    affinity_row_stride(state), nullptr);
  return scratch.sums;
}

}  // namespace cluster_attention::kernels
