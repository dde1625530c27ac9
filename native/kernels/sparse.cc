#include "native/kernels/sparse.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "native/core/shape.h"
#include "native/kernels/blocked_product.h"
#include "native/kernels/finite.h"
#include "native/kernels/prefetch.h"
#include "native/kernels/sparse_lists.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

namespace {

/// Scratch of one worker; `width` columns of the gathered rows are followed by zeros, so that a
/// product may read whole vectors.
struct Scratch {
  float* gathered = nullptr;  // (k,stride), the listed rows
  int64_t stride = 0;
  float* packed = nullptr;   // (depth,lanes), queries or weights in lanes
  float* product = nullptr;  // (rows,lanes)
  int32_t* slots = nullptr;  // (k), which slots of a list are filled, or which are not
};

/// One Scratch per worker.
class ScratchSet {
 public:
  Status allocate(int64_t workers, int64_t k, int64_t columns, int64_t packed, int64_t product,
                  Workspace& workspace) {
    stride_ = round_up(columns, simd().width);
    gathered_size_ = k * stride_;
    packed_size_ = packed;
    product_size_ = product;
    k_ = k;
    gathered_ = workspace.allocate_zeroed<float>(checked_size(workers, k, stride_));
    packed_ = workspace.allocate<float>(checked_size(workers, packed));
    product_ = workspace.allocate<float>(checked_size(workers, product));
    slots_ = workspace.allocate<int32_t>(checked_size(workers, k));
    const bool complete =
        gathered_ != nullptr && packed_ != nullptr && product_ != nullptr && slots_ != nullptr;
    return complete ? Status::success() : Status::out_of_memory();
  }
  Scratch of(int worker) const {
    return {gathered_ + worker * gathered_size_, stride_, packed_ + worker * packed_size_,
            product_ + worker * product_size_, slots_ + worker * k_};
  }

