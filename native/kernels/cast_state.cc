#include "native/kernels/cast_state.h"

#include <algorithm>
#include <new>

#include "native/core/shape.h"

namespace cluster_attention::kernels {

namespace {

/// Floats of A_g or R_intra that are held at a time, unless one sequence or one head needs more:
/// enough that a wave of small sequences fills all threads, small enough to stay in a large cache.
constexpr int64_t kRegionSize = int64_t{2} << 20;
/// Floats of A_g that are held at a time for Top-K, unless that gives too few tasks.
constexpr int64_t kStretchSize = int64_t{1} << 20;
constexpr int64_t kBlocksPerWorker = 2;

/// Of 64 bytes. A power of two between the columns of A_g, or the lists of candidates, would put
/// all of them in the same cache sets.
template <typename T>
int64_t padded_column(int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T);
  return round_up(count, 2 * kLine) + kLine;
}

}  // namespace

float CastState::product_scale(int64_t keys) const {
  if (problem.activation == Activation::laplace && !problem.has_scale) {
    return 1.0f / static_cast<float>(keys);
  }
  return problem.inputs.scale;
}

Status CastState::allocate(int64_t pair_size, int64_t scratch_size) {
  const AttentionShape& shape = problem.inputs.shape;
  const int64_t tokens = shape.key_length;
  const int64_t clusters = problem.clusters;
  const bool top_k = problem.selection == Selection::top_k;
  const int64_t blocks = std::max(kStretchSize / std::max(clusters, int64_t{1}) / simd.lanes,
                                  kBlocksPerWorker * context.workers());
  stretch = top_k ? std::min(tokens, blocks * simd.lanes) : tokens;
  affinity_stride = top_k ? padded_column<float>(stretch) : 0;
  const int64_t affinity_size = checked_size(clusters, affinity_stride);
  const int64_t heads_size = checked_size(shape.heads, pair_size);
  if (affinity_size < 0 || heads_size < 0) return Status::out_of_memory();

  const auto fitting = [](int64_t room, int64_t size, int64_t most) {
    return std::clamp<int64_t>(room / std::max<int64_t>(size, 1), 1, std::max<int64_t>(most, 1));
  };
  group = fitting(kRegionSize, std::max(affinity_size, heads_size), shape.batch);
  const int64_t affinity_total = checked_size(group, affinity_size);
  wave = fitting(std::max(kRegionSize, affinity_total), pair_size, group * shape.heads);
  const int64_t region = std::max(affinity_total, checked_size(wave, pair_size));
  pairs = context.workspace().allocate<float>(region);
  inter = context.workspace().allocate<float>(checked_size(wave, clusters, shape.value_dim));

  packed_surrogates = context.workspace().allocate<float>(
      selects() ? checked_size(shape.heads, round_up(clusters, simd.lanes), shape.head_dim) : 0);
  scratch_size_ = round_up(scratch_size, 16);
  scratch_ = context.workspace().allocate<float>(checked_size(scratch_size_, context.workers()));
  if (pairs == nullptr || inter == nullptr || packed_surrogates == nullptr || scratch_ == nullptr) {
    return Status::out_of_memory();
  }
  return allocate_sequences();
}

Status CastState::allocate_sequences() {
  const int64_t tokens = problem.inputs.shape.key_length;
  const int64_t clusters = problem.clusters;
  const int64_t slots = clusters * problem.cluster_size;

  Workspace& workspace = context.workspace();
  sequences = workspace.allocate<CastSequence>(group);
  float* gates = workspace.allocate<float>(checked_size(group, 4, tokens));
  int32_t* counts = workspace.allocate<int32_t>(checked_size(group, clusters));
  int32_t* members = workspace.allocate<int32_t>(checked_size(group, slots));
  int64_t* offsets = workspace.allocate<int64_t>(checked_size(group, tokens + 2));
  CastSlot* places = workspace.allocate<CastSlot>(checked_size(group, slots));
  if (sequences == nullptr || gates == nullptr || counts == nullptr || members == nullptr ||
      offsets == nullptr || places == nullptr) {
    return Status::out_of_memory();
  }
  for (int64_t i = 0; i < group; ++i) {
    CastSequence* sequence = new (sequences + i) CastSequence{};
    sequence->query_gate = gates + 4 * i * tokens;
    sequence->key_gate = sequence->query_gate + tokens;
    sequence->query_factor = sequence->key_gate + tokens;
    sequence->key_factor = sequence->query_factor + tokens;
    sequence->affinity = pairs + i * clusters * affinity_stride;
    sequence->counts = counts + i * clusters;
    sequence->members = members + i * slots;
    sequence->offsets = offsets + i * (tokens + 2);
    sequence->slots = places + i * slots;
  }
  switch (problem.selection) {
    case Selection::top_k:
      return allocate_shortlists();
    case Selection::single_assignment:
      return allocate_choices();
    case Selection::given:
      break;
  }
  return Status::success();
}

Status CastState::allocate_shortlists() {
  const int64_t clusters = problem.clusters;
  const int64_t capacity =
      Shortlist::capacity(problem.cluster_size, problem.inputs.shape.key_length);
  const int64_t candidate_stride = padded_column<Candidate>(capacity);
  Workspace& workspace = context.workspace();
  auto* candidates = workspace.allocate<Candidate>(checked_size(group, clusters, candidate_stride));
  auto* shortlists = workspace.allocate<Shortlist>(checked_size(group, clusters));
  if (candidates == nullptr || shortlists == nullptr) return Status::out_of_memory();
  for (int64_t i = 0; i < group * clusters; ++i) {
    new (shortlists + i)
        Shortlist(candidates + i * candidate_stride, problem.cluster_size, capacity);
  }
  for (int64_t i = 0; i < group; ++i) sequences[i].shortlists = shortlists + i * clusters;
  return Status::success();
}

Status CastState::allocate_choices() {
  const int64_t tokens = problem.inputs.shape.key_length;
  const int64_t window = std::min(tokens, kClusterChoices * problem.cluster_size);
  Workspace& workspace = context.workspace();
  auto* order = workspace.allocate<Candidate>(checked_size(group, tokens));
  auto* choices = workspace.allocate<int32_t>(checked_size(group, tokens, kClusterChoices));
  auto* waiting = workspace.allocate<int32_t>(checked_size(group, window));
  if (order == nullptr || choices == nullptr || waiting == nullptr) return Status::out_of_memory();
  for (int64_t i = 0; i < group; ++i) {
    sequences[i].order = order + i * tokens;
    sequences[i].choices = choices + i * tokens * kClusterChoices;
    sequences[i].waiting = waiting + i * window;
  }
  return Status::success();
}

void CastState::begin_group(int64_t first_batch, int64_t count) {
  const AttentionInputs& inputs = problem.inputs;
  for (int64_t i = 0; i < count; ++i) {
    sequences[i].batch = first_batch + i;
    sequences[i].tokens = real_length(inputs.key_lengths, first_batch + i, inputs.shape.key_length);
    sequences[i].served = 0;
    std::fill_n(sequences[i].counts, problem.clusters, 0);
  }
}

}  // namespace cluster_attention::kernels
