#pragma once

// What the backward of clustered attention computes per cluster, per query and per key beside its
// products of matrices. Sums have a fixed order; those per cluster are in double.

#include "cuda/attention_gradient.cuh"
#include "cuda/gradient_operands.cuh"
#include "cuda/gradient_sums.cuh"
#include "cuda/primitives/eight.cuh"
#include "cuda/primitives/flags.cuh"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

constexpr int kClusterThreads = 128;
constexpr int kClusterWarps = kClusterThreads / kWarp;

// ---- terms of the clusters --------------------------------------------------------------------

struct ClusterTermsParams {
  OperandPair means;       // mean queries and G: (B,H,C,D|E)
  OperandPair keys;        // keys and values
  const int32_t* offsets;  // (B,H,C+1)
  const int32_t* indices;  // (B,H,C,k): T_j
  const float* values;     // (B,H,C,E): V^c
  const float* logsumexp;  // (B,H,C)
  const int32_t* key_lengths;
  int64_t heads;
  int64_t key_length;
  int64_t clusters;
  int64_t top_k;  // 0: clustered
  int64_t head_dim;
  int64_t value_dim;
  float scale;
  float* maximum;        // (B,H,C): log-sum-exp in base 2, +Inf for an empty cluster
  float* offset;         // (B,H,C): G·V^c - sum_t A_t G·v_t, delta without the mass's part
  float* masses;         // (B,H,C): m̂
  int32_t* lists;        // (B,H,C,k): T_j up to its first -1, which fills the rest
  int32_t* list_counts;  // (B,H,C)
  float* shares;         // (B,H,C,k): A_jt
  float* products;       // (B,H,C,k): G_j·v_t
  Flags* flags;
};

/// Product of two rows of operands by a warp.
__device__ inline float operand_product(const Operand& a, int64_t a_row, const Operand& b,
                                        int64_t b_row, int64_t batch, int64_t head, int64_t dim) {
  float sum = 0.0f;
  for (int64_t d = lane_index(); d < dim; d += kWarp) {
    sum = fmaf(operand_element(a, batch, head, a_row, d), operand_element(b, batch, head, b_row, d),
               sum);
  }
  return warp_sum(sum);
}

/// Copies the list of a cluster with members; the number of its keys. Indices past the real keys
/// are a fault and end the list.
__device__ inline int32_t clean_list(const ClusterTermsParams& params, int64_t row, bool used,
                                     int64_t keys, int32_t* scratch) {
  const int32_t* source = params.indices + row * params.top_k;
  int32_t end = used ? static_cast<int32_t>(params.top_k) : 0;
  for (int64_t t = threadIdx.x; used && t < params.top_k; t += kClusterThreads) {
    if (source[t] == -1 && t < end) end = static_cast<int32_t>(t);
  }
  const auto least = [](int32_t a, int32_t b) { return a < b ? a : b; };
  end = block_reduce(end, least, scratch);
  int32_t valid = end;
  for (int64_t t = threadIdx.x; t < end; t += kClusterThreads) {
    if (source[t] >= 0 && source[t] < keys) continue;
    mark_fault(params.flags, IndexFault::out_of_range, IndexArgument::indices,
               row * params.top_k + t);
    if (t < valid) valid = static_cast<int32_t>(t);
  }
  end = block_reduce(valid, least, scratch);
  for (int64_t t = threadIdx.x; t < params.top_k; t += kClusterThreads) {
    params.lists[row * params.top_k + t] = t < end ? source[t] : -1;
  }
  if (threadIdx.x == 0) params.list_counts[row] = end;
  __syncthreads();
  return end;
}

template <typename = void>
__global__ void __launch_bounds__(kClusterThreads)
    cluster_terms_kernel(const ClusterTermsParams params) {
  // block: q̄ (D), G (E), key, value of T_j (k, D|E) -> terms of a cluster, shares, products (k)
  double* sums = dynamic_shared<double>();                             // (kWarp)
  int32_t* scratch = dynamic_shared<int32_t>(kWarp * sizeof(double));  // (kWarp)
  const int64_t row = blockIdx.x;
  const int64_t sequence = row / params.clusters;
  const int64_t cluster = row % params.clusters;
  const int64_t batch = sequence / params.heads;
  const int64_t head = sequence % params.heads;
  const int32_t* offsets = params.offsets + row + sequence;
  const bool used = offsets[1] > offsets[0];
  const float maximum = used ? maximum_of(params.logsumexp[row]) : HUGE_VALF;
  double value = 0.0;  // G·V^c
  for (int64_t e = threadIdx.x; used && e < params.value_dim; e += kClusterThreads) {
    value += static_cast<double>(operand_element(params.means.second, batch, head, cluster, e)) *
             static_cast<double>(params.values[row * params.value_dim + e]);
  }
  double mass = 0.0;
  if (params.top_k > 0) {
    const int64_t keys = real_length(params.key_lengths, batch, params.key_length);
    const int32_t count = clean_list(params, row, used, keys, scratch);
    for (int64_t t = warp_index(); t < count; t += kClusterWarps) {
      const int64_t slot = row * params.top_k + t;
      const int64_t key = params.lists[slot];
      const float logit = operand_product(params.means.first, cluster, params.keys.first, key,
                                          batch, head, params.head_dim);
      const float product = operand_product(params.means.second, cluster, params.keys.second, key,
                                            batch, head, params.value_dim);
      const float share = weight_of(fmaf(logit, params.scale * kLog2E, -maximum));
      if (lane_index() != 0) continue;
      params.shares[slot] = share;
      params.products[slot] = product;
      mass += static_cast<double>(share);
      value -= static_cast<double>(share) * static_cast<double>(product);
    }
    mass = block_sum(mass, sums);
  }
  value = block_sum(value, sums);
  if (threadIdx.x != 0) return;
  params.maximum[row] = maximum;
  params.offset[row] = static_cast<float>(value);
  if (params.top_k > 0) params.masses[row] = static_cast<float>(mass);
}