 private:
  int64_t stride_ = 0;
  int64_t gathered_size_ = 0;
  int64_t packed_size_ = 0;
  int64_t product_size_ = 0;
  int64_t k_ = 0;
  float* gathered_ = nullptr;
  float* packed_ = nullptr;
  float* product_ = nullptr;
  int32_t* slots_ = nullptr;
};

/// Copies the rows that a list names into consecutive rows; an empty slot becomes a row of zeros,
/// and is noted in scratch.slots. Returns how many slots are empty.
int64_t gather(const float* rows, int64_t row_stride, int64_t dim, const int32_t* list, int64_t k,
               int64_t keys, const Scratch& scratch) {
  int64_t empty = 0;
  for (int64_t t = 0; t < k; ++t) {
    prefetch_listed(rows, row_stride, dim, list, k, t);
    float* target = scratch.gathered + t * scratch.stride;
    if (list[t] >= 0 && list[t] < keys) {
      const float* row = rows + list[t] * row_stride;
      std::copy(row, row + dim, target);
    } else {
      std::fill(target, target + dim, 0.0f);
      scratch.slots[empty++] = static_cast<int32_t>(t);
    }
  }
  return empty;
}

// ---- sparse_dot ---------------------------------------------------------------------------------

/// Dot products of one query with the keys it lists, `none` in empty slots. False if one is not
/// finite.
bool dot_query(const SparseDotProblem& problem, const ListedSequence& sequence, int64_t l,
               const int32_t* list, float none) {
  const int64_t k = problem.sparse.k;
  const float* query = problem.query.row(sequence.batch, sequence.head, l);
  float* output = problem.output + (sequence.index * problem.shape.query_length + l) * k;
  const float* keys = problem.key.sequence(sequence.batch, sequence.head);
  const int64_t dim = problem.shape.head_dim;
  bool finite = true;
  for (int64_t t = 0; t < k; ++t) {
    prefetch_listed(keys, problem.key.row_stride, dim, list, k, t);
    output[t] = none;
    if (list[t] < 0 || list[t] >= sequence.keys) continue;
    output[t] = simd().dot(query, keys + list[t] * problem.key.row_stride, dim);
    finite = finite && std::isfinite(output[t]);
  }
  return finite;
}

/// Dot products of some queries of one cluster with the keys of its list.
bool dot_cluster(const SparseDotProblem& problem, const ListedSequence& sequence,
                 const ClusterMembers& members, float none, const Scratch& scratch) {
  // gathered: (k,D), queries in lanes: (D,lanes) -> product: (k,lanes)
  const int64_t k = problem.sparse.k;
  const int64_t dim = problem.shape.head_dim;
  const int64_t lanes = simd().lanes;
  float* output = problem.output + sequence.index * problem.shape.query_length * k;
  const float* keys = problem.key.sequence(sequence.batch, sequence.head);
  const float* queries = problem.query.sequence(sequence.batch, sequence.head);
  const int64_t empty =
      gather(keys, problem.key.row_stride, dim, members.list, k, sequence.keys, scratch);
  bool finite = true;
  for (int64_t first = 0; first < members.count && empty < k; first += lanes) {
    const int64_t columns = std::min(lanes, members.count - first);
    const int32_t* index = members.queries + first;
    simd().pack(queries, problem.query.row_stride, index, columns, dim, scratch.packed);
    simd().multiply(scratch.gathered, scratch.stride, 1, k, dim, scratch.packed, lanes, columns,
                    scratch.product, lanes, false);
    finite = simd().unpack(scratch.product, columns, k, nullptr, output, k, index) && finite;
  }
  for (int64_t i = 0; i < members.count && empty > 0; ++i) {
    float* row = output + members.queries[i] * k;
    for (int64_t t = 0; t < empty; ++t) row[scratch.slots[t]] = none;
  }
  return finite;
}

// ---- sparse_weighted_sum ------------------------------------------------------------------------

/// Weighted sum of the values that one query lists. False if it is not finite.
bool sum_query(const SparseWeightedSumProblem& problem, const ListedSequence& sequence, int64_t l,
               const int32_t* list, const Scratch& scratch) {
  // weights: (1,filled), gathered: (filled,E) -> product: (1,E)
  const int64_t k = problem.sparse.k;
  const int64_t dim = problem.shape.value_dim;
  const float* weights = problem.weights + (sequence.index * problem.shape.query_length + l) * k;
  const float* values = problem.value.sequence(sequence.batch, sequence.head);
  int64_t filled = 0;
  for (int64_t t = 0; t < k; ++t) {
    prefetch_listed(values, problem.value.row_stride, dim, list, k, t);
    if (list[t] < 0 || list[t] >= sequence.keys) continue;
    const float* value = values + list[t] * problem.value.row_stride;
    std::copy(value, value + dim, scratch.gathered + filled * scratch.stride);
    scratch.packed[filled++] = weights[t];
  }
  float* output = problem.output.row(sequence.batch, sequence.head, l);
  multiply_in_blocks(scratch.packed, 0, 1, 1, filled, scratch.gathered, scratch.stride, dim,
                     scratch.product, 0, false);
  std::copy(scratch.product, scratch.product + dim, output);
  return all_finite(output, dim);
}

/// Weighted sums of some queries of one cluster over the values of its list.
bool sum_cluster(const SparseWeightedSumProblem& problem, const ListedSequence& sequence,
                 const ClusterMembers& members, const Scratch& scratch) {
  // gathered: (k,E), weights in lanes: (k,lanes) -> product: (E,lanes)
  const int64_t k = problem.sparse.k;
  const int64_t dim = problem.shape.value_dim;
  const int64_t lanes = simd().lanes;
  const float* weights = problem.weights + sequence.index * problem.shape.query_length * k;
  const float* values = problem.value.sequence(sequence.batch, sequence.head);
  float* output = problem.output.sequence(sequence.batch, sequence.head);
  const int64_t empty =
      gather(values, problem.value.row_stride, dim, members.list, k, sequence.keys, scratch);
  bool finite = true;
  for (int64_t first = 0; first < members.count; first += lanes) {
    const int64_t columns = std::min(lanes, members.count - first);
    const int32_t* index = members.queries + first;
    simd().pack(weights, k, index, columns, k, scratch.packed);
    for (int64_t t = 0; t < empty; ++t) {  // whatever weight stands beside an empty slot
      float* row = scratch.packed + scratch.slots[t] * lanes;
      std::fill(row, row + lanes, 0.0f);
    }
    multiply_in_blocks(scratch.gathered, 1, scratch.stride, dim, k, scratch.packed, lanes, columns,
                       scratch.product, lanes, false);
    finite = simd().unpack(scratch.product, columns, dim, nullptr, output,
                           problem.output.row_stride, index) &&
             finite;
  }
  return finite;
}

}  // namespace

