#pragma once

// Walks the lists of keys of a sparse product: checks them, sorts the queries by cluster where the
// lists belong to clusters, and shares the queries out over the threads.

#include <algorithm>
#include <cstdint>

#include "native/core/context.h"
#include "native/core/problem.h"
#include "native/core/shape.h"
#include "native/kernels/first_index.h"

namespace cluster_attention::kernels {

struct ListedSequence {
  int64_t index = 0;  // batch * heads + head
  int64_t batch = 0;
  int64_t head = 0;
  int64_t queries = 0;  // real
  int64_t keys = 0;     // real
};

/// Some queries of one cluster, ascending, and the list that they share.
struct ClusterMembers {
  const int32_t* queries = nullptr;  // (count)
  int64_t count = 0;
  const int32_t* list = nullptr;  // (k)
};

/// The slots that hold one key.
struct KeySlots {
  const int64_t* slots = nullptr;  // (count)
  int64_t count = 0;
};

class SparseLists {
 public:
  SparseLists(const AttentionShape& shape, const SparseIndices& sparse,
              const int32_t* query_lengths, const int32_t* key_lengths)
      : shape_(shape), sparse_(sparse), query_lengths_(query_lengths), key_lengths_(key_lengths) {}

  bool per_cluster() const { return sparse_.labels != nullptr; }
  /// Upper bound of the worker ids that the bodies below see, plus one.
  int64_t workers(const Context& context) const {
    return std::max<int64_t>(std::min<int64_t>(context.workers(), tasks()), 1);
  }

  /// Checks every list that may be read, and sorts by cluster.
  Status open(Context& context);

  /// body(sequence, l, list, worker) for every real query, none(sequence, l) for every padded one.
  /// A body that returns false has met something that is not finite.
  template <typename None, typename Body>
  Status for_each_query(Context& context, None&& none, Body&& body) const {
    const auto walk = [&](int64_t task, int worker) {
      const ListedSequence sequence = at(task / chunks());
      const int64_t begin = task % chunks() * queries_per_task();
      const int64_t end = std::min(begin + queries_per_task(), shape_.query_length);
      bool finite = true;
      for (int64_t l = begin; l < end; ++l) {
        if (l >= sequence.queries) {
          none(sequence, l);
        } else {
          finite =
              body(sequence, l, list(sequence.index * shape_.query_length + l), worker) && finite;
        }
      }
      if (!finite) context.mark_non_finite();
    };
    return context.parallel(tasks(), walk, operations());
  }

  /// body(sequence, members, worker) for queries of one cluster at a time, none(sequence, l) for
  /// every query that is padding or without a cluster.
  template <typename None, typename Body>
  Status for_each_cluster(Context& context, None&& none, Body&& body) const {
    const auto walk = [&](int64_t task, int worker) {
      const ListedSequence sequence = at(task / chunks());
      const int32_t* labels = sparse_.labels + sequence.index * shape_.query_length;
      const int64_t begin = task % chunks() * queries_per_task();
      for (int64_t l = begin; l < std::min(begin + queries_per_task(), shape_.query_length); ++l) {
        if (l >= sequence.queries || labels[l] < 0) none(sequence, l);
      }
      const int32_t* offsets = offsets_ + sequence.index * (sparse_.clusters + 1);
      const int64_t end = std::min<int64_t>(begin + queries_per_task(), offsets[sparse_.clusters]);
      bool finite = true;
      for (int64_t first = begin; first < end;) {
        // The cluster whose members stand at `first` of the sorted queries.
        const int64_t cluster =
            std::upper_bound(offsets, offsets + sparse_.clusters + 1, first) - offsets - 1;
        const int64_t last = std::min<int64_t>(end, offsets[cluster + 1]);
        const ClusterMembers members{order_ + sequence.index * shape_.query_length + first,
                                     last - first,
                                     list(sequence.index * sparse_.clusters + cluster)};
        finite = body(sequence, members, worker) && finite;
        first = last;
      }
      if (!finite) context.mark_non_finite();
    };
    return context.parallel(tasks(), walk, operations());
  }

