#pragma once

// Sparse products: of each query with the k keys it lists, and of its k weights with the values it
// lists. With labels the lists belong to clusters.
//
// Method, per query: a warp per query. Dots: eight lanes per listed key; sums: a lane per column,
// the listed values added in the order of the list.
// Per cluster: the queries are sorted by cluster (counting_sort.cuh); a block takes 128 of them,
// and for the members of each cluster among these a product tile with the listed rows
// (fma_tile.cuh). Precision: fp32; all but the dots per query are fmaf chains in index order, as on
// the CPU.
//
// A slot of -1, and one at or past the sequence's key length, is none: -Inf, or nothing to the sum.
// So is every slot of a padded query and of one without a cluster. Any other slot outside 0..S-1 is
// a fault of "indices". Limits: any D, E and k.

#include "cuda/fma_tile.cuh"
#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/shared_memory.cuh"
#include "cuda/read_rows.cuh"
#include "cuda/session.h"
#include "cuda/sparse.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

constexpr int kSparseThreads = 256;

/// What both products share. `dim` is that of the listed rows.
struct SparseParams {
  AttentionShape shape;
  SparseIndices sparse;
  const int32_t* query_lengths;
  const int32_t* key_lengths;
  InputRows rows;  // (B,H,S,dim), keys or values
  int64_t dim;
  const int32_t* offsets;  // (B,H,C+1), per cluster: the sorted queries
  const int32_t* order;    // (B,H,L)
  int64_t tiles;           // per cluster: of kFmaRows queries per sequence
  Flags* flags;
};

struct SparseDotParams {
  SparseParams lists;
  InputRows query;
  SparseProductForm form;
  float* output;  // (B,H,L,k)

  /// False where a product is NaN or Inf.
  template <Read kRead>
  __device__ bool store(int64_t place, bool filled, float product) const {
    const float value = filled ? product : form.none;
    const bool finite = form.output_in_storage ? write<kRead>(output, place, value)
                                               : write<Read::float32>(output, place, value);
    return finite || !filled;
  }
};

struct SparseSumParams {
  SparseParams lists;
  const float* weights;  // (B,H,L,k)
  bool stored_weights;   // in the call's storage, else fp32
  bool round_weights;    // of fp32 ones: precision 'bfloat16'
  OutputRows output;     // (B,H,L,E)

  template <Read kRead>
  __device__ float weight(int64_t place) const {
    if (stored_weights) return read<kRead>(weights, place);
    return round_weights ? round_to_bfloat16(weights[place]) : weights[place];
  }
};

/// Of a problem of either product, with the rows that its lists name.
template <typename Problem>
SparseParams sparse_params(Session& session, const Problem& problem, const InputRows& rows,
                           int64_t dim) {
  SparseParams params{};
  params.shape = problem.shape;
  params.sparse = problem.sparse;
  params.query_lengths = problem.query_lengths;
  params.key_lengths = problem.key_lengths;
  params.rows = rows;
  params.dim = dim;
  params.flags = session.flags();
  return params;
}

/// Sorts the queries by cluster, into `scope`, where the lists belong to clusters.
Status open_lists(Session& session, DeviceWorkspace::Scope& scope, SparseParams& params);

/// One sequence as a warp or a block sees it.
struct SparseSequence {
  int64_t index;
  int64_t batch;
  int64_t head;
  int64_t queries;  // real
  int64_t keys;     // real
  int64_t base;     // element of the listed rows at which the sequence begins

  __device__ SparseSequence(const SparseParams& params, int64_t sequence) {
    index = sequence;
    batch = sequence / params.shape.heads;
    head = sequence % params.shape.heads;
    queries = real_length(params.query_lengths, batch, params.shape.query_length);
    keys = real_length(params.key_lengths, batch, params.shape.key_length);
    base = row_offset(params.rows, batch, head, 0);
  }
};

/// The row in slot `slot` of all lists, -1 for none; tells of one that is out of range.
__device__ inline int32_t listed_row(const SparseParams& params, const SparseSequence& sequence,
                                     int64_t slot) {
  const int32_t row = params.sparse.indices[slot];
  if (row < -1 || row >= params.shape.key_length) {
    mark_fault(params.flags, IndexFault::out_of_range, IndexArgument::indices, slot);
    return -1;
  }
  return row < sequence.keys ? row : -1;
}

// ---- per query ----------------------------------------------------------------------------------

