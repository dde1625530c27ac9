#pragma once

// §6 Backward of centroid attention on the GPU (native/kernels/centroid_attention_gradient.h has
// the maths), over tiles of 64 inputs and 64 centroids that are computed again where they are
// needed (pair_gradient.cuh); no (M,N) matrix exists.
//
//   input_statistics   maximum, sum and sum_j p_ji x_ji of each input's softmax over the centroids,
//                      where there is more than one tile of them
//   input_pass         a block owns 64 inputs and sums their dk, dv and dw over all centroids; over
//                      all heads, where these share their keys
//   centroid_pass      a block owns 64 centroids and sums their dq over a part of the inputs
//
// Sums are cut by the real sizes of the sequence alone; no float is added atomically.
// Precision: products as in operand_tile.cuh, the rest float32. Layout: rows of any stride; padded
// inputs and those of weight 0 are never read. Any M, N, D, E.

#include "cuda/assignment.cuh"
#include "cuda/pair_gradient.cuh"

namespace cluster_attention::cuda {

template <bool kSplit>
__global__ void __launch_bounds__(kTileThreads)
    input_statistics(const CentroidGradientParams params) {
  // key: (64 of N,D), value: (64 of N,E), query: (M,D), output_gradient: (M,E) -> statistics: (64)
  const AssignmentParams& assignment = params.assignment;
  const int64_t tiles = tiles_of(assignment.inputs);
  const int64_t sequence = blockIdx.x / tiles;
  const int64_t first_input = blockIdx.x % tiles * kTile;
  const int64_t batch = sequence / assignment.heads;
  const int64_t inputs = assignment.real_inputs(batch);
  const int64_t centroids = assignment.real_centroids(batch);
  if (first_input >= inputs || centroids == 0) return;
  if (!params.all_statistics && centroids <= kTile) return;
  PairTile<kSplit, true> pair(params);
  pair.open_head(batch, sequence % assignment.heads);
  pair.open_rows([&](int i) { return input_terms(params, batch, first_input + i, inputs); });
  InputSoftmax softmax;
  for (int64_t first = 0; first < centroids; first += kTile) {
    pair.multiply([&](int i) { return centroid_terms(params, sequence, first + i, centroids); });
    softmax.add(pair, assignment.exponent, params.with_changes);
  }
  softmax.finish(pair.row_terms);
  if (pair.place.pair == 0) {
    for (const InputTerms& terms : pair.row_terms) store_statistics(params, sequence, terms);
  }
  if (pair.bad) mark_non_finite(assignment.flags);
}

/// 64 inputs of one sequence, or of all heads of a batch entry that share them.
template <bool kSplit>
class InputPass {
 public:
  __device__ InputPass(const CentroidGradientParams& params, int64_t first_sequence, int64_t tile)
      : params_(params),
        first_sequence_(first_sequence),
        batch_(first_sequence / params.assignment.heads),
        first_input_(tile * kTile),
        inputs_(params.assignment.real_inputs(batch_)),
        centroids_(params.assignment.real_centroids(batch_)),
        pair_(params) {}

  /// Columns [64 chunk, 64 chunk + 64) of the gradients, or with a single tile of centroids all of
  /// them.
  __device__ void run(int64_t chunk) {
    const bool single = params_.group == 1 && centroids_ <= kTile;
    if (single && chunk > 0) return;
    const int64_t chunks = single ? chunk_count(params_) : chunk + 1;
    pair_.open_rows([&](int i) { return input_terms(params_, batch_, first_input_ + i, inputs_); });
    clear(key_);
    clear(value_);
    const int64_t members = first_input_ < inputs_ && centroids_ > 0 ? params_.group : 0;
    for (int64_t member = 0; member < members; ++member) {
      const int64_t sequence = first_sequence_ + member;
      pair_.open_head(batch_, sequence % params_.assignment.heads);
      product_[0] = product_[1] = 0.0f;
      if (centroids_ > kTile) {
        for (InputTerms& terms : pair_.row_terms) fetch_statistics(params_, sequence, terms);
      }
      for (int64_t first = 0; first < centroids_; first += kTile) {
        meet(sequence, first, chunk);
        if (!single) add(chunk);
      }
      if (chunk == 0) write_total(sequence);
    }
    if (members == 0 && chunk == 0) {
      for (int64_t member = 0; member < params_.group; ++member) {
        write_total(first_sequence_ + member);
      }
    }
    for (int64_t c = chunk; c < chunks; ++c) {
      if (single && members > 0) {
        clear(key_);
        clear(value_);
        add(c);
      }
      write(c);
    }
    if (pair_.bad) mark_non_finite(params_.assignment.flags);
  }