  /// Sorts the slots of all lists by the key that they hold, for for_each_key().
  Status invert(Context& context);

  /// body(sequence, key, slots, worker) for every key: the slots (list * k + place) that hold it,
  /// ascending; none for a padded one.
  template <typename Body>
  Status for_each_key(Context& context, Body&& body) const {
    const int64_t key_chunks = divide_up(shape_.key_length, kKeysPerTask);
    const auto walk = [&](int64_t task, int worker) {
      const ListedSequence sequence = at(task / key_chunks);
      const int64_t* offsets = key_offsets_ + sequence.index * (shape_.key_length + 1);
      const int64_t* slots = slots_ + sequence.index * lists_per_sequence() * sparse_.k;
      const int64_t begin = task % key_chunks * kKeysPerTask;
      bool finite = true;
      for (int64_t key = begin; key < std::min(begin + kKeysPerTask, shape_.key_length); ++key) {
        const int64_t count = key < sequence.keys ? offsets[key + 1] - offsets[key] : 0;
        finite = body(sequence, key, KeySlots{slots + offsets[key], count}, worker) && finite;
      }
      if (!finite) context.mark_non_finite();
    };
    return context.parallel(shape_.batch * shape_.heads * key_chunks, walk, operations());
  }

  /// body(l, place) for every query l whose list holds the slot.
  template <typename Body>
  void for_each_query_of(const ListedSequence& sequence, int64_t slot, Body&& body) const {
    const int64_t list = slot / sparse_.k;
    const int64_t place = slot % sparse_.k;
    if (!per_cluster()) return body(list, place);
    const int32_t* offsets = offsets_ + sequence.index * (sparse_.clusters + 1);
    const int32_t* order = order_ + sequence.index * shape_.query_length;
    for (int64_t i = offsets[list]; i < offsets[list + 1]; ++i) body(order[i], place);
  }

 private:
  static constexpr int64_t kKeysPerTask = 64;

  /// So few that a task takes a fraction of a second, as an abort is heard between two; but of
  /// clusters so many that gathering their keys is worth it.
  int64_t queries_per_task() const {
    constexpr int64_t kMost = 512;
    constexpr int64_t kElementsPerTask = int64_t{1} << 27;
    const int64_t dim = std::max(shape_.head_dim, shape_.value_dim);
    return std::clamp<int64_t>(kElementsPerTask / std::max<int64_t>(sparse_.k * dim, 1), 1, kMost);
  }
  int64_t chunks() const { return divide_up(shape_.query_length, queries_per_task()); }
  int64_t tasks() const { return shape_.batch * shape_.heads * chunks(); }
  double operations() const {
    const int64_t queries = shape_.batch * shape_.heads * shape_.query_length;
    return 2.0 * static_cast<double>(queries * sparse_.k) *
           static_cast<double>(std::max(shape_.head_dim, shape_.value_dim));
  }
  int64_t lists_per_sequence() const {
    return per_cluster() ? sparse_.clusters : shape_.query_length;
  }
  const int32_t* list(int64_t row) const { return sparse_.indices + row * sparse_.k; }
  ListedSequence at(int64_t index) const;
  void check(int64_t first_list, int64_t lists, FirstIndex& bad_index) const;

  AttentionShape shape_;
  SparseIndices sparse_;
  const int32_t* query_lengths_;
  const int32_t* key_lengths_;
  int32_t* offsets_ = nullptr;      // (B,H,C+1)
  int32_t* order_ = nullptr;        // (B,H,L)
  int64_t* key_offsets_ = nullptr;  // (B,H,S+1)
  int64_t* slots_ = nullptr;        // (B,H,lists*k)
};

}  // namespace cluster_attention::kernels