Status sparse_dot(const SparseDotProblem& problem, Context& context) {
  return sparse_products(problem, -std::numeric_limits<float>::infinity(), context);
}

Status sparse_products(const SparseDotProblem& problem, float none, Context& context) {
  const int64_t k = problem.sparse.k;
  const int64_t dim = problem.shape.head_dim;
  SparseLists lists(problem.shape, problem.sparse, problem.query_lengths, problem.key_lengths);
  CA_RETURN_IF_ERROR(lists.open(context));
  const auto no_product = [&](const ListedSequence& sequence, int64_t l) {
    float* row = problem.output + (sequence.index * problem.shape.query_length + l) * k;
    std::fill(row, row + k, none);
  };
  if (!lists.per_cluster()) {
    return lists.for_each_query(context, no_product,
                                [&](const ListedSequence& sequence, int64_t l, const int32_t* list,
                                    int) { return dot_query(problem, sequence, l, list, none); });
  }
  const int64_t lanes = simd().lanes;
  ScratchSet scratch;
  CA_RETURN_IF_ERROR(scratch.allocate(lists.workers(context), k, dim, dim * lanes, k * lanes,
                                      context.workspace()));
  return lists.for_each_cluster(
      context, no_product,
      [&](const ListedSequence& sequence, const ClusterMembers& members, int worker) {
        return dot_cluster(problem, sequence, members, none, scratch.of(worker));
      });
}

Status sparse_weighted_sum(const SparseWeightedSumProblem& problem, Context& context) {
  const int64_t k = problem.sparse.k;
  const int64_t dim = problem.shape.value_dim;
  SparseLists lists(problem.shape, problem.sparse, problem.query_lengths, problem.key_lengths);
  CA_RETURN_IF_ERROR(lists.open(context));
  const auto no_sum = [&](const ListedSequence& sequence, int64_t l) {
    float* row = problem.output.row(sequence.batch, sequence.head, l);
    std::fill(row, row + dim, 0.0f);
  };
  const int64_t lanes = simd().lanes;
  const int64_t packed = lists.per_cluster() ? k * lanes : k;
  const int64_t product = lists.per_cluster() ? dim * lanes : round_up(dim, simd().width);
  ScratchSet scratch;
  CA_RETURN_IF_ERROR(
      scratch.allocate(lists.workers(context), k, dim, packed, product, context.workspace()));
  if (!lists.per_cluster()) {
    return lists.for_each_query(
        context, no_sum,
        [&](const ListedSequence& sequence, int64_t l, const int32_t* list, int worker) {
          return sum_query(problem, sequence, l, list, scratch.of(worker));
        });
  }
  return lists.for_each_cluster(
      context, no_sum,
      [&](const ListedSequence& sequence, const ClusterMembers& members, int worker) {
        return sum_cluster(problem, sequence, members, scratch.of(worker));
      });
}

}  // namespace cluster_attention::kernels
