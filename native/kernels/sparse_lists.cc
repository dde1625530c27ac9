#include "native/kernels/sparse_lists.h"

#include "native/kernels/counting_sort.h"

namespace cluster_attention::kernels {

ListedSequence SparseLists::at(int64_t index) const {
  const int64_t batch = index / shape_.heads;
  return {index, batch, index % shape_.heads,
          real_length(query_lengths_, batch, shape_.query_length),
          real_length(key_lengths_, batch, shape_.key_length)};
}

void SparseLists::check(int64_t first_list, int64_t lists, FirstIndex& bad_index) const {
  const int64_t first = first_list * sparse_.k;
  for (int64_t i = first; i < first + lists * sparse_.k; ++i) {
    if (sparse_.indices[i] < -1 || sparse_.indices[i] >= shape_.key_length) {
      bad_index.report(i);
      return;
    }
  }
}

Status SparseLists::open(Context& context) {
  const int64_t sequences = shape_.batch * shape_.heads;
  FirstIndex bad_index;
  FirstIndex bad_label;
  if (!per_cluster()) {
    const auto check_chunk = [&](int64_t task, int) {
      const ListedSequence sequence = at(task / chunks());
      const int64_t begin = task % chunks() * queries_per_task();
      const int64_t count = std::min(queries_per_task(), sequence.queries - begin);
      if (count > 0) check(sequence.index * shape_.query_length + begin, count, bad_index);
    };
    CA_RETURN_IF_ERROR(context.parallel(
        tasks(), check_chunk,
        static_cast<double>(sequences * shape_.query_length) * static_cast<double>(sparse_.k)));
    return bad_index.status("indices");
  }
  const int64_t clusters = sparse_.clusters;
  offsets_ = context.workspace().allocate<int32_t>(checked_size(sequences, clusters + 1));
  order_ = context.workspace().allocate<int32_t>(checked_size(sequences, shape_.query_length));
  if (offsets_ == nullptr || order_ == nullptr) return Status::out_of_memory();
  const auto sort = [&](int64_t index, int) {
    const int64_t first_query = index * shape_.query_length;
    const Status status =
        sort_by_label(sparse_.labels + first_query, at(index).queries, clusters, "labels",
                      first_query, offsets_ + index * (clusters + 1), order_ + first_query);
    if (!status.ok()) bad_label.report(status.index);
    check(index * clusters, clusters, bad_index);
  };
  CA_RETURN_IF_ERROR(
      context.parallel(sequences, sort,
                       static_cast<double>(sequences) *
                           static_cast<double>(16 * shape_.query_length + clusters * sparse_.k)));
  CA_RETURN_IF_ERROR(bad_label.status("labels"));
  return bad_index.status("indices");
}

Status SparseLists::invert(Context& context) {
  const int64_t sequences = shape_.batch * shape_.heads;
  const int64_t keys = shape_.key_length;
  const int64_t size = lists_per_sequence() * sparse_.k;
  key_offsets_ = context.workspace().allocate<int64_t>(checked_size(sequences, keys + 1));
  slots_ = context.workspace().allocate<int64_t>(checked_size(sequences, size));
  if (key_offsets_ == nullptr || slots_ == nullptr) return Status::out_of_memory();
  const auto sort = [&](int64_t index, int) {
    const int64_t lists = per_cluster() ? sparse_.clusters : at(index).queries;
    const Status status =
        sort_by_label(sparse_.indices + index * size, lists * sparse_.k, keys, "indices",
                      index * size, key_offsets_ + index * (keys + 1), slots_ + index * size);
    if (!status.ok()) context.fail(status);
  };
  return context.parallel(sequences, sort, 4.0 * static_cast<double>(sequences * (size + keys)));
}

}  // namespace cluster_attention::kernels
