#pragma once

// V^c = softmax(tau q̄ K^T) V and T_j, the top k keys of each cluster by q̄_j·k.
//
// Method: a block takes a tile of clusters and one stretch of the keys through AttentionTile, with
// the best keys gathered from the scores in registers (top_keys.cuh); states, partial outputs and
// candidates of the stretches are then joined in order by one warp per cluster. No C x S matrix;
// memory O(C (E + k) stretches), with at most 64 stretches.
// Precision: of attention_tile.cuh. Candidates compare the scores as float32; scores of operands
// in two parts may order keys differently from the CPU where two of them agree to about 1e-5.
// Limits: D, E <= kWidth; k so that the lists of 16 clusters fit in shared memory.

#include "cuda/clustered_pass.h"
#include "cuda/top_keys.cuh"
#include "native/core/tensor.h"

namespace cluster_attention::cuda {

/// What a block leaves of its stretch.
struct PassPartials {
  float* outputs;         // (B,H,C,stretches,E), relative to the state
  SoftmaxState* states;   // (B,H,C,stretches)
  Candidate* candidates;  // (B,H,C,stretches,k), 0: none; null without top-k
};

struct PassParams {
  const float* means;  // (B,H,C,D)
  const int32_t* offsets;
  KeysAndValues operands;
  PassPartials partials;
  const int32_t* key_lengths;
  int64_t heads;
  int64_t key_length;
  int64_t clusters;
  int64_t tiles;      // of clusters in a sequence
  int64_t stretches;  // of keys
  int64_t stretch;    // keys in one
  int32_t head_dim;
  int32_t value_dim;
  int32_t top_k;
  float scale;
  Flags* flags;
};

/// Stretches that hold a real key; one at least, which tells that there is none.
CA_HOST_DEVICE inline int64_t real_stretches(int64_t keys, int64_t stretch) {
  return keys > 0 ? (keys + stretch - 1) / stretch : 1;
}

template <int kWidth, bool kSplit>
using PassTile = AttentionTile<kWidth, kSplit, 1>;

template <int kWidth, bool kSplit>
__global__ void pass_stretches(const PassParams params) {
  // means (B,H,C,D), key (B,H,S,D), value (B,H,S,E) -> partials of (cluster tile, stretch)
  using Tile = PassTile<kWidth, kSplit>;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const int64_t part = blockIdx.x % params.stretches;
  const int64_t sequence = blockIdx.x / params.stretches / params.tiles;
  TileTask task;
  task.batch = sequence / params.heads;
  task.head = sequence % params.heads;
  task.first_query = blockIdx.x / params.stretches % params.tiles * Tile::Sizes::kWarpRows * warps;
  task.queries = params.clusters;
  const int64_t keys = real_length(params.key_lengths, task.batch, params.key_length);
  task.first_key = part * params.stretch;
  task.end_key = task.first_key + params.stretch < keys ? task.first_key + params.stretch : keys;
  task.scale_log2 = params.scale * kLog2E;
  if (part >= real_stretches(keys, params.stretch)) return;
  const int64_t last = task.first_query + Tile::Sizes::kWarpRows * warps;
  const int32_t* offsets = params.offsets + sequence * (params.clusters + 1);
  const int64_t end = last < params.clusters ? last : params.clusters;
  if (offsets[end] == offsets[task.first_query]) return;  // no member in the whole tile
  const int64_t first_row = sequence * params.clusters + task.first_query;

  Tile tile(task, params.operands);
  const float* means = params.means + first_row * params.head_dim;
  tile.load_queries(params.head_dim, [&](int row, int column) {
    return means[static_cast<int64_t>(row) * params.head_dim + column];
  });
  if (params.partials.candidates == nullptr) {
    tile.run();
  } else {
    TopKeys<Tile> best(dynamic_shared<Candidate>(Tile::Sizes::layout(warps).bytes), params.top_k);
    tile.run([&](int m, int64_t first_key, const typename Tile::Scores& scores) {
      best.add(m, first_key, task.end_key, scores);
    });
    best.finish();
    for (int half = 0; half < 2; ++half) {
      const int64_t cluster = task.first_query + tile.row_of(0, half);
      if (cluster >= params.clusters) continue;
      const int64_t row = first_row + tile.row_of(0, half);
      best.write(0, half,
                 params.partials.candidates + (row * params.stretches + part) * params.top_k);
    }
  }
  tile.join_sums();
  if (tile.saw_infinity()) mark_non_finite(params.flags);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (task.first_query + tile.row_of(0, half) >= params.clusters) continue;
    const int64_t place = (first_row + tile.row_of(0, half)) * params.stretches + part;
    if (lane_index() % 4 == 0) params.partials.states[place] = tile.state(0, half);
    float* output = params.partials.outputs + place * params.value_dim;
#pragma unroll
    for (int n = 0; n < Tile::kOutputTiles; ++n) {
      for (int i = 0; i < 2; ++i) {
        const int column = Tile::column(n) + i;
        if (column < params.value_dim) output[column] = tile.output(0, half, n, i);
      }
    }
  }
}