// ---- masses -----------------------------------------------------------------------------------

struct ClusterMassParams {
  Operand keys;
  const int32_t* offsets;      // (B,H,C+1)
  const int32_t* order;        // (B,H,L)
  const int32_t* lists;        // (B,H,C,k)
  const int32_t* list_counts;  // (B,H,C)
  const float* masses;         // (B,H,C)
  const float* query_offsets;  // (B,H,L): x̄
  const float* shares;         // (B,H,C,k)
  float* changes;              // (B,H,C,k): G_j·v_t, then A_jt (mu_j - G_j·v_t)
  float* offset;               // (B,H,C): gets delta
  float* correction;           // (B,H,C,D): sum_t changes_t k_t
  int64_t heads;
  int64_t query_length;
  int64_t clusters;
  int64_t top_k;
  int64_t head_dim;
  bool detach;
};

template <typename = void>
__global__ void __launch_bounds__(kClusterThreads)
    cluster_mass_kernel(const ClusterMassParams params) {
  // block: x̄ of the members, shares (k), keys of T_j (k,D) -> delta, changes (k), correction (D)
  double* sums = dynamic_shared<double>();  // (kWarp)
  const int64_t row = blockIdx.x;
  const int64_t sequence = row / params.clusters;
  const int32_t* offsets = params.offsets + row + sequence;
  const int32_t* order = params.order + sequence * params.query_length;
  const float* totals = params.query_offsets + sequence * params.query_length;
  double mean = 0.0;  // mu
  for (int64_t i = offsets[0] + threadIdx.x; !params.detach && i < offsets[1];
       i += kClusterThreads) {
    mean += static_cast<double>(totals[order[i]]);
  }
  mean = block_sum(mean, sums);
  const int32_t count = params.list_counts[row];
  for (int64_t t = threadIdx.x; t < count; t += kClusterThreads) {
    const int64_t slot = row * params.top_k + t;
    const double change = mean - static_cast<double>(params.changes[slot]);
    params.changes[slot] = static_cast<float>(static_cast<double>(params.shares[slot]) * change);
  }
  __syncthreads();
  for (int64_t d = threadIdx.x; d < params.head_dim; d += kClusterThreads) {
    float sum = 0.0f;
    for (int64_t t = 0; t < count; ++t) {
      const int64_t slot = row * params.top_k + t;
      const float key = operand_element(params.keys, sequence / params.heads,
                                        sequence % params.heads, params.lists[slot], d);
      sum = fmaf(params.changes[slot], key, sum);
    }
    params.correction[row * params.head_dim + d] = sum;
  }
  if (threadIdx.x != 0) return;
  params.offset[row] = static_cast<float>(static_cast<double>(params.offset[row]) +
                                          static_cast<double>(params.masses[row]) * mean);
}

// ---- queries ----------------------------------------------------------------------------------

constexpr int kQueryThreads = 256;

struct MeanGradientParams {
  const float* partial;     // (B,H,parts,C,D)
  const float* correction;  // (B,H,C,D), or null
  const int32_t* offsets;   // (B,H,C+1)
  const int32_t* labels;    // (B,H,L)
  const int32_t* key_lengths;
  int64_t heads;
  int64_t query_length;
  int64_t key_length;
  int64_t clusters;
  int64_t sequences;
  int64_t parts;
  int64_t stretch;  // keys of a part
  int64_t head_dim;
  float scale;
  int64_t join_blocks;   // those after them write the queries in no cluster, or none
  float* mean_gradient;  // (B,H,C,D): tau dq̄_j / n_j
  StoredOutput query;    // (B,H,L,D)
  bool vectors;          // rows begin at multiples of 16 bytes
  Flags* flags;
};

