#pragma once

// What the kernels of CAST (§7) share; what is computed is said in cast_attention.h.

#include "cuda/assignment.cuh"
#include "cuda/cast_tile.cuh"
#include "native/core/order.h"
#include "native/core/softmax_state.h"

namespace cluster_attention::cuda {

struct CastParams {
  int64_t batch = 0;
  int64_t heads = 0;
  int64_t tokens = 0;                // N
  int64_t dim = 0;                   // D
  int64_t value_dim = 0;             // E
  int64_t clusters = 0;              // C
  int64_t cluster_size = 0;          // kappa
  Tensor query;                      // (B,H,N,D)
  Tensor key;                        // (B,H,N,D)
  Tensor value;                      // (B,H,N,E)
  Tensor surrogates;                 // (H,C,D), the same for the batch
  const float* gate = nullptr;       // (B,N)
  bool round_gate = false;           // to bfloat16
  const int32_t* lengths = nullptr;  // (B)
  Selection selection = Selection::top_k;
  Activation activation = Activation::softmax;
  bool has_scale = true;
  float scale = 1.0f;
  const int32_t* given = nullptr;  // (B,C,kappa)

  // Functions of the gate logits phi.
  float* query_factor = nullptr;  // (B,N): softplus1(phi)
  float* key_factor = nullptr;    // (B,N): softplus1(-phi)

  // Steps 1 and 2: A_g, from cluster to cluster and from token to token.
  float* affinity = nullptr;      // first A_q, then A_g; (B,C,N), for single assignment (B,N,C)
  float* key_affinity = nullptr;  // A_k, likewise
  int64_t cluster_stride = 0;
  int64_t token_stride = 0;

  // Step 3.
  /// Candidates to sort, a power of two per list: (B,order_size), each token's best affinity, or
  /// for Top-K (B*C,order_size), where a cluster has too many members for shared memory.
  unsigned long long* order = nullptr;
  int64_t order_size = 0;
  int32_t* counts = nullptr;    // (B,C)
  int32_t* members = nullptr;   // (B,C,kappa)
  int32_t* slots = nullptr;     // (B,C,N): the place of a token in a cluster that holds it
  int32_t* own_slot = nullptr;  // (B,N), single assignment, in the place of slots
  /// (B,tiles of C,N): bit c of a tile is set where cluster 64 tile + c holds the token. Optional.
  unsigned long long* memberships = nullptr;

  // Steps 4 and 5.
  float* intra = nullptr;               // R_intra and R_inter (B*H,C,kappa+1,E), see cast_intra.cuh
  float* inter = nullptr;               // R_inter (B*H,C,E), likewise in the storage of operands
  int32_t* inter_not_finite = nullptr;  // (value blocks,B*H,C)
  /// (H,C,D) as the operands of step 6: rounded to bfloat16, or the surrogates themselves.
  Tensor operand_surrogates;
  float* rounded_surrogates = nullptr;  // what the operands are rounded to

  OutputRows output;  // (B,H,N,E)
  Storage storage = Storage::float32;
  int32_t* indices = nullptr;   // (B,C,kappa), optional
  double* coverage = nullptr;   // (B), optional
  int32_t* covered = nullptr;   // (B), tokens in some cluster
  uint32_t* tickets = nullptr;  // (B)
  int query_tiles = 1;          // of each group of cast_clusters
  int member_groups = 1;
  int combination_query_tiles = 1;  // of each group of cast_combination
  int combination_groups = 1;
  Flags* flags = nullptr;

  /// The place of a token in a cluster that holds it.
  __device__ int32_t member_slot(int64_t b, int64_t cluster, int64_t token) const {
    const bool single = slots == nullptr;  // then a token is in one cluster
    return single ? own_slot[b * tokens + token] : slots[(b * clusters + cluster) * tokens + token];
  }
  __device__ int64_t real_tokens(int64_t b) const {
    return lengths != nullptr ? lengths[b] : tokens;
  }
  /// What multiplies the logits of a product with `keys` keys.
  __device__ float product_scale(int64_t keys) const {
    if (activation == Activation::laplace && !has_scale) return 1.0f / static_cast<float>(keys);
    return scale;
  }
  __device__ unsigned long long* membership(int64_t b, int64_t tile, int64_t token) const {
    return memberships + (b * tiles_of(clusters) + tile) * tokens + token;
  }
  __device__ void clear_memberships(int64_t b, int64_t token) const {
    if (memberships == nullptr) return;
    for (int64_t tile = 0; tile < tiles_of(clusters); ++tile) *membership(b, tile, token) = 0;
  }
  /// What multiplies products first: logits are made of them up to the size of the scale.
  __device__ float logit_factor(float product_scale) const {
    if (activation == Activation::laplace) return product_scale;
    return product_scale < 0.0f ? -1.0f : 1.0f;
  }
  __device__ float gate_logit(int64_t b, int64_t token) const {
    const float logit = gate[b * tokens + token];
    return round_gate ? round_to_bfloat16(logit) : logit;
  }
  __device__ bool selects() const { return selection != Selection::given; }
};

/// Tiles of the queries of a cluster, the summary among them.
CA_HOST_DEVICE inline int64_t member_tiles(int64_t cluster_size) {
  return tiles_of(cluster_size + 1);
}

/// Where a block works, of those over all column blocks of all tiles of all clusters.
struct ClusterTile {
  int64_t column_block;
  int64_t tile;
  int64_t cluster;
  int64_t sequence;

