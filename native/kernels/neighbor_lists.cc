#include "native/kernels/neighbor_lists.h"

#include <algorithm>

#include "native/core/shape.h"
#include "native/core/tensor.h"
#include "native/kernels/first_index.h"

namespace cluster_attention::kernels {

namespace {

constexpr int64_t kCentroidsPerTask = 256;

/// Copies the distinct active inputs of one list. `mentioned` (N) holds for each input the last
/// list that mentioned it; `list` is the number of this one. Returns how many there are, or
/// -1 - slot at the first index that is no input.
int64_t clean_list(const int32_t* neighbors, const NeighborProblem& problem, int64_t batch,
                   int64_t list, const ActiveInputs& active, int64_t* mentioned, int32_t* inputs) {
  int64_t count = 0;
  for (int64_t slot = 0; slot < problem.slots; ++slot) {
    const int64_t input = neighbors[slot];
    if (input < -1 || input >= problem.length) return -1 - slot;
    if (input < 0 || mentioned[input] == list || !active.contains(batch, input)) continue;
    mentioned[input] = list;
    inputs[count++] = static_cast<int32_t>(input);
  }
  return count;
}

Status clean_lists(const NeighborProblem& problem, const ActiveInputs& active, Context& context,
                   int32_t* inputs, int32_t* counts) {
  const int64_t tasks = divide_up(problem.centroids, kCentroidsPerTask);
  const int64_t marks =
      checked_size(std::min<int64_t>(context.workers(), problem.batch * tasks), problem.length);
  int64_t* mentioned = context.workspace().allocate<int64_t>(marks);
  if (mentioned == nullptr) return Status::out_of_memory();
  std::fill(mentioned, mentioned + marks, -1);

  FirstIndex first_error;
  CA_RETURN_IF_ERROR(context.parallel(problem.batch * tasks, [&](int64_t task, int worker) {
    const int64_t batch = task / tasks;
    const int64_t real = real_length(problem.centroid_lengths, batch, problem.centroids);
    const int64_t begin = task % tasks * kCentroidsPerTask;
    const int64_t end = std::min(begin + kCentroidsPerTask, problem.centroids);
    for (int64_t j = begin; j < end; ++j) {
      if (context.cancelled()) return;
      const int64_t list = batch * problem.centroids + j;
      int64_t count = 0;
      if (j < real) {
        count = clean_list(problem.neighbors + list * problem.slots, problem, batch, list, active,
                           mentioned + worker * problem.length, inputs + list * problem.slots);
      }
      if (count < 0) return first_error.report(list * problem.slots - 1 - count);
      counts[list] = static_cast<int32_t>(count);
    }
  }));
  return first_error.status("neighbors");
}

/// Counting sort of the places of one batch entry by the input they hold.
void sort_places(const NeighborLists& lists, int64_t batch, const Context& context,
                 int64_t* offsets, int64_t* places) {
  std::fill(offsets, offsets + lists.length + 1, 0);
  for (int64_t j = 0; j < lists.centroids; ++j) {
    if (context.cancelled()) return;
    const int32_t* list = lists.list(batch, j);
    for (int64_t slot = 0; slot < lists.count(batch, j); ++slot) ++offsets[list[slot] + 1];
  }
  for (int64_t i = 0; i < lists.length; ++i) offsets[i + 1] += offsets[i];
  for (int64_t j = 0; j < lists.centroids; ++j) {
    if (context.cancelled()) return;
    const int32_t* list = lists.list(batch, j);
    for (int64_t slot = 0; slot < lists.count(batch, j); ++slot) {
      places[offsets[list[slot]]++] = j * lists.slots + slot;
    }
  }
  // Filling moved each offset to the start of the next input.
  for (int64_t i = lists.length; i > 0; --i) offsets[i] = offsets[i - 1];
  offsets[0] = 0;
}

}  // namespace

Status find_neighbor_lists(const NeighborProblem& problem, const ActiveInputs& active,
                           Context& context, NeighborLists& lists) {
  const int64_t pairs = problem.centroids * problem.slots;
  Workspace& workspace = context.workspace();
  int32_t* inputs = workspace.allocate<int32_t>(problem.batch * pairs);
  int32_t* counts = workspace.allocate<int32_t>(problem.batch * problem.centroids);
  int64_t* offsets = workspace.allocate<int64_t>(problem.batch * (problem.length + 1));
  int64_t* places = workspace.allocate<int64_t>(problem.batch * pairs);
  if (inputs == nullptr || counts == nullptr || offsets == nullptr || places == nullptr) {
    return Status::out_of_memory();
  }
  CA_RETURN_IF_ERROR(clean_lists(problem, active, context, inputs, counts));

  lists = {problem.centroids, problem.length, problem.slots, inputs, counts, offsets, places};
  return context.parallel(problem.batch, [&](int64_t batch, int) {
    sort_places(lists, batch, context, offsets + batch * (problem.length + 1),
                places + batch * pairs);
  });
}

}  // namespace cluster_attention::kernels