// ---- joining --------------------------------------------------------------------------------

constexpr int kJoinWarps = 4;

struct JoinParams {
  PassPartials partials;
  Operand value;
  ClusteredPass pass;
  const int32_t* offsets;  // (B,H,C+1)
  const int32_t* labels;   // (B,H,L)
  int32_t* out_labels;     // the problem's optional outputs
  int32_t* out_counts;
  int32_t* out_indices;
  float* out_values;
  float* out_logsumexp;
  StoredOutput output;  // (B,H,L,E)
  const int32_t* key_lengths;
  int64_t heads;
  int64_t query_length;
  int64_t key_length;
  int64_t clusters;
  int64_t sequences;
  int64_t stretches;
  int64_t stretch;
  int64_t join_blocks;  // the blocks after them clear the queries in no cluster
  int32_t value_dim;
  int32_t top_k;
  float scale;
  Flags* flags;
};

/// One warp joins the stretches of one cluster.
class ClusterJoin {
 public:
  __device__ ClusterJoin(const JoinParams& params, int64_t row, Candidate* best)
      : params_(params), row_(row), best_(best), lane_(lane_index()) {
    const int64_t sequence = row / params.clusters;
    batch_ = sequence / params.heads;
    head_ = sequence % params.heads;
    const int32_t* offsets = params.offsets + row + sequence;
    members_ = offsets[1] - offsets[0];
    const int64_t keys = real_length(params.key_lengths, batch_, params.key_length);
    stretches_ = real_stretches(keys, params.stretch);
  }

  __device__ void run() {
    if (lane_ == 0 && params_.out_counts != nullptr) params_.out_counts[row_] = members_;
    if (members_ > 0) {
      join_states();
      if (params_.top_k > 0) select();
    }
    const float normalizer = state_.normalizer();
    bool finite = true;
    for (int column = lane_; column < params_.value_dim; column += kWarp) {
      const float value = members_ > 0 ? joined_output(column) * normalizer : 0.0f;
      finite = finite && fabsf(value) < HUGE_VALF;
      const int64_t place = row_ * params_.value_dim + column;
      params_.pass.values[place] = value;
      if (params_.out_values != nullptr) params_.out_values[place] = value;
      if (params_.top_k > 0) params_.pass.bases[place] = value - selected_value(column, normalizer);
    }
    if (!finite) mark_non_finite(params_.flags);
    if (lane_ == 0 && params_.out_logsumexp != nullptr) {
      params_.out_logsumexp[row_] = state_.logsumexp();
    }
    if (params_.top_k > 0) write_keys(normalizer);
  }

 private:
  __device__ void join_states() {
    const SoftmaxState* states = params_.partials.states + row_ * params_.stretches;
    for (int64_t i = 0; i < stretches_; ++i) state_.merge(states[i]);
  }

  __device__ float joined_output(int column) const {
    const SoftmaxState* states = params_.partials.states + row_ * params_.stretches;
    const float* outputs =
        params_.partials.outputs + row_ * params_.stretches * params_.value_dim + column;
    float sum = 0.0f;
    for (int64_t i = 0; i < stretches_; ++i) {
      const float factor = SoftmaxState::shift(states[i].maximum, state_.maximum);
      sum = fmaf(factor, outputs[i * params_.value_dim], sum);
    }
    return sum;
  }

