#pragma once

// Joins what clustered_pass.cuh left of its stretches: V^c, T_j (top_keys.cuh), the masses and the
// bases of improved clustered attention; one block per cluster. Sums are cut by the numbers of
// stretches, columns and top keys alone.

#include "cuda/top_keys.cuh"

namespace cluster_attention::cuda {

struct JoinParams {
  PassPartials partials;
  KeysAndValues operands;
  ClusteredPass pass;
  const float* means;      // (B,H,C,D)
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
  int64_t group_pitch;
  int32_t group_shift;
  int32_t head_dim;
  int32_t value_dim;
  int32_t top_k;
  float scale;
  Flags* flags;
};

constexpr int64_t kClearedQueries = 2048;  // of a block
/// Blocks that a multiprocessor shall hold: they mostly wait for memory.
template <int kWidth, bool kSplit>
constexpr int kJoinBlocks = kWidth > 64 ? 1 : 7;

template <int kWidth, bool kSplit>
class ClusterJoin {
 public:
  using Choice = KeyChoice<kWidth, kSplit>;
  using Entry = BestCandidates::Entry;

  struct Layout {
    int64_t values;    // (kWidth): V^c
    int64_t partials;  // (kChoiceThreads, 4): sums of the threads over
                       // stretches
    int64_t weights;   // (k): A^c of the top keys
    int64_t sums;      // (kChoiceThreads, 8): sums of the threads over top keys
    int64_t bytes;
  };
  /// Behind the choice's own memory, whose tile of keys the last sums
  /// share.
  CA_HOST_DEVICE static Layout layout(int64_t k) {
    SharedLayout parts;
    parts.add<char>(k > 0 ? Choice::layout(k).bytes : 0);
    const int64_t values = parts.add<float>(kWidth);
    const int64_t weights = parts.add<float>(k);
    static_assert(Choice::kParts * Choice::kKeys * Choice::kStride * 2 >= 8 * kWarp * 4,
                  "the threads' sums fit");
    const int64_t partials = parts.add<float>(int64_t{kChoiceThreads} * 4);
    const int64_t sums = k > 0 ? Choice::layout(k).keys : 0;
    return {values, partials, weights, sums, parts.bytes()};
  }

  __device__ ClusterJoin(const JoinParams& params, int64_t row)
      : params_(params), row_(row), thread_(static_cast<int>(threadIdx.x)) {
    const Layout parts = layout(params.top_k);
    values_ = dynamic_shared<float>(parts.values);
    partials_ = dynamic_shared<float>(parts.partials);
    weights_ = dynamic_shared<float>(parts.weights);
    sums_ = dynamic_shared<float>(parts.sums);
    // All of them fit as the grid does.
    const uint32_t sequence = static_cast<uint32_t>(row) / static_cast<uint32_t>(params.clusters);
    batch_ = sequence / static_cast<uint32_t>(params.heads);
    head_ = sequence % static_cast<uint32_t>(params.heads);
    const int32_t* offsets = params.offsets + row + sequence;
    members_ = offsets[1] - offsets[0];
    keys_ = real_length(params.key_lengths, batch_, params.key_length);
    stretches_ = static_cast<int>(
        params.key_lengths == nullptr ? params.stretches : real_stretches(keys_, params.stretch));
  }

  __device__ void run() {
    const ChoiceTask task = {batch_,
                             head_,
                             keys_,
                             params_.group_shift,
                             params_.partials.maxima + row_ * params_.group_pitch,
                             params_.means + row_ * params_.head_dim,
                             params_.head_dim,
                             params_.top_k};
    Choice choice(task, params_.operands.key);
    if (params_.top_k > 0) choice.start();
    join_outputs();
    write_values();
    if (params_.top_k == 0) return;
    const int chosen = members_ > 0 ? choice.run() : 0;
    sum_chosen(choice.list(), chosen);
  }

 private:
  /// Every warp for itself; lanes get the factors of the outputs of stretches `lane` and
  /// `lane` + 32.
  __device__ void join_states(float (&factors)[2]) {
    const SoftmaxState* states = params_.partials.states + row_ * params_.stretches;
    SoftmaxState mine[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (i * kWarp + lane_index() < stretches_) mine[i] = states[i * kWarp + lane_index()];
    }
    state_.maximum = warp_reduce(max_or_nan(mine[0].maximum, mine[1].maximum),
                                 [](float a, float b) { return max_or_nan(a, b); });
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      factors[i] = SoftmaxState::shift(mine[i].maximum, state_.maximum);
      sum = fmaf(factors[i], mine[i].sum, sum);
    }
    state_.sum = warp_sum(sum);
  }
  /// All lanes of the warp together.
  __device__ static float factor_of(const float (&factors)[2], int stretch) {
    const float low = shuffle(factors[0], stretch % kWarp);
    const float high = shuffle(factors[1], stretch % kWarp);
    return stretch < kWarp ? low : high;
  }