template <Read kRead>
__global__ void sparse_dot_kernel(const SparseDotParams params) {
  // warp: query (D), list (k), keys (S,D) -> output (k)
  const SparseParams& lists = params.lists;
  const int64_t k = lists.sparse.k;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kSparseThreads / kWarp) + warp_index();
  if (row >= lists.shape.batch * lists.shape.heads * lists.shape.query_length) return;
  const SparseSequence sequence(lists, row / lists.shape.query_length);
  const int64_t l = row % lists.shape.query_length;
  const bool real = l < sequence.queries;
  const int64_t query = row_offset(params.query, sequence.batch, sequence.head, l);
  constexpr int kLanes = 8;  // per slot
  const int place = lane_index() / kLanes;
  const int lane = lane_index() % kLanes;
  bool finite = true;
  for (int64_t first = 0; first < k; first += kWarp / kLanes) {
    const int64_t t = first + place;
    const int32_t key = real && t < k ? listed_row(lists, sequence, row * k + t) : -1;
    float sum = 0.0f;
    if (key >= 0) {
      const int64_t offset = sequence.base + key * lists.rows.row_stride;
      for (int64_t d = lane; d < lists.dim; d += kLanes) {
        sum = fmaf(read<kRead>(params.query.data, query + d),
                   read<kRead>(lists.rows.data, offset + d), sum);
      }
    }
    sum = warp_sum(sum, kLanes);
    if (lane != 0 || t >= k) continue;
    finite = params.store<kRead>(row * k + t, key >= 0, sum) && finite;
  }
  if (!finite) mark_non_finite(lists.flags);
}

template <Read kRead>
__global__ void sparse_sum_kernel(const SparseSumParams params) {
  // warp: weights (k), list (k), values (S,E) -> output (E)
  const SparseParams& lists = params.lists;
  const int64_t k = lists.sparse.k;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kSparseThreads / kWarp) + warp_index();
  if (row >= lists.shape.batch * lists.shape.heads * lists.shape.query_length) return;
  const SparseSequence sequence(lists, row / lists.shape.query_length);
  const int64_t l = row % lists.shape.query_length;
  const int64_t slots = l < sequence.queries ? k : 0;
  const int64_t output = row_offset(params.output, sequence.batch, sequence.head, l);
  bool finite = true;
  for (int64_t column = 0; column < lists.dim; column += kWarp) {
    const int64_t e = column + lane_index();
    float sum = 0.0f;
    for (int64_t first = 0; first < slots; first += kWarp) {
      const int64_t mine = first + lane_index();
      const int32_t value = mine < slots ? listed_row(lists, sequence, row * k + mine) : -1;
      const float weight = value >= 0 ? params.weight<kRead>(row * k + mine) : 0.0f;
      const int count = static_cast<int>(slots - first < kWarp ? slots - first : kWarp);
      for (int i = 0; i < count; ++i) {
        const int64_t listed = shuffle(value, i);
        const float factor = shuffle(weight, i);
        if (listed < 0 || e >= lists.dim) continue;
        sum = fmaf(factor,
                   read<kRead>(lists.rows.data, sequence.base + listed * lists.rows.row_stride + e),
                   sum);
      }
    }
    if (e < lists.dim) finite = write<kRead>(params.output.data, output + e, sum) && finite;
  }
  if (!finite) mark_non_finite(lists.flags);
}

// ---- per cluster --------------------------------------------------------------------------------

/// Queries of one cluster that a block multiplies at a time.
struct SparseMembers {
  const int32_t* queries;  // (count), ascending
  int count;
  int64_t list;  // slot at which the cluster's list begins
};

/// Every slot of the lists of a sequence is checked once, the clusters without members included.
__device__ inline void check_lists(const SparseParams& params, const SparseSequence& sequence,
                                   int64_t tile) {
  const int64_t slots = params.sparse.clusters * params.sparse.k;
  for (int64_t i = tile * kFmaThreads + threadIdx.x; i < slots; i += params.tiles * kFmaThreads) {
    listed_row(params, sequence, sequence.index * slots + i);
  }
}

/// body(members) for the clusters among the queries [begin, begin + 128) in sorted order; all
/// threads of the block together.
template <typename Body>
__device__ void for_each_cluster(const SparseParams& params, const SparseSequence& sequence,
                                 int64_t begin, Body&& body) {
  const int64_t clusters = params.sparse.clusters;
  const int32_t* offsets = params.offsets + sequence.index * (clusters + 1);
  const int32_t* order = params.order + sequence.index * params.shape.query_length;
  const int64_t sorted = offsets[clusters];
  const int64_t end = begin + kFmaRows < sorted ? begin + kFmaRows : sorted;
  for (int64_t first = begin; first < end;) {
    // The last cluster that begins at or before `first`.
    int64_t low = 0;
    int64_t high = clusters;
    while (low + 1 < high) {
      const int64_t middle = (low + high) / 2;
      if (offsets[middle] <= first) {
        low = middle;
      } else {
        high = middle;
      }
    }
    const int64_t last = offsets[low + 1] < end ? offsets[low + 1] : end;
    body(SparseMembers{order + first, static_cast<int>(last - first),
                       (sequence.index * clusters + low) * params.sparse.k});
    first = last;
  }
}

/// body(l) for the queries [begin, begin + 128) that are padding or without a cluster: by one warp.
template <typename Body>
__device__ void for_each_idle_query(const SparseParams& params, const SparseSequence& sequence,
                                    int64_t begin, Body&& body) {
  const int64_t length = params.shape.query_length;
  const int32_t* labels = params.sparse.labels + sequence.index * length;
  for (int64_t l = begin + warp_index(); l < begin + kFmaRows && l < length;
       l += kFmaThreads / kWarp) {
    const int32_t label = l < sequence.queries ? labels[l] : -1;
    if (label < 0 || label >= params.sparse.clusters) body(l);
  }
}

