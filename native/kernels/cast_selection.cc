#include "native/kernels/cast_selection.h"

#include <algorithm>

#include "native/core/shape.h"
#include "native/kernels/cast_affinity.h"
#include "native/kernels/cast_single_assignment.h"

namespace cluster_attention::kernels {

namespace {

/// Offers a stretch of tokens to a cluster; with the last one the best become its members.
void select_top_k(const CastState& state, const CastSequence& sequence, int64_t cluster,
                  const Range& stretch) {
  Shortlist& best = sequence.shortlists[cluster];
  if (stretch.begin == 0) best.clear();
  const float* scores = sequence.affinity + cluster * state.affinity_stride;
  const int64_t end = std::min(stretch.end, sequence.tokens);
  for (int64_t first = stretch.begin; first < end; first += Shortlist::kBlock) {
    const int64_t count = std::min(Shortlist::kBlock, end - first);
    best.offer(scores + first - stretch.begin, count, first);
  }
  if (stretch.end < state.problem.inputs.shape.key_length) return;
  const int64_t size = sort_best(best.begin(), best.count(), state.problem.cluster_size);
  sequence.counts[cluster] = static_cast<int32_t>(size);
  int32_t* members = sequence.members + cluster * state.problem.cluster_size;
  for (int64_t slot = 0; slot < size; ++slot) members[slot] = candidate_index(best.begin()[slot]);
}

void take_given(const CastState& state, const CastSequence& sequence) {
  const int64_t cluster_size = state.problem.cluster_size;
  const int64_t slots = state.problem.clusters * cluster_size;
  const int32_t* given = state.problem.given_indices + sequence.batch * slots;
  for (int64_t c = 0; c < state.problem.clusters; ++c) {
    int32_t count = 0;
    for (int64_t slot = 0; slot < cluster_size; ++slot) {
      const int32_t token = given[c * cluster_size + slot];
      if (token < 0 || token >= sequence.tokens) continue;
      sequence.members[c * cluster_size + count++] = token;
    }
    sequence.counts[c] = count;
  }
}

/// Gates of a tile of a stretch of the tokens, and what the selection wants of its affinities.
void score_tile(const CastState& state, const CastSequence& sequence, const Range& stretch,
                const TokenTile& tile, int worker) {
  fill_gates(state, sequence, tile.first, tile.count);
  switch (state.problem.selection) {
    case Selection::top_k:
      form_affinities(state, sequence, tile, worker, sequence.affinity + tile.first - stretch.begin,
                      state.affinity_stride);
      break;
    case Selection::single_assignment:
      choose_clusters(state, sequence, tile, worker);
      break;
    case Selection::given:
      break;
  }
}

Status score_stretch(const CastState& state, int64_t count, const Range& stretch) {
  // tasks: (sequence, tile of tokens)
  const AttentionShape& shape = state.problem.inputs.shape;
  const int64_t lanes = state.simd.lanes;
  const int64_t tiles = divide_up(stretch.end - stretch.begin, lanes);
  const double tokens = static_cast<double>(count * (stretch.end - stretch.begin));
  const double products =
      tokens * static_cast<double>(state.problem.clusters * shape.heads * shape.head_dim);
  return state.context.parallel(
      count * tiles,
      [&](int64_t task, int worker) {
        const CastSequence& sequence = state.sequences[task / tiles];
        TokenTile tile;
        tile.first = stretch.begin + task % tiles * lanes;
        tile.count = std::min(lanes, sequence.tokens - tile.first);
        if (tile.count > 0) score_tile(state, sequence, stretch, tile, worker);
      },
      state.selects() ? 4.0 * products : 100.0 * tokens);
}

/// The inverse map by a counting sort over the tokens.
void index_tokens(const CastState& state, const CastSequence& sequence) {
  // members: (C, kappa) -> offsets: (N+2), slots
  const auto for_each_member = [&](auto&& visit) {
    for (int64_t c = 0; c < state.problem.clusters; ++c) {
      const int32_t* members = sequence.members + c * state.problem.cluster_size;
      for (int32_t slot = 0; slot < sequence.counts[c]; ++slot) {
        visit(members[slot], CastSlot{static_cast<int32_t>(c), slot});
      }
    }
  };
  // Counted one place further on, and filled from one place further on, the starts of token n end
  // up in offsets[n].
  int64_t* offsets = sequence.offsets;
  std::fill_n(offsets, sequence.tokens + 2, 0);
  for_each_member([&](int32_t token, CastSlot) { ++offsets[token + 2]; });
  for (int64_t n = 1; n < sequence.tokens; ++n) offsets[n + 1] += offsets[n];
  for_each_member(
      [&](int32_t token, CastSlot place) { sequence.slots[offsets[token + 1]++] = place; });
}

void report_indices(const CastState& state, const CastSequence& sequence) {
  const CastAttentionProblem& problem = state.problem;
  const int64_t cluster_size = problem.cluster_size;
  for (int64_t c = 0; c < problem.clusters; ++c) {
    const int64_t row = (sequence.batch * problem.clusters + c) * cluster_size;
    int32_t* indices = problem.indices + row;
    if (state.selects()) {
      int32_t* end = std::copy_n(sequence.members + c * cluster_size, sequence.counts[c], indices);
      std::fill(end, indices + cluster_size, -1);
    } else {
      for (int64_t slot = 0; slot < cluster_size; ++slot) {
        const int32_t token = problem.given_indices[row + slot];
        indices[slot] = token < sequence.tokens ? token : -1;
      }
    }
  }
}

/// Share of the real tokens that are in some cluster.
double coverage(const CastSequence& sequence) {
  if (sequence.tokens == 0) return 1.0;
  int64_t covered = 0;
  for (int64_t n = 0; n < sequence.tokens; ++n) {
    covered += sequence.offsets[n + 1] > sequence.offsets[n] ? 1 : 0;
  }
  return static_cast<double>(covered) / static_cast<double>(sequence.tokens);
}

}  // namespace

/// A single assignment puts each token somewhere: the clusters must have room for all.
static Status check_room(const CastAttentionProblem& problem) {
  const AttentionShape& shape = problem.inputs.shape;
  for (int64_t b = 0; b < shape.batch; ++b) {
    const int64_t tokens = real_length(problem.inputs.key_lengths, b, shape.key_length);
    if (problem.clusters * problem.cluster_size < tokens) {
      return {StatusCode::shape_mismatch, "clusterSize", -1};
    }
  }
  return Status::success();
}

Status check_cast_indices(const CastAttentionProblem& problem, Context& context) {
  if (problem.selection == Selection::single_assignment) return check_room(problem);
  if (problem.selection != Selection::given) return Status::success();
  const AttentionShape& shape = problem.inputs.shape;
  if (shape.batch == 0) return Status::success();  // the other sizes may be huge then
  int64_t* last_list = context.workspace().allocate<int64_t>(shape.key_length);
  if (last_list == nullptr) return Status::out_of_memory();
  std::fill_n(last_list, shape.key_length, -1);
  for (int64_t list = 0; list < shape.batch * problem.clusters; ++list) {
    const int64_t tokens =
        real_length(problem.inputs.key_lengths, list / problem.clusters, shape.key_length);
    for (int64_t slot = 0; slot < problem.cluster_size; ++slot) {
      const int64_t index = list * problem.cluster_size + slot;
      const int32_t token = problem.given_indices[index];
      if (token < -1 || token >= shape.key_length) {
        return {StatusCode::out_of_range, "indices", index};
      }
      if (token < 0 || token >= tokens) continue;
      if (last_list[token] == list) return {StatusCode::duplicate, "indices", index};
      last_list[token] = list;
    }
  }
  return Status::success();
}

Status prepare_selection(const CastState& state) {
  return state.selects() ? pack_surrogates(state) : Status::success();
}

Status select_members(const CastState& state, int64_t count) {
  const CastAttentionProblem& problem = state.problem;
  const int64_t length = problem.inputs.shape.key_length;
  Range stretch;
  do {
    stretch = {stretch.end, std::min(stretch.end + state.stretch, length)};
    CA_RETURN_IF_ERROR(score_stretch(state, count, stretch));
    if (problem.selection != Selection::top_k) continue;
    // tasks: (sequence, cluster)
    CA_RETURN_IF_ERROR(state.context.parallel(
        count * problem.clusters,
        [&](int64_t task, int) {
          select_top_k(state, state.sequences[task / problem.clusters], task % problem.clusters,
                       stretch);
        },
        4.0 * static_cast<double>(count * problem.clusters * (stretch.end - stretch.begin))));
  } while (stretch.end < length);
  if (problem.selection == Selection::single_assignment) {
    CA_RETURN_IF_ERROR(assign_tokens(state, count));
  }
  // tasks: sequences
  return state.context.parallel(
      count,
      [&](int64_t task, int) {
        const CastSequence& sequence = state.sequences[task];
        if (problem.selection == Selection::given) take_given(state, sequence);
        index_tokens(state, sequence);
        if (problem.indices != nullptr) report_indices(state, sequence);
        if (problem.coverage != nullptr) problem.coverage[sequence.batch] = coverage(sequence);
      },
      4.0 * static_cast<double>(count * problem.clusters * length));
}

}  // namespace cluster_attention::kernels