  /// V^c: a thread takes four columns of some of the stretches. What choice.start() has asked for
  /// is there afterwards.
  __device__ void join_outputs() {
    static_assert(kMostStretches == 2 * kWarp, "a lane has two factors");
    constexpr int kAhead = 4;  // outputs asked for before the states are waited for
    const int columns = params_.operands.value.columns;
    const int places = columns / 4;
    const int shares = kChoiceThreads / places;
    const int share = thread_ / places;
    const float* outputs = params_.partials.outputs + row_ * params_.stretches * columns;
    const float4* from = reinterpret_cast<const float4*>(outputs) + thread_ % places;
    const int end = share < shares ? stretches_ : 0;
    float4 ahead[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int stretch = share + i * shares;
      ahead[i] = stretch < end ? from[stretch * places] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    float factors[2];
    join_states(factors);
    if (members_ == 0) state_ = SoftmaxState();  // what was read says nothing
    // With members and keys, only logits of -Inf have no sum.
    if (members_ > 0 && keys_ > 0 && state_.sum == 0.0f) state_.sum = nanf("");
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int stretch = share + i * shares;
      const float factor = factor_of(factors, stretch);
      if (stretch < end) add(sum, factor, ahead[i]);
    }
#pragma unroll 1
    for (int first = kAhead * shares; first < stretches_; first += shares) {
      const int stretch = first + share;
      const float factor = factor_of(factors, stretch);
      if (stretch < end) add(sum, factor, from[stretch * places]);
    }
    if (share < shares) reinterpret_cast<float4*>(partials_)[thread_] = sum;
    wait_copies<0>();
    __syncthreads();
    const float normalizer = state_.normalizer();
    // Only this thread reads them again.
#pragma unroll 1
    for (int column = thread_; column < columns; column += kChoiceThreads) {
      values_[column] =
          members_ > 0 ? sum_of_shares(partials_, shares, columns, column) * normalizer : 0.0f;
    }
  }
  __device__ static void add(float4& sum, float factor, const float4& output) {
    sum.x = fmaf(factor, output.x, sum.x);
    sum.y = fmaf(factor, output.y, sum.y);
    sum.z = fmaf(factor, output.z, sum.z);
    sum.w = fmaf(factor, output.w, sum.w);
  }
  /// Of one column, over the threads' partial sums.
  __device__ static float sum_of_shares(const float* partials, int shares, int columns,
                                        int column) {
    float sum = 0.0f;
#pragma unroll 4
    for (int i = 0; i < shares; ++i) sum += partials[i * columns + column];
    return sum;
  }

  __device__ void write_values() {
    bool finite = true;
#pragma unroll 1
    for (int column = thread_; column < params_.value_dim; column += kChoiceThreads) {
      const float value = values_[column];
      finite = finite && fabsf(value) < HUGE_VALF;
      const int64_t place = row_ * params_.value_dim + column;
      params_.pass.values[place] = value;
      if (params_.out_values != nullptr) params_.out_values[place] = value;
      if (params_.pass.rounded != nullptr) params_.pass.rounded[place] = to_bfloat16(value);
    }
    if (!finite) mark_non_finite(params_.flags);
    if (thread_ == 0 && params_.out_counts != nullptr) params_.out_counts[row_] = members_;
    if (thread_ == 0 && params_.out_logsumexp != nullptr) {
      params_.out_logsumexp[row_] = state_.logsumexp();
    }
  }

  /// T_j, and A^c of its keys.
  __device__ void weigh(const Entry* best, int chosen) {
    const float normalizer = state_.normalizer();
    const float scale = params_.scale * kLog2E;
#pragma unroll 1
    for (int t = thread_; t < params_.top_k; t += kChoiceThreads) {
      const int32_t key = t < chosen ? candidate_index(best[t]) : -1;
      params_.pass.top_keys[row_ * params_.top_k + t] = key;
      if (params_.out_indices != nullptr) params_.out_indices[row_ * params_.top_k + t] = key;
      if (key < 0) continue;
      weights_[t] = exp2f(candidate_score(best[t]) * scale - state_.maximum) * normalizer;
    }
  }

  /// The sum of the weights, by the last warp: the first ones have more columns.
  __device__ void sum_weights(int chosen) {
    if (warp_index() != kChoiceWarps - 1) return;
    double mass = 0.0;
#pragma unroll 1
    for (int t = lane_index(); t < chosen; t += kWarp) mass += static_cast<double>(weights_[t]);
    mass = warp_sum(mass);
    if (lane_index() == 0) params_.pass.masses[row_] = static_cast<float>(mass);
  }

