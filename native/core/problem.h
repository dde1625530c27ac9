#pragma once

// The contract between the callers (binding, tests, benchmarks) and the kernels: plain data, the
// shape of every array in a comment beside it. Sizes are elements; `float` arrays are fp32.
// Optional arrays are null when absent. Callers have checked sizes, lengths and finite scalars;
// kernels check the contents of index arrays (labels, indices, neighbors) themselves.
//
// B batch, H heads, L query length, S key length, D head dim, E value dim, C clusters, k top-k.

#include <cstdint>

#include "native/core/tensor.h"

namespace cluster_attention {

struct AttentionShape {
  int64_t batch = 0;
  int64_t heads = 0;
  int64_t query_length = 0;
  int64_t key_length = 0;
  int64_t head_dim = 0;
  int64_t value_dim = 0;
};

/// The inputs that every attention kind shares.
struct AttentionInputs {
  AttentionShape shape;
  InputRows query;                         // (B,H,L,D)
  InputRows key;                           // (B,H,S,D)
  InputRows value;                         // (B,H,S,E)
  const int32_t* query_lengths = nullptr;  // (B), each in [0,L]
  const int32_t* key_lengths = nullptr;    // (B), each in [0,S]
  float scale = 1.0f;                      // tau, multiplies the logits
};

// ---- §1 exact attention ---------------------------------------------------------------------

struct AttentionProblem {
  AttentionInputs inputs;
  bool causal = false;         // query l sees keys s <= l + S - L (lengths: of the real rows)
  OutputRows output;           // (B,H,L,E)
  float* logsumexp = nullptr;  // (B,H,L), natural log, -Inf for a row without keys
};

// ---- §2 clustering --------------------------------------------------------------------------

struct HashProblem {
  int64_t rows = 0;
  int64_t dim = 0;
  int64_t bits = 0;               // 1..64
  const float* inputs = nullptr;  // (rows,dim)
  const float* planes = nullptr;  // (bits,dim+1)
  uint64_t* hashes = nullptr;     // (rows)
};

struct HammingKMeansProblem {
  int64_t batch = 0;
  int64_t length = 0;
  int64_t clusters = 0;
  int64_t bits = 64;
  int64_t max_iterations = 10;
  uint64_t seed = 0;
  const uint64_t* hashes = nullptr;   // (batch,length)
  const uint64_t* initial = nullptr;  // (batch,C), null: hashes at C distinct positions from seed
  const int32_t* lengths = nullptr;   // (batch)
  int32_t* labels = nullptr;          // (batch,length), -1 for padding
  int32_t* counts = nullptr;          // (batch,C)
  uint64_t* centroids = nullptr;      // (batch,C)
  int32_t* iterations = nullptr;      // (batch), updates of the centroids that were made
};

enum class Metric : int32_t { euclidean, cosine };
/// |sum| / n up to which the sum of n unit rows, in double, is 0 but for rounding.
constexpr double kZeroMean = 0x1p-50;
enum class KMeansStart : int32_t { plus_plus, sample, given };

struct KMeansProblem {
  int64_t batch = 0;
  int64_t heads = 1;  // sequences are (batch,heads); lengths are per batch
  int64_t length = 0;
  int64_t dim = 0;
  int64_t clusters = 0;
  int64_t max_iterations = 300;
  double tolerance = 0.0;  // relative to the mean variance of the columns, as in scikit-learn
  uint64_t seed = 0;
  Metric metric = Metric::euclidean;
  KMeansStart start = KMeansStart::plus_plus;
  InputRows inputs;                  // (batch,heads,length,dim)
  const float* initial = nullptr;    // (batch,heads,C,dim) for KMeansStart::given
  const int32_t* lengths = nullptr;  // (batch)
  float* centroids = nullptr;        // (batch,heads,C,dim)
  int32_t* labels = nullptr;         // (batch,heads,length), -1 for padding
  int32_t* counts = nullptr;         // (batch,heads,C)
  double* inertia = nullptr;         // (batch,heads), optional
  int32_t* iterations = nullptr;     // (batch,heads), optional
};

enum class Reduce : int32_t { mean, sum };

struct AggregateProblem {
  int64_t batch = 0;
  int64_t heads = 1;
  int64_t length = 0;
  int64_t dim = 0;
  int64_t clusters = 0;
  Reduce reduce = Reduce::mean;
  InputRows inputs;                 // (batch,heads,length,dim)
  const int32_t* labels = nullptr;  // (batch,heads,length), -1 takes part in nothing
  float* output = nullptr;          // (batch,heads,C,dim), 0 for an empty cluster
};

struct BroadcastProblem {
  int64_t batch = 0;
  int64_t length = 0;
  int64_t dim = 0;
  int64_t clusters = 0;
  const float* inputs = nullptr;    // (batch,C,dim)
  const int32_t* labels = nullptr;  // (batch,length), -1 gives a row of zeros
  float* output = nullptr;          // (batch,length,dim)
};

// ---- §3 sparse top-k products ---------------------------------------------------------------

struct TopKProblem {
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t k = 0;                     // <= columns
  const float* scores = nullptr;     // (rows,columns)
  const int32_t* lengths = nullptr;  // (rows), valid leading columns
  float* values = nullptr;           // (rows,k), -Inf where a row has fewer than k columns
  int32_t* indices = nullptr;        // (rows,k), -1 likewise
};

/// Where the keys of a query are listed: per query, or per cluster when labels are given.
struct SparseIndices {
  int64_t k = 0;
  int64_t clusters = 0;              // 0: per query
  const int32_t* indices = nullptr;  // (B,H,L,k), or (B,H,C,k) with labels; -1 is none
  const int32_t* labels = nullptr;   // (B,H,L) when per cluster; -1 is none
};

struct SparseDotProblem {
  AttentionShape shape;
  InputRows query;  // (B,H,L,D)
  InputRows key;    // (B,H,S,D)
  SparseIndices sparse;
  const int32_t* query_lengths = nullptr;  // (B)
  const int32_t* key_lengths = nullptr;    // (B); an index at or past it counts as -1
  float* output = nullptr;                 // (B,H,L,k), -Inf for none
};

struct SparseWeightedSumProblem {
  AttentionShape shape;
  const float* weights = nullptr;  // (B,H,L,k)
  InputRows value;                 // (B,H,S,E)
  SparseIndices sparse;
  const int32_t* query_lengths = nullptr;  // (B)
  const int32_t* key_lengths = nullptr;    // (B); an index at or past it counts as -1
  OutputRows output;                       // (B,H,L,E)
};

// ---- §4, §5 clustered and improved clustered attention -----------------------------------------

enum class Grouping : int32_t { hamming, euclidean, given };
enum class Threshold : int32_t { normal, data };

struct ClusteredAttentionProblem {
  AttentionInputs inputs;
  int64_t clusters = 0;
  int64_t top_k = 0;  // 0: clustered; 1..S: improved clustered
  Grouping grouping = Grouping::hamming;
  Threshold threshold = Threshold::normal;
  int64_t bits = 63;
  int64_t iterations = 10;
  uint64_t seed = 0;
  bool hash_bias = true;                  // of planes that are drawn
  const float* planes = nullptr;          // (bits,D+1), drawn from `seed` where they are not given
  const int32_t* given_labels = nullptr;  // (B,H,L) for Grouping::given
  OutputRows output;                      // (B,H,L,E)
  int32_t* labels = nullptr;              // (B,H,L), optional output
  int32_t* counts = nullptr;              // (B,H,C), optional output
  int32_t* indices = nullptr;             // (B,H,C,k), optional output, best first
  float* cluster_values = nullptr;        // (B,H,C,E), optional output: V^c; 0 if empty
  float* cluster_logsumexp = nullptr;     // (B,H,C), optional output; of tau q̄·k, -Inf if empty
};

// ---- §6 centroid attention -------------------------------------------------------------------

enum class Normalize : int32_t { centroids, inputs };
enum class Collect : int32_t { sum, mean };

struct CentroidAttentionProblem {
  AttentionInputs inputs;  // query: M centroids (L = M); key, value: N inputs (S = N)
  Normalize normalize = Normalize::centroids;
  Collect aggregate = Collect::sum;
  const float* weights = nullptr;      // (B,N), >= 0
  const int32_t* neighbors = nullptr;  // (B,M,K), -1 is none; a set: repeats count once
  int64_t neighbor_count = 0;          // K
  OutputRows output;                   // (B,H,M,E)
  int32_t* labels = nullptr;           // (B,H,N), optional; argmax_j a_ji, -1 for none
  float* masses = nullptr;             // (B,H,M), optional; sum_i a_ji
  double* objective = nullptr;         // (B), optional; sum of the log-sum-exps
  /// (B,H,M), optional, with Normalize::inputs: log sum_i w_i exp(tau q_j·k_i), -Inf without inputs
  float* logsumexp = nullptr;
};

enum class Similarity : int32_t { cosine, dot, euclidean };
enum class PoolStart : int32_t { stride, plus_plus, farthest, sample, given };

struct CentroidPoolProblem {
  int64_t batch = 0;
  int64_t length = 0;     // N
  int64_t dim = 0;        // d
  int64_t centroids = 0;  // M, clamped to the real length of a sequence; rows past it are 0
  int64_t iterations = 8;
  Similarity similarity = Similarity::cosine;
  float temperature = 0.1f;  // 0: hard assignment
  PoolStart start = PoolStart::stride;
  uint64_t seed = 0;
  const float* inputs = nullptr;     // (batch,N,d)
  const float* initial = nullptr;    // (batch,M,d) for PoolStart::given
  const int32_t* lengths = nullptr;  // (batch)
  float* output = nullptr;           // (batch,M,d)
  int32_t* labels = nullptr;         // (batch,N), optional, -1 for padding
  float* masses = nullptr;           // (batch,M), optional
};

struct CentroidEncodeProblem {
  int64_t batch = 0;
  int64_t length = 0;     // N
  int64_t dim = 0;        // d
  int64_t heads = 0;      // H
  int64_t head_dim = 0;   // D
  int64_t centroids = 0;  // M
  int64_t steps = 1;
  float step_size = 1.0f;
  float scale = 1.0f;
  Normalize normalize = Normalize::centroids;
  Collect aggregate = Collect::sum;
  PoolStart start = PoolStart::stride;  // stride, sample, farthest or given
  uint64_t seed = 0;
  const float* inputs = nullptr;         // (batch,N,d)
  const float* initial = nullptr;        // (batch,M,d) for PoolStart::given
  const float* query_weight = nullptr;   // (H*D,d)
  const float* key_weight = nullptr;     // (H*D,d)
  const float* value_weight = nullptr;   // (H*D,d)
  const float* output_weight = nullptr;  // (d,H*D)
  const float* weights = nullptr;        // (batch,N), >= 0
  const int32_t* neighbors = nullptr;    // (batch,M,K)
  int64_t neighbor_count = 0;            // K
  float* output = nullptr;               // (batch,M,d)
};

// ---- §7 CAST ------------------------------------------------------------------------------------

enum class Selection : int32_t { top_k, single_assignment, given };
enum class Activation : int32_t { softmax, laplace };

struct CastAttentionProblem {
  AttentionInputs inputs;  // self-attention: L = S = N; padding by key_lengths alone
  /// With Activation::laplace and no scale of the caller's, each product is divided by the number
  /// of its keys; `has_scale` says that inputs.scale was chosen by the caller.
  bool has_scale = true;
  int64_t clusters = 0;      // C
  int64_t cluster_size = 0;  // kappa; <= N unless Selection::given
  Selection selection = Selection::top_k;
  Activation activation = Activation::softmax;
  const float* surrogates = nullptr;       // (H,C,D)
  const float* gate = nullptr;             // (B,N), logits phi
  const int32_t* given_indices = nullptr;  // (B,C,kappa) for Selection::given, -1 is an empty slot
  OutputRows output;                       // (B,H,N,E)
  int32_t* indices = nullptr;              // (B,C,kappa), optional output
  double* coverage = nullptr;              // (B), optional; share of real tokens in some cluster
};

// ---- §8 what a model needs around them ----------------------------------------------------------

/// output = A B (+ output), for each entry of a batch.
struct MatmulProblem {
  int64_t batch = 1;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t depth = 0;
  bool transpose_a = false;
  bool transpose_b = false;
  bool accumulate = false;   // adds to what `output` holds
  const float* a = nullptr;  // (batch,rows,depth), transposed: (batch,depth,rows)
  const float* b = nullptr;  // (batch,depth,columns), transposed: (batch,columns,depth)
  float* output = nullptr;   // (batch,rows,columns)
};

}  // namespace cluster_attention