template <Read kRead>
__global__ void __launch_bounds__(kFmaThreads)
    sparse_dot_cluster_kernel(const SparseDotParams params) {
  // block: queries (128,D), lists (C,k), keys (S,D) -> output (128,k)
  const SparseParams& lists = params.lists;
  FmaTileStorage& tile = *dynamic_shared<FmaTileStorage>();
  const SparseSequence sequence(lists, blockIdx.x / lists.tiles);
  const int64_t begin = blockIdx.x % lists.tiles * kFmaRows;
  const int64_t k = lists.sparse.k;
  const int64_t queries = row_offset(params.query, sequence.batch, sequence.head, 0);
  const int64_t output = sequence.index * lists.shape.query_length * k;
  check_lists(lists, sequence, blockIdx.x % lists.tiles);
  for_each_idle_query(lists, sequence, begin, [&](int64_t l) {
    for (int64_t t = lane_index(); t < k; t += kWarp) {
      params.store<kRead>(output + l * k + t, false, 0.0f);
    }
  });
  const int y = static_cast<int>(threadIdx.x) / 16;
  const int x = static_cast<int>(threadIdx.x) % 16;
  bool finite = true;
  for_each_cluster(lists, sequence, begin, [&](const SparseMembers& members) {
    for (int64_t first = 0; first < k; first += kFmaColumns) {
      const auto key_of = [&](int column) {
        return first + column < k ? listed_row(lists, sequence, members.list + first + column) : -1;
      };
      FmaSums sum;
      fma_product(
          tile, lists.dim,
          [&](int row, int64_t d) {
            if (row >= members.count) return 0.0f;
            return read<kRead>(params.query.data,
                               queries + members.queries[row] * params.query.row_stride + d);
          },
          [&](int column, int64_t d) {
            const int64_t key = key_of(column);
            if (key < 0) return 0.0f;
            return read<kRead>(lists.rows.data, sequence.base + key * lists.rows.row_stride + d);
          },
          sum);
      for (int j = 0; j < 4; ++j) {
        const int64_t t = first + x + 16 * j;
        if (t >= k) continue;
        const bool filled = key_of(x + 16 * j) >= 0;
        for (int i = 0; i < 8; ++i) {
          if (8 * y + i >= members.count) continue;
          const int64_t place = output + members.queries[8 * y + i] * k + t;
          finite = params.store<kRead>(place, filled, sum[i][j]) && finite;
        }
      }
    }
  });
  if (!finite) mark_non_finite(lists.flags);
}

template <Read kRead>
__global__ void __launch_bounds__(kFmaThreads)
    sparse_sum_cluster_kernel(const SparseSumParams params) {
  // block: weights (128,k), lists (C,k), values (S,E) -> output (128,E)
  const SparseParams& lists = params.lists;
  FmaTileStorage& tile = *dynamic_shared<FmaTileStorage>();
  const SparseSequence sequence(lists, blockIdx.x / lists.tiles);
  const int64_t begin = blockIdx.x % lists.tiles * kFmaRows;
  const int64_t k = lists.sparse.k;
  const int64_t output = row_offset(params.output, sequence.batch, sequence.head, 0);
  const int64_t weights = sequence.index * lists.shape.query_length * k;
  check_lists(lists, sequence, blockIdx.x % lists.tiles);
  for_each_idle_query(lists, sequence, begin, [&](int64_t l) {
    for (int64_t e = lane_index(); e < lists.dim; e += kWarp) {
      write<kRead>(params.output.data, output + l * params.output.row_stride + e, 0.0f);
    }
  });
  const int y = static_cast<int>(threadIdx.x) / 16;
  const int x = static_cast<int>(threadIdx.x) % 16;
  bool finite = true;
  for_each_cluster(lists, sequence, begin, [&](const SparseMembers& members) {
    for (int64_t first = 0; first < lists.dim; first += kFmaColumns) {
      FmaSums sum;
      fma_product<true>(
          tile, k,
          [&](int row, int64_t t) {
            // Whatever weight stands beside an empty slot is not read.
            if (row >= members.count || listed_row(lists, sequence, members.list + t) < 0) {
              return 0.0f;
            }
            return params.weight<kRead>(weights + members.queries[row] * k + t);
          },
          [&](int column, int64_t t) {
            const int64_t value = listed_row(lists, sequence, members.list + t);
            if (value < 0 || first + column >= lists.dim) return 0.0f;
            return read<kRead>(lists.rows.data,
                               sequence.base + value * lists.rows.row_stride + first + column);
          },
          sum);
      for (int j = 0; j < 4; ++j) {
        const int64_t e = first + x + 16 * j;
        if (e >= lists.dim) continue;
        for (int i = 0; i < 8; ++i) {
          if (8 * y + i >= members.count) continue;
          const int64_t place = output + members.queries[8 * y + i] * params.output.row_stride + e;
          finite = write<kRead>(params.output.data, place, sum[i][j]) && finite;
        }
      }
    }
  });
  if (!finite) mark_non_finite(lists.flags);
}

}  // namespace cluster_attention::cuda