  /// V^c - sum_t A^c_t v_t: a thread takes eight columns of some of the keys.
  __device__ void sum_chosen(const Entry* best, int chosen) {
    constexpr int kAhead = 2;  // rows asked for before the weights are known
    const Operand& value = params_.operands.value;
    const int places = value.columns / 8;
    const int shares = kChoiceThreads / places;
    const int share = thread_ / places;
    const int end = share < shares ? chosen : 0;
    const int64_t begin =
        batch_ * value.batch_stride + head_ * value.head_stride + thread_ % places * int64_t{8};
    const auto place_of = [&](int t) {
      return begin + candidate_index(best[t]) * value.row_stride;
    };
    Row ahead[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int t = share + i * shares;
      if (t < end) load_row(place_of(t), ahead[i]);
    }
    weigh(best, chosen);
    __syncthreads();
    float sums[8] = {};
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int t = share + i * shares;
      if (t < end) add_row(ahead[i], weights_[t], sums);
    }
#pragma unroll 1
    for (int t = share + kAhead * shares; t < end; t += shares) {
      Row row;
      load_row(place_of(t), row);
      add_row(row, weights_[t], sums);
    }
    if (share < shares) {
      float4* to = reinterpret_cast<float4*>(sums_) + 2 * thread_;
      to[0] = make_float4(sums[0], sums[1], sums[2], sums[3]);
      to[1] = make_float4(sums[4], sums[5], sums[6], sums[7]);
    }
    sum_weights(chosen);
    __syncthreads();
#pragma unroll 1
    for (int column = thread_; column < params_.value_dim; column += kChoiceThreads) {
      params_.pass.bases[row_ * params_.value_dim + column] =
          values_[column] - sum_of_shares(sums_, shares, value.columns, column);
    }
  }

  /// Eight columns of a value.
  struct Row {
    uint4 high;
    uint4 low;
  };
  __device__ void load_row(int64_t place, Row& row) const {
    const Operand& value = params_.operands.value;
    row.high = *reinterpret_cast<const uint4*>(value.high + place);
    row.low = make_uint4(0, 0, 0, 0);
    if (kSplit && value.low != nullptr) {
      row.low = *reinterpret_cast<const uint4*>(value.low + place);
    }
  }
  __device__ static void add_row(const Row& row, float weight, float (&sums)[8]) {
    const uint32_t high_pairs[4] = {row.high.x, row.high.y, row.high.z, row.high.w};
    const uint32_t low_pairs[4] = {row.low.x, row.low.y, row.low.z, row.low.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[2 * i] = fmaf(weight, low_of(high_pairs[i]) + low_of(low_pairs[i]), sums[2 * i]);
      sums[2 * i + 1] =
          fmaf(weight, high_of(high_pairs[i]) + high_of(low_pairs[i]), sums[2 * i + 1]);
    }
  }

  const JoinParams& params_;
  int64_t row_;
  int thread_;
  float* values_;
  float* partials_;
  float* weights_;
  float* sums_;
  int64_t batch_;
  int64_t head_;
  int32_t members_;
  int64_t keys_;
  int stretches_;
  SoftmaxState state_;
};

constexpr int kClearedAtOnce = 4;  // queries of a lane, whose labels are asked for together

/// The rest of the grid: a warp looks at queries, 32 lanes at one each, and clears together the
/// outputs of those that are in no cluster.
__device__ inline void clear_unlabelled(const JoinParams& params, int64_t first_query) {
  const int64_t queries = params.sequences * params.query_length;
  int32_t labels[kClearedAtOnce];
#pragma unroll
  for (int i = 0; i < kClearedAtOnce; ++i) {
    const int64_t query = first_query + i * kChoiceThreads + lane_index();
    labels[i] = query < queries ? params.labels[query] : 0;
  }
#pragma unroll 1
  for (int i = 0; i < kClearedAtOnce; ++i) {
    const int64_t first = first_query + i * kChoiceThreads;
    const int32_t label = i == 0 ? labels[0] : i == 1 ? labels[1] : i == 2 ? labels[2] : labels[3];
    if (params.out_labels != nullptr && first + lane_index() < queries) {
      params.out_labels[first + lane_index()] = label;
    }
    for (unsigned left = ballot(label < 0); left != 0; left &= left - 1) {
      const int64_t one = first + __ffs(static_cast<int>(left)) - 1;
      const int64_t sequence = one / params.query_length;
      const int64_t row = params.output.offset(sequence / params.heads, sequence % params.heads,
                                               one % params.query_length);
      for (int column = lane_index(); column < params.value_dim; column += kWarp) {
        params.output.store(row + column, 0.0f);
      }
    }
  }
}

template <int kWidth, bool kSplit>
__global__ void __launch_bounds__(kChoiceThreads, kJoinBlocks<kWidth, kSplit>)
    join_stretches(const JoinParams params) {
  // partials -> values, bases (B,H,C,E), masses (B,H,C), top_keys
  // (B,H,C,k); one block per cluster
  const int64_t rows = params.sequences * params.clusters;
  if (blockIdx.x < rows) {
    ClusterJoin<kWidth, kSplit>(params, blockIdx.x).run();
    return;
  }
  const int64_t first = (blockIdx.x - rows) * kClearedQueries;
#pragma unroll 1
  for (int64_t i = 0; i < kClearedQueries; i += kClearedAtOnce * kChoiceThreads) {
    clear_unlabelled(params, first + i + warp_index() * kWarp);
  }
}

}  // namespace cluster_attention::cuda
