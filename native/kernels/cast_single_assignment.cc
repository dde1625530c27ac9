#include "native/kernels/cast_single_assignment.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "native/core/shape.h"

namespace cluster_attention::kernels {

namespace {

bool has_room(const CastState& state, const CastSequence& sequence, int64_t cluster) {
  return sequence.counts[cluster] < state.problem.cluster_size;
}

/// The best clusters with room by a row of affinities (C), best first. Few pass the worst of the
/// best so far, which a block is compared with at once.
void keep_best(const CastState& state, const CastSequence& sequence, const float* affinity,
               int32_t* choices) {
  constexpr int64_t kBlock = 16;
  const int64_t clusters = state.problem.clusters;
  Candidate best[kClusterChoices];
  int64_t size = 0;
  float threshold = std::numeric_limits<float>::quiet_NaN();  // lets everything pass
  for (int64_t first = 0; first < clusters; first += kBlock) {
    const int64_t end = std::min(first + kBlock, clusters);
    int32_t any_better = 0;
    for (int64_t c = first; c < end; ++c) any_better |= !(affinity[c] <= threshold);
    if (any_better == 0) continue;
    for (int64_t c = first; c < end; ++c) {
      if (affinity[c] <= threshold || !has_room(state, sequence, c)) continue;
      const Candidate candidate = make_candidate(affinity[c], static_cast<int32_t>(c));
      if (size == kClusterChoices && candidate < best[size - 1]) continue;
      int64_t place = size < kClusterChoices ? size++ : size - 1;
      for (; place > 0 && best[place - 1] < candidate; --place) best[place] = best[place - 1];
      best[place] = candidate;
      if (size == kClusterChoices) threshold = candidate_score(best[size - 1]);
    }
  }
  for (int64_t i = 0; i < size; ++i) choices[i] = candidate_index(best[i]);
  std::fill(choices + size, choices + kClusterChoices, -1);
}

/// Lets a tile of tokens choose among the clusters with room; returns their affinities, as
/// form_affinity_rows() does.
const float* choose(const CastState& state, const CastSequence& sequence, const TokenTile& tile,
                    int worker) {
  const float* rows = form_affinity_rows(state, sequence, tile, worker);
  for (int64_t i = 0; i < tile.count; ++i) {
    keep_best(state, sequence, rows + i * affinity_row_stride(state),
              sequence.choices + tile.token(i) * kClusterChoices);
  }
  return rows;
}

/// The best cluster with room among the choices of a token, -1 when none is left.
int32_t open_choice(const CastState& state, const CastSequence& sequence, int32_t token) {
  const int32_t* choices = sequence.choices + token * kClusterChoices;
  for (int64_t i = 0; i < kClusterChoices && choices[i] >= 0; ++i) {
    if (has_room(state, sequence, choices[i])) return choices[i];
  }
  return -1;
}

/// Serves tokens until all are, or one waits for further choices: then it is the first of those
/// that wait.
void serve_tokens(const CastState& state, CastSequence& sequence) {
  const int64_t cluster_size = state.problem.cluster_size;
  sequence.waiting_count = 0;
  for (; sequence.served < sequence.tokens; ++sequence.served) {
    if (state.context.cancelled()) return;
    const int32_t token = candidate_index(sequence.order[sequence.served]);
    const int32_t choice = open_choice(state, sequence, token);
    if (choice < 0) break;
    sequence.members[choice * cluster_size + sequence.counts[choice]++] = token;
  }
  const int64_t end = std::min(sequence.tokens, sequence.served + kClusterChoices * cluster_size);
  for (int64_t visit = sequence.served; visit < end; ++visit) {
    const int32_t token = candidate_index(sequence.order[visit]);
    if (open_choice(state, sequence, token) >= 0) continue;
    sequence.waiting[sequence.waiting_count++] = token;
  }
}

}  // namespace

void choose_clusters(const CastState& state, const CastSequence& sequence, const TokenTile& tile,
                     int worker) {
  const float* rows = choose(state, sequence, tile, worker);
  for (int64_t i = 0; i < tile.count; ++i) {
    const int64_t token = tile.token(i);
    const int32_t best = sequence.choices[token * kClusterChoices];
    sequence.order[token] =
        make_candidate(rows[i * affinity_row_stride(state) + best], static_cast<int32_t>(token));
  }
}

Status assign_tokens(const CastState& state, int64_t count) {
  const AttentionShape& shape = state.problem.inputs.shape;
  const int64_t lanes = state.simd.lanes;
  const double tokens = static_cast<double>(shape.key_length);
  const double products =
      static_cast<double>(state.problem.clusters * shape.heads * shape.head_dim);
  CA_RETURN_IF_ERROR(state.context.parallel(
      count,
      [&](int64_t task, int) {
        CastSequence& sequence = state.sequences[task];
        std::sort(sequence.order, sequence.order + sequence.tokens, std::greater<Candidate>());
      },
      20.0 * static_cast<double>(count) * tokens));
  for (;;) {
    CA_RETURN_IF_ERROR(state.context.parallel(
        count, [&](int64_t task, int) { serve_tokens(state, state.sequences[task]); },
        20.0 * static_cast<double>(count) * tokens));
    int64_t most = 0;
    for (int64_t i = 0; i < count; ++i) most = std::max(most, state.sequences[i].waiting_count);
    if (most == 0) return Status::success();
    // tasks: (sequence, tile of waiting tokens)
    const int64_t tiles = divide_up(most, lanes);
    CA_RETURN_IF_ERROR(state.context.parallel(
        count * tiles,
        [&](int64_t task, int worker) {
          const CastSequence& sequence = state.sequences[task / tiles];
          const int64_t first = task % tiles * lanes;
          TokenTile tile;
          tile.tokens = sequence.waiting + first;
          tile.count = std::min(lanes, sequence.waiting_count - first);
          if (tile.count > 0) choose(state, sequence, tile, worker);
        },
        4.0 * products * static_cast<double>(count * most)));
  }
}

}  // namespace cluster_attention::kernels