  /// The best k of all stretches into best_, in order: a threshold by bisection, then each one's
  /// rank by counting.
  __device__ void select() {
    const int k = params_.top_k;
    const Candidate* all = params_.partials.candidates + row_ * params_.stretches * k;
    const int64_t count = stretches_ * k;
    Candidate low = 0;
    Candidate high = ~Candidate{0};
    int64_t kept = count_above(all, count, low);
    while (kept > k) {
      const Candidate middle = low + (high - low) / 2;
      const int64_t above = count_above(all, count, middle);
      if (above >= k) {
        low = middle;
        kept = above;
      } else {
        high = middle;
      }
    }
    Candidate* unordered = best_ + k;
    int end = 0;
    for (int64_t first = 0; first < count; first += kWarp) {
      const Candidate candidate = first + lane_ < count ? all[first + lane_] : 0;
      const bool keep = candidate > low;
      const unsigned kept_lanes = ballot(keep);
      if (keep) unordered[end + __popc(kept_lanes & ((1u << lane_) - 1u))] = candidate;
      end += __popc(kept_lanes);
    }
    __syncwarp();
    for (int i = lane_; i < end; i += kWarp) {
      int rank = 0;
      for (int j = 0; j < end; ++j) rank += unordered[j] > unordered[i] ? 1 : 0;
      best_[rank] = unordered[i];
    }
    __syncwarp();
    selected_ = end;
  }

  __device__ int64_t count_above(const Candidate* all, int64_t count, Candidate limit) const {
    int64_t above = 0;
    for (int64_t i = lane_; i < count; i += kWarp) above += all[i] > limit ? 1 : 0;
    return warp_sum(above);
  }

  /// A^c of the t-th selected key.
  __device__ float weight(int t, float normalizer) const {
    const float score = candidate_score(best_[t]) * (params_.scale * kLog2E);
    return exp2f(score - state_.maximum) * normalizer;
  }

  /// sum_t A^c_t v_t of one column.
  __device__ float selected_value(int column, float normalizer) const {
    const Operand& value = params_.value;
    const int64_t sequence = batch_ * value.batch_stride + head_ * value.head_stride;
    double sum = 0.0;
    for (int t = 0; t < selected_; ++t) {
      const int64_t place = sequence + candidate_index(best_[t]) * value.row_stride + column;
      float entry = to_float(value.high[place]);
      if (value.low != nullptr) entry += to_float(value.low[place]);
      sum += static_cast<double>(weight(t, normalizer)) * static_cast<double>(entry);
    }
    return static_cast<float>(sum);
  }

  __device__ void write_keys(float normalizer) const {
    double mass = 0.0;
    for (int t = 0; t < selected_; ++t) mass += static_cast<double>(weight(t, normalizer));
    if (lane_ == 0) params_.pass.masses[row_] = static_cast<float>(mass);
    for (int t = lane_; t < params_.top_k; t += kWarp) {
      const int32_t key = t < selected_ ? candidate_index(best_[t]) : -1;
      params_.pass.top_keys[row_ * params_.top_k + t] = key;
      if (params_.out_indices != nullptr) params_.out_indices[row_ * params_.top_k + t] = key;
    }
  }

  const JoinParams& params_;
  int64_t row_;
  Candidate* best_;  // (2 k): the best in order, and before they are in order
  int lane_;
  int64_t batch_;
  int64_t head_;
  int32_t members_;
  int64_t stretches_;
  int selected_ = 0;
  SoftmaxState state_;
};

/// The rest of the grid: a warp looks at 32 queries, one in each lane, and clears together the
/// outputs of those that are in no cluster.
__device__ inline void clear_unlabelled(const JoinParams& params, int64_t first_query) {
  const int64_t query = first_query + lane_index();
  int32_t label = 0;
  if (query < params.sequences * params.query_length) {
    label = params.labels[query];
    if (params.out_labels != nullptr) params.out_labels[query] = label;
  }
  for (unsigned left = ballot(label < 0); left != 0; left &= left - 1) {
    const int64_t one = first_query + __ffs(static_cast<int>(left)) - 1;
    const int64_t sequence = one / params.query_length;
    const int64_t row = params.output.offset(sequence / params.heads, sequence % params.heads,
                                             one % params.query_length);
    for (int column = lane_index(); column < params.value_dim; column += kWarp) {
      params.output.store(row + column, 0.0f);
    }
  }
}

__global__ void __launch_bounds__(kJoinWarps* kWarp) join_stretches(const JoinParams params) {
  // partials -> values, bases (B,H,C,E), masses (B,H,C), top_keys (B,H,C,k); one warp per cluster
  const int64_t block = blockIdx.x;
  if (block >= params.join_blocks) {
    clear_unlabelled(params, ((block - params.join_blocks) * kJoinWarps + warp_index()) * kWarp);
    return;
  }
  const int64_t row = block * kJoinWarps + warp_index();
  if (row >= params.sequences * params.clusters) return;
  ClusterJoin(params, row, dynamic_shared<Candidate>() + int64_t{2} * warp_index() * params.top_k)
      .run();
}

}  // namespace cluster_attention::cuda