 private:
  /// a and dz of one tile of centroids.
  __device__ void meet(int64_t sequence, int64_t first, int64_t chunk) {
    pair_.multiply([&](int i) { return centroid_terms(params_, sequence, first + i, centroids_); });
    if (!params_.over_inputs && centroids_ <= kTile) {
      InputSoftmax softmax;
      softmax.add(pair_, params_.assignment.exponent, params_.with_changes);
      softmax.finish(pair_.row_terms);
      if (chunk == 0 && pair_.place.pair == 0 && params_.with_query) {
        for (const InputTerms& terms : pair_.row_terms) store_statistics(params_, sequence, terms);
      }
    }
    pair_.differentiate([this](int half, float product) { product_[half] += product; });
  }

  __device__ void add(int64_t chunk) {
    const int64_t first = chunk * kTile;
    if (params_.value.wanted() && first < params_.assignment.value_dim) {
      const auto& gradient = pair_.template column_values<true>(first);
      add_values(value_, pair_.share, gradient, params_.assignment.value_dim - first);
    }
    if (params_.key.wanted() && first < params_.assignment.dim) {
      const auto& query = pair_.template column_values<false>(first);
      add_values(key_, pair_.change, query, params_.assignment.dim - first);
    }
  }

  __device__ void write(int64_t chunk) {
    // The same thread writes both: they may be the same rows.
    write_rows(params_.value, value_, 1.0f, chunk * kTile, params_.assignment.value_dim);
    write_rows(params_.key, key_, params_.scale, chunk * kTile, params_.assignment.dim);
  }

  __device__ void write_rows(const GradientRows& target, const TileSums& sums, float scale,
                             int64_t first_column, int64_t dim) {
    if (!target.wanted()) return;
    const int64_t head = first_sequence_ % params_.assignment.heads;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t input = first_input_ + pair_.place.row(half);
      const bool removed = pair_.row_terms[half].position < 0;
      if (input >= params_.assignment.inputs || (removed && params_.accumulate)) continue;
      const int64_t row = target.offset(batch_, head, input);
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const int64_t column = first_column + pair_.place.column(n, side);
          if (column >= dim) continue;
          float value = removed ? 0.0f : scale * sums[n][2 * half + side];
          if (params_.accumulate) value += target.rows.data[row + column];
          store_element(target.rows.data, target.storage, row + column, value);
          pair_.bad |= !is_number(value);
        }
      }
    }
  }

  /// What this head adds to the gradients by the weights.
  __device__ void write_total(int64_t sequence) {
    if (params_.weight_terms == nullptr) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const InputTerms& terms = pair_.row_terms[half];
      const float product = warp_sum(product_[half], 4);
      const int64_t input = first_input_ + pair_.place.row(half);
      if (input >= params_.assignment.inputs || pair_.place.pair != 0) continue;
      const float total = params_.over_inputs ? product : terms.total;
      params_.weight_terms[sequence * params_.assignment.inputs + input] =
          terms.position < 0 || centroids_ == 0 ? 0.0f : total;
    }
  }

  const CentroidGradientParams& params_;
  const int64_t first_sequence_;
  const int64_t batch_;
  const int64_t first_input_;
  const int64_t inputs_;
  const int64_t centroids_;
  PairTile<kSplit, true> pair_;
  TileSums key_;
  TileSums value_;
  float product_[2] = {0.0f, 0.0f};
};

template <bool kSplit>
__global__ void __launch_bounds__(kTileThreads) input_pass(const CentroidGradientParams params) {
  // key: (64 of N,D), value: (64 of N,E), query: (M,D), output_gradient: (M,E) -> dk: (64 of N,D),
  // dv: (64 of N,E), weight_terms: (64 of N)
  const int64_t chunks = launched_chunks(params);
  const int64_t tiles = tiles_of(params.assignment.inputs);
  const int64_t rest = blockIdx.x / chunks;
  InputPass<kSplit> pass(params, rest / tiles * params.group, rest % tiles);
  pass.run(blockIdx.x % chunks);
}

/// Tiles of 64 columns of dq that one block sums.
constexpr int kQuerySumTiles = 2;

