#pragma once

// Shared memory of the blocks of CAST whose groups of four warps share tiles: (128, groups)
// threads.

#include <type_traits>

#include "cuda/cast_params.cuh"
#include "cuda/row_softmax.cuh"

namespace cluster_attention::cuda {

/// The most groups of a block. Without a split tiles are small, and so are the registers needed.
template <bool kSplit>
constexpr int kAffinityGroups = kSplit ? 2 : 4;
constexpr int kMostAffinityGroups = 4;

/// Without a split those of the next head are on their way while these are used.
template <bool kSplit>
constexpr int kAffinityStages = kSplit ? 1 : 2;

/// Queries and keys.
constexpr int kAffinitySides = 2;

struct AffinityData {
  int32_t token[kTile];
  Gates gates[kTile];
  int32_t cluster[kMostAffinityGroups][kTile];
  // Of each group's clusters.
  float maximum[kAffinitySides][kMostAffinityGroups][kTile];
  float sum[kAffinitySides][kMostAffinityGroups][kTile];
  uint32_t best[kMostAffinityGroups][kTile];
};

struct AffinityLayout {
  int64_t data;
  int64_t surrogates;  // of all groups
  int64_t rows;        // queries, keys
  int64_t bytes;
};

template <bool kSplit>
CA_HOST_DEVICE AffinityLayout affinity_layout(int groups) {
  SharedLayout parts;
  AffinityLayout layout;
  layout.data = parts.add<AffinityData>(1);
  layout.surrogates = parts.add<OperandTile<kSplit>>(kAffinityStages<kSplit> * groups);
  layout.rows = parts.add<OperandTile<kSplit>>(kAffinityStages<kSplit> * kAffinitySides);
  layout.bytes = parts.bytes();
  return layout;
}

/// Half of a tile of each of two sides, with a factor for each row: bytes of shared memory.
constexpr int64_t kMixedHalves =
    kAffinitySides * (2 * kTileColumns + 1) * kTileThreads * static_cast<int64_t>(sizeof(float));

/// Two groups of four warps have a tile each, whose rows have factors. The first group's
/// place.row(0) become its own, multiplied, plus the other's, the other group's place.row(1)
/// likewise; the first group's tile is multiplied first.
__device__ inline void mix_halves(TileSums& mixed, const float (&factors)[2], float* shared) {
  constexpr int kSent = 2 * kTileColumns;
  const bool first = threadIdx.y == 0;
  float* places[2] = {shared + threadIdx.x, shared + threadIdx.x + (kSent + 1) * kTileThreads};
  float* to = first ? places[0] : places[1];
  const float* from = first ? places[1] : places[0];
#pragma unroll
  for (int i = 0; i < kSent; ++i) {
    to[i * kTileThreads] = first ? mixed[i / 2][2 + i % 2] : mixed[i / 2][i % 2];
  }
  to[kSent * kTileThreads] = first ? factors[1] : factors[0];
  __syncthreads();
  const float mine = first ? factors[0] : factors[1];
  const float other = from[kSent * kTileThreads];
#pragma unroll
  for (int i = 0; i < kSent; ++i) {
    const float x = from[i * kTileThreads];
    if (first) {
      mixed[i / 2][i % 2] = fmaf(other, x, mine * mixed[i / 2][i % 2]);
    } else {
      mixed[i / 2][2 + i % 2] = fmaf(mine, mixed[i / 2][2 + i % 2], other * x);
    }
  }
}

/// As many groups as there are tiles of clusters and shared memory for.
template <bool kSplit>
int affinity_groups(int64_t clusters, int64_t shared_bytes) {
  int groups = 1;
  while (groups < kAffinityGroups<kSplit> && groups * kTile < clusters &&
         affinity_layout<kSplit>(groups + 1).bytes <= shared_bytes) {
    ++groups;
  }
  return groups;
}

/// Without a split tiles are small: those of the next members are on their way while these are
/// used.
template <bool kSplit>
constexpr int kMemberStages = kSplit ? 1 : 2;
/// Groups of four warps that share the tiles of members, each with 64 queries of its own.
constexpr int kMostMemberGroups = 2;

struct ClusterLayout {
  int64_t rows;     // members whose queries are the rows, of all groups
  int64_t members;  // whose keys and values are the columns: at hand, fetched next, and after them
  int64_t keys;
  int64_t values;
  int64_t query;  // of all groups
  int64_t bytes;
};

/// What the warps of a block that makes a summary tell each other.
struct SummaryData {
  static constexpr int kWarps = kMostMemberGroups * kTileWarps;
  float maximum[kWarps];
  float sum[kWarps];
  float values[kWarps][kRowValueTiles * kTile];
};

template <bool kSplit>
CA_HOST_DEVICE ClusterLayout cluster_layout(int groups, int query_tiles) {
  constexpr int kStages = kMemberStages<kSplit>;
  SharedLayout parts;
  ClusterLayout layout;
  layout.rows = parts.add<int32_t>(groups * kTile);
  layout.members = parts.add<int32_t>((kStages + 1) * kTile);
  layout.keys = parts.add<OperandTile<kSplit>>(kStages);
  layout.values = parts.add<OperandTile<kSplit>>(kStages);
  layout.query = parts.add<OperandTile<kSplit>>(groups * query_tiles);
  layout.bytes = parts.bytes();  // more than SummaryData
  return layout;
}

/// Of small tiles: as many groups as there are queries and shared memory for.
template <bool kSplit>
int small_member_groups(int64_t cluster_size, int64_t shared_bytes) {
  const bool fits = cluster_layout<kSplit>(kMostMemberGroups, 1).bytes <= shared_bytes;
  return fits && cluster_size > kTile ? kMostMemberGroups : 1;
}

/// Blocks of a cluster: those of its queries, then the one that makes its summary.
CA_HOST_DEVICE inline int64_t cluster_blocks(const CastParams& params) {
  const int64_t groups = params.member_groups;
  return (tiles_of(params.cluster_size) + groups - 1) / groups + 1;
}

/// Groups of four warps that share the tiles of clusters, each with 64 tokens of its own.
constexpr int kMostCombinationGroups = 2;

struct CombinationColumns {
  int32_t position[kTile];        // clusters
  int32_t value_position[kTile];  // clusters whose summary is finite
  uint32_t not_finite[2];         // bits of the others
};

struct CombinationRows {
  int32_t position[kTile];  // tokens
  float factor[kTile];      // softplus1(phi)
};

/// Of small tiles without a split, those of the next clusters are on their way while these are
/// used.
template <bool kSplit, RowAccess kAccess>
constexpr int kCombinationStages = kSplit || kAccess == RowAccess::any ? 1 : 2;

/// Weights of terms that are added one by one, as the operands of products.
template <bool kSplit>
using TermWeight = std::conditional_t<kSplit, float, bfloat16>;

struct CombinationLayout {
  int64_t rows;     // of all groups
  int64_t columns;  // at hand, fetched next, and after them
  int64_t keys;     // with one stage they give way to the weights
  int64_t weights;  // of explicit terms, of all groups
  int64_t values;
  int64_t query;
  int64_t bytes;
};

template <bool kSplit, RowAccess kAccess>
CA_HOST_DEVICE CombinationLayout combination_layout(int groups, int query_tiles) {
  constexpr int kStages = kCombinationStages<kSplit, kAccess>;
  constexpr bool kShared = kStages == 1;
  const int64_t weights = groups * kTile * kTile * static_cast<int64_t>(sizeof(TermWeight<kSplit>));
  const int64_t keys = kStages * static_cast<int64_t>(sizeof(OperandTile<kSplit>));
  SharedLayout parts;
  CombinationLayout layout;
  layout.rows = parts.add<CombinationRows>(groups);
  layout.columns = parts.add<CombinationColumns>(kStages + 1);
  layout.keys = parts.add<unsigned char>(kShared && weights > keys ? weights : keys);
  layout.weights = kShared ? layout.keys : parts.add<unsigned char>(weights);
  layout.values = parts.add<OperandTile<kSplit>>(kStages);
  layout.query = parts.add<OperandTile<kSplit>>(groups * query_tiles);
  layout.bytes = parts.bytes();
  return layout;
}

/// Of small tiles: as many groups as there are tokens and shared memory for.
template <bool kSplit, RowAccess kAccess>
int small_combination_groups(int64_t tokens, int64_t shared_bytes) {
  const bool fits =
      combination_layout<kSplit, kAccess>(kMostCombinationGroups, 1).bytes <= shared_bytes;
  return fits && tokens > kTile ? kMostCombinationGroups : 1;
}

/// Blocks of tokens of a sequence, at least one.
CA_HOST_DEVICE inline int64_t combination_blocks(const CastParams& params) {
  const int64_t groups = params.combination_groups;
  return (token_tiles(params.tokens) + groups - 1) / groups;
}

}  // namespace cluster_attention::cuda