  __device__ ClusterTile(int64_t block, int64_t column_blocks, int64_t tiles, int64_t clusters)
      : column_block(0), tile(0), cluster(0), sequence(0) {
    // All are at most the blocks of a grid, and 64 bits take far longer to divide.
    auto rest = static_cast<uint32_t>(block);
    column_block = next(rest, column_blocks);
    tile = next(rest, tiles);
    cluster = next(rest, clusters);
    sequence = rest;
  }

  /// The place among `count`, of which `rest` keeps the remaining ones.
  __device__ static int64_t next(uint32_t& rest, int64_t count) {
    const auto divisor = static_cast<uint32_t>(count);
    const uint32_t quotient = rest / divisor;
    const uint32_t place = rest - quotient * divisor;
    rest = quotient;
    return place;
  }
};

/// Blocks of tokens of a sequence, at least one.
CA_HOST_DEVICE inline int64_t token_tiles(int64_t tokens) {
  return tokens > 0 ? tiles_of(tokens) : 1;
}

constexpr float kLaplaceMean = 0.707107f;
constexpr float kLaplaceInverseWidth =
    static_cast<float>(1.0 / (0.282095 * 1.41421356237309504880));

/// The Laplace function 0.5 (1 + erf((x - mu) / (sigma sqrt 2))); small results are the tail of a
/// complementary error function, never 1 - erf.
__device__ inline float laplace(float x) {
  return 0.5f * erfcf((kLaplaceMean - x) * kLaplaceInverseWidth);
}

/// The same of a tile, one by one through local memory: a copy of the code for each would take more
/// time to fetch than all else in kernels that run it once.
__device__ inline void laplace_of_all(TileSums& scores) {
  float values[4 * kTileColumns];
#pragma unroll
  for (int i = 0; i < 4 * kTileColumns; ++i) values[i] = scores[i / 4][i % 4];
#pragma unroll 1
  for (float& value : values) value = laplace(value);
#pragma unroll
  for (int i = 0; i < 4 * kTileColumns; ++i) scores[i / 4][i % 4] = values[i];
}

/// Products, times `factor`, become logits, -Inf past `columns` where a softmax follows (its
/// exponent must be positive()); under Laplace, weights of the first `rows` rows. True if a logit
/// is not finite. What is past the real rows and columns was made of zeros and real rows.
__device__ inline bool finish_logits(TileSums& scores, bool softmax, float factor, int64_t rows,
                                     int columns) {
  const TilePlace place;
  NumberCheck numbers;
  if (factor != 1.0f) {
#pragma unroll
    for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[n][i] *= factor;
    }
  }
#pragma unroll
  for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) numbers.add(i, scores[n][i]);
  }
  if (!softmax) {
    laplace_of_all(scores);
#pragma unroll
    for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool counts = place.row(i / 2) < rows && place.column(n, i % 2) < columns;
        if (!counts) scores[n][i] = 0.0f;
      }
    }
  } else if (columns < kTile) {
#pragma unroll
    for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (place.column(n, i % 2) >= columns) scores[n][i] = -INFINITY;
      }
    }
  }
  return !numbers.passed();
}

struct Gates {
  float query_gate;  // sigma(phi), step 2
  float key_gate;    // 1 - sigma(phi)
};

/// Gates of one token, in double precision; writes its factors.
__device__ inline Gates open_gate(const CastParams& params, int64_t batch, int64_t token) {
  const int64_t place = batch * params.tokens + token;
  const float logit = params.gate_logit(batch, token);
  const double phi = logit;
  const double tail = exp(-fabs(phi));
  const double larger = 1.0 / (1.0 + tail);  // sigma(|phi|)
  const double smaller = tail / (1.0 + tail);
  const double softplus = log1p(tail) + 1.0;  // softplus1(-|phi|)
  const bool negative = phi < 0.0;
  params.query_factor[place] = static_cast<float>(softplus + (negative ? 0.0 : phi));
  params.key_factor[place] = static_cast<float>(softplus + (negative ? -phi : 0.0));
  if (!is_number(logit)) mark_non_finite(params.flags);
  return {static_cast<float>(negative ? smaller : larger),
          static_cast<float>(negative ? larger : smaller)};
}

}  // namespace cluster_attention::cuda