/// Eight columns of a query's gradient by a thread: 0 for one in no cluster, else with `spread`
/// that of its mean query.
__device__ inline void write_query(const MeanGradientParams& params, int64_t item, bool spread) {
  const int64_t chunks = divide_up(params.head_dim, 8);
  const int64_t query = item / chunks;
  if (query >= params.sequences * params.query_length) return;
  const int32_t label = params.labels[query];
  if (label >= 0 && !spread) return;
  const int64_t sequence = query / params.query_length;
  const int column = static_cast<int>(item % chunks) * 8;
  const int count = static_cast<int>(params.head_dim) - column;
  float values[8] = {};
  if (label >= 0) {
    const int64_t row = sequence * params.clusters + label;
    load_eight(params.mean_gradient + row * params.head_dim + column,
               params.vectors && params.head_dim % 4 == 0, count, values);
  }
  const int64_t place = params.query.offset(sequence / params.heads, sequence % params.heads,
                                            query % params.query_length);
  store_eight(params.query, place + column, params.vectors, count, values);
}

template <typename = void>
__global__ void __launch_bounds__(kQueryThreads)
    mean_gradient_kernel(const MeanGradientParams params) {
  // partial (parts), correction -> one element of mean_gradient
  if (blockIdx.x >= params.join_blocks) {
    write_query(params, (blockIdx.x - params.join_blocks) * kQueryThreads + threadIdx.x, false);
    return;
  }
  const int64_t elements = params.clusters * params.head_dim;  // of a sequence
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kQueryThreads + threadIdx.x;
  if (at >= params.sequences * elements) return;
  const int64_t sequence = at / elements;
  const int64_t cluster = at % elements / params.head_dim;
  const int32_t* offsets = params.offsets + sequence * (params.clusters + 1) + cluster;
  const int32_t members = offsets[1] - offsets[0];
  const int64_t keys = real_length(params.key_lengths, sequence / params.heads, params.key_length);
  const int64_t parts = divide_up(keys, params.stretch);
  const float* partial = params.partial + sequence * params.parts * elements + at % elements;
  float sum = params.correction != nullptr && members > 0 ? params.correction[at] : 0.0f;
  for (int64_t part = 0; members > 0 && part < parts; ++part) sum += partial[part * elements];
  const float value = members > 0 ? sum * params.scale / static_cast<float>(members) : 0.0f;
  if (!(fabsf(value) < HUGE_VALF)) mark_non_finite(params.flags);
  params.mean_gradient[at] = value;
}

template <typename = void>
__global__ void __launch_bounds__(kQueryThreads)
    spread_gradient_kernel(const MeanGradientParams params) {
  // mean_gradient (B,H,C,D), labels (B,H,L) -> query (B,H,L,D)
  write_query(params, static_cast<int64_t>(blockIdx.x) * kQueryThreads + threadIdx.x, true);
}

// ---- keys -------------------------------------------------------------------------------------

struct AddKeyRowsParams {
  struct Tensor {
    const float* rows;    // (B,H,count,k,dim), or null: not wanted
    StoredRows source;    // (B,H,S,dim): what has been summed so far
    StoredOutput target;  // the same; may be the source
    int64_t dim;
  };
  Tensor tensors[2];
  const int32_t* key_offsets;  // (B,H,S+1)
  const int32_t* slots;        // (B,H,C*k): cluster * k + t, by key, ascending for each
  int64_t heads;
  int64_t key_length;
  int64_t keys;         // of all sequences
  int64_t slot_stride;  // C*k
  int64_t first;        // slots [first, first + count) are added
  int64_t count;
  Flags* flags;
};

/// Place of the first of ascending slots that is not below `limit`.
__device__ inline int32_t lower_bound(const int32_t* slots, int32_t begin, int32_t end,
                                      int64_t limit) {
  while (begin < end) {
    const int32_t middle = begin + (end - begin) / 2;
    if (slots[middle] < limit) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

template <typename = void>
__global__ void __launch_bounds__(kQueryThreads)
    add_key_rows_kernel(const AddKeyRowsParams params) {
  // warp: rows of one key's slots (n, dim), source (dim) -> target (dim)
  const int64_t key = static_cast<int64_t>(blockIdx.x) * (kQueryThreads / kWarp) + warp_index();
  if (key >= params.keys) return;
  const int64_t sequence = key / params.key_length;
  const int64_t place = key % params.key_length;
  const int32_t* offsets = params.key_offsets + key + sequence;
  const int32_t* slots = params.slots + sequence * params.slot_stride;
  const int32_t begin = lower_bound(slots, offsets[0], offsets[1], params.first);
  const int32_t end = lower_bound(slots, begin, offsets[1], params.first + params.count);
  bool bad = false;
  for (const AddKeyRowsParams::Tensor& tensor : params.tensors) {
    if (tensor.rows == nullptr) continue;
    const int64_t source =
        tensor.source.offset(sequence / params.heads, sequence % params.heads, place);
    const int64_t target =
        tensor.target.offset(sequence / params.heads, sequence % params.heads, place);
    const float* rows = tensor.rows + (sequence * params.count - params.first) * tensor.dim;
    for (int64_t column = lane_index(); column < tensor.dim; column += kWarp) {
      float sum = tensor.source.load(source + column);
      for (int32_t i = begin; i < end; ++i) sum += rows[slots[i] * tensor.dim + column];
      bad = bad || !(fabsf(sum) < HUGE_VALF);
      tensor.target.store(target + column, sum);
    }
  }
  if (bad) mark_non_finite(params.flags);
}

}  // namespace cluster_attention::cuda