/// Sums of 64 centroids over one part of the inputs, for 128 columns of dq.
template <bool kSplit>
class CentroidPass {
 public:
  __device__ CentroidPass(const CentroidGradientParams& params, int64_t sequence, int64_t slice)
      : params_(params),
        sequence_(sequence),
        batch_(sequence / params.assignment.heads),
        inputs_(params.assignment.real_inputs(batch_)),
        centroids_(params.assignment.real_centroids(batch_)),
        first_column_(slice * (kQuerySumTiles * kTile)),
        pair_(params) {}

  /// Block `index` of the sequence's.
  __device__ void run(int64_t index) {
    if (inputs_ == 0 || centroids_ == 0) return;
    const int64_t parts = assignment_parts(inputs_, centroids_);
    const int64_t part = index / tiles_of(centroids_);
    if (part >= parts) return;
    const int64_t first_row = index % tiles_of(centroids_) * kTile;
    pair_.open_head(batch_, sequence_ % params_.assignment.heads);
    pair_.open_rows(
        [&](int i) { return centroid_terms(params_, sequence_, first_row + i, centroids_); });
    for (int t = 0; t < kQuerySumTiles; ++t) clear(sums_[t]);
    const InputRange range = assignment_part(inputs_, parts, part);
    for (int64_t first = range.begin; first < range.end; first += kTile) add(first, range.end);
    write(sequence_ * params_.assignment.sum_rows + part * centroids_ + first_row,
          centroids_ - first_row);
    if (pair_.bad) mark_non_finite(params_.assignment.flags);
  }

 private:
  __device__ void add(int64_t first, int64_t end) {
    pair_.multiply([&](int i) {
      InputTerms terms = input_terms(params_, batch_, first + i, end);
      fetch_statistics(params_, sequence_, terms);
      return terms;
    });
    pair_.differentiate([](int, float) {});
    const bool scaled = params_.assignment.column_scale != nullptr;
#pragma unroll
    for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        mass_[i / 2] += pair_.change[n][i];
        if (scaled) pair_.change[n][i] *= pair_.input(n, i).scale;
      }
    }
#pragma unroll
    for (int t = 0; t < kQuerySumTiles; ++t) {
      const int64_t column = first_column_ + t * kTile;
      if (column >= params_.assignment.dim) break;
      const auto& key = pair_.template column_values<false>(column);
      add_values(sums_[t], pair_.change, key, params_.assignment.dim - column);
    }
  }

  /// Row `first_sum` of the sums is that of the first of `rows` real rows.
  __device__ void write(int64_t first_sum, int64_t rows) {
    const AssignmentParams& assignment = params_.assignment;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float mass = warp_sum(mass_[half], 4);
      const int64_t row = pair_.place.row(half);
      if (row >= rows) continue;
      if (assignment.masses != nullptr && first_column_ == 0 && pair_.place.pair == 0) {
        assignment.masses[first_sum + row] = mass;
      }
#pragma unroll
      for (int t = 0; t < kQuerySumTiles; ++t) {
#pragma unroll
        for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
          for (int side = 0; side < 2; ++side) {
            const int64_t column = first_column_ + t * kTile + pair_.place.column(n, side);
            if (column < assignment.dim) {
              assignment.sums[(first_sum + row) * assignment.dim + column] =
                  sums_[t][n][2 * half + side];
            }
          }
        }
      }
    }
  }

  const CentroidGradientParams& params_;
  const int64_t sequence_;
  const int64_t batch_;
  const int64_t inputs_;
  const int64_t centroids_;
  const int64_t first_column_;
  PairTile<kSplit, false> pair_;
  TileSums sums_[kQuerySumTiles];
  float mass_[2] = {0.0f, 0.0f};
};

template <bool kSplit>
__global__ void __launch_bounds__(kTileThreads) centroid_pass(const CentroidGradientParams params) {
  // query: (64 of M,D), output_gradient: (64 of M,E), key: (part of N,D), value: (part of N,E) ->
  // sums: (64 of M,128 of D), masses: (64 of M)
  const int64_t slices = value_blocks_of(params.assignment.dim);
  const int64_t blocks = assignment_blocks(params.assignment.inputs, params.assignment.centroids);
  const int64_t rest = blockIdx.x / slices;
  CentroidPass<kSplit> pass(params, rest / blocks, blockIdx.x % slices);
  pass.run(rest % blocks);
}

}  // namespace cluster_attention::cuda
