#include "native/kernels/cast_selection.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "native/core/shape.h"
#include "native/kernels/cast_activation.h"
#include "native/kernels/prefetch.h"

namespace cluster_attention::kernels {

namespace {

/// sigma and softplus1 of the gate logits of `count` tokens from `first` on, in double precision.
/// False if a logit is not finite.
bool fill_gates(const CastState& state, const CastSequence& sequence, int64_t first,
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
  return finite;
}

/// Lanes-wide tiles of clusters: their surrogates are packed once, so that the tokens, of which
/// there are many more, need no packing.
int64_t surrogate_tiles(const CastState& state) {
  return divide_up(state.problem.clusters, state.simd.lanes);
}

/// Length of the rows of summed affinities.
int64_t sums_stride(const CastState& state) {
  return round_up(state.problem.clusters, state.simd.width);
}

void pack_surrogates(const CastState& state, int64_t head, int64_t tile) {
  // surrogates: (H,C,D) -> packed_surrogates: (H, tiles, D, lanes)
  const int64_t lanes = state.simd.lanes;
  const int64_t clusters = state.problem.clusters;
  const int64_t head_dim = state.problem.inputs.shape.head_dim;
  const int64_t first = tile * lanes;
  state.simd.pack(
      state.problem.surrogates + (head * clusters + first) * head_dim, head_dim, nullptr,
      std::min(lanes, clusters - first), head_dim,
      state.packed_surrogates + (head * surrogate_tiles(state) + tile) * head_dim * lanes);
}

/// f over the clusters of the affinities of one block of tokens, summed over the heads. sums:
/// scratch (columns, round_up(C, width)), score: (C, lanes). False if a sum was not finite.
bool score_rows(const CastState& state, const InputRows& rows, const CastSequence& sequence,
                int64_t first, int64_t columns, float* sums, float* score) {
  const CastAttentionProblem& problem = state.problem;
  const int64_t heads = problem.inputs.shape.heads;
  const int64_t head_dim = problem.inputs.shape.head_dim;
  const int64_t lanes = state.simd.lanes;
  const int64_t stride = sums_stride(state);
  const int64_t tiles = surrogate_tiles(state);
  for (int64_t h = 0; h < heads && !state.context.cancelled(); ++h) {
    for (int64_t i = 0; h + 1 < heads && i < columns; ++i) {
      prefetch_row(rows.row(sequence.batch, h + 1, first + i), head_dim);
    }
    for (int64_t tile = 0; tile < tiles; ++tile) {
      state.simd.multiply(rows.row(sequence.batch, h, first), rows.row_stride, 1, columns, head_dim,
                          state.packed_surrogates + (h * tiles + tile) * head_dim * lanes, lanes,
                          std::min(lanes, problem.clusters - tile * lanes), sums + tile * lanes,
                          stride, h > 0);
    }
  }
  state.simd.pack(sums, stride, nullptr, columns, problem.clusters, score);
  return activate_rows(state.simd, problem.activation, score, problem.clusters, columns, 1.0f);
}

/// The better of two affinities comes first in the common order; equal ones keep their order.
bool better(float a, float b) { return ordered_key(a) > ordered_key(b); }

/// A_g of one block of tokens of a stretch, stored as the selection wants to read it.
void fill_affinity(const CastState& state, const CastSequence& sequence, const Range& stretch,
                   int64_t first, int64_t columns, int worker) {
  // query, key: (columns, D) of every head -> affinity: (C, columns) or (columns, C)
  const CastAttentionProblem& problem = state.problem;
  const int64_t clusters = problem.clusters;
  const int64_t lanes = state.simd.lanes;
  float* sums = state.scratch(worker);
  float* score = sums + sums_stride(state) * lanes;
  float* key_score = score + clusters * lanes;
  const bool query_finite =
      score_rows(state, problem.inputs.query, sequence, first, columns, sums, score);
  const bool key_finite =
      score_rows(state, problem.inputs.key, sequence, first, columns, sums, key_score);
  if (!query_finite || !key_finite) state.context.mark_non_finite();

  const bool top_k = problem.selection == Selection::top_k;
  const float* query_gate = sequence.query_gate + first;
  const float* key_gate = sequence.key_gate + first;
  for (int64_t c = 0; c < clusters; ++c) {
    const float* query_part = score + c * lanes;
    const float* key_part = key_score + c * lanes;
    float* target = top_k ? sequence.affinity + c * state.affinity_stride + first - stretch.begin
                          : score + c * lanes;
    for (int64_t i = 0; i < columns; ++i) {
      target[i] = query_gate[i] * query_part[i] + key_gate[i] * key_part[i];
    }
  }
  if (top_k) return;
  state.simd.unpack(score, columns, clusters, nullptr, sequence.affinity + first * clusters,
                    clusters, nullptr);
  for (int64_t n = first; n < first + columns; ++n) {
    const float* row = sequence.affinity + n * clusters;
    sequence.best[n] =
        make_candidate(*std::min_element(row, row + clusters, better), static_cast<int32_t>(n));
  }
}

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

void assign_to_single(const CastState& state, const CastSequence& sequence) {
  // affinity: (N, C) -> counts: (C), members: (C, kappa)
  const int64_t clusters = state.problem.clusters;
  const int64_t cluster_size = state.problem.cluster_size;
  std::sort(sequence.best, sequence.best + sequence.tokens, std::greater<Candidate>());
  std::fill_n(sequence.counts, clusters, 0);
  int64_t open = clusters;  // clusters with room, ascending
  for (int64_t c = 0; c < clusters; ++c) sequence.open[c] = static_cast<int32_t>(c);
  for (int64_t visit = 0; visit < sequence.tokens && open > 0; ++visit) {
    if (state.context.cancelled()) return;
    const int32_t token = candidate_index(sequence.best[visit]);
    const float* row = sequence.affinity + token * clusters;
    int32_t* choice =
        std::min_element(sequence.open, sequence.open + open,
                         [row](int32_t a, int32_t b) { return better(row[a], row[b]); });
    int32_t& count = sequence.counts[*choice];
    sequence.members[*choice * cluster_size + count] = token;
    if (++count == cluster_size) {
      std::copy(choice + 1, sequence.open + open, choice);
      --open;
    }
  }
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

/// Gates, and affinities if they are wanted, of a stretch of the tokens.
Status score_stretch(const CastState& state, int64_t count, const Range& stretch) {
  // tasks: (sequence, block of tokens)
  const AttentionShape& shape = state.problem.inputs.shape;
  const int64_t lanes = state.simd.lanes;
  const int64_t blocks = divide_up(stretch.end - stretch.begin, lanes);
  const double tokens = static_cast<double>(count * (stretch.end - stretch.begin));
  const double products =
      tokens * static_cast<double>(state.problem.clusters * shape.heads * shape.head_dim);
  return state.context.parallel(
      count * blocks,
      [&](int64_t task, int worker) {
        const CastSequence& sequence = state.sequences[task / blocks];
        const int64_t first = stretch.begin + task % blocks * lanes;
        const int64_t columns = std::min(lanes, sequence.tokens - first);
        if (columns <= 0) return;
        if (!fill_gates(state, sequence, first, columns)) state.context.mark_non_finite();
        if (state.selects()) fill_affinity(state, sequence, stretch, first, columns, worker);
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

int64_t affinity_scratch(const CastState& state) {
  const int64_t clusters = state.problem.clusters;
  return state.simd.lanes * (sums_stride(state) + 2 * clusters);
}

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
  // tasks: (head, tile of clusters)
  if (!state.selects()) return Status::success();
  const AttentionShape& shape = state.problem.inputs.shape;
  const int64_t tiles = surrogate_tiles(state);
  return state.context.parallel(
      shape.heads * tiles,
      [&](int64_t task, int) { pack_surrogates(state, task / tiles, task % tiles); },
      static_cast<double>(shape.heads * state.problem.clusters * shape.head_dim));
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
  // tasks: sequences
  return state.context.parallel(
      count,
      [&](int64_t task, int) {
        const CastSequence& sequence = state.sequences[task];
        if (problem.selection == Selection::single_assignment) assign_to_single(state, sequence);
        if (problem.selection == Selection::given) take_given(state, sequence);
        index_tokens(state, sequence);
        if (problem.indices != nullptr) report_indices(state, sequence);
        if (problem.coverage != nullptr) problem.coverage[sequence.batch] = coverage(sequence);
      },
      4.0 * static_cast<double>(count * problem.clusters * length));
}

}  // namespace cluster_attention::kernels
